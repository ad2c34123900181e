"""Benchmarks: architectures with measured quality, found, downloaded and read."""

from lmscout.benchmarks.benchmark import Benchmark
from lmscout.benchmarks.loading import load

__all__ = ["Benchmark", "load"]
