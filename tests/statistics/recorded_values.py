"""Numbers that files of statistics hold, of small architectures.

    python tests/statistics/recorded_values.py

writes recorded_values.json anew, after `FORMAT` was raised.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from tiny_specs import flexibert, gpt2, llama

from lmscout.proxies import CATALOG
from lmscout.proxies.primitives import UNARY
from lmscout.statistics import Batch, Workers, collect, score_proxies
from lmscout.statistics.collect import FORMAT
from lmscout.statistics.sketches import collect_sketches

RECORD = Path(__file__).with_suffix(".json")

SPECS = (gpt2(heads=(2, 0, 4), inner=(0, 24, 40)), flexibert("SDP", "DFT", stack=2), llama())
# The mean of 1 / (x + 1e-9) is that of the element nearest to 0, and rounding moves it.
CHAINS = (*((one.name,) for one in UNARY if one.name != "invert"), ("square", "softmax"))
EXPRESSIONS = ("sum(abs(act) - std(grad))", "max(total(mul(act, act_grad))) / depth")
_COMMON = {"name": "tiny", "batch": Batch(size=3, length=6), "workers": Workers(1)}


def means(folder: Path) -> dict[str, list[float]]:
    """Block values by chain, of all architectures and inputs."""
    values = collect(SPECS, CHAINS, folder=folder, **_COMMON).values
    return {
        "|".join(chain): np.nan_to_num(values[:, :, column]).ravel().tolist()
        for column, chain in enumerate(CHAINS)
    }


def scores(folder: Path) -> dict[str, list[float]]:
    """Scores of the catalog and of expressions."""
    names = [*(entry.name for entry in CATALOG), *EXPRESSIONS]
    found = score_proxies(SPECS, names, folder=folder, **_COMMON)
    return {name: values.tolist() for name, values in found.items()}


def sketches(folder: Path) -> dict[str, list[float]]:
    """Sums over the elements kept of each tensor."""
    stacks = collect_sketches(SPECS, folder=folder, size=(4, 4), **_COMMON).stacks
    return {
        leaf: sample.abs().double().sum((1, 2)).tolist()
        for stack in stacks.values()
        for leaf, sample in stack.samples.items()
    }


VALUES = {"means": means, "scores": scores, "sketches": sketches}


def main() -> None:
    """Write the record."""
    with tempfile.TemporaryDirectory() as folder:
        values = {kind: function(Path(folder)) for kind, function in VALUES.items()}
    rounded = {
        kind: {name: [float(f"{one:.7g}") for one in row] for name, row in table.items()}
        for kind, table in values.items()
    }
    text = json.dumps({"format": FORMAT, "values": rounded}, separators=(",", ":"))
    RECORD.write_text(text.replace('],"', '],\n"') + "\n", "utf-8")


if __name__ == "__main__":
    main()
