"""A benchmark of small encoders whose quality is known to be their depth and a little noise."""

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.models import FlexibertBlock, FlexibertSpec

MIXERS = ("SDP", "WMA", "DFT", "DCT", "DSC5", "DSC9")


def tiny_benchmark(n=24):
    rng = np.random.default_rng(0)
    specs = []
    for index in range(n):
        blocks = tuple(
            FlexibertBlock(
                mixer=MIXERS[rng.integers(6)],
                heads=2,
                feed_forward=int(rng.choice([8, 16])),
                stack=int(rng.integers(1, 3)),
            )
            for _ in range(1 + index % 3)
        )
        specs.append(
            FlexibertSpec(
                width=int(rng.choice([8, 16])),
                blocks=blocks,
                embedding_width=8,
                vocabulary=40,
                max_length=16,
            )
        )
    quality = [spec.depth + 0.1 * rng.normal() for spec in specs]
    names = tuple(f"row{index}" for index in range(n))
    return Benchmark("tiny", tuple(specs), np.array(quality), "depth", names, "made here")
