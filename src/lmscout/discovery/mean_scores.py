"""A proxy's scores averaged over initial weights: what they owe to one draw is evened out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.architectures import ArchitectureSpec
from lmscout.errors import LmscoutError
from lmscout.stages import StageProgress, part_of
from lmscout.statistics import Batch, Workers, score_proxies


def mean_scores(
    specs: Sequence[ArchitectureSpec],
    proxy: str,
    *,
    weights: int,
    name: str,
    folder: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: StageProgress | None = None,
) -> npt.NDArray[np.float64]:
    """Score architectures several times, each with other initial weights and other data.

    Args:
        specs: the architectures.
        proxy: a catalog name or an expression.
        weights: how many draws of them; the first is what `score_proxies` reads by itself.
        name: of the files in which scores are kept.
        folder: where these are.
        batch: what the models read the first time.
        workers: how the reading is spread over processes.
        progress: told of every model that is read.

    Returns:
        [architectures] float64, the mean over the draws; not finite where one of them is not.

    Raises:
        LmscoutError: there is no draw, the proxy is unknown, or the folder cannot be written.
    """
    if weights < 1:
        raise LmscoutError(f"{weights} draws of initial weights: there has to be one at least")
    batch = batch or Batch()
    draws = [
        score_proxies(
            specs,
            [proxy],
            name=name,
            folder=folder,
            seed=draw,
            batch=replace(batch, seed=batch.seed + draw),
            workers=workers,
            progress=part_of(progress, draw * len(specs), weights * len(specs)),
        )[proxy]
        for draw in range(weights)
    ]
    with np.errstate(invalid="ignore"):  # of infinities of both signs
        mean: npt.NDArray[np.float64] = np.mean(draws, axis=0)
    return mean
