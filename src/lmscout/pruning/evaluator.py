"""Measure plans on calibration text without building them.

A subnetwork is prefixes of the dense model's sorted weights, as views.  The hidden state is kept
after every step (attention or MLP of a block), so a plan starts after the prefix of steps that it
shares with the plan before it.  Text is measured in chunks; a plan whose loss increase exceeds a
limit after one of them is dropped.

On an accelerator a chunk has many tokens, measured with half the batch until memory suffices.
Kept hidden states take at most half of the free memory: where all of them take more, every
second, third, ... is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import free_memory
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.families import BlockParts, Family, Place, Sublayer
from lmscout.pruning.moments import batches_of, retry_with_half_batch
from lmscout.pruning.plan import Plan, Shape

LIKELIHOOD, DIVERGENCE = "nll", "kl"
QUALITIES = (DIVERGENCE, LIKELIHOOD)
KEPT_SHARE = 0.5  # of the free memory, for hidden states
_TOP = 32  # dense logits kept for each token, where quality is the divergence from them

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Top:
    """The dense model's likeliest tokens and their log-probabilities, [tokens, top] each."""

    log_probabilities: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Top:
        """The same on a device."""
        return Top(self.log_probabilities.to(device), self.tokens.to(device))

    def __getitem__(self, part: slice) -> Top:
        return Top(self.log_probabilities[part], self.tokens[part])


Reference = tuple[float, Top | None]  # dense loss on a chunk, and the likeliest tokens for "kl"


@dataclass(frozen=True)
class Measurement:
    """Loss increase of a plan over the dense model."""

    # after each chunk, the predicted tokens so far and the increase of the negative log-likelihood
    # on them (or the divergence from the dense model), in nats/token
    trajectory: tuple[tuple[int, float], ...]
    complete: bool  # whether all chunks were measured; False for a plan that was dropped

    @property
    def loss_increase(self) -> float:
        """Loss increase on all tokens measured, in nats/token."""
        return self.trajectory[-1][1]

    @property
    def tokens(self) -> int:
        """Predicted tokens measured."""
        return self.trajectory[-1][0]


class Evaluator(Protocol):
    """Measures plans, on one device or several."""

    shape: Shape  # units of the dense model

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, by chunk."""

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans one after the other, as `SubnetworkEvaluator.measure`."""


