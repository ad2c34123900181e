"""Train adapters within bounds: windows of each step, losses, checkpoints.

Which windows of a text each step reads: known from the seed and the step alone.

What recovery minimises: the text's own next tokens, or the distance from the dense model.

Logits are by far the widest tensor of a small batch.  They are computed from hidden states a
piece at a time, in float32, and again when their gradient is wanted, so that those of a whole
batch are never there at once.

Adapters on disk with all that they depend on: whole or not there, refused where they differ.

Train adapters within bounds; a training that is killed goes on to the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lmscout.errors import LmscoutError, brief
from lmscout.files import check_folder, write_file
from lmscout.progress import StageProgress
from lmscout.pruning.importance import loss_scale, lower_scale
from lmscout.pruning.recovery.config import RecoverySettings
from lmscout.reading import check_safetensors_header, parse_json


def batch_of(windows: Tensor, size: int, step: int, seed: int) -> Tensor:
    """The windows of one step.

    The text is read in one random order after another, each a pass over all of it; so a training
    that is continued reads what it would have read.

    Args:
        windows: [windows, T] int64.
        size: windows a step.
        step: from 0.
        seed: of the orders.

    Returns:
        [size, T].
    """
    places = np.arange(step * size, (step + 1) * size)
    passes, within = np.divmod(places, len(windows))
    rows = [
        _order(len(windows), seed, int(one))[place]
        for one, place in zip(passes, within, strict=True)
    ]
    return windows[torch.tensor(rows)]


def apart_from(windows: Tensor, *others: Tensor) -> Tensor:
    """Windows [n, T] without those that occur in others [m, T]; the order stays."""
    taken = {row.cpu().numpy().tobytes() for other in others for row in other}
    kept = [row.cpu().numpy().tobytes() not in taken for row in windows]
    return windows[torch.tensor(kept, dtype=torch.bool)]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(count)


Head = Callable[[Tensor], Tensor]  # hidden states [n, width] to logits [n, vocabulary]

_PIECE = 1 << 24  # logits at a time: 64 MiB in float32


def likelihood_loss(head: Head, hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Mean negative log-likelihood of the next token, in nats.

    Args:
        head: of the model that learns.
        hidden: [B, T, width], its last hidden state.
        tokens: [B, T] int64.
        vocabulary: how many logits a token has.
    """
    states, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), targets, reduction="sum")

    return _in_pieces(loss, vocabulary, states, targets) / len(targets)


