"""Layers whose tensors are drawn once, from a given generator.

PyTorch's own layers draw their default weights when they are made, from the global generator.
These leave the tensors unset, and `draw_weights` fills each of them exactly once: building a
model of 40 million parameters costs one pass over them, and nobody's random state moves.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Linear(nn.Linear):
    """`torch.nn.Linear` without the default draw."""

    def reset_parameters(self) -> None:
        """Leave the tensors to `draw_weights`."""


class Projection(Linear):
    """A bias-free linear map in and out of an embedding of another width.

    A type of its own because these maps have a standard deviation of their own.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


class ResidualLinear(Linear):
    """The linear map whose output is added to the residual stream.

    A type of its own because GPT-2 draws these narrower, the deeper the model.
    """


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` without the default draw."""

    def reset_parameters(self) -> None:
        """Leave the tensors to `draw_weights`."""


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` without the default draw."""

    def reset_parameters(self) -> None:
        """Leave the tensors to `draw_weights`."""


@torch.no_grad()
def draw_weights(
    model: nn.Module,
    seed: int,
    std: float,
    std_of: Mapping[type[nn.Module], float] | None = None,
) -> None:
    """Fill every parameter of a model, in the order of registration, each once.

    Weights are normal with mean 0; biases are 0; a norm is the identity; the row of an
    embedding's padding token is 0.

    Args:
        model: the model; its parameters are overwritten.
        seed: the only source of randomness.
        std: standard deviation of weights and embeddings.
        std_of: the standard deviation of types of layer that differ.
    """
    generator = torch.Generator().manual_seed(seed)
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
                parameter.normal_(0.0, own_std, generator=generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """``[B, T, heads · size]`` to ``[B, heads, T, size]``."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(hidden: Tensor) -> Tensor:
    """``[B, heads, T, size]`` to ``[B, T, heads · size]``."""
    return hidden.transpose(1, 2).flatten(2)


class CausalAttention(nn.Module):
    """Attention in which a position sees itself and what came before.

    Attributes:
        softmax: what makes the probabilities ``[B, heads, T, T]``, so that a hook sees them.
        fused: whether PyTorch's fused attention is used, which is faster and shows none.
    """

    fused: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Three times ``[B, heads, T, size]`` to ``[B, T, heads · size]``."""
        if self.fused:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return merge_heads(mixed)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        length = queries.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
        probabilities = self.softmax(scores.masked_fill(future, -math.inf))
        return merge_heads(probabilities @ values)


def fuse_attention(model: nn.Module) -> None:
    """Let a model that nobody reads, because it is being trained, attend faster."""
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.fused = True
