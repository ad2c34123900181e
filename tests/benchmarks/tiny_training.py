"""A space, a text and a recipe small enough to train an architecture in a moment."""

import json

import torch

from lmscout.benchmarks.built import TABLE
from lmscout.benchmarks.space import GPT2, LLAMA, Space
from lmscout.benchmarks.training import Recipe, TokenData

SPACE = Space(
    name="tiny",
    families=(GPT2, LLAMA),
    depths=(1, 2),
    widths=(8, 16),
    head_sizes=(4, 8),
    expansions=(1.0, 2.0),
    groups=(1, 2),
    missing=(0.0, 0.3),
    vocabulary=32,
    max_length=16,
)
RECIPE = Recipe(tokens=12 * 64, sequences=4, length=16, learning_rate=1e-2, held_out=200)
N = 12


def text(length=3000):
    """Tokens of which each but every fifth follows from the one before."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 32, (length,), generator=generator)
    for place in range(1, length):
        if place % 5:
            tokens[place] = (3 * tokens[place - 1] + 1) % 32
    return TokenData(tokens[: length - 400], tokens[length - 400 :], {"made": "for a test"})


def without_seconds(folder):
    """The rows of a benchmark but for how long they took."""
    rows = [json.loads(line) for line in (folder / TABLE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
