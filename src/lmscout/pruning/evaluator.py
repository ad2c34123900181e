"""Measure plans on calibration text without building them.

A subnetwork is prefixes of the dense model's sorted weights, as views.  Tokens are walked
through it in steps, two a block (attention, MLP), and the hidden state after every step is
kept: a plan that begins like the one before it starts where they part.  Text is measured in
chunks, and a plan that is far behind after the first ones is dropped.

On an accelerator text goes in batches of many tokens, and what does not fit is halved until it
does.  Kept hidden states may take half of the memory that is free; where all of them are more,
every second, third, ... is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.families import KINDS, Affine, BlockParts, Family, unit_parameters
from lmscout.pruning.moments import Chunk, Top, Walk, inner_activation, retrying
from lmscout.pruning.plan import Plan, Shape

LIKELIHOOD, DIVERGENCE = "nll", "kl"
QUALITIES = (LIKELIHOOD, DIVERGENCE)
_Result = TypeVar("_Result")
Reference = tuple[float, Top | None]  # a chunk's dense loss, and its likeliest tokens if needed

KEPT_SHARE = 0.5  # of the memory that is free, for hidden states

_TOP = 32  # dense logits kept a token, where quality is the divergence from them


@dataclass(frozen=True)
class Measurement:
    """How much worse a plan is than the dense model.

    Attributes:
        trajectory: for each chunk measured, the predicted tokens so far and on them the rise of
            the negative log-likelihood over the dense model's (or divergence from it), in
            nats a token.
        complete: whether all chunks were; False for a plan that was dropped early.
    """

    trajectory: tuple[tuple[int, float], ...]
    complete: bool

    @property
    def loss_increase(self) -> float:
        """On all tokens measured."""
        return self.trajectory[-1][1]

    @property
    def tokens(self) -> int:
        """Predicted tokens measured."""
        return self.trajectory[-1][0]


class Evaluator(Protocol):
    """What measures plans, wherever it does."""

    @property
    def shape(self) -> Shape:
        """Units of the dense model."""

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, chunk by chunk."""

    @property
    def tokens(self) -> int:
        """Predicted tokens of a complete measurement."""

    @property
    def dense_nll(self) -> float:
        """Negative log-likelihood of the dense model, in nats a token."""

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans one after the other, as `SubnetworkEvaluator.measure`."""


class SubnetworkEvaluator:
    """Measures plans of one model on fixed calibration tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        windows: Tensor,
        *,
        compensation: Compensation | None = None,
        quality: str = LIKELIHOOD,
        chunks: int = 4,
        references: Sequence[Reference] | None = None,
    ) -> None:
        """Measure the dense model, to which plans are compared.

        Args:
            model: the dense model, its units in final order; never changed.
            family: its family.
            windows: [windows, T] int64 calibration tokens.
            compensation: refits output projections, or None to leave them as cut.
            quality: "nll" (rise of the negative log-likelihood) or "kl" (divergence from the
                dense model's top 32 tokens and the rest).
            chunks: in how many parts the text is measured.
            references: of another evaluator on the same windows, whose model plans are compared
                to; by default this model is.

        Raises:
            LmscoutError: the quality is unknown, or the dense loss is not finite.
        """
        if quality not in QUALITIES:
            raise LmscoutError(f"unknown quality {quality!r}: expected nll or kl")
        self._model, self._family = model, family
        self._blocks = list(family.blocks(model))
        self._parts = family.all_parts(model)
        self._compensation = compensation
        self._quality = quality
        self.shape = shape_of(self._parts)
        device = model.device
        self._chunks = [Chunk(part) for part in windows.to(device).chunk(min(chunks, len(windows)))]
        self._stride = _stride(self.shape, model, windows.numel())
        if references is None:
            for chunk in self._chunks:
                self._in_memory(chunk, partial(self._measure_dense, chunk))
        else:
            for chunk, known in zip(self._chunks, references, strict=True):
                chunk.dense_nll = known[0]
                chunk.top = known[1] and known[1].to(device)

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, chunk by chunk."""
        return tuple((chunk.dense_nll, chunk.top) for chunk in self._chunks)

    @property
    def dense_nll(self) -> float:
        """Negative log-likelihood of the dense model, in nats a token."""
        total = sum(chunk.dense_nll * chunk.tokens for chunk in self._chunks)
        return total / self.tokens

    @property
    def tokens(self) -> int:
        """Predicted tokens of a complete measurement."""
        return sum(chunk.tokens for chunk in self._chunks)

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans one after the other; neighbours that begin alike share the beginning.

        Args:
            plans: the plans, in an order that puts alike ones together.
            limits: for each plan, the rise over the first chunk, the first two, and so on,
                above which it is dropped; a plan may have fewer limits than there are
                chunks.  They are asked for when the plan's turn has come.

        Yields:
            One measurement a plan.

        Raises:
            LmscoutError: a plan does not fit the model.
        """
        for plan, most in zip(plans, repeat(()) if limits is None else limits, strict=False):
            self.shape.check(plan)
            trajectory: list[tuple[int, float]] = []
            total = 0.0
            for index, chunk in enumerate(self._chunks):
                loss_increase = self._in_memory(chunk, partial(self._loss_increase, plan, chunk))
                total += loss_increase * chunk.tokens
                tokens = chunk.tokens + (trajectory[-1][0] if trajectory else 0)
                trajectory.append((tokens, total / tokens))
                # written so that a rise that is no number is dropped, too
                if index < len(most) and not total / tokens <= most[index]:
                    break
            yield Measurement(tuple(trajectory), len(trajectory) == len(self._chunks))

    @torch.no_grad()
    def logits(self, plan: Plan, tokens: Tensor) -> Tensor:
        """Logits of a plan: [B, T] int64 to [B, T, vocabulary]."""
        walk = Walk(0, tokens.to(self._model.device))
        return self._family.logits(self._model, self._hidden(plan, walk))

    def output(self, block: int, kind: str, kept: int) -> Affine:
        """The output projection of a block that keeps so many units, as it is measured."""
        cut = self._parts[block].sublayers[kind].first(kept).output
        if self._compensation is None:
            return cut
        return self._compensation.output(block, kind, cut.weight.shape[1])

    @torch.no_grad()
    def _hidden(self, plan: Plan, walk: Walk) -> Tensor:
        """The last hidden state, starting after the steps shared with the plan before."""
        if not walk.states:
            walk.states.append(self._family.embed(self._model, walk.windows))
            walk.context = self._family.context(self._model, walk.states[0])
        steps = plan.steps
        shared = 0
        while shared < len(walk.steps) and walk.steps[shared] == steps[shared]:
            shared += 1
        kept_states = shared // self._stride
        del walk.states[kept_states + 1 :], walk.steps[shared:]
        hidden = walk.states[-1]
        for step in range(kept_states * self._stride, len(steps)):
            kept = steps[step]
            if kept:
                hidden = hidden + self._update(step, kept, hidden, walk.context)
            if step >= shared:
                walk.steps.append(kept)
            if (step + 1) % self._stride == 0:
                walk.states.append(hidden)
        return hidden

    def _update(self, step: int, kept: int, hidden: Tensor, context: object) -> Tensor:
        """What one step adds to the hidden state."""
        index, kind = step // len(KINDS), KINDS[step % len(KINDS)]
        first = self._parts[index].sublayers[kind].first(kept)
        inner = inner_activation(self._family, self._blocks[index], first, hidden, context)
        return self.output(index, kind, kept).apply(inner)

    @torch.no_grad()
    def _measure_dense(self, chunk: Chunk) -> None:
        dense, tops = 0.0, []
        for walk in chunk.walks:
            logits = self._predictions(self.shape.dense, walk)
            dense += _nll(logits, walk.targets)
            if self._quality == DIVERGENCE:
                log_probabilities = logits.float().log_softmax(-1)
                tops.append(log_probabilities.topk(min(_TOP, logits.shape[-1]), dim=-1))
        chunk.dense_nll = dense / chunk.tokens
        if not math.isfinite(chunk.dense_nll):
            raise LmscoutError(
                f"the dense model's loss on calibration text is {chunk.dense_nll}: nothing can "
                "be compared with it"
            )
        if tops:
            chunk.top = Top(
                torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])
            )

    @torch.no_grad()
    def _loss_increase(self, plan: Plan, chunk: Chunk) -> float:
        total = 0.0
        for walk in chunk.walks:
            logits = self._predictions(plan, walk)
            if self._quality == LIKELIHOOD:
                total += _nll(logits, walk.targets)
            else:
                assert chunk.top is not None
                total += _divergence(logits, chunk.top.of(walk))
        mean = total / chunk.tokens
        return mean - chunk.dense_nll if self._quality == LIKELIHOOD else mean

    def _predictions(self, plan: Plan, walk: Walk) -> Tensor:
        """Logits of every next token: [windows * (T - 1), vocabulary]."""
        hidden = self._hidden(plan, walk)[:, :-1]
        return self._family.logits(self._model, hidden).flatten(0, 1)

    def _in_memory(self, chunk: Chunk, work: Callable[[], _Result]) -> _Result:
        """Do work on a chunk, in ever smaller batches as long as memory does not suffice."""

        def with_half_batch() -> bool:
            for other in self._chunks:
                other.forget()
            return chunk.with_half_batch()

        return retrying(work, with_half_batch, self._model.device)


