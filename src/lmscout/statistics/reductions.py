"""The means of all twenty unary operations of a tensor, from one walk through it, in plain torch.

One walk through a tensor gives all of them: exp serves the exponential, the sigmoid and the
log-sum-exp of log-softmax; |x| and sign(x) serve every operation that differs by sign; five means
need no sum of their own.  The tensor is walked in pieces that stay in the cache, where twenty
separate passes would each need a temporary.  `lmscout.proxies.primitives` holds the definitions,
and `fused` computes the same totals on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.proxies.primitives import UNARY, UNARY_OPERATION

OPERATIONS = tuple(operation.name for operation in UNARY)

EXP_HIGHEST = 88.7  # above it e^x is infinity in float32
EPS = 1e-9  # as in the published operations
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Values = npt.NDArray[np.float64]
Totals = tuple[float, ...]  # one for each of `TOTALS`

TOTALS = (
    *("count", "rows", "low", "high", "mean", "squared_deviation", "relu"),
    *("exp", "invert", "sigmoid", "sqrt", "log", "log_abs", "log_sum_exp"),
)
"""Number of elements and of rows, extremes, the mean and the sum of squared deviations from it, the
mean of max(x, 0); sums of e^x, 1 / (x + 1e-9), the sigmoid, the root, ln x and ln |x|; the mean
over columns of ln sum e^x.  The count of a tensor that is empty or not finite is NaN."""

_AT_ONCE = 1 << 26  # elements reduced in one launch on a GPU: 256 MiB in float32
_PIECE = 1 << 17  # elements: half a mebibyte, so that a call costs more than its overhead
_EXP_SAFE = 60.0  # |x| up to which no float32 sum of exponentials over- or underflows
_TINY, _HUGE = 1e-15, 1e15  # between them lies the largest |x| whose squares float32 can sum


@torch.no_grad()
def unary_means(tensor: Tensor) -> Values:
    """Mean of every unary operation of a tensor of any shape, floating dtype and device.

    Returns:
        [20] float64, in the order of `OPERATIONS`; all NaN if the tensor is empty or holds a NaN
        or an infinity.
    """
    means: Values = _means_of([tensor])[0]
    return means


@torch.no_grad()
def chain_means(tensor: Tensor, chains: Sequence[tuple[str, ...]]) -> Values:
    """Mean of every chain of unary operations, innermost first, of a tensor: [chains] float64.

    Chains that differ in the last operation alone share one walk.
    """
    bare = unary_means(tensor)
    means: dict[tuple[str, ...], Values] = {(): bare}
    prefixes = list(dict.fromkeys(chain[:-1] for chain in chains if len(chain) > 1))
    # One prefix at a time on a CPU; many on a GPU, which then waits less for launches.
    size = max(1, _AT_ONCE // max(tensor.numel(), 1)) if tensor.is_cuda else 1
    for start in range(0, len(prefixes), size):
        group = prefixes[start : start + size]
        inner = [_apply(prefix, tensor, bare) for prefix in group]
        means |= zip(group, _means_of(inner), strict=True)
    return np.array([means[chain[:-1]][OPERATIONS.index(chain[-1])] for chain in chains])


def _means_of(tensors: Sequence[Tensor]) -> Values:
    """The unary means of several tensors: [tensors, 20] float64."""
    on_gpu = [index for index, tensor in enumerate(tensors) if tensor.is_cuda]
    found = {}
    if on_gpu:
        from lmscout.statistics.fused import fused_totals  # imports Triton

        found = dict(zip(on_gpu, fused_totals([tensors[i] for i in on_gpu]), strict=True))
    totals = [found.get(i) or plain_totals(tensor) for i, tensor in enumerate(tensors)]
    return means_of_totals(np.array(totals, np.float64))


def _apply(prefix: tuple[str, ...], tensor: Tensor, bare: Values) -> Tensor:
    """A tensor after the operations of a prefix, given its unary means."""
    inner = tensor.detach()
    for place, name in enumerate(prefix):
        if place == 0 and UNARY_OPERATION[name].scalar:  # among the means already
            inner = torch.tensor(bare[OPERATIONS.index(name)], dtype=tensor.dtype)
        else:
            inner = UNARY_OPERATION[name].apply(inner)
    return inner


def means_of_totals(totals: Values) -> Values:
    """The means [tensors, 20] in the order of `OPERATIONS`, from `TOTALS` [tensors, 14]."""
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


def plain_totals(tensor: Tensor) -> Totals:
    """`TOTALS` of a tensor of any device, in float64 over float32 pieces."""
    n = tensor.numel()
    nothing = (math.nan,) * len(TOTALS)
    if n == 0:
        return nothing
    rows = tensor.detach().reshape(tensor.shape[0] if tensor.dim() else 1, -1)
    sums = _walk(rows)
    if not (math.isfinite(sums.low) and math.isfinite(sums.high)):
        return nothing
    bound = max(-sums.low, sums.high)
    log_sum_exp = _log_sum_exp(rows, bound, sums) if len(rows) > 1 else 0.0
    return (
        *(n, len(rows), sums.low, sums.high, sums.x / n, sums.squared_deviation, sums.relu / n),
        *(sums.exp, sums.invert, sums.sigmoid, sums.sqrt, sums.log, sums.log_abs, log_sum_exp),
    )


class _Sums:
    """Running sums of one walk, in float64."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self.x = self.squared_deviation = self.exp = self.invert = self.sigmoid = 0.0
        self.relu = self.sqrt = self.log = self.log_abs = 0.0
        self.exp_columns = torch.zeros(columns, device=device)

    def add_moments(self, count: int, total: float, squared_deviation: float) -> None:
        """Add a piece's sum and squared deviation (Chan et al. 1979)."""
        if self.count:
            shift = total / count - self.x / self.count
            squared_deviation += shift**2 * count * self.count / (count + self.count)
        self.count += count
        self.x += total
        self.squared_deviation += squared_deviation


