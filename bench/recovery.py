"""What recovery gives back of the perplexity that pruning costs.

    python bench/recovery.py --model FOLDER --train FILE --valid FILE --test FILE
        [--device cuda] [--plan FILE] [--json FILE]

(a) A plan at keep 0.8, found by prune before recovery (--plan: a JSON that prune wrote, or the
object of its plan; searched here otherwise), recovered by lora and by distill at some learning
rates.  The rate is chosen on the valid text, the chosen one's perplexity is on the test text.
(b) Elastic recovery, search on the recovered weights, and the found plan recovered; beside ten
plans drawn at that size and recovered one by one.  Every training has the same number of tokens.

Models train on --device; what is measured of pairs is measured on the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.evaluation import (
    LoadedModel,
    Text,
    load_model,
    perplexity,
    read_text,
    tokenize_windows,
)
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import Calibrated, CalibrationConfig, calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.finalists import STUDY, Contest
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.recovery.elastic import drawn_plans, recover_all_plans, train_all_plans
from lmscout.pruning.recovery.run import recover
from lmscout.pruning.recovery.training import DISTILL, LORA, RecoverySettings, Trained
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

KEEP = 0.8
RANDOM_PLANS = 10
DRAW = 7  # of the plans drawn at random, apart from those that elastic recovery draws

Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plan")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--drawn-steps", type=int, help="of each drawn plan; --steps if not given")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rates", default="1e-3,3e-3")
    parser.add_argument("--elastic-rate", type=float, default=1e-3)
    parser.add_argument("--methods", default=f"{LORA},{DISTILL}")
    parser.add_argument("--only", choices=["a", "b"])
    parser.add_argument("--limit", type=int, help="tokens of the valid and test texts")
    parser.add_argument("--json")
    bench = Bench(parser.parse_args())
    if bench.given.only != "b":
        bench.winner()
    if bench.given.only != "a":
        bench.all_plans()
    bench.end()


class Bench:
    """The model, the texts, and the rows so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.started = time.perf_counter()
        self.loaded: LoadedModel = load_model(given.model)
        self.texts = {name: read_text(getattr(given, name)) for name in ("train", "valid", "test")}
        self.windows: Tensor = tokenize_windows(self.loaded.tokenizer, self.texts["train"], 128)
        self.settings = RecoverySettings(
            steps=given.steps, batch_tokens=given.batch_tokens, rank=given.rank
        )
        self.calibrated = calibrate(self.loaded.model, self.windows, CalibrationConfig())
        self.rows: list[Row] = []
        dense = self.loaded.model.to(given.device)
        self.tell("dense", dense)
        self.loaded.model.to("cpu")

    def winner(self) -> None:
        """Part (a)."""
        plan = self.found(self.calibrated)
        self.tell("found", self.cut(self.calibrated, plan).to(self.given.device))
        for method in self.given.methods.split(","):
            for rate in map(float, self.given.rates.split(",")):
                settings = replace(self.settings, method=method, learning_rate=rate)
                model, done = self.recovered(self.calibrated, plan, settings)
                self.tell(f"found, {method}, rate {rate:g}", model, done)

    def all_plans(self) -> None:
        """Part (b)."""
        settings = replace(self.settings, learning_rate=float(self.given.rates.split(",")[0]))
        space, budget = PlanSpace(self.calibrated.shape), keep_budget(self.calibrated.shape, KEEP)
        plans = drawn_plans(self.calibrated, space, [budget], RANDOM_PLANS, DRAW)
        drawn = replace(settings, steps=self.given.drawn_steps or self.given.steps)
        for number, plan in enumerate(plans):
            model, done = self.recovered(self.calibrated, plan, drawn)
            self.tell(f"drawn {number}, recovered", model, done)
        sizes = {KEEP: budget}
        elastic_settings = replace(settings, learning_rate=self.given.elastic_rate)
        with tempfile.TemporaryDirectory() as folder:
            asked = (self.windows, space, sizes, elastic_settings, Path(folder) / "x")
            self.loaded.model.to(self.given.device)
            train_all_plans(self.calibrated, *asked)
            self.loaded.model.to("cpu")  # where the ended training is merged and measured
            calibrated, elastic = recover_all_plans(self.calibrated, *asked)
        for change in elastic.orders:
            print(change.words, flush=True)
            self.rows.append({"name": "order", **asdict(change)})
        plan = self.found(calibrated, fresh=True)
        cut_plan = self.cut(calibrated, plan).to(self.given.device)
        self.tell("found after elastic recovery", cut_plan, elastic.trained)
        model, done = self.recovered(calibrated, plan, settings)
        self.tell("found after elastic recovery, recovered", model, done)

    def found(self, calibrated: Calibrated, *, fresh: bool = False) -> Plan:
        """The plan of a file, or the winner of a search."""
        if self.given.plan and not fresh:
            value = json.loads(Path(self.given.plan).read_text())
            value = value["sizes"][0]["plan"] if "sizes" in value else value
            return Plan(tuple(value["attention"]), tuple(value["mlp"]))
        shape, seed = calibrated.shape, 0
        space, target = PlanSpace(shape), Target(keep_budget(shape, KEEP), Ranges.above(shape))
        with (
            tempfile.TemporaryDirectory() as folder,
            PairStudy(folder, shape, calibrated.study_settings) as pair_study,
            PairStudy(folder, shape, calibrated.study_settings, study=STUDY) as finals,
        ):
            evaluator = calibrated.evaluator(calibrated.measured)
            fitted = measure_rounds(
                pair_study,
                evaluator,
                calibrated.mass,
                space,
                [target],
                pairs=self.given.pairs,
                seed=seed,
            )
            (narrowed,) = fitted.targets
            contest = Contest(
                *(calibrated, pair_study, finals, finals, fitted, space),
                lambda keep: keep_budget(shape, keep),
                refit=False,
                seed=seed,
            )
            (found,) = contest.measured([contest.candidates(narrowed)])
        return found[0].plan

    def cut(self, calibrated: Calibrated, plan: Plan) -> PreTrainedModel:
        """A plan as a model, compensated, on the CPU."""
        return cut(calibrated.model, plan, calibrated.compensated(plan))

    def recovered(
        self, calibrated: Calibrated, plan: Plan, settings: RecoverySettings
    ) -> tuple[PreTrainedModel, Trained]:
        """Cut on the CPU, trained on the device."""
        smaller = self.cut(calibrated, plan).to(self.given.device)
        dense = calibrated.model.to(self.given.device)
        with tempfile.TemporaryDirectory() as folder:
            found = recover(smaller, dense, self.windows, settings, Path(folder) / "x", {})
        calibrated.model.to("cpu")
        return found

    def tell(self, name: str, model: PreTrainedModel, done: Trained | None = None) -> None:
        """Perplexities of a model as a row."""
        row: Row = {"name": name}
        for text in ("valid", "test"):
            row[text] = self.perplexity(model, self.texts[text])
        if done is not None:
            row |= {"seconds": done.seconds, "steps": done.steps, "tokens": done.tokens}
            row |= {"first": done.first, "last": done.last}
        self.rows.append(row)
        trained = "" if done is None else f"  {done.words}"
        print(f"{name:42} valid {row['valid']:6.2f}  test {row['test']:6.2f}{trained}", flush=True)

    def perplexity(self, model: PreTrainedModel, text: Text) -> float:
        """By windows of 128 tokens."""
        tokenizer, limit = self.loaded.tokenizer, self.given.limit
        return perplexity(model, tokenizer, text, "llm-pruner", limit_tokens=limit).value

    def end(self) -> None:
        """What was chosen, and the JSON."""

        def of(begin: str) -> list[Row]:
            return [row for row in self.rows if str(row["name"]).startswith(begin)]

        for method in (LORA, DISTILL):
            if tried := of(f"found, {method}"):
                best = min(tried, key=lambda row: float(str(row["valid"])))
                print(f"{best['name']}: chosen on valid, test {best['test']:.2f}")
        if drawn := of("drawn"):
            best = min(drawn, key=lambda row: float(str(row["test"])))
            print(f"best of {len(drawn)} drawn and recovered: test {best['test']:.2f}")
        gpu = torch.cuda.get_device_name() if self.given.device.startswith("cuda") else "none"
        print(
            f"{time.perf_counter() - self.started:.0f} s in all; {platform.processor()}, GPU {gpu}"
        )
        if self.given.json:
            record = {"arguments": vars(self.given), "gpu": gpu, "rows": self.rows}
            Path(self.given.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
