"""Folders as a build leaves them, written by hand."""

import json

from lmscout.models import LlamaSpec

SETTINGS = {"recipe": {"tokens": 1234567}}


def spec_of(number, **changes):
    given = {
        "width": 8 + 8 * (number % 2),
        "heads": (2,) * (1 + number % 3),
        "key_value_heads": (2,) * (1 + number % 3),
        "inner": (4 + number,) * (1 + number % 3),
        "vocabulary": 32,
        "max_length": 16,
    }
    return LlamaSpec(**{**given, **changes})


def row(number, seed, loss, **changes):
    spec = spec_of(number)
    values = {
        "architecture": number,
        "seed": seed,
        "spec": spec.to_dict(),
        "parameters": spec.parameters(),
        "validation_loss": [6.0, 5.0, 4.5, 4.2, loss],
        "seconds": 1.5,
        "device": "cpu",
    }
    return {**values, **changes}


def write_built(folder, losses):
    """A benchmark with these final losses: architecture -> one a seed."""
    rows = [
        row(number, seed, loss)
        for number, several in losses.items()
        for seed, loss in enumerate(several)
    ]
    return write_rows(folder, rows)


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "table.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder
