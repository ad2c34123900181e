"""What measured pairs and refit add to pruning in closed form, at one size, over seeds.

    python bench/closed_form.py MODEL --calibration TRAIN --valid TEXT [--test TEXT] \
        [--keep 0.8] [--pairs 0,25,50,100,200] [--seeds 0,1,2,3,4] [--device cuda] [--out FILE]

For each seed and number of pairs: perplexity of the selected plan, refit and compensated, beside
the dense model and the uniform cuts.  Constants are chosen by `--valid` alone; give `--test` for
figures to report.  The control: each model's logits are divided by one temperature, fitted on
the calibration windows of finalists, since a fit by ridge regression may calibrate logits, and a
better calibrated model is not a better pruned one.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from lmscout.evaluation import load_model, model_windows, read_text
from lmscout.pruning import CalibrationConfig, PruneConfig
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.ranges import Ranges, uniform
from lmscout.pruning.workflow import prune

TEMPERATURES = torch.linspace(0.8, 1.4, 61)
WINDOWS = 16  # of a batch


@torch.inference_mode()
def losses(model, windows, temperatures):
    """Mean negative log-likelihood at each temperature, nats/token."""
    total = torch.zeros(len(temperatures), dtype=torch.float64)
    for some in windows.to(model.device).split(WINDOWS):
        logits = model(input_ids=some, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = some[:, 1:].flatten()
        for place, temperature in enumerate(temperatures):
            loss = functional.cross_entropy(logits / temperature, targets, reduction="sum")
            total[place] += loss.item()
    return total / windows[:, 1:].numel()


def row(name, seed, model, calibrated, windows):
    """A model's perplexity on the text, as it is and with the fitted temperature."""
    fitted = TEMPERATURES[losses(model, calibrated.final, TEMPERATURES).argmin()]
    plain, tempered = losses(model, windows, torch.stack([torch.tensor(1.0), fitted])).exp()
    return {
        "model": name,
        "seed": seed,
        "perplexity": plain.item(),
        "tempered": tempered.item(),
        "temperature": fitted.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--test")
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--pairs", default="0,25,50,100,200")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=10**9, help="of the text, evenly spaced")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    calibration = read_text(arguments.calibration)
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        loaded = load_model(arguments.model, device=arguments.device)
        text = model_windows(loaded.model, loaded.tokenizer, calibration, 128)
        measured = read_text(arguments.test or arguments.valid)
        windows = model_windows(loaded.model, loaded.tokenizer, measured, 128)
        windows = windows[:: math.ceil(len(windows) / arguments.windows)]
        calibrated = calibrate(loaded.model, text, CalibrationConfig(seed=seed))
        rows.append(row("dense", seed, loaded.model, calibrated, windows))
        level = uniform(
            calibrated.shape,
            Ranges.above(calibrated.shape, 0.0),
            keep_budget(calibrated.shape, arguments.keep),
        )
        for weights in ("compensated", "refit"):
            model = calibrated.subnetwork(level, weights)
            rows.append(row(f"uniform, {weights}", seed, model, calibrated, windows))
        for pairs in map(int, arguments.pairs.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                config = PruneConfig(keep=(arguments.keep,), pairs=pairs, seed=seed)
                again = load_model(arguments.model, device=arguments.device)
                result = prune(again, calibration, config, Path(folder) / "out")
            for weights in ("compensated", "refit"):
                model = calibrated.subnetwork(result.plan, weights)
                name = f"{pairs} pairs, {weights}"
                rows.append(row(name, seed, model, calibrated, windows))
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1))
    show(rows)


def show(rows):
    """Means over seeds, with the least and the largest."""
    table = Table("model", "perplexity", "least", "largest", "one temperature", "temperature")
    for name in dict.fromkeys(one["model"] for one in rows):
        own = [one for one in rows if one["model"] == name]
        values = [one["perplexity"] for one in own]
        tempered, temperature = (
            sum(one[key] for one in own) / len(own) for key in ("tempered", "temperature")
        )
        mean = sum(values) / len(values)
        cells = mean, min(values), max(values), tempered
        table.add_row(name, *(f"{cell:.2f}" for cell in cells), f"{temperature:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