def _walk(rows: Tensor) -> _Sums:
    """Sum over a matrix in pieces of whole rows (a longer row is cut)."""
    n_rows, n_columns = rows.shape
    height = max(1, _PIECE // n_columns)
    width = min(n_columns, _PIECE)
    sums = _Sums(n_columns if n_rows > 1 else 0, rows.device)
    for top in range(0, n_rows, height):
        for left in range(0, n_columns, width):
            piece = rows[top : top + height, left : left + width].float()
            low, high = piece.amin().item(), piece.amax().item()
            if not (math.isfinite(low) and math.isfinite(high)):
                sums.low = math.nan
                return sums
            sums.low, sums.high = min(sums.low, low), max(sums.high, high)
            columns = sums.exp_columns[left : left + width]
            bound = max(-low, high)
            if _TINY <= bound <= _HUGE or bound == 0.0:
                _add_piece(sums, piece, low, high, columns)
            else:
                _add_extreme_piece(sums, piece, columns)
    return sums


def _add_piece(sums: _Sums, piece: Tensor, low: float, high: float, columns: Tensor) -> None:
    x = piece.reshape(-1)
    total, squared_deviation = _moments(x, low, high)
    sums.add_moments(x.numel(), total, squared_deviation)

    if max(-low, high) <= _EXP_SAFE:
        power = torch.exp(x)
        per_column = power.view_as(piece).sum(0)
        sums.exp += per_column.sum().item()
        if len(columns):
            columns += per_column
        # e^x / (1 + e^x) as a product: a sum of small terms, where 1 - 1 / (1 + e^x) rounds
        sums.sigmoid += torch.dot(power, (power + 1.0).reciprocal_()).item()
    else:
        if high > EXP_HIGHEST:
            sums.exp = math.inf  # not computed: overflow is slow
        else:
            sums.exp += torch.exp(x).sum(dtype=torch.float64).item()
        sums.sigmoid += torch.sigmoid(x).sum().item()

    sums.invert += _finite_reciprocal_sum(x + EPS)

    # |x| once for both signs, and a mask of the positive elements to multiply by.  A tensor of one
    # sign is summed without the mask: equal proxies are equal to the bit.
    magnitude = torch.abs(x)
    if 0.0 in (low, high):  # 1 in place of 0, whose root and logarithm are slow
        magnitude += magnitude == 0.0
    positive = (x > 0.0).float()
    root = torch.sqrt(magnitude)
    if low > 0.0:
        sums.sqrt += root.sum().item()
    elif high > 0.0:
        sums.sqrt += torch.dot(root, positive).item()
    log = torch.log(magnitude)
    log_abs = log.sum().item()
    if math.isinf(log_abs):  # a zero among them
        magnitude += magnitude == 0.0
        log = torch.log(magnitude)
        log_abs = log.sum().item()
    sums.log_abs += log_abs
    if low >= 0.0:
        sums.relu += total
        sums.log += log_abs
    elif high > 0.0:
        sums.relu += torch.dot(x, positive).item()
        sums.log += torch.dot(log, positive).item()


def _add_extreme_piece(sums: _Sums, piece: Tensor, columns: Tensor) -> None:
    """The same sums in float64: float32 cannot hold the squares of such numbers."""
    x = piece.double()
    mean = x.mean().item()
    sums.add_moments(x.numel(), x.sum().item(), (x - mean).square().sum().item())
    exp = piece.exp().double()  # infinity beyond float32, as everywhere
    sums.exp += exp.sum().item()
    if len(columns):
        columns += exp.sum(0)
    sums.sigmoid += x.sigmoid().sum().item()
    sums.invert += _finite_reciprocal_sum((piece + EPS).double())
    positive = x > 0.0
    sums.relu += x[positive].sum().item()
    sums.sqrt += x[positive].sqrt().sum().item()
    sums.log += x[positive].log().sum().item()
    sums.log_abs += x[x != 0.0].abs().log().sum().item()


def _moments(x: Tensor, low: float, high: float) -> tuple[float, float]:
    """Sum, and sum of squared deviations from the mean."""
    n = x.numel()
    total, square = x.sum().item(), torch.dot(x, x).item()
    deviation = square - total**2 / n
    if deviation > 0.1 * square:
        return total, deviation
    # The difference cancels: measure from the mean, rounded to float32.
    centre = torch.tensor(min(max(total / n, low), high)).item()
    apart = x - centre
    shift = apart.sum().item()
    deviation = torch.dot(apart, apart).item() - shift**2 / n
    return n * centre + shift, max(deviation, 0.0)


def _finite_reciprocal_sum(shifted: Tensor) -> float:
    """Sum of 1/x where x is not zero; overwrites the argument."""
    total = shifted.reciprocal_().sum().item()
    if not math.isfinite(total):
        total = shifted.masked_fill_(shifted.isinf(), 0.0).sum().item()
    return total


def _log_sum_exp(rows: Tensor, bound: float, sums: _Sums) -> float:
    """Mean over columns of ln sum e^x."""
    n_rows, n_columns = rows.shape
    if bound <= _EXP_SAFE:
        parts = torch.split(sums.exp_columns, _PIECE)
        total = math.fsum(part.double().log_().sum().item() for part in parts)
    else:
        parts = torch.split(rows, max(1, _PIECE // n_rows), dim=1)
        total = math.fsum(part.double().logsumexp(0).sum().item() for part in parts)
    return total / n_columns