def shape_of(parts: Sequence[BlockParts]) -> Shape:
    """Units of every block, and the parameters that each carries."""
    attention, mlp = [block.attention for block in parts], [block.mlp for block in parts]
    return Shape(
        tuple(one.groups for one in attention),
        tuple(one.channels for one in mlp),
        tuple(unit_parameters(one) // one.groups for one in attention),
        tuple(unit_parameters(one) // one.channels for one in mlp),
    )


def _stride(shape: Shape, model: PreTrainedModel, tokens: int) -> int:
    """One kept hidden state for how many steps, so that half of the free memory suffices."""
    if model.device.type != "cuda":
        return 1
    width = next(model.get_input_embeddings().parameters()).shape[1]
    each = tokens * width * model.dtype.itemsize
    steps = len(KINDS) * shape.depth
    room = KEPT_SHARE * torch.cuda.mem_get_info(model.device)[0] / max(1, each) - 1
    return max(1, math.ceil(steps / room)) if room > 1 else steps + 1


def _nll(logits: Tensor, targets: Tensor) -> float:
    return functional.cross_entropy(logits.float(), targets, reduction="sum").item()


def _divergence(logits: Tensor, top: Top) -> float:
    """KL from the dense model over its top tokens and the rest as one outcome, summed."""
    theirs = top.log_probabilities
    ours = logits.float().log_softmax(-1).gather(-1, top.tokens)
    rest_theirs, rest_ours = (_rest(one) for one in (theirs, ours))
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    kl = kl + rest_theirs.exp() * (rest_theirs - rest_ours)
    return kl.sum().item()


def _rest(log_probabilities: Tensor) -> Tensor:
    """Log of what the listed outcomes leave over."""
    listed = log_probabilities.double().exp().sum(-1)
    return (1 - listed).clamp_min(1e-12).log()
