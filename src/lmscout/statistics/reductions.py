"""The means of all twenty unary operations of a tensor, from one walk through it.

A proxy needs the mean of u(x) for each unary operation u.  `totals` says what those means follow
from; `plain_walk` finds it on any device, `fused_reductions` on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from lmscout.proxies.primitives import UNARY_OPERATION
from lmscout.statistics.plain_walk import plain_totals
from lmscout.statistics.totals import OPERATIONS, Values, means_of_totals

_FUSED = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def unary_means(tensor: Tensor) -> Values:
    """Mean of every unary operation of one tensor.

    Args:
        tensor: any shape and floating dtype; accumulated in float64 over float32 pieces.

    Returns:
        [20] float64, in the order of `OPERATIONS`; all NaN where the tensor is empty or holds
        a NaN or an infinity.
    """
    means: Values = means_of_totals(tensor_totals([tensor]).cpu().numpy())[0]
    return means


@torch.no_grad()
def tensor_totals(tensors: Sequence[Tensor]) -> Tensor:
    """What the twenty means of each tensor follow from; a GPU is not waited for.

    Args:
        tensors: on one device.

    Returns:
        [tensors, totals] float64 on the tensors' device, in the order of `TOTALS`.
    """
    if has_fused(tensors):
        from lmscout.statistics.fused_reductions import fused_totals

        return fused_totals(tensors)
    return torch.tensor([plain_totals(tensor) for tensor in tensors], dtype=torch.float64)


def has_fused(tensors: Sequence[Tensor]) -> bool:
    """Whether the fused kernel takes these tensors, or the plain walk has to.

    Args:
        tensors: on one device.
    """
    return find_spec("triton") is not None and all(
        tensor.is_cuda and tensor.numel() > 0 and tensor.dtype in _FUSED for tensor in tensors
    )


def chain_means(tensor: Tensor, chains: Sequence[tuple[str, ...]]) -> Values:
    """Mean of every chain of unary operations of one tensor.

    Chains that begin alike share the tensor after their first operations, and those that
    differ in the last operation alone share one walk.

    Args:
        tensor: any shape and floating dtype.
        chains: operations, innermost first; each at least one.

    Returns:
        [len(chains)] float64.
    """
    column = {name: index for index, name in enumerate(OPERATIONS)}
    by_prefix: dict[tuple[str, ...], list[int]] = {}
    for index, chain in enumerate(chains):
        by_prefix.setdefault(chain[:-1], []).append(index)
    result = np.empty(len(chains))
    bare = unary_means(tensor)
    for prefix, indices in by_prefix.items():
        inner = tensor.detach()
        for place, name in enumerate(prefix):
            if place == 0 and UNARY_OPERATION[name].scalar:  # the walk has it already
                inner = torch.tensor(bare[column[name]], dtype=tensor.dtype)
            else:
                inner = UNARY_OPERATION[name].apply(inner)
        means = unary_means(inner) if prefix else bare
        for index in indices:
            result[index] = means[column[chains[index][-1]]]
    return result