def divergence_loss(
    head: Head, hidden: Tensor, dense_head: Head, dense_hidden: Tensor, vocabulary: int
) -> Tensor:
    """Mean KL(dense || model) of the next token's distribution, in nats.

    Args:
        head: of the model that learns.
        hidden: [B, T, width], its last hidden state.
        dense_head: of the dense model.
        dense_hidden: [B, T, width], the dense model's last hidden state, without gradient.
        vocabulary: how many logits a token has.
    """
    states, theirs = hidden.flatten(0, 1), dense_hidden.flatten(0, 1)

    def loss(states: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = dense_head(theirs).float().log_softmax(-1)
        ours = head(states).float().log_softmax(-1)
        return functional.kl_div(ours, wanted, reduction="sum", log_target=True)

    return _in_pieces(loss, vocabulary, states, theirs) / len(states)


def _in_pieces(
    loss: Callable[[Tensor, Tensor], Tensor], vocabulary: int, states: Tensor, others: Tensor
) -> Tensor:
    size = max(1, _PIECE // vocabulary)
    if len(states) <= size:
        return loss(states, others)
    total = states.new_zeros((), dtype=torch.float32)
    for start in range(0, len(states), size):
        pair = states[start : start + size], others[start : start + size]
        total = total + checkpoint(loss, *pair, use_reentrant=False)
    return total


Identity = Mapping[str, str | int | float | None]

FOLDER = "recovery"  # in a run folder; model files there would be taken for parts of the model
_HEADER = "lmscout.recovery"


@dataclass(frozen=True)
class State:
    """A training at one of its steps.

    Attributes:
        weights: of the adapters, by name.
        optimizer: what the optimiser knows of each, by name and kind; empty once it has ended.
        losses: of every step that was made.
        seconds: that they took.
        ended: whether a bound was met.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    ended: bool = False


def write_state(path: Path, identity: Identity, state: State) -> None:
    """Write a file whole: a reader sees the old one or the new one, never a part.

    Raises:
        LmscoutError: it cannot be written.
    """
    header = {
        "identity": dict(identity),
        "losses": state.losses,
        "seconds": state.seconds,
        "ended": state.ended,
    }
    tensors = {f"weights/{name}": one for name, one in state.weights.items()}
    tensors |= {f"optimizer/{name}": one for name, one in state.optimizer.items()}
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    name = f"recovery {path}"
    check_folder(path.parent, name, make=True)
    metadata = {_HEADER: json.dumps(header)}
    write_file(path, lambda draft: save_file(plain, draft, metadata=metadata), name=name)


def read_state(path: Path, identity: Identity, shapes: Mapping[str, Tensor]) -> State | None:
    """The training that a file holds.

    Args:
        path: the file.
        identity: all that the wanted training depends on.
        shapes: the adapters that the weights are for.

    Returns:
        The state, or None where there is no file.

    Raises:
        LmscoutError: it is damaged, or of another training, or its adapters do not fit.
    """
    if not path.exists():
        return None
    header, tensors = _read(path)
    check_identity(path, header["identity"], identity, whole=True)
    kinds: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind not in kinds:
            raise LmscoutError(
                f"recovery {path}: holds {brief(name)}, which is neither a weight nor of the "
                "optimizer; remove the file to train anew"
            )
        kinds[kind][rest] = tensor
    weights = kinds["weights"]
    for name in sorted(weights.keys() | shapes.keys()):
        found, wanted = weights.get(name), shapes.get(name)
        if found is None or wanted is None or found.shape != wanted.shape:
            raise LmscoutError(
                f"recovery {path}: its adapter does not fit: {name} is {_words(found)} in the "
                f"file and {_words(wanted)} in this model; remove the file to train anew"
            )
    return State(
        weights,
        kinds["optimizer"],
        tuple(header["losses"]),
        header["seconds"],
        header["ended"],
    )


def read_adapter(path: Path) -> tuple[Identity, Mapping[str, Tensor]]:
    """All that a training depended on, and the weights that it has come to.

    Args:
        path: its file, whoever asks for it.

    Raises:
        LmscoutError: there is none, or it is damaged.
    """
    header, tensors = _read(path)
    weights = {
        name.removeprefix("weights/"): one
        for name, one in tensors.items()
        if name.startswith("weights/")
    }
    return header["identity"], weights


def check_file(path: Path, identity: Identity) -> None:
    """Refuse a file of other settings before any long work; no file is no error.

    Args:
        path: the file.
        identity: of the wanted training, as far as it is known already.

    Raises:
        LmscoutError: it is damaged, or of other settings.
    """
    if path.exists():
        check_identity(path, _read(path)[0]["identity"], identity, whole=False)


def check_identity(path: Path, found: Identity, wanted: Identity, *, whole: bool) -> None:
    """Refuse a file of other settings, naming the first that differs.

    Args:
        path: the file.
        found: what it was trained with.
        wanted: what is asked for.
        whole: whether `wanted` is all; else what it does not name may be anything.

    Raises:
        LmscoutError: something differs.
    """
    for key in sorted(found.keys() | wanted.keys() if whole else wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise LmscoutError(
                f"recovery {path}: was trained with {key} = {brief(found.get(key))}, this run has "
                f"{wanted.get(key)}: its adapter does not fit; give the same settings, or remove "
                "the file to train anew"
            )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of adapters' weights."""
    digest = hashlib.sha256()
    for name, one in sorted(weights.items()):
        digest.update(f"{name} {tuple(one.shape)} ".encode())
        digest.update(one.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        check_safetensors_header(path)
        with safe_open(path, framework="pt") as stored:
            header = _checked(parse_json((stored.metadata() or {})[_HEADER], str(path)))
            return header, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, LmscoutError, KeyError, ValueError) as error:
        raise LmscoutError(
            f"recovery {path}: is damaged, or was not written by lmscout; remove it to train anew"
        ) from error


def _checked(header: Any) -> dict[str, Any]:
    """The header, once it is known to hold what `write_state` writes.

    Raises:
        ValueError: it does not.
    """
    if not (isinstance(header, dict) and isinstance(header["losses"], list)):
        raise ValueError("the header holds something else than a training")
    numbers = [*header["losses"], header["seconds"]]
    finite = all(isinstance(one, int | float) and abs(one) < math.inf for one in numbers)
    if not (finite and isinstance(header["identity"], dict) and isinstance(header["ended"], bool)):
        raise ValueError("the header holds something else than a training")
    loaded: dict[str, Any] = header
    return loaded


def _words(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


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
        # the count of steps stays on the CPU, as the optimiser keeps it
        place = value if kind == "step" else value.to(adapters[name].device)
        optimizer.state[adapters[name]][kind] = place
