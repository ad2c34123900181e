"""Whether a bound of quality holds on other text, over seeds; without pairs.

    python bench/quality.py MODEL --calibration TRAIN --report TEXT [--worse-by 5] \
        [--seeds 0,1,2] [--final 15000] [--moments 50000] [--report-tokens N] [--refit none] \
        [--device cuda] [--out FILE]

For each seed: the size that `prune --worse-by --pairs 0` finds, its loss increase and the upper
limit of that on held-out windows of the calibration text; its loss increase on the report text;
and the two figures of the plan that is 3 % smaller, by the search's own measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lmscout.evaluation import load_model, model_windows, read_text
from lmscout.pruning import CalibrationConfig, PairStudy
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.finalists import REFIT_STUDY, Contest, smallest
from lmscout.pruning.finalists import STUDY as FINALS
from lmscout.pruning.measuring import Fitted
from lmscout.pruning.space import PlanSpace

WINDOWS = 16  # of a batch


@torch.inference_mode()
def loss(model, windows):
    """Mean negative log-likelihood, nats/token."""
    total = 0.0
    for some in windows.to(model.device).split(WINDOWS):
        logits = model(input_ids=some, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = some[:, 1:].flatten()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / windows[:, 1:].numel()


def one_seed(loaded, text, report, dense, seed, arguments):
    """Find a size by quality; measure it on the report text, and a plan 3 % smaller."""
    started = time.perf_counter()
    settings = CalibrationConfig(
        seed=seed, final_tokens=arguments.final, moment_tokens=arguments.moments
    )
    calibrated = calibrate(loaded.model, text, settings)
    shape, recorded = calibrated.shape, calibrated.study_settings
    refit = arguments.refit != "none"
    limit = math.log1p(arguments.worse_by / 100)
    with (
        tempfile.TemporaryDirectory() as folder,
        PairStudy(Path(folder), shape, recorded) as pairs,
        PairStudy(Path(folder), shape, recorded, study=FINALS) as finals,
        PairStudy(Path(folder), shape, recorded, study=REFIT_STUDY) as refits,
    ):
        contest = Contest(
            *(calibrated, pairs, finals, refits, Fitted(None, (), ()), PlanSpace(shape)),
            lambda keep: keep_budget(shape, keep),
            refit=refit,
            seed=seed,
        )
        (first, *_), bound = smallest(contest, limit)
        model = calibrated.subnetwork(first.plan, "refit" if refit else "compensated")
        increase = loss(model, report) - dense
        below, *_ = contest.best_of(0.97 * bound.keep)
        return {
            "seed": seed,
            "limit": limit,
            "keep": bound.keep,
            "held_out": first.loss_increase,
            "upper": contest.upper(first),
            "sizes_tested": len(bound.tested),
            "report": increase,
            "smaller_held_out": below.loss_increase,
            "smaller_upper": contest.upper(below),
            "seconds": time.perf_counter() - started,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--report", required=True)
    parser.add_argument("--report-tokens", type=int, default=10**9, help="use evenly spaced ones")
    parser.add_argument("--worse-by", type=float, default=5.0, help="percent of the perplexity")
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--final", type=int, default=15_000)
    parser.add_argument("--moments", type=int, default=50_000)
    parser.add_argument("--refit", default="sequential")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, device=arguments.device)
    text, report = (
        model_windows(loaded.model, loaded.tokenizer, read_text(one), 128)
        for one in (arguments.calibration, arguments.report)
    )
    report = report[:: math.ceil(report.numel() / arguments.report_tokens)]
    dense, rows = loss(loaded.model, report), []
    for seed in map(int, arguments.seeds.split(",")):
        rows.append(one_seed(loaded, text, report, dense, seed, arguments))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1))
    show(rows)


def show(rows):
    """One line for each seed, and how often the bound holds."""
    table = Table("seed", "keep", "held-out", "at most", "report text", "3 % smaller", "at most")
    for one in rows:
        names = "held_out", "upper", "report", "smaller_held_out", "smaller_upper"
        cells = (f"{one[name]:+.4f}" for name in names)
        table.add_row(str(one["seed"]), f"{one['keep']:g}", *cells)
    console = Console()
    console.print(table)
    holds = sum(one["report"] <= one["limit"] for one in rows)
    smaller = sum(one["smaller_upper"] <= one["limit"] for one in rows)
    console.print(
        f"bound {rows[0]['limit']:.4f} nats/token: holds on the report text in {holds} of "
        f"{len(rows)} seeds; a plan 3 % smaller meets it in {smaller}"
    )


if __name__ == "__main__":
    main()
