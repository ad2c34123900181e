"""What measuring a plan costs, beside the dense forward and beside building the smaller model.

    python bench/subnetwork.py [--model FOLDER --text FILE] [--pairs N]

Without a model, one of random weights in the sizes of a LLaMA of 16 million parameters, and
random tokens: what a plan costs does not depend on them.  What a pair costs in a whole run
does, through the plans that are dropped early, so that part needs a trained model and a text.
Every ratio is of the fastest of runs that alternate: what others do on the machine only adds.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmscout.evaluation import load_model, parameter_count, read_text, tokenize_windows
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.plan import Plan, as_plans, dense_row
from lmscout.pruning.ranges import Ranges, Target, fit
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

ROUNDS = 9
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5)
CONFIG = {
    "vocab_size": 4096,
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--whole-run-alone", action="store_true")
    arguments = parser.parse_args()
    if arguments.model:
        loaded = load_model(arguments.model)
        model = loaded.model
        windows = tokenize_windows(loaded.tokenizer, read_text(arguments.text), 128)
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
        windows = torch.randint(CONFIG["vocab_size"], (600, 128))
    calibrated = calibrate(model, windows, CalibrationConfig())
    if not arguments.whole_run_alone:
        one_plan(calibrated)
    if arguments.model:
        a_whole_run(calibrated, arguments.pairs)
    else:
        print("a whole run: not measured without --model and --text")


@torch.inference_mode()
def dense_forward(calibrated) -> None:
    for windows in calibrated.measured.chunk(4):  # as the evaluator takes them
        calibrated.model(windows, use_cache=False)


def seconds_of(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_plan(calibrated) -> None:
    """Plans that share no beginning, compensated, all tokens; against dense and rebuilt."""
    units, shape = dense_row(calibrated.shape), calibrated.shape
    evaluator = calibrated.evaluator(calibrated.measured)
    generator = torch.Generator().manual_seed(0)
    print(f"one plan on {calibrated.measured.numel():,} tokens; {torch.get_num_threads()} threads")
    for keep in KEEPS:
        wanted = torch.rand((ROUNDS, len(units)), generator=generator).numpy()
        wanted = (0.3 + 0.7 * wanted) * units
        plans = as_plans(fit(wanted, Ranges.above(shape), keep_budget(shape, keep)))
        dense, viewed, rebuilt = [], [], []
        for plan in plans:
            dense.append(seconds_of(lambda: dense_forward(calibrated)))
            viewed.append(seconds_of(lambda plan=plan: list(evaluator.measure([plan]))))
            rebuilt.append(seconds_of(lambda plan=plan: build_and_forward(calibrated, plan)))
        whole, view, build = map(min, (dense, viewed, rebuilt))
        every = parameter_count(calibrated.model)
        of_all = 1 - (1 - keep) * shape.parameters / every  # the head is not cut
        print(
            f"keep {keep}: dense {whole:.2f} s, plan {view:.2f} s = {view / whole / keep:.2f} x "
            f"kept share x dense, {view / whole / of_all:.2f} x by the share of all parameters; "
            f"rebuilt {build:.2f} s = {build / view:.2f} x plan"
        )


@torch.inference_mode()
def build_and_forward(calibrated, plan: Plan) -> None:
    smaller = cut(calibrated.model, plan, calibrated.compensated(plan))
    for windows in calibrated.measured.chunk(4):
        logits = smaller(windows, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def a_whole_run(calibrated, pairs: int) -> None:
    """Seconds a pair with shared beginnings and early dropping, against the dense forward."""
    dense = [seconds_of(lambda: dense_forward(calibrated)) for _ in range(ROUNDS)]
    shape = calibrated.shape
    with (
        tempfile.TemporaryDirectory() as folder,
        PairStudy(folder, shape, calibrated.study_settings) as pair_study,
    ):
        started = time.perf_counter()
        fitted = measure_rounds(
            pair_study,
            calibrated.evaluator(calibrated.measured),
            calibrated.mass,
            PlanSpace(shape),
            [Target(keep_budget(shape, 0.8), Ranges.above(shape))],
            pairs=pairs,
            seed=0,
        )
        everything = time.perf_counter() - started
        found = pair_study.pairs()
    dense += [seconds_of(lambda: dense_forward(calibrated)) for _ in range(ROUNDS)]
    whole = min(dense)
    measuring = sum(pair.seconds for pair in found)
    rounds = {}
    for pair in found:
        rounds.setdefault(pair.round, []).append(pair)
    for number, some in rounds.items():
        print(
            f"round {number}: {sum(pair.seconds for pair in some) / len(some) / whole:.2f} x dense "
            f"a pair, {shared_share([pair.plan for pair in some]):.0%} of steps shared, "
            f"{sum(pair.partial for pair in some)} of {len(some)} dropped early"
        )
    print(
        f"{len(found)} pairs at keep 0.8: {measuring / len(found) / whole:.2f} x dense a pair; "
        f"learning and searching {everything - measuring:.0f} s of {everything:.0f} s; "
        f"tau {fitted.predictor.report.chosen.kendall:.3f}"
    )


def shared_share(plans: list[Plan]) -> float:
    """Mean share of a plan's steps that the plan before it has in common, 0 to 1."""
    steps = np.array([plan.steps for plan in plans])
    alike = np.minimum.accumulate(steps[1:] == steps[:-1], axis=1).sum()
    return float(alike / steps.size)


if __name__ == "__main__":
    main()
