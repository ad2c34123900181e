"""A benchmark by the name that a user gives it."""

import os

from lmscout.benchmarks.benchmark import Benchmark
from lmscout.benchmarks.built import OWN, SHIPPED, TABLE, read_built
from lmscout.benchmarks.download import find_flexibert, find_lts
from lmscout.benchmarks.flexibert import read_flexibert
from lmscout.benchmarks.lts import METRIC, read_lts
from lmscout.benchmarks.space import SPACES, SUFFIX, Space, read_space
from lmscout.errors import LmscoutError, brief
from lmscout.reading import expanded
from lmscout.runs import SETTINGS

LTS_METRICS = {"random_GPT2_wt103": "negated WikiText-103 validation perplexity"}
"""The metric of the published folders, by name."""

ACCEPTED = (
    "pico, iso, bench:DIR, flexibert, flexibert:PATH, lts:random_GPT2_wt103, lts:NAME or lts:PATH"
)


class UnknownBenchmarkError(LmscoutError):
    """A name that is no benchmark's."""


def load(name: str) -> Benchmark:
    """Load a benchmark.

    Args:
        name: ``pico`` and ``iso``, lmscout's own; ``bench:DIR`` or ``DIR``, a folder that
            ``lmscout bench build`` wrote;
            ``flexibert``; ``flexibert:PATH``, a JSON file of upstream's form; ``lts:NAME``,
            a LiteTransformerSearch folder found by name; ``lts:PATH``, such a folder.  What
            follows ``lts:`` is a path if it has a separator in it or is a directory.

    Raises:
        UnknownBenchmarkError: the name is none of these.
        LmscoutError: the benchmark cannot be found or read.
    """
    kind, colon, rest = name.partition(":")
    if name in SHIPPED or (name.startswith(OWN) and rest):
        return read_built(name)
    if kind == "flexibert" and bool(colon) == bool(rest):
        return read_flexibert(expanded(rest) if rest else find_flexibert(), name)
    if kind == "lts" and rest:
        path = expanded(rest)
        if os.sep in rest or "/" in rest or os.path.isdir(path):
            return read_lts(path, name)
        return read_lts(find_lts(rest), name, LTS_METRICS.get(rest, METRIC))
    folder = os.path.expanduser(name)
    if name and any(os.path.isfile(os.path.join(folder, one)) for one in (TABLE, SETTINGS)):
        return read_built(OWN + name)
    raise UnknownBenchmarkError(f"unknown benchmark {brief(name)}; it can be {ACCEPTED}")


def load_space_or_benchmark(name: str) -> Space | Benchmark:
    """A space by its name or its file, or else a benchmark; LmscoutError if it is neither.

    ``pico`` and ``iso`` name both; here they are the spaces.
    """
    for space in SPACES:
        if space.name == name:
            return space
    try:
        return load(name)
    except UnknownBenchmarkError:
        if name.endswith(SUFFIX):
            return read_space(expanded(name))
        spaces = ", ".join(space.name for space in SPACES)
        raise LmscoutError(
            f"unknown space {brief(name)}; there are the spaces {spaces} and FILE{SUFFIX}, and the "
            f"benchmarks {ACCEPTED}"
        ) from None
