"""By how much a loss is multiplied before its backward pass, so that 16 bits hold its gradients.

A mean over thousands of tokens leaves each of them a gradient that float16 rounds coarsely, or to
zero.  Multiplied by a power of two it keeps its digits, and whoever reads it divides again, in
float32.  Types with the range of float32, bfloat16 among them, need none of this: theirs is 1.
"""

from __future__ import annotations

import torch

_BELOW_TOKENS = 4  # so that not even tokens that all pull one way come near the largest number
_MOST = 1 << 10
_FALL = 16.0  # when a gradient has overflowed


def loss_scale(dtype: torch.dtype, tokens: int) -> float:
    """The factor of a mean loss.

    Args:
        dtype: of the model's weights.
        tokens: over which the mean is.

    Returns:
        A power of two, at least 1.
    """
    if torch.finfo(dtype).tiny <= torch.finfo(torch.float32).tiny:
        return 1.0
    share = min(max(tokens // _BELOW_TOKENS, 1), _MOST)
    return float(1 << (share.bit_length() - 1))


def lower_scale(scale: float) -> float:
    """The factor to try after one that was too large."""
    return max(1.0, scale / _FALL)
