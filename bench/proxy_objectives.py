"""What finds a better plan: proxies, the accuracy predictor, both, or measuring alone.

    python bench/objectives.py MODEL CALIBRATION REPORT --out FOLDER [--keep 0.8] [--feature PROXY]
        [--proxies PROXY ...] [--pairs 25 50 100 200] [--characters N] [--threads 1]

One calibration serves every way.  A way is compared by perplexity, on a text that none of them
has seen, of the model it finds, compensated as it would be saved; and by what it cost: measured
pairs, finalists, and seconds of CPU time beyond the calibration.  What has been done is
kept in the folder, and the same command goes on.  Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from lmscout.evaluation import load_model, perplexity, read_text, tokenize_windows
from lmscout.pruning import finalists
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.measuring import fitted_to_proxy, measure_rounds, proxy_columns
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Ranges, Target, uniform
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

# Named before anything was measured.
PROXIES = (
    "sum(total(abs(weight)))",
    "snip",
    "sum(log(total(abs(mul(weight, grad)))))",
    "fisher",
    "grad-norm",
    "sum(log(total(square(act))) + log(total(square(head))))",
    "lpzero-gpt2",
)
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("report")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--proxies", nargs="*", default=list(PROXIES))
    parser.add_argument("--feature", default=PROXIES[2])
    parser.add_argument("--pairs", nargs="*", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--characters", type=int, help="of REPORT, the first; all by default")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    contest = Contest(arguments)
    for name, find in contest.ways():
        contest.run(name, find)
    contest.show()


class Contest:
    """One calibrated model, and the ways that were tried on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._path = arguments.out / "ways.json"
        self._rows = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._loaded = load_model(arguments.model)
        report = read_text(arguments.report)
        self._report = replace(report, content=report.content[: arguments.characters])
        settings = CalibrationConfig(seed=SEED)
        started = time.process_time()
        text = read_text(arguments.calibration)
        windows = tokenize_windows(self._loaded.tokenizer, text, settings.length)
        self._calibrated = calibrate(self._loaded.model, windows, settings)
        self._rows.setdefault("calibration", {"seconds": time.process_time() - started})
        self._shape = self._calibrated.shape
        self._budget = keep_budget(self._shape, arguments.keep)
        self._space = PlanSpace(self._shape)
        self._target = Target(self._budget, Ranges.above(self._shape))

    def ways(self):
        """Names, and what finds a plan: (plan, pairs, finalists measured)."""
        shape, budget = self._shape, self._budget
        everything = Ranges.above(shape, 0.0)
        yield "dense", lambda: (shape.dense, 0, 0)
        yield "uniform", lambda: (uniform(shape, everything, budget), 0, 0)
        protected = everything.protected(shape)
        yield (
            "uniform, first and last sixth unpruned",
            lambda: (uniform(shape, protected, budget), 0, 0),
        )
        for text in self._arguments.proxies:
            yield f"objective `{text}`", lambda text=text: self._by_proxy(text)
        for pairs in self._arguments.pairs:
            yield f"predictor, {pairs} pairs", lambda pairs=pairs: self._by_predictor(pairs, ())
            features = (self._arguments.feature,)
            both = f"predictor with `{features[0]}`, {pairs} pairs"
            yield both, lambda pairs=pairs, features=features: self._by_predictor(pairs, features)
        most = max(self._arguments.pairs, default=0)
        if most:
            yield f"best of {most} measured", lambda: self._by_measuring(most)

    def run(self, name: str, find) -> None:
        """Try a way, unless it was tried."""
        if name in self._rows:
            return
        started = time.process_time()
        plan, pairs, finalists = find()
        seconds = time.process_time() - started
        outputs = self._calibrated.compensated(plan)
        model = cut(self._calibrated.model, plan, outputs, dtype=self._loaded.saved_dtype)
        model = model.to(self._calibrated.model.dtype)
        found = perplexity(model, self._loaded.tokenizer, self._report, "llm-pruner")
        self._rows[name] = {
            "perplexity": found.value,
            "pairs": pairs,
            "finalists": finalists,
            "seconds": seconds,
            "kept": self._shape.kept_share(plan),
            "plan": plan.as_dict(),
        }
        self._path.write_text(json.dumps(self._rows, indent=1))
        print(f"{name}: {found.value:.2f}, {seconds:.0f} s", flush=True)

    def show(self) -> None:
        """The table."""
        print(f"\ncalibration, once for all: {self._rows['calibration']['seconds']:.0f} s\n")
        print("| found by | test perplexity | pairs | finalists | seconds |")
        print("|---|--:|--:|--:|--:|")
        for name, row in self._rows.items():
            if "perplexity" in row:
                cells = row["pairs"], row["finalists"], f"{row['seconds']:.0f}"
                print(f"| {name} | {row['perplexity']:.2f} | " + " | ".join(map(str, cells)) + " |")

    def _by_proxy(self, text: str) -> tuple[Plan, int, int]:
        fitted = fitted_to_proxy(f"proxy:{text}", self._calibrated, [self._target])
        (plan,) = self._contest(None, None, fitted).candidates(self._target)
        return plan, 0, 0

    def _contest(self, pairs, finals, fitted) -> finalists.Contest:
        return finalists.Contest(
            *(self._calibrated, pairs, finals, finals, fitted, self._space),
            lambda keep: keep_budget(self._shape, keep),
            refit=False,
            seed=SEED,
        )

    def _by_predictor(self, pairs: int, features: tuple[str, ...]) -> tuple[Plan, int, int]:
        """As `lmscout prune` does; only a way that was not cut short is kept."""
        suffix = "".join(f"-with-{index}" for index, _ in enumerate(features))
        storage = self._arguments.out / f"predictor-{pairs}{suffix}-{time.time_ns()}"
        columns = proxy_columns([f"proxy:{one}" for one in features], self._calibrated)
        settings = self._calibrated.study_settings
        with PairStudy(storage, self._shape, settings) as pair_study:
            fitted = self._measured(pair_study, pairs, extra=columns)
            (target,) = fitted.targets
            with PairStudy(storage, self._shape, settings, study=finalists.STUDY) as finals:
                contest = self._contest(pair_study, finals, fitted)
                plans = contest.candidates(target)
                (found,) = contest.measured([plans])
        return found[0].plan, pairs, len(plans)

    def _by_measuring(self, pairs: int) -> tuple[Plan, int, int]:
        """The best of plans that cover the space; nothing is learnt between them."""
        storage = self._arguments.out / f"measured-{pairs}-{time.time_ns()}"
        with PairStudy(storage, self._shape, self._calibrated.study_settings) as pair_study:
            self._measured(pair_study, pairs, round_size=pairs)
            (best,) = self._space.best_pairs(pair_study.pairs(), self._budget, 1)
        return best.plan, pairs, 0

    def _measured(self, pair_study: PairStudy, pairs: int, **more):
        evaluator = self._calibrated.evaluator(self._calibrated.measured)
        mass, targets = self._calibrated.mass, [self._target]
        return measure_rounds(
            pair_study, evaluator, mass, self._space, targets, pairs=pairs, seed=SEED, **more
        )


if __name__ == "__main__":
    main()
