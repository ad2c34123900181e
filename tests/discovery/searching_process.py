"""Search the deep space on the tiny benchmark: `searching_process.py FOLDER`.

Writes the result to FOLDER/result.json, and prints a digest of the weights of a few models.
"""

import hashlib
import sys
from pathlib import Path

from tiny_benchmark import tiny_benchmark

from lmscout.discovery.symbolic_search import DeepSettings, discover_deep
from lmscout.models import LlamaSpec
from lmscout.statistics import Batch, Workers

SETTINGS = {"batch": Batch(4, 16), "workers": Workers(1)}
SMALL = DeepSettings(evaluations=40, searches=2, largest=10)
LLAMA = LlamaSpec(
    width=32,
    heads=(2, 4),
    key_value_heads=(1, 2),
    inner=(48, 9),
    vocabulary=301,
    max_length=100,
)


def weights():
    """A digest of parameters and rotary positions."""
    digest = hashlib.sha256()
    for spec in (LLAMA, *tiny_benchmark(6).specs):
        model = spec.build(0)
        for one in (*model.parameters(), *model.buffers()):
            digest.update(one.detach().numpy().tobytes())
    return digest.hexdigest()


def search(cache, folder=None):
    options = {"search": [32], "seed": 3, "cache": cache, "folder": folder, **SETTINGS}
    return discover_deep([tiny_benchmark(40)], SMALL, **options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    search(folder / "cache").save(folder / "result.json")
    print(weights())
