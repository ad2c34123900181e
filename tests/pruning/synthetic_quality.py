"""A synthetic model: a shape, importance of units, and a loss increase for every plan."""

import numpy as np

from lmscout.pruning.evaluator import Measurement
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.plan import Shape, as_plans, as_rows, dense_row, kept_shares
from lmscout.pruning.study import Pair

PORTIONS = np.array([0.7, 1.0, 1.3])  # a text whose chunks differ more than good plans do


class Synthetic:
    """Blocks that cost convexly more the more is cut, worse where neighbours are cut too.

    The first block is sensitive and the middle is cheap, as in real models; noise is a
    function of the plan, one part in a hundred.
    """

    def __init__(self, depth=12, groups=10, channels=864, noise=0.01, seed=0):
        rng = np.random.default_rng(seed)
        self.depth, self.noise = depth, noise
        self.shape = Shape(
            (groups,) * depth, (channels,) * depth, (40_960,) * depth, (960,) * depth
        )
        self.weight = rng.uniform(0.05, 0.3, 2 * depth)
        self.weight[depth] = 4.0  # the MLP of block 0
        self.weight[depth // 2] = 0.002  # attention in the middle
        self.slope = rng.uniform(1, 4, 2 * depth)
        self.together = rng.uniform(0, 0.3, 2 * depth)
        decay = rng.uniform(0.3, 3, 2 * depth)
        scores = [
            self.weight[column] * np.exp(-decay[column] * np.linspace(0, 1, units))
            for column, units in enumerate(dense_row(self.shape))
        ]
        self.mass = ImportanceMass.of_scores(scores[:depth], scores[depth:])

    def loss_increase(self, rows):
        """True loss increases of plans, [n, 2L] to [n]."""
        removed = 1 - rows / dense_row(self.shape)
        alone = self.weight * np.expm1(self.slope * removed) / np.expm1(self.slope)
        neighbours = self.together * removed * np.roll(removed, 1, axis=1)
        return (alone + neighbours).sum(axis=1) ** 1.2

    def measure(self, rows):
        """Loss increases as measured, with the noise that belongs to each plan."""
        noise = [np.random.default_rng(list(row)).standard_normal() for row in rows]
        return self.loss_increase(rows) * (1 + self.noise * np.array(noise))

    def in_portions(self, plan, limits):
        """A plan measured chunk by chunk until a limit drops it, as the evaluator does it."""
        (loss_increase,) = self.measure(as_rows([plan]))
        so_far = np.cumsum(PORTIONS * loss_increase) / np.arange(1, 4)
        trajectory = []
        for index, value in enumerate(so_far):
            trajectory.append((500 * (index + 1), float(value)))
            if index < len(limits) and value > limits[index]:
                break
        return Measurement(tuple(trajectory), len(trajectory) == 3)

    def pairs(self, plans, round_=0):
        """Plans, or rows, as measured pairs."""
        rows = plans if isinstance(plans, np.ndarray) else as_rows(plans)
        return [
            Pair(plan, float(value), 6000, round=round_, kept=float(kept), seconds=0.5)
            for plan, value, kept in zip(
                as_plans(rows), self.measure(rows), kept_shares(self.shape, rows), strict=True
            )
        ]
