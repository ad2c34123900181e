"""Train adapters within bounds; a training that is killed goes on to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmscout.errors import LmscoutError
from lmscout.pruning.recovery.batches import batch_of
from lmscout.pruning.recovery.checkpoint import Identity, State, read_state, write_state
from lmscout.pruning.recovery.settings import RecoverySettings
from lmscout.pruning.subnetworks.loss_scale import loss_scale, lower_scale
from lmscout.stages import StageProgress

_WARM_UP = 0.05  # of all steps
_LOWEST = 0.02  # of the learning rate, at the end
_NORM = 1.0  # that a step's gradient has at most
_MEAN_OF = 0.1  # of the steps, whose mean loss stands for the beginning or the end


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        method: by which loss.
        steps: that were made.
        tokens: that they read, again and again where the text is short.
        seconds: that they took, restarts included.
        passes: over the text.
        first: mean loss of the first tenth of the steps, nats a token.
        last: of the last tenth.
    """

    method: str
    steps: int
    tokens: int
    seconds: float
    passes: float
    first: float
    last: float

    @property
    def words(self) -> str:
        """In one sentence."""
        return (
            f"{self.method}: {self.steps:,} steps, {self.tokens:,} tokens ({self.passes:.1f} "
            f"passes over the text), {self.seconds:.0f} s; loss {self.first:.3f} to "
            f"{self.last:.3f} nats a token"
        )

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return asdict(self)


def train(
    adapters: Mapping[str, nn.Parameter],
    loss_of: Callable[[int, Tensor], Tensor],
    windows: Tensor,
    settings: RecoverySettings,
    checkpoint: Path,
    identity: Identity,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: StageProgress | None = None,
) -> Trained:
    """Minimise a loss over a text; AdamW, warm-up, then a cosine down to the nearest bound.

    Args:
        adapters: what learns, by name; trained in place.
        loss_of: step and windows [B, T] to the mean loss.
        windows: [windows, T] int64, the text.
        settings: how, and for how long.
        checkpoint: file from which a training goes on, and in which it is kept when it ends.
        identity: all that it depends on; a checkpoint of another one is refused.
        device: where windows are wanted.
        dtype: in which the model that the adapters are on computes.
        progress: called with steps made and allowed.

    Raises:
        LmscoutError: the checkpoint does not fit or cannot be written, or the loss or its gradient
            is not finite.
    """
    window, batch = windows.shape[1], settings.batch(windows.shape[1])
    steps = settings.last_step(window)
    optimizer = torch.optim.AdamW(
        list(adapters.values()), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    state = read_state(checkpoint, identity, adapters)
    losses: list[float] = []
    seconds, ended = 0.0, False
    if state is not None:
        _restore(adapters, optimizer, state)
        losses, seconds, ended = list(state.losses), state.seconds, state.ended
    limit = settings.seconds or math.inf
    saved_at = seconds
    while not ended and len(losses) < steps and seconds < limit:
        started = time.perf_counter()
        if progress:
            progress(len(losses), steps)
        for group in optimizer.param_groups:
            share = schedule(len(losses), steps, seconds / limit)
            group["lr"] = settings.learning_rate * share
        tokens = batch_of(windows, batch, len(losses), settings.seed).to(device)
        value = _backward(adapters, loss_of, tokens, len(losses), loss_scale(dtype, batch * window))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value)
        seconds += time.perf_counter() - started
        if seconds - saved_at >= settings.save_seconds:
            kept = State(_weights(adapters), _kept(adapters, optimizer), tuple(losses), seconds)
            write_state(checkpoint, identity, kept)
            saved_at = seconds
    if not ended:
        kept = State(_weights(adapters), {}, tuple(losses), seconds, True)
        write_state(checkpoint, identity, kept)
    if progress:
        progress(steps, steps)
    each, ends = batch * window, max(1, round(_MEAN_OF * len(losses)))
    return Trained(
        method=settings.method,
        steps=len(losses),
        tokens=len(losses) * each,
        seconds=round(seconds, 3),
        passes=len(losses) * batch / len(windows),
        first=sum(losses[:ends]) / ends,
        last=sum(losses[-ends:]) / ends,
    )


def _backward(
    adapters: Mapping[str, nn.Parameter],
    loss_of: Callable[[int, Tensor], Tensor],
    tokens: Tensor,
    step: int,
    scale: float,
) -> float:
    """Give adapters the clipped gradient of a step's loss; the loss.

    A factor that makes a gradient overflow is tried again lower.  The next step begins with the
    full one, so that a training that goes on from a checkpoint takes the same.
    """
    while True:
        loss = loss_of(step, tokens)
        value = loss.item()
        if not math.isfinite(value):
            raise LmscoutError(
                f"recovery: the loss of step {step} is {value}: lower the learning rate, "
                "or check the text"
            )
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        for one in adapters.values():
            if scale > 1 and one.grad is not None:
                one.grad /= scale
        norm = nn.utils.clip_grad_norm_(adapters.values(), _NORM)
        if math.isfinite(norm.item()):
            return value
        if scale == 1:
            raise LmscoutError(
                f"recovery: the gradient of step {step} is not finite: lower the learning rate, "
                "or train in float32 (--dtype)"
            )
        scale = lower_scale(scale)
        for one in adapters.values():
            one.grad = None


def schedule(step: int, steps: int, by_clock: float = 0.0) -> float:
    """Share of the highest learning rate at a step.

    Args:
        step: from 0.
        steps: that are allowed.
        by_clock: share of the seconds allowed that have passed.
    """
    warm = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
    done = min(1.0, max(step / steps, by_clock))
    return warm * (_LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * done)))


def _weights(adapters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in adapters.items()}


def _kept(
    adapters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What the optimiser knows, as named tensors; nothing of what has had no gradient yet."""
    return {
        f"{name}/{kind}": value
        for name, one in adapters.items()
        for kind, value in optimizer.state[one].items()
    }


@torch.no_grad()
def _restore(
    adapters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State
) -> None:
    for name, one in adapters.items():
        one.copy_(state.weights[name])
    for key, value in state.optimizer.items():
        name, _, kind = key.rpartition("/")
        # the count of steps stays on the processor, as the optimiser keeps it
        place = value if kind == "step" else value.to(adapters[name].device)
        optimizer.state[adapters[name]][kind] = place
