"""Layers whose tensors are drawn once, from a given generator.

PyTorch's own layers draw default weights from the global generator when they are made.  These
leave the tensors unset; `draw_weights` fills each of them exactly once.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUP = 16  # numbers that PyTorch transforms together
_GROUPS_AT_ONCE = 4096  # so that they stay in a core's cache
_GROUPS_ON_GPU = 2**18  # in temporary tensors of 32 MiB


class _Undrawn:
    def reset_parameters(self) -> None:
        """Leave the tensors to `draw_weights`."""


class Linear(_Undrawn, nn.Linear):
    """`torch.nn.Linear` without the default draw."""


class Embedding(_Undrawn, nn.Embedding):
    """`torch.nn.Embedding` without the default draw."""


class Conv1d(_Undrawn, nn.Conv1d):
    """`torch.nn.Conv1d` without the default draw."""


class Projection(Linear):
    """A bias-free linear map in and out of an embedding; has a standard deviation of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


class ResidualLinear(Linear):
    """A linear map into the residual stream; GPT-2 draws it narrower, the deeper the model."""


@torch.no_grad()
def draw_weights(
    model: nn.Module,
    seed: int,
    std: float,
    std_of: Mapping[type[nn.Module], float] | None = None,
) -> None:
    """Fill every parameter of a model, in the order of registration, each once.

    Weights are normal with mean 0, the same on every CPU; biases are 0; a norm is the identity; the
    row of an embedding's padding token is 0.

    Args:
        model: the model; its parameters are overwritten.
        seed: the only source of randomness.
        std: standard deviation of weights and embeddings.
        std_of: standard deviation by type of layer, where it differs.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            if name.endswith("bias"):
                parameter.zero_()
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                parameter.fill_(1.0)
            else:
                own_std = (std_of or {}).get(type(module), std)
                _draw_normal(parameter, own_std, generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _draw_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a float32 tensor as `Tensor.normal_` does on a CPU, with the same bits on every CPU.

    PyTorch transforms uniform numbers in groups of 16 by Box and Muller's method, in float32, with
    routines whose last bits differ between CPUs.  Here the transform is in float64, rounded once,
    on the tensor's device; the uniform numbers are always drawn on the CPU.
    """
    flat = parameter.view(-1)
    if len(flat) < _GROUP:  # PyTorch draws these in float64
        flat.copy_(_on_cpu(flat).normal_(0.0, std, generator=generator))
        return
    flat.copy_(_on_cpu(flat).uniform_(generator=generator))
    whole = flat[: len(flat) // _GROUP * _GROUP].view(-1, _GROUP)
    for groups in torch.split(whole, _GROUPS_AT_ONCE if flat.is_cpu else _GROUPS_ON_GPU):
        _transform(groups, std)
    if len(flat) % _GROUP:
        last = flat[-_GROUP:]
        last.copy_(_on_cpu(last).uniform_(generator=generator))
        _transform(last.view(1, _GROUP), std)


def _on_cpu(tensor: Tensor) -> Tensor:
    """The tensor if it is on the CPU, else one there of its shape."""
    return tensor if tensor.is_cpu else torch.empty_like(tensor, device="cpu")


def _transform(groups: Tensor, std: float) -> None:
    """Box and Muller's transform of uniform numbers [n, 16], in place."""
    first, second = groups.double().chunk(2, dim=1)
    radius = first.neg_().log1p_().mul_(-2 * std**2).sqrt_()
    angle = second.mul_(2 * math.pi)
    groups.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1))


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """``[B, T, heads · size]`` to ``[B, heads, T, size]``."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(hidden: Tensor) -> Tensor:
    """``[B, heads, T, size]`` to ``[B, T, heads · size]``."""
    return hidden.transpose(1, 2).flatten(2)


class CausalAttention(nn.Module):
    """Attention of a position to itself and to earlier positions.

    Attributes:
        softmax: makes the probabilities ``[B, heads, T, T]``; a hook on it sees them.
        fused: whether PyTorch's fused attention is used, which has no such probabilities.
    """

    fused: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, added: Tensor | None = None
    ) -> Tensor:
        """Three times ``[B, heads, T, size]`` to ``[B, T, heads · size]``.

        Args:
            queries: of every position.
            keys: likewise.
            values: likewise.
            added: ``[B, heads, T, T]``, added to the products of queries and keys, if any; then
                the attention is never fused.
        """
        if self.fused and added is None:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return merge_heads(mixed)
        products = queries @ keys.transpose(-1, -2)
        if added is not None:
            products = products + added
        scores = products / math.sqrt(queries.shape[-1])
        length = queries.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
        probabilities = self.softmax(scores.masked_fill(future, -math.inf))
        return merge_heads(probabilities @ values)


def fuse_attention(model: nn.Module) -> None:
    """Use fused attention in a model that is trained and not probed."""
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.fused = True
