"""Published pruning methods beside lmscout: one model, text, size and test, without training.

    python bench/peers.py MODEL --calibration TRAIN --test TEXT [--keep 0.8] [--pairs 200] \
        [--windows N] [--methods flap,sleb,...] [--device cuda] [--out FILE.json] \
        [--markdown FILE.md]
    python bench/peers.py MODEL --calibration TRAIN --test TEXT --check

Every model is cut to the parameters of one that keeps `--keep` of those in attention and MLP, as
nearly as the method's units allow; its row says how many a saved model would hold.  Peers
(`peer_methods.py`) read the windows from which lmscout collects its moments.  Losses are means over
test windows of 128 tokens, and differences are paired over windows.  As a control, logits are
divided by one temperature, fitted on calibration windows of which lmscout reads the finalists.

`--check` tests the peers: with nothing removed each must have the dense model's loss, and at
`--keep` a larger one.  docs/comparison.md has the results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.evaluation import (
    Text,
    load_model,
    model_windows,
    parameter_count,
    read_text,
    same_text,
)
from lmscout.pruning import PruneConfig
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.ranges import Ranges, uniform
from lmscout.pruning.workflow import prune
from peer_methods import (
    WINDOW,
    Setup,
    Smaller,
    flap,
    llm_pruner,
    modegpt,
    shortgpt,
    sleb,
    slicegpt,
    window_losses,
)
from provenance import commit

TEMPERATURES = torch.cat([torch.ones(1), torch.linspace(0.8, 1.4, 31)])  # 1 is the model itself
NORMAL = 1.96  # standard errors of a 95 % interval
SIZED = 0.02  # share of the size within which a model is, unless it drops whole blocks
CHECKED = 1e-3  # nats/token that rounding may change a model of which nothing is removed


def uniform_cuts(setup: Setup) -> Iterator[Smaller]:
    """The same share of every block, in lmscout's order: plain, compensated and refit."""
    shape = setup.calibrated.shape
    level = uniform(shape, Ranges.above(shape, 0.0), keep_budget(shape, setup.keep))
    for name, weights in (
        ("uniform", "cut"),
        ("uniform, compensated", "compensated"),
        ("uniform, refit", "refit"),
    ):
        yield saved(name, setup.calibrated.subnetwork(level, weights))


def saved(name: str, model: Any) -> Smaller:
    """A model as transformers runs it."""
    run = partial(model.requires_grad_(False), use_cache=False)
    return Smaller(name, lambda tokens: run(input_ids=tokens).logits, parameter_count(model))


