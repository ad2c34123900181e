"""The means of all twenty unary operations of a tensor, from one walk through it.

`plain_walk` defines the sums that the means follow from, for any device; `fused` computes them on
a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmscout.proxies.primitives import UNARY_OPERATION
from lmscout.statistics.plain_walk import OPERATIONS, Values, means_of_totals, plain_totals

_AT_ONCE = 1 << 26  # elements reduced in one launch on a GPU: 256 MiB in float32


@torch.no_grad()
def unary_means(tensor: Tensor) -> Values:
    """Mean of every unary operation of one tensor.

    Args:
        tensor: any shape, floating dtype and device; accumulated in float64.

    Returns:
        [20] float64, in the order of `OPERATIONS`; all NaN if the tensor is empty or holds a NaN
        or an infinity.
    """
    means: Values = _means_of([tensor])[0]
    return means


@torch.no_grad()
def chain_means(tensor: Tensor, chains: Sequence[tuple[str, ...]]) -> Values:
    """Mean of every chain of unary operations of one tensor.

    Chains that differ in the last operation alone share one walk.

    Args:
        tensor: any shape, floating dtype and device.
        chains: operations, innermost first; each at least one.

    Returns:
        [len(chains)] float64.
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
