"""Moments of the activations that enter the output projections, on calibration text.

One pass over the text collects the Gram matrix and the mean for attention and MLP of each block.
Importance uses the diagonal, compensation the whole matrix.  All text goes through one sublayer
before the next, so one Gram matrix at a time is in memory: those of a model of seven billion
parameters are larger than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError, first_line, out_of_memory
from lmscout.progress import StageProgress
from lmscout.pruning.families import ExpertChannels, Experts, Family, Place, Sublayer

BATCH_TOKENS = 2048  # of a batch: enough to keep a CPU busy, and little memory

_Result = TypeVar("_Result")


def retry_with_half_batch(
    work: Callable[[int], _Result], size: int, device: torch.device
) -> _Result:
    """Call `work` with a batch size in windows, and with half of it while memory is short.

    Raises:
        LmscoutError: memory does not suffice for a single window.
    """
    size = max(1, size)
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = first_line(error)
        # outside of the handler: the exception's frames hold what the work had allocated
        if size == 1:
            raise LmscoutError(
                f"{device} is out of memory with a single window ({reason}): use a larger one, "
                "shorter windows, or compensation none; a dry run says what a run takes"
            )
        size //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()


def batches_of(windows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Windows [n, ...] in batches of `size`, at least 1."""
    batches: tuple[Tensor, ...] = torch.split(windows, max(1, size))
    return batches


def damped(gram: Tensor, share: float) -> Tensor:
    """Gram matrices [..., n, n] in float64, the diagonal increased by a share of its mean."""
    wide = gram.to(torch.float64, copy=True)
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    least = torch.finfo(torch.float32).tiny
    diagonal.add_(share * diagonal.mean(-1, keepdim=True).clamp_min(least))
    return wide


@dataclass(frozen=True)
class Moments:
    """Moments of the vectors x that enter one output projection, in float32 or wider.

    Where a norm follows the projection, x is divided by what the norm divides the token by: errors
    then count as they enter the residual stream.

    Those of experts have a dimension more, the first: of each, x is multiplied by its share of a
    token, and 0 for tokens that do not select it.
    """

    total: Tensor  # [n] sum of x over tokens
    squares: Tensor  # [n] sum of x²
    tokens: int  # number of tokens
    gram: Tensor | None = None  # [n, n] sum of x xᵀ, or None if it was not collected

    def reordered(self, order: Tensor) -> Moments:
        """The same with the entries of x in another order."""
        order, gram = order.to(self.total.device), self.gram
        if gram is not None:
            gram = gram.take_along_dim(order[..., None], -2).take_along_dim(order[..., None, :], -1)
        total, squares = (one.take_along_dim(order, -1) for one in (self.total, self.squares))
        return Moments(total, squares, self.tokens, gram)

    @property
    def members(self) -> Sequence[Moments]:
        """Those of each expert, or these alone."""
        if self.total.ndim == 1:
            return (self,)
        grams = [None] * len(self.total) if self.gram is None else self.gram
        parts = zip(self.total, self.squares, grams, strict=True)
        return [Moments(total, squares, self.tokens, gram) for total, squares, gram in parts]

    @property
    def square(self) -> Tensor:
        """[n] mean of x²."""
        return self.squares / self.tokens

    @property
    def variance(self) -> Tensor:
        """[n] variance of x over tokens."""
        return (self.square - (self.total / self.tokens) ** 2).clamp_min(0)


@torch.no_grad()
def moments_by_block(
    model: PreTrainedModel,
    family: Family,
    windows: Tensor,
    *,
    grams: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    progress: StageProgress | None = None,
    experts: Callable[[Place, Experts, Tensor], None] | None = None,
) -> Iterator[tuple[Place, Moments]]:
    """Collect the moments of every sublayer that has units, one after the other.

    Experts as units have no moments: `experts` is called with them and the hidden state before
    them, [windows, T, width].

    Windows are [windows, T] int64, in batches of `batch_tokens` or less.  Moments are in the
    model's current unit order.  A sublayer that was yielded is not used again: its units may be
    sorted before the next.
    """
    windows = windows.to(model.device)
    size = batch_tokens // windows.shape[1]
    hidden = torch.cat([family.embed(model, batch) for batch in batches_of(windows, size)])
    blocks = family.all_parts(model)
    for index, parts in enumerate(blocks):
        for kind, sublayer in parts.sublayers.items():
            if not sublayer.units:
                continue
            hidden = hidden.to(sublayer.device)
            if isinstance(sublayer, Experts):
                if experts is not None:
                    experts((index, kind), sublayer, hidden)
                step = partial(_step, model, family, sublayer, hidden)
                hidden = retry_with_half_batch(step, size, model.device)
                continue
            collect = partial(_collect, model, family, sublayer, hidden, grams)
            moments, hidden = retry_with_half_batch(collect, size, model.device)
            yield (index, kind), moments
        if progress:
            progress(index + 1, len(blocks))


def _step(
    model: PreTrainedModel, family: Family, sublayer: Sublayer, hidden: Tensor, size: int
) -> Tensor:
    """The hidden state after a sublayer, in batches of `size` windows."""
    batches = batches_of(hidden, size)
    return torch.cat([sublayer.step(one, family.context(model, one)) for one in batches])


def _collect(
    model: PreTrainedModel,
    family: Family,
    sublayer: Sublayer,
    hidden: Tensor,
    grams: bool,
    size: int,
) -> tuple[Moments, Tensor]:
    """Moments of one sublayer, and the hidden state after it, in batches of `size` windows."""
    after = sublayer.after
    (count, entries), wide = sublayer.moments, torch.promote_types(hidden.dtype, torch.float)
    shape = (count, entries) if isinstance(sublayer, ExpertChannels) else (entries,)
    total, squares = hidden.new_zeros(2, *shape, dtype=wide)
    gram = hidden.new_zeros(*shape, entries, dtype=wide) if grams else None
    states = []
    for state in batches_of(hidden, size):
        if isinstance(sublayer, ExpertChannels):
            normed = sublayer.norm(state).flatten(0, 1)
            for number, tokens, shares in sublayer.routed(normed):
                x = sublayer.channels(number, normed[tokens]).to(wide) * shares.to(wide)
                total[number] += x.sum(0)
                squares[number] += x.square().sum(0)
                if gram is not None:
                    gram[number].addmm_(x.T, x)
            states.append(sublayer.step(state, None))
            continue
        inner = sublayer.entering(state, family.context(model, state))
        projected = sublayer.output.apply(inner)
        states.append(state + sublayer.added(projected))
        x = (inner if after is None else inner * after.rate(projected)).flatten(0, 1).to(wide)
        total += x.sum(0)
        squares += x.square().sum(0)
        if gram is not None:
            gram.addmm_(x.T, x)
    return Moments(total, squares, hidden.shape[0] * hidden.shape[1], gram), torch.cat(states)
