"""The dozen sums that the means of all twenty unary operations follow from.

One walk through a tensor serves them all: exp serves the exponential, the sigmoid and the
log-sum-exp of log-softmax, |x| and sign(x) serve every operation that treats the halves of the
number line differently, and five means need no sum of their own.
`lmscout.proxies.primitives` holds the definitions; the tests hold the two together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lmscout.proxies.primitives import UNARY

OPERATIONS = tuple(operation.name for operation in UNARY)

EXP_HIGHEST = 88.7  # above it e^x is infinity in float32
EPS = 1e-9  # as in the published operations
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Values = npt.NDArray[np.float64]


TOTALS = (
    "count",
    "rows",
    "low",
    "high",
    "mean",
    "squared_deviation",
    "relu",
    "exp",
    "invert",
    "sigmoid",
    "sqrt",
    "log",
    "log_abs",
    "log_sum_exp",
)
"""What the twenty means follow from: the number of elements and of rows, extremes, the mean and
the sum of squared deviations from it, the mean of max(x, 0); sums of e^x, 1 / (x + 1e-9), the
sigmoid, the root, ln x and ln |x|; the mean over columns of ln sum e^x.  The count of a tensor
that is empty or holds a NaN or an infinity is NaN."""


def means_of_totals(totals: Values) -> Values:
    """The twenty means from what a walk has found.

    Args:
        totals: [tensors, totals] float64, in the order of `TOTALS`.

    Returns:
        [tensors, 20] float64, in the order of `OPERATIONS`.
    """
    of = dict(zip(TOTALS, totals.T, strict=True))
    n, mean = of["count"], of["mean"]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        mean_abs = 2 * of["relu"] - mean
        # From the deviations: both terms are positive, nothing cancels.
        square = of["squared_deviation"] + n * mean**2
        bound = np.maximum(-of["low"], of["high"])
        several, many = n > 1, of["rows"] > 1
        results = {
            "log": of["log"] / n,
            "abslog": of["log_abs"] / n,
            "abs": mean_abs,
            "square": np.where(bound**2 <= _FLOAT32_MAX, square / n, np.inf),
            "exp": np.where(of["high"] > EXP_HIGHEST, np.inf, of["exp"] / n),
            "normalize": np.zeros_like(n),
            "relu": of["relu"],
            "invert": of["invert"] / n,
            "frobenius": np.sqrt(square),
            "meansum": mean,
            "l1": mean_abs,
            "softmax": 1.0 / of["rows"],
            "sigmoid": of["sigmoid"] / n,
            "logsoftmax": np.where(many, mean - of["log_sum_exp"], 0.0),
            "sqrt": of["sqrt"] / n,
            "negate": -mean,
            "minmax": (mean - of["low"]) / (of["high"] - of["low"] + EPS),
            "mean": mean,
            "std": np.sqrt(np.where(several, of["squared_deviation"] / (n - 1), 0.0)),
            "identity": mean,
        }
    means = np.stack([results[name] for name in OPERATIONS], axis=-1)
    means[~np.isfinite(n)] = np.nan
    return means