def lmscout_found(setup: Setup, pairs: int) -> Iterator[Smaller]:
    """The model that `lmscout prune` saves with its defaults, loaded from its folder."""
    device = str(setup.model.device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        config = PruneConfig(keep=(setup.keep,), pairs=pairs, seed=setup.seed, dtype="float32")
        prune(load_model(setup.loaded.source, torch.float32, device), setup.text, config, out)
        model = load_model(str(out), torch.float32, device).model
    yield saved(f"lmscout, {pairs} pairs" if pairs else "lmscout, no pairs", model)


METHODS: dict[str, Callable[[Setup], Iterator[Smaller]]] = {
    "uniform": uniform_cuts,
    "llm-pruner": llm_pruner,
    "flap": flap,
    "slicegpt": slicegpt,
    "shortgpt": shortgpt,
    "sleb": sleb,
    "modegpt": modegpt,
    "lmscout-no-pairs": partial(lmscout_found, pairs=0),
    "lmscout": lambda setup: lmscout_found(setup, setup.pairs),
}


@dataclass(frozen=True)
class Row:
    """A measured model.

    Attributes:
        name: of the model.
        parameters: that its saved form would hold.
        kept: the same as a share of those in attention and MLP of the dense model.
        losses: [windows] mean loss of each test window, nats/token.
        tempered: perplexity with the fitted temperature.
        temperature: fitted on calibration windows.
        seconds: that the method took.
    """

    name: str
    parameters: int
    kept: float
    losses: Tensor
    tempered: float
    temperature: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """On the test windows."""
        return math.exp(self.losses.mean().item())

    def against(self, other: Row) -> dict[str, float]:
        """Loss minus another model's, with a 95 % normal interval over windows, nats/token."""
        each = self.losses - other.losses
        half = NORMAL * each.std().item() / math.sqrt(len(each))
        mean = each.mean().item()
        return {"difference": mean, "low": mean - half, "high": mean + half}


def measured(setup: Setup, one: Smaller, test: Tensor, seconds: float) -> Row:
    """Measure a model on test windows, as it is and with one fitted temperature."""
    fitted = window_losses(one.logits, setup.calibrated.final.to(test.device), TEMPERATURES)
    best = TEMPERATURES[fitted.mean(1).argmin()]
    plain, tempered = window_losses(one.logits, test, torch.stack([TEMPERATURES[0], best]))
    kept = setup.kept_share(one.parameters)
    tempered = math.exp(tempered.mean().item())
    return Row(one.name, one.parameters, kept, plain, tempered, best.item(), seconds)


def measure_all(setup: Setup, methods: Sequence[str], test: Tensor) -> Iterator[Row]:
    """The dense model and the models of every method."""

    def row(one: Smaller, seconds: float) -> Row:
        found = measured(setup, one, test, seconds)
        print(f"{one.name}: {found.perplexity:.3f}, {found.kept:.4f} kept", file=sys.stderr)
        return found

    yield row(saved("dense", setup.model), 0.0)
    for method in methods:
        started = time.perf_counter()
        for one in METHODS[method](setup):
            yield row(one, time.perf_counter() - started)
            started = time.perf_counter()


def reference_of(rows: Sequence[Row]) -> Row | None:
    """The row that the others are compared to: lmscout's last."""
    return next((row for row in reversed(rows) if row.name.startswith("lmscout")), None)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; differences are to lmscout's last row."""
    reference = reference_of(rows)
    lines = [
        "| model | parameters | kept | perplexity | one temperature | loss above lmscout's | s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        difference = ""
        if reference is not None and row is not reference:
            paired = row.against(reference)
            difference = "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**paired)
        cells = (
            row.name,
            f"{row.parameters:,}",
            f"{row.kept:.4f}",
            f"{row.perplexity:.2f}",
            f"{row.tempered:.2f} ({row.temperature:.2f})",
            difference,
            f"{row.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row], about: dict[str, object]) -> str:
    """The rows as JSON, with what was run."""
    reference = reference_of(rows)
    fields = [
        {
            "model": row.name,
            "parameters": row.parameters,
            "kept_share": row.kept,
            "perplexity": row.perplexity,
            "tempered_perplexity": row.tempered,
            "temperature": row.temperature,
            "seconds": row.seconds,
            **({} if reference is None else row.against(reference)),
        }
        for row in rows
    ]
    return json.dumps({"schema": 1, **about, "rows": fields}, indent=1) + "\n"


def check(setup: Setup, methods: Sequence[str], test: Tensor) -> None:
    """Test the methods, see the module's text; LmscoutError if one fails."""
    own = [method for method in methods if not method.startswith("lmscout")]
    for keep in (1.0, setup.keep):
        rows = list(measure_all(replace(setup, keep=keep), own, test))
        print(f"keep {keep}\n{markdown(rows)}")
        dense = rows[0]
        for row in rows[1:]:
            more = row.against(dense)["difference"]
            size = row.parameters / replace(setup, keep=keep).target
            if keep == 1:
                sound = abs(more) < CHECKED and row.parameters == dense.parameters
            else:
                sound = more > 0 and ("dropped" in row.name or abs(size - 1) < SIZED)
            if not sound:
                raise LmscoutError(
                    f"{row.name} at keep {keep}: {more:+.5f} nats/token over the dense model, "
                    f"{size:.4f} of the size"
                )


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, help="of the test, evenly spaced; all if left out")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--check", action="store_true", help="test the methods themselves")
    return parser.parse_args()


def test_windows(setup: Setup, text: Text, count: int | None) -> Tensor:
    """Windows of the test text [n, T], all or some at even distances."""
    windows = model_windows(setup.loaded.model, setup.loaded.tokenizer, text, WINDOW)
    if count is not None and count < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, count).round().long()]
    return windows.to(setup.model.device)


def run(arguments: argparse.Namespace) -> None:
    methods = arguments.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        raise LmscoutError(f"--methods: {unknown[0]} is unknown (expected some of {list(METHODS)})")
    text, report = read_text(arguments.calibration), read_text(arguments.test)
    if same_text(text, report):
        raise LmscoutError("--calibration and --test are the same text: give another test")
    setup = Setup.read(
        arguments.model, arguments.device, text, arguments.keep, arguments.pairs, arguments.seed
    )
    test = test_windows(setup, report, arguments.windows)
    if arguments.check:
        check(setup, methods, test)
        return
    about = {
        "commit": commit(),
        "model": arguments.model,
        "keep": arguments.keep,
        "pairs": arguments.pairs,
        "seed": arguments.seed,
        "calibration": text.sha256,
        "test": report.sha256,
        "windows": len(test),
        "predicted_tokens": len(test) * (test.shape[1] - 1),
        "device": torch.cuda.get_device_name() if setup.model.device.type == "cuda" else "cpu",
    }
    rows: list[Row] = []
    for row in measure_all(setup, methods, test):
        rows.append(row)
        if arguments.out:
            arguments.out.write_text(as_json(rows, about))
    table = markdown(rows)
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n")


def main() -> int:
    try:
        run(arguments_of())
    except LmscoutError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
