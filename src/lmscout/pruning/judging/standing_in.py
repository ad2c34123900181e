"""Judges in a run: in the place of a predictor, and as what a predictor is told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.judging.judge import Judge, asked_proxy, read_judges
from lmscout.pruning.learning.features import Column
from lmscout.pruning.measuring import Learnt
from lmscout.pruning.searching.covering import Target
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows


def judged(text: str, calibrated: Calibrated, targets: Sequence[Target]) -> Learnt:
    """What there is to search with where a proxy judges and nothing is measured.

    Args:
        text: "proxy:" and the proxy.
        calibrated: the dense model and its text.
        targets: the sizes, with their ranges as they are: nothing narrows them.

    Raises:
        LmscoutError: the proxy cannot judge, or its better side cannot be told.
    """
    (judge,) = calibrated_judges([text], calibrated)
    return Learnt(None, tuple(targets), (), judge)


def proxy_columns(texts: Sequence[str], calibrated: Calibrated) -> list[Column]:
    """Scores of proxies as columns for a predictor; a plan without a score has 0.

    Raises:
        LmscoutError: a proxy cannot judge.
    """
    judges = calibrated_judges(texts, calibrated)
    return [Column(f"proxy.{one.name}", partial(_finite, one)) for one in judges]


def calibrated_judges(texts: Sequence[str], calibrated: Calibrated) -> list[Judge]:
    """Judges by proxies, of which all read the model in one pass of the text of pairs."""
    if not texts:
        return []
    return read_judges(
        [asked_proxy(text) for text in texts],
        calibrated.model,
        calibrated.family,
        calibrated.shape,
        calibrated.measured,
    )


def _finite(judge: Judge, rows: Rows) -> Floats:
    scores = judge.scores(rows)
    return np.where(np.isfinite(scores), scores, 0.0)
