"""What flows into the output projections: moments of calibration activations, per unit.

One dense pass over calibration text collects, for each block's attention and MLP, the Gram
matrix and the mean of the vectors that enter the output projection.  Importance reads the
diagonal, compensation reads all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.pruning.families import AttentionParts, Family, MlpParts


@dataclass(frozen=True)
class Moments:
    """Second moments of the vectors that enter one output projection.

    Attributes:
        gram: [n, n] sum of x xᵀ over tokens, float32 or wider.
        total: [n] sum of x over tokens.
        tokens: how many.
    """

    gram: Tensor
    total: Tensor
    tokens: int

    def reordered(self, order: Tensor) -> Moments:
        """The same with the entries of x in another order."""
        return Moments(self.gram[order][:, order], self.total[order], self.tokens)

    @property
    def square(self) -> Tensor:
        """[n] mean of x²."""
        return self.gram.diagonal() / self.tokens

    @property
    def variance(self) -> Tensor:
        """[n] variance of x over tokens."""
        return (self.square - (self.total / self.tokens) ** 2).clamp_min(0)


def collect_moments(
    model: PreTrainedModel,
    family: Family,
    windows: Tensor,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[int, str], Moments]:
    """Collect the moments of every block's two output projections.

    Args:
        model: the dense model.
        family: its family.
        windows: [windows, T] int64 calibration tokens.
        batch: windows at once.
        progress: called with windows done and in all.

    Returns:
        (block, "attention" or "mlp") -> moments, in the model's current unit order.
    """
    sums: dict[tuple[int, str], Moments] = {}
    for start in range(0, len(windows), batch):
        for place, inner, _ in dense_flow(model, family, windows[start : start + batch]):
            x = inner.flatten(0, 1).float()
            before = sums.get(place)
            gram, total = x.T @ x, x.sum(0)
            if before is not None:
                gram, total = gram.add_(before.gram), total.add_(before.total)
            sums[place] = Moments(gram, total, len(x) + (before.tokens if before else 0))
        if progress:
            progress(min(start + batch, len(windows)), len(windows))
    return sums


@torch.no_grad()
def dense_flow(
    model: PreTrainedModel, family: Family, tokens: Tensor
) -> Iterator[tuple[tuple[int, str], Tensor, Tensor]]:
    """Walk tokens through the dense model, one output projection at a time.

    Args:
        model: the dense model.
        family: its family.
        tokens: [B, T] int64.

    Yields:
        (block, kind), what enters the output projection [B, T, n], and the hidden state
        after it was added [B, T, width].
    """
    hidden = family.embed(model, tokens)
    context = family.context(model, hidden)
    for index, block in enumerate(family.blocks(model)):
        for kind, part in family.parts(block).halves.items():
            inner = inner_activation(family, block, part, hidden, context)
            hidden = hidden + functional.linear(inner, part.output.weight, part.output.bias)
            yield (index, kind), inner, hidden


def inner_activation(
    family: Family,
    block: nn.Module,
    part: AttentionParts | MlpParts,
    hidden: Tensor,
    context: object,
) -> Tensor:
    """Attention or MLP of one block up to its output projection: [B, T, n]."""
    if isinstance(part, AttentionParts):
        return family.attend(block, part, family.attention_norm(block, hidden), context)
    return family.activate(block, part, family.mlp_norm(block, hidden))
