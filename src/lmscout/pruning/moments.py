"""Moments of calibration activations, collected in chunks and in batches that fit memory.

Work that is done in ever smaller batches as long as memory does not suffice.

What flows into the output projections: moments of calibration activations, per unit.

One dense pass over calibration text collects, for each block's attention and MLP, the Gram
matrix and the mean of the vectors that enter the output projection.  Importance reads the
diagonal, compensation reads all of it.  The pass goes block by block, all text at once, so
that one Gram matrix at a time has to be there: those of a model of seven billion parameters
are larger than the model.

Calibration text in chunks, and each in as many walks through the model as memory asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError, out_of_memory
from lmscout.evaluation.quiet import first_line
from lmscout.progress import StageProgress
from lmscout.pruning.families import AttentionParts, Family, MlpParts

_Result = TypeVar("_Result")


def retrying(
    work: Callable[[], _Result], with_half_batch: Callable[[], bool], device: torch.device
) -> _Result:
    """Do work, again and again until memory suffices.

    Args:
        work: to be done from its beginning each time.
        with_half_batch: makes batches half as large; False where they are single windows already.
        device: on which memory is short.

    Raises:
        LmscoutError: it does not suffice for a single window.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = first_line(error)
        # only now, as the error held on to what the work had allocated
        if not with_half_batch():
            raise LmscoutError(
                f"{device} is out of memory with a single window ({reason}): use a larger one, "
                "shorter windows, or --compensation none; --dry-run says what a run takes"
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def retrying_from(work: Callable[[int], _Result], size: int, device: torch.device) -> _Result:
    """The same for work that is told how many windows to take at once, `size` at first."""
    sizes = [max(1, size)]

    def with_half_batch() -> bool:
        sizes.append(max(1, sizes[-1] // 2))
        return sizes[-1] < sizes[-2]

    return retrying(lambda: work(sizes[-1]), with_half_batch, device)


Place = tuple[int, str]  # a block, and "attention" or "mlp"

BATCH_TOKENS = 2048  # read at once: enough to keep a CPU busy, and little memory


@dataclass(frozen=True)
class Moments:
    """Moments of the vectors that enter one output projection.

    Attributes:
        total: [n] sum of x over tokens, float32 or wider, as are the others.
        squares: [n] sum of x².
        tokens: how many.
        gram: [n, n] sum of x xᵀ, or None where it was not asked for.
    """

    total: Tensor
    squares: Tensor
    tokens: int
    gram: Tensor | None = None

    def reordered(self, order: Tensor) -> Moments:
        """The same with the entries of x in another order."""
        order = order.to(self.total.device)
        gram = None if self.gram is None else self.gram[order][:, order]
        return Moments(self.total[order], self.squares[order], self.tokens, gram)

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
) -> Iterator[tuple[Place, Moments]]:
    """Collect the moments of every block's two output projections, one after the other.

    What has been yielded is done with: its units may be sorted before the next is asked for.

    Args:
        model: the dense model.
        family: its family.
        windows: [windows, T] int64 calibration tokens.
        grams: whether Gram matrices are wanted.
        batch_tokens: tokens at once, in whole windows; fewer where memory does not suffice.
        progress: called with blocks done and in all.

    Yields:
        (block, "attention" or "mlp") and its moments, in the model's current unit order.
    """
    windows = windows.to(model.device)
    size = batch_tokens // windows.shape[1]
    hidden = torch.cat([family.embed(model, batch) for batch in parts_of(windows, size)])
    blocks = family.blocks(model)
    for index, block in enumerate(blocks):
        for kind, part in family.parts(block).sublayers.items():
            through = partial(_through, model, family, block, part, hidden, grams)
            moments, hidden = retrying_from(through, size, model.device)
            yield (index, kind), moments
        if progress:
            progress(index + 1, len(blocks))


def _through(
    model: PreTrainedModel,
    family: Family,
    block: nn.Module,
    part: AttentionParts | MlpParts,
    hidden: Tensor,
    grams: bool,
    size: int,
) -> tuple[Moments, Tensor]:
    """Moments of one half of a block, and the hidden state after it; so many windows at once."""
    sums, after = _Sums(), []
    for state in parts_of(hidden, size):
        inner = inner_activation(family, block, part, state, family.context(model, state))
        after.append(state + part.output.apply(inner))
        wide = torch.promote_types(inner.dtype, torch.float32)
        sums.add(inner.flatten(0, 1).to(wide), grams)
    return sums.moments(), torch.cat(after)


def parts_of(windows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Windows [n, ...], so many at a time, one at least."""
    parts: tuple[Tensor, ...] = torch.split(windows, max(1, size))
    return parts


class _Sums:
    """Sums over tokens, of one output projection."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._squares: Tensor | None = None
        self._gram: Tensor | None = None
        self._tokens = 0

    def add(self, x: Tensor, gram: bool) -> None:
        """Add the vectors x [tokens, n]."""
        total, squares = x.sum(0), x.square().sum(0)
        self._total = total if self._total is None else self._total.add_(total)
        self._squares = squares if self._squares is None else self._squares.add_(squares)
        if gram:
            self._gram = x.T @ x if self._gram is None else self._gram.addmm_(x.T, x)
        self._tokens += len(x)

    def moments(self) -> Moments:
        """What was added so far."""
        assert self._total is not None
        assert self._squares is not None
        return Moments(self._total, self._squares, self._tokens, self._gram)


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


def half_step(
    family: Family,
    block: nn.Module,
    part: AttentionParts | MlpParts,
    hidden: Tensor,
    context: object,
) -> Tensor:
    """The hidden state after attention or MLP of one block: [B, T, width] to the same."""
    return hidden + part.output.apply(inner_activation(family, block, part, hidden, context))


class Walk:
    """Windows that go through the model together, with what the last plan made of them."""

    def __init__(self, first: int, windows: Tensor) -> None:
        self.first = first  # predicted tokens of the chunk before these windows
        self.windows = windows
        self.targets = windows[:, 1:].flatten()
        self.forget()

    def forget(self) -> None:
        """Let go of the hidden states."""
        self.context: object = None
        self.states: list[Tensor] = []  # entering step 0, and after every so many steps
        self.steps: list[int] = []


@dataclass(frozen=True)
class Top:
    """The dense model's likeliest tokens and their log-probabilities, [tokens, top] each."""

    log_probabilities: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Top:
        """The same on a device."""
        return Top(self.log_probabilities.to(device), self.tokens.to(device))

    def of(self, walk: Walk) -> Top:
        """Those of a part of the chunk."""
        part = slice(walk.first, walk.first + walk.targets.numel())
        return Top(self.log_probabilities[part], self.tokens[part])


class Chunk:
    """One part of the text, in as many walks as memory asks for."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows
        self.tokens = windows[:, 1:].numel()
        self.dense_nll = 0.0
        self.top: Top | None = None
        self._split(len(windows))

    def with_half_batch(self) -> bool:
        """Half as many windows at once, from now on; False where it is a single one already."""
        largest = max(len(walk.windows) for walk in self.walks)
        if largest > 1:
            self._split(largest // 2)
        return largest > 1

    def forget(self) -> None:
        """Let go of hidden states."""
        for walk in self.walks:
            walk.forget()

    def _split(self, size: int) -> None:
        each = self.windows.shape[1] - 1
        self.walks = [
            Walk(place * size * each, part)
            for place, part in enumerate(parts_of(self.windows, size))
        ]
