"""What pruning a model of seven billion parameters takes: seconds and memory, stage by stage.

    python bench/scale.py [--device cuda:0[,cuda:1]] [--size 7b|tiny] [--pairs 525] [--out DIR]
    python bench/scale.py --device cuda:0,cuda:1 --pairs-only

A LLaMA of random weights from its configuration alone: what a stage costs does not depend on
them.  Text is random tokens.  The dense forward through transformers stands beside a measured
pair, in the same run, on the same tokens, and the result is written with the machine, the date
and the commit.  With --pairs-only the pairs are measured on the first device and then on all,
and nothing else is done than these need; the pairs are compared, and so are the seconds.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from lmscout.evaluation import devices_of
from lmscout.evaluation.cost import await_device
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import Calibrated, CalibrationConfig, calibrate
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.estimate import estimate
from lmscout.pruning.export import save
from lmscout.pruning.families import family_of
from lmscout.pruning.importance import importance
from lmscout.pruning.measuring import Fitted, measure_rounds, tail_on
from lmscout.pruning.plan import Rows, Shape, as_plans, dense_row
from lmscout.pruning.ranges import Ranges, Target, fit
from lmscout.pruning.search import allocate, search
from lmscout.pruning.space import fast_multiple, space_of
from lmscout.pruning.study import Pair, PairStudy
from provenance import commit

SIZES = {
    "7b": LlamaConfig(  # of LLaMA-7B
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
}
KEEP = 0.8
WINDOW = 128
REPEATS = 5


class Stages:
    """Seconds and peak memory of named stages, printed as they end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, work, repeats: int = 1):
        """Do work, and note the median of its seconds and its peak."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(repeats):
            await_device(self.device)
            started = time.perf_counter()
            result = work()
            await_device(self.device)
            seconds.append(time.perf_counter() - started)
        row = {"seconds": statistics.median(seconds)}
        if cuda:
            row["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.rows[name] = row
        peak = "".join(f", peak {row['peak_gib']:.1f} GiB" for _ in range(cuda))
        print(f"{name}: {row['seconds']:.3f} s{peak}", flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--pairs", type=int, default=525)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--tail", type=float, help="of steps; as `lmscout prune` if not given")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--pairs-only", action="store_true")
    parser.add_argument("--compensate", action="store_true")
    arguments = parser.parse_args()
    first, *others = devices_of(arguments.device)
    stages = Stages(first)
    started = time.perf_counter()
    torch.manual_seed(0)
    model = stages("model", lambda: random_model(SIZES[arguments.size], first))
    windows = torch.randint(model.config.vocab_size, (4 * arguments.tokens // WINDOW, WINDOW))
    settings = CalibrationConfig(
        compensate=arguments.compensate,
        measured_tokens=arguments.tokens,
        final_tokens=arguments.tokens,
    )
    tail = tail_on(first) if arguments.tail is None else arguments.tail
    if arguments.pairs_only:
        calibrated = stages("calibration", lambda: calibrate(model, windows, settings))
        figures = one_and_all(stages, calibrated, others, arguments.pairs, tail)
        write(arguments, f"pairs-{arguments.size}-{1 + len(others)}", stages, figures)
        return
    family = family_of(model.config)
    stages(
        "importance, 4,096 tokens",
        lambda: importance("taylor", model, family, windows=windows[:32]),
        repeats=2,
    )
    predicted = estimate(
        model.config,
        PruneConfig(pairs=arguments.pairs, calibration=settings),
        dtype=model.dtype,
        device=first,
    )
    print(f"predicted: {json.dumps(predicted.to_json())}", flush=True)
    calibrated = stages("calibration, order", lambda: calibrate(model, windows, settings))
    target = Target(keep_budget(calibrated.shape, KEEP), Ranges.above(calibrated.shape))
    space = space_of("any", calibrated.shape, model, fast_multiple(model))
    plan = stages("allocation", lambda: allocate(space, target, calibrated.mass))
    stages("refit", lambda: calibrated.subnetwork(plan, "refit"))
    calibrated.latest_refit.clear()
    if not arguments.pairs:
        write(arguments, f"closed-form-{arguments.size}", stages, {})
        return
    ratio = a_pair_beside_the_dense_forward(stages, calibrated)
    with tempfile.TemporaryDirectory() as folder:
        figures = a_search(
            stages, calibrated, others, arguments.pairs, tail, Path(folder), arguments.no_save
        )
    whole = time.perf_counter() - started
    print(f"the whole flow: {whole:.0f} s")
    figures = {
        "estimated": predicted.to_json(),
        "pair_by_kept_share_and_dense": ratio,
        **figures,
        "whole_flow_seconds": whole,
    }
    write(arguments, f"scale-{arguments.size}-{1 + len(others)}", stages, figures)


def write(arguments: argparse.Namespace, name: str, stages: Stages, figures: dict) -> None:
    """A record of it, where one is asked for."""
    if not arguments.out:
        return
    record = {
        "machine": machine(stages.device),
        "devices": len(devices_of(arguments.device)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "size": arguments.size,
        "tokens": arguments.tokens,
        "stages": stages.rows,
        **figures,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def a_pair_beside_the_dense_forward(stages: Stages, calibrated: Calibrated) -> float:
    """Plans that share no beginning; seconds over kept share times those of the dense model."""
    model, shape, multiple = calibrated.model, calibrated.shape, fast_multiple(calibrated.model)
    evaluator = stages("evaluator", lambda: calibrated.evaluator(calibrated.measured))
    plans = iter(as_plans(random_rows(shape, REPEATS + 1, multiple)))
    list(evaluator.measure([next(plans)]))
    stages("dense, transformers", lambda: forward(model, calibrated.measured), REPEATS)
    stages("a pair", lambda: list(evaluator.measure([next(plans)])), REPEATS)
    ratio = stages.rows["a pair"]["seconds"] / stages.rows["dense, transformers"]["seconds"] / KEEP
    print(f"a pair is {ratio:.3f} x kept share x the dense forward", flush=True)
    return ratio


def one_and_all(
    stages: Stages, calibrated: Calibrated, others: list[torch.device], wanted: int, tail: float
) -> dict[str, object]:
    """Pairs on the first device, and on all; whether they are the same, and how long they took."""
    figures: dict[str, object] = {}
    found: list[dict] = []
    whole: list[float] = []
    every = (calibrated, stages("copies", lambda: calibrated.copied_to(others)))
    for ready in every[: 1 + bool(others)]:
        count = 1 + len(ready.copies)
        with tempfile.TemporaryDirectory() as folder:
            pairs, _, row = some_pairs(stages, ready, wanted, tail, Path(folder))
        figures[f"on_{count}"] = row
        found.append({pair.plan: pair.value for pair in pairs})
        whole.append(stages.rows[stage_of(wanted, count)]["seconds"])
        gc.collect()  # what the devices hold of the evaluator
    if others:
        one, all_ = found
        common = one.keys() & all_.keys()
        figures["same_plans"] = len(common)
        figures["largest_difference"] = max(abs(one[plan] - all_[plan]) for plan in common)
        figures["seconds_by_those_of_one"] = whole[1] / whole[0]
        print(
            f"{len(common)} of {wanted} plans are the same on {1 + len(others)}, they differ by "
            f"{figures['largest_difference']:.1e} at most; {whole[1] / whole[0]:.3f} of its time"
        )
    return figures


def stage_of(wanted: int, count: int) -> str:
    """How the measuring of pairs is called."""
    return f"{wanted} pairs" if count == 1 else f"{wanted} pairs on {count} devices"


def some_pairs(
    stages: Stages, ready: Calibrated, wanted: int, tail: float, folder: Path
) -> tuple[tuple[Pair, ...], Fitted, dict[str, float]]:
    """Pairs measured as `lmscout prune` does it, what was learnt, and where time went."""
    shape, multiple = ready.shape, fast_multiple(ready.model)
    space, budget = space_of("any", shape, ready.model, multiple), keep_budget(shape, KEEP)
    evaluator = ready.evaluator(ready.measured)
    targets = [Target(budget, Ranges.above(shape))]
    name = stage_of(wanted, 1 + len(ready.copies))
    with PairStudy(folder / "study", shape, {"bench": "scale"}) as pair_study:
        fitted = stages(
            name,
            lambda: measure_rounds(
                pair_study,
                evaluator,
                ready.mass,
                space,
                targets,
                pairs=wanted,
                seed=0,
                tail=tail,
            ),
        )
        pairs = pair_study.pairs()
    figures = where_time_went(pairs, stages.rows[name]["seconds"], 1 + len(ready.copies), tail)
    print(json.dumps(figures), flush=True)
    return pairs, fitted, figures


def where_time_went(
    pairs: Sequence[Pair], seconds: float, devices: int, tail: float
) -> dict[str, float]:
    """Seconds in which a device measured, on average, and in which it waited."""
    by_itself = devices if tail else 1  # else a pair's seconds are those since the pair before
    measuring = sum(pair.seconds for pair in pairs) / by_itself
    return {
        "pairs_measuring_seconds": measuring,
        "pairs_waiting_seconds": seconds - measuring,
        "pairs_dropped_early": sum(pair.partial for pair in pairs),
        "chunks": sum(len(pair.trajectory) for pair in pairs),
        "best_loss_increase": min(pair.value for pair in pairs if not pair.partial),
    }


def a_search(
    stages: Stages,
    calibrated: Calibrated,
    others: list[torch.device],
    wanted: int,
    tail: float,
    folder: Path,
    no_save: bool,
) -> dict[str, float]:
    """Pairs, their predictor, a search by it, and the model found, saved."""
    shape, multiple = calibrated.shape, fast_multiple(calibrated.model)
    space, budget = space_of("any", shape, calibrated.model, multiple), keep_budget(shape, KEEP)
    ready = stages("copies", lambda: calibrated.copied_to(others))
    pairs, fitted, figures = some_pairs(stages, ready, wanted, tail, folder)
    many = random_rows(shape, 10_000, multiple)
    stages("10,000 predicted plans", lambda: fitted.predictor.cautious(many))
    initial = [pair.plan for pair in space.best_pairs(pairs, budget, 8)]
    found = stages(
        "search",
        lambda: search(
            space, fitted.predictor.cautious, fitted.targets[0], seed=0, count=4, initial=initial
        ),
    )
    if not no_save:
        model, plan, out = calibrated.model, found[0].plan, folder / "model"
        stages(
            "saved model",
            lambda: save(model, plan, out, shape="any"),
        )
    return figures


def random_rows(shape: Shape, count: int, multiple: int) -> Rows:
    """Plans of the size, their widths multiples of `multiple`."""
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0.5, 1, (count, 2 * shape.depth)) * dense_row(shape)
    rows = fit(wanted, Ranges.above(shape), keep_budget(shape, KEEP))
    rows[:, shape.depth :] -= rows[:, shape.depth :] % multiple
    return rows


def random_model(config: LlamaConfig, device: torch.device) -> LlamaForCausalLM:
    """A model of random weights, in 16 bits on an accelerator, made where it is to be."""
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@torch.inference_mode()
def forward(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """The loss of a model on windows, as plain transformers has it, a chunk at a time."""
    total = 0.0
    for part in windows.to(model.device).split(8192 // WINDOW):
        logits = model(part, use_cache=False).logits[:, :-1].flatten(0, 1)
        total += torch.nn.functional.cross_entropy(
            logits.float(), part[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / windows[:, 1:].numel()


def machine(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