class _Batch:
    """Windows of a chunk that are computed together, with the hidden states of the last plan."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows
        self.targets = windows[:, 1:].flatten()
        self.forget()

    def forget(self) -> None:
        """Free the hidden states."""
        self.context: object = None
        self.states: list[Tensor] = []  # before step 0, and after every `stride` steps
        self.steps: list[int] = []  # units kept at each step


class _Chunk:
    """A part of the text, with the dense model's reference on it."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows
        self.tokens = windows[:, 1:].numel()
        self.dense_nll = 0.0
        self.top: Top | None = None
        self.split(len(windows))

    def split(self, size: int) -> None:
        """Split into batches of `size` windows, without hidden states."""
        self.size = size
        self.batches = [_Batch(part) for part in batches_of(self.windows, size)]


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
            compensation: of output projections, or None to leave them as cut.
            quality: "nll" (increase of the negative log-likelihood) or "kl" (divergence from the
                dense model's 32 likeliest tokens and the rest).
            chunks: number of parts of the text.
            references: of another evaluator on the same windows, to compare plans with; None to
                measure this model.

        Raises:
            LmscoutError: the quality is unknown, or the dense loss is not finite.
        """
        if quality not in QUALITIES:
            raise LmscoutError(f"unknown quality {quality!r}: expected kl or nll")
        self._model, self._family = model, family
        self._sublayers = list(family.all_sublayers(model).items())
        self._compensation = compensation
        self._quality = quality
        self.shape = shape_of(family.all_parts(model))
        parts = windows.to(model.device).chunk(min(chunks, len(windows)))
        self._chunks = [_Chunk(part) for part in parts]
        self._stride = _stride(self._sublayers, model, windows.numel())
        for index, chunk in enumerate(self._chunks):
            if references is None:
                measure = partial(self._measure_dense, chunk)
                chunk.dense_nll, chunk.top = self._in_memory(chunk, measure)
            else:
                chunk.dense_nll, top = references[index]
                if top is not None and quality == DIVERGENCE:
                    chunk.top = top.to(model.device)

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, by chunk."""
        return tuple((chunk.dense_nll, chunk.top) for chunk in self._chunks)

    @property
    def dense_nll(self) -> float:
        """Negative log-likelihood of the dense model, in nats/token."""
        return sum(chunk.dense_nll * chunk.tokens for chunk in self._chunks) / self.tokens

    @property
    def tokens(self) -> int:
        """Predicted tokens of a complete measurement."""
        return sum(chunk.tokens for chunk in self._chunks)

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans one after the other; neighbours share their common prefix of steps.

        Args:
            plans: the plans, in an order that puts shared prefixes together.
            limits: for each plan, the loss increase over the first chunk, the first two, and so
                on, above which it is dropped; possibly fewer than chunks.  Taken one by one, when
                their plan is measured.

        Raises:
            LmscoutError: a plan does not fit the model.
        """
        for plan, most in zip(plans, repeat(()) if limits is None else limits, strict=False):
            self.shape.check(plan)
            yield self._measured(partial(self._predictions, plan), most)

    def measure_model(self, model: PreTrainedModel) -> Measurement:
        """Measure a model with the vocabulary of the dense one, such as a cut one."""

        def predictions(batch: _Batch) -> Tensor:
            tokens = batch.windows.to(model.device)  # without block 0 it may begin on another one
            logits = model(input_ids=tokens, use_cache=False).logits
            return cast(Tensor, logits[:, :-1].flatten(0, 1))

        return self._measured(predictions, ())

    def _measured(
        self, predictions: Callable[[_Batch], Tensor], most: Sequence[float]
    ) -> Measurement:
        """Chunk by chunk, as long as the loss increase is within its limits."""
        trajectory: list[tuple[int, float]] = []
        total, tokens = 0.0, 0
        for index, chunk in enumerate(self._chunks):
            work = partial(self._loss_increase, predictions, chunk)
            total += self._in_memory(chunk, work) * chunk.tokens
            tokens += chunk.tokens
            trajectory.append((tokens, total / tokens))
            if index < len(most) and not total / tokens <= most[index]:  # NaN is dropped, too
                break
        return Measurement(tuple(trajectory), len(trajectory) == len(self._chunks))

    @torch.no_grad()
    def logits(self, plan: Plan, tokens: Tensor) -> Tensor:
        """Logits of a plan: [B, T] int64 to [B, T, vocabulary]."""
        batch = _Batch(tokens.to(self._model.device))
        return self._family.logits(self._model, self._hidden(plan, batch))

    @torch.no_grad()
    def _hidden(self, plan: Plan, batch: _Batch) -> Tensor:
        """The last hidden state, starting after the prefix shared with the plan before."""
        if not batch.states:
            batch.states.append(self._family.embed(self._model, batch.windows))
            batch.context = self._family.context(self._model, batch.states[0])
        steps = plan.steps
        shared = 0
        while shared < len(batch.steps) and batch.steps[shared] == steps[shared]:
            shared += 1
        kept_states = shared // self._stride
        del batch.states[kept_states + 1 :], batch.steps[shared:]
        hidden = batch.states[-1]
        for step in range(kept_states * self._stride, len(steps)):
            kept = steps[step]
            if kept:
                hidden = self._after(step, kept, hidden, batch.context)
            if step >= shared:
                batch.steps.append(kept)
            if (step + 1) % self._stride == 0:
                batch.states.append(hidden)
        return hidden

    def _after(self, step: int, kept: int, hidden: Tensor, context: object) -> Tensor:
        """The hidden state after one step."""
        place, sublayer = self._sublayers[step]
        first = sublayer.first(kept)
        output = first.output
        if self._compensation is not None:
            output = self._compensation.output(*place, output.weight.shape[-1])
        return first.step(hidden, context, output)

    @torch.no_grad()
    def _measure_dense(self, chunk: _Chunk) -> Reference:
        dense, tops = 0.0, []
        for batch in chunk.batches:
            logits = self._predictions(self.shape.dense, batch)
            dense += _nll(logits, batch.targets)
            if self._quality == DIVERGENCE:
                log_probabilities = logits.float().log_softmax(-1)
                tops.append(log_probabilities.topk(min(_TOP, logits.shape[-1]), dim=-1))
        mean = dense / chunk.tokens
        if not math.isfinite(mean):
            raise LmscoutError(
                f"the dense model's loss on calibration text is {mean}: nothing can be compared "
                "with it"
            )
        return mean, Top(*map(torch.cat, zip(*tops, strict=True))) if tops else None

    @torch.no_grad()
    def _loss_increase(self, predictions: Callable[[_Batch], Tensor], chunk: _Chunk) -> float:
        total, start = 0.0, 0
        for batch in chunk.batches:
            logits = predictions(batch)
            if chunk.top is None:
                total += _nll(logits, batch.targets)
            else:
                top = chunk.top[start : start + len(logits)]
                total += _divergence(logits, top.to(logits.device))
            start += len(logits)
        mean = total / chunk.tokens
        return mean - chunk.dense_nll if self._quality == LIKELIHOOD else mean

    def _predictions(self, plan: Plan, batch: _Batch) -> Tensor:
        """Logits of every next token: [windows * (T - 1), vocabulary]."""
        hidden = self._hidden(plan, batch)[:, :-1]
        return self._family.logits(self._model, hidden).flatten(0, 1)

    def _in_memory(self, chunk: _Chunk, work: Callable[[], _Result]) -> _Result:
        """Do work on a chunk; if memory is short, free all hidden states and halve its batches."""

        def attempt(size: int) -> _Result:
            if size < chunk.size:
                for other in self._chunks:
                    for batch in other.batches:
                        batch.forget()
                chunk.split(size)
            return work()

        return retry_with_half_batch(attempt, chunk.size, self._model.device)


def shape_of(parts: Sequence[BlockParts]) -> Shape:
    """Units of every block, and the parameters of one unit each; without units, those of others."""
    attention, mlp = [block.attention for block in parts], [block.mlp for block in parts]
    return Shape(
        tuple(one.units for one in attention),
        tuple(one.units for one in mlp),
        _parameters_each(attention),
        _parameters_each(mlp),
    )


def _parameters_each(sublayers: Sequence[Sublayer]) -> tuple[int, ...]:
    each = [one.parameters // max(one.units, 1) for one in sublayers]
    return tuple(one or max(each) for one in each)


def _stride(
    sublayers: Sequence[tuple[Place, Sublayer]], model: PreTrainedModel, tokens: int
) -> int:
    """Steps between kept hidden states, so that half of each device's free memory suffices."""
    if model.device.type != "cuda":
        return 1
    width = next(model.get_input_embeddings().parameters()).shape[1]
    each = tokens * width * model.dtype.itemsize
    stride = 1
    for device, steps in Counter(one.device for _, one in sublayers).items():
        room = KEPT_SHARE * free_memory(device) / max(1, each) - 1
        stride = max(stride, math.ceil(steps / room) if room > 1 else len(sublayers) + 1)
    return stride


def _nll(logits: Tensor, targets: Tensor) -> float:
    targets = targets.to(logits.device)
    return functional.cross_entropy(logits.float(), targets, reduction="sum").item()


def _divergence(logits: Tensor, top: Top) -> float:
    """KL from the dense model over its top tokens and the rest as one outcome, summed."""
    dense = top.log_probabilities
    own = logits.float().log_softmax(-1).gather(-1, top.tokens)
    dense_rest, own_rest = _rest(dense), _rest(own)
    kl = (dense.exp() * (dense - own)).sum(-1) + dense_rest.exp() * (dense_rest - own_rest)
    return kl.sum().item()


def _rest(log_probabilities: Tensor) -> Tensor:
    """Log-probability of all outcomes that are not listed."""
    listed = log_probabilities.double().exp().sum(-1)
    return (1 - listed).clamp_min(1e-12).log()
