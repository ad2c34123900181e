"""Train adapters within limits: settings, batches, losses, checkpoints, and the training loop.

A training that is killed continues from its checkpoint to the same weights.  Every step is a line
of a log beside the checkpoint, for tools that draw losses.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lmscout.errors import LAST_SEED, LmscoutError, brief, check_types, check_whole
from lmscout.evaluation.text import without_codes
from lmscout.files import check_folder, write_file
from lmscout.progress import StageProgress
from lmscout.pruning.importance import loss_scale, lower_scale
from lmscout.reading import check_safetensors_header, parse_json
from lmscout.results import NotSaved, Result

LORA, DISTILL = METHODS = "lora", "distill"
FOLDER = "recovery"  # in a run folder; model files there would be taken for parts of the model

Identity = Mapping[str, str | int | float | None]
Head = Callable[[Tensor], Tensor]  # hidden states [n, width] to logits [n, vocabulary]

_HEADER = "lmscout.recovery"
_LOGITS = 1 << 24  # logits in memory at a time: 64 MiB in float32
_WARM_UP = 0.05  # share of all steps
_LOWEST_RATE = 0.02  # share of the learning rate, at the end
_GRADIENT_NORM = 1.0  # largest norm of a step's gradient
_IGNORED = -100  # in place of a token that carries no loss
_WARM_UP_CALLS = 3  # before a graph is captured
_ENDS = 0.1  # share of the steps whose mean loss is reported as the first and the last
_MOST = {
    "rank": 2**16,
    "learning_rate": 1e6,
    "batch_tokens": 2**24,
    "steps": 10**8,
    "tokens": 10**13,
    "seconds": 1e9,
}


@dataclass(frozen=True)
class RecoverySettings:
    """How a recovery trains, and for how long.

    Training ends at the first limit that it reaches, and the learning rate falls towards it.  With
    a limit of seconds the rate follows the clock, so the result then depends on the machine.
    """

    method: str = DISTILL  # "lora" (the text's next tokens), "distill" (the dense model's logits)
    rank: int = 16  # of the low-rank adapters (LoRA, arXiv 2106.09685)
    learning_rate: float = 1e-3  # the highest, after the warm-up
    batch_tokens: int = 2_048  # tokens of a step; at least one window
    steps: int | None = 300  # most steps
    tokens: int | None = None  # most tokens over all steps
    seconds: float | None = None  # longest time of training
    seed: int = 0  # of the order of the text and of the adapters
    save_seconds: float = 60.0  # time between checkpoints

    def check(self) -> None:
        """Raise LmscoutError for settings out of bounds, or without a limit."""
        check_types("recovery", self.__annotations__, vars(self))
        if self.method not in METHODS:
            raise LmscoutError(
                f"unknown recovery {self.method!r}: expected one of {', '.join(METHODS)}"
            )
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value > most:
                raise LmscoutError(
                    f"recovery: {name} is too large (got {brief(value)}, expected at most {most:,})"
                )
            if not value > 0:  # NaN as well
                raise LmscoutError(f"recovery: {name} of {value:g} is not above 0")
            if name not in ("learning_rate", "seconds"):
                check_whole(f"recovery: {name}", value, 1)
        check_whole("recovery: seed", self.seed, 0, LAST_SEED)
        if self.timed and self.seconds is None:
            raise LmscoutError("recovery: give a limit of steps, tokens or seconds")

    def batch(self, window: int) -> int:
        """Windows of a step, for windows of so many tokens."""
        return max(1, self.batch_tokens // window)

    def last_step(self, window: int) -> int:
        """Steps that the limits allow, but for seconds; LmscoutError if they do not allow one."""
        limits = [int(_MOST["steps"]) if self.steps is None else self.steps]
        if self.tokens is not None:
            each = self.batch(window) * window
            limits.append(self.tokens // each)
            if not limits[-1]:
                raise LmscoutError(
                    f"recovery: {self.tokens} tokens are fewer than one step of {each}: allow more"
                )
        return min(limits)

    @property
    def timed(self) -> bool:
        """Whether nothing but the time is limited."""
        return self.steps is None and self.tokens is None

    def progress_total(self, window: int) -> int:
        """The end of its progress: the last step, or the seconds if nothing else is limited."""
        return math.ceil(self.seconds or 0) if self.timed else self.last_step(window)

    def words(self, window: int) -> str:
        """The limits as text."""
        steps, each = f"{self.last_step(window):,} ", self.batch(window) * window
        limit = "" if self.seconds is None else f", {self.seconds:g} s at most"
        return f"{self.method}, {'' if self.timed else steps}steps of {each:,} tokens{limit}"

    def identity(self) -> dict[str, str | int | float | None]:
        """The settings that trained weights depend on."""
        settings = asdict(self)
        del settings["save_seconds"]
        return settings


def batch_of(windows: Tensor, size: int, step: int, seed: int) -> Tensor:
    """The windows of one step, [size, T], which follow from the seed and the step alone.

    The text [windows, T] is read in one random order after another, each a pass over all of it.
    """
    wanted = range(step * size, (step + 1) * size)
    passes = (divmod(one, len(windows)) for one in wanted)
    rows = [_order(len(windows), seed, number)[place] for number, place in passes]
    return windows[torch.tensor(rows)]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(count)


def apart_from(windows: Tensor, *others: Tensor) -> Tensor:
    """Windows [n, T] without those that occur in others [m, T], in the same order.

    Whether tokens carry a loss makes no difference.
    """
    taken = {row.numpy().tobytes() for other in others for row in without_codes(other).cpu()}
    kept = [row.numpy().tobytes() not in taken for row in without_codes(windows).cpu()]
    return windows[torch.tensor(kept, dtype=torch.bool)]


def likelihood_loss(head: Head, hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Mean negative log-likelihood of next tokens [B, T] by last hidden states, in nats.

    Only of those that carry a loss, see `lmscout.evaluation.text`; 0 if none does.
    """
    states, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(hidden.device)

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        known = targets.masked_fill(targets < 0, _IGNORED)
        logits = head(states).float()
        known = known.to(logits.device)
        return functional.cross_entropy(logits, known, reduction="sum", ignore_index=_IGNORED)

    return _sum_in_pieces(loss, vocabulary, states, targets) / (targets >= 0).sum().clamp_min(1)


def divergence_loss(
    head: Head,
    hidden: Tensor,
    dense_head: Head,
    dense_hidden: Tensor,
    vocabulary: int,
    tokens: Tensor,
) -> Tensor:
    """Mean KL(dense || model) of the next token's distribution, in nats; as `likelihood_loss`.

    Of all positions, unless some of the tokens [B, T] carry no loss.
    """
    carry = tokens.to(hidden.device) >= 0
    carries = torch.cat([carry[:, 1:], carry.all().expand(len(carry), 1)], dim=1)

    def loss(states: Tensor, dense_states: Tensor, carries: Tensor) -> Tensor:
        with torch.no_grad():
            target = dense_head(dense_states).float().log_softmax(-1)
        own = head(states).float().log_softmax(-1)
        target = target.to(own.device)
        each = functional.kl_div(own, target, reduction="none", log_target=True).sum(-1)
        return (each * carries.to(each.device)).sum()

    states, *others = (one.flatten(0, 1) for one in (hidden, dense_hidden, carries))
    return _sum_in_pieces(loss, vocabulary, states, *others) / carries.sum().clamp_min(1)


def _sum_in_pieces(
    loss: Callable[..., Tensor], vocabulary: int, states: Tensor, *others: Tensor
) -> Tensor:
    """Sum a loss over pieces of the tokens; `head` is frozen.

    Logits are by far the widest tensor: those of a whole batch are never in memory at once.
    Shapes are the same at every step, as a CUDA graph needs.
    """
    result: Tensor = _SumInPieces.apply(loss, max(1, _LOGITS // vocabulary), states, *others)  # type: ignore[no-untyped-call]
    return result


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _SumInPieces(torch.autograd.Function):
    """A loss summed over pieces of its states, whose gradient is computed with it."""

    @staticmethod
    def forward(
        ctx: Any, loss: Callable[..., Tensor], size: int, states: Tensor, *others: Tensor
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        gradients: list[Tensor] = []
        pieces = zip(*(torch.split(one, size) for one in (states, *others)), strict=True)
        for piece, *rest in pieces:
            leaf = piece.detach().requires_grad_(states.requires_grad)
            # hooks of the caller see what the step keeps, and a piece keeps nothing
            hooks = torch.autograd.graph.saved_tensors_hooks(_same, _same)
            with torch.set_grad_enabled(states.requires_grad), hooks:
                part = loss(leaf, *rest)
                if states.requires_grad:
                    gradients.append(*torch.autograd.grad(part, leaf))
            total += part.detach().to(total.device)
        ctx.save_for_backward(*gradients)
        ctx.others = len(others)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.cat(ctx.saved_tensors) * gradients[0]
        return None, None, gradient, *(None for _ in range(ctx.others))


@dataclass(frozen=True)
class State(Result):
    """A training at one of its steps; the header of a checkpoint has all but the tensors.

    The optimizer's state is by adapter and kind; it is empty when training has ended.
    """

    identity: dict[str, Any]  # all that the training depends on
    losses: tuple[float, ...] = ()  # of every step so far
    seconds: float = 0.0  # time of these steps
    ended: bool = False  # whether a limit was reached
    weights: Annotated[Mapping[str, Tensor], NotSaved] = field(default_factory=dict)
    optimizer: Annotated[Mapping[str, Tensor], NotSaved] = field(default_factory=dict)


def write_state(path: Path, state: State) -> None:
    """Write a checkpoint, atomically."""
    tensors = {f"weights/{name}": one for name, one in state.weights.items()}
    tensors |= {f"optimizer/{name}": one for name, one in state.optimizer.items()}
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    name = f"recovery {path}"
    check_folder(path.parent, name, make=True)
    metadata = {_HEADER: json.dumps(state.to_dict())}
    write_file(path, lambda draft: save_file(plain, draft, metadata=metadata), name=name)


def read_state(path: Path) -> State:
    """Read a checkpoint; LmscoutError if it is absent or damaged."""
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
    try:
        check_safetensors_header(path)
        with safe_open(path, framework="pt") as stored:
            header = State.from_dict(parse_json((stored.metadata() or {})[_HEADER], str(path)))
            for key in stored.keys():  # noqa: SIM118
                part, _, name = key.partition("/")
                parts[part][name] = stored.get_tensor(key)
        if not math.isfinite(sum(header.losses) + header.seconds):
            raise ValueError("a loss or the time is not finite")
    except (OSError, SafetensorError, LmscoutError, LookupError, ValueError) as error:
        raise LmscoutError(
            f"recovery {path}: is damaged, or was not written by lmscout; remove it to train anew"
        ) from error
    return State(header.identity, header.losses, header.seconds, header.ended, **parts)


def check_file(path: Path, identity: Identity) -> None:
    """Raise LmscoutError if there is a checkpoint of other settings, as far as they are known."""
    if path.exists():
        _check_identity(path, read_state(path).identity, identity, identity.keys())


def _check_identity(path: Path, found: Identity, wanted: Identity, names: Iterable[str]) -> None:
    for name in sorted(names):
        if found.get(name) != wanted.get(name):
            raise LmscoutError(
                f"recovery {path}: was trained with {name} = {brief(found.get(name))}, this run "
                f"has {wanted.get(name)}: its adapter does not fit; give the same settings, or "
                "remove the file to train anew"
            )


def _fitting_state(path: Path, identity: Identity, adapters: Mapping[str, Tensor]) -> State | None:
    """The state in a checkpoint, None without one; LmscoutError if it is of other adapters."""
    if not path.exists():
        return None
    state = read_state(path)
    _check_identity(path, state.identity, identity, state.identity.keys() | identity.keys())
    shapes = [
        {name: list(one.shape) for name, one in some.items()} for some in (state.weights, adapters)
    ]
    for name in sorted(state.weights.keys() | adapters.keys()):
        found, wanted = (some.get(name, "absent") for some in shapes)
        if found != wanted:
            raise LmscoutError(
                f"recovery {path}: its adapter does not fit: {name} is {found} in the file and "
                f"{wanted} in this model; remove the file to train anew"
            )
    return state


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of adapters' weights, as settings name it."""
    digest = hashlib.sha256()
    for name, one in sorted(weights.items()):
        digest.update(f"{name} {tuple(one.shape)} ".encode())
        digest.update(one.detach().float().cpu().contiguous().numpy().tobytes())
    return f"adapter {digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Trained:
    """Summary of a training."""

    method: str  # its loss, "lora" or "distill"
    steps: int  # number of steps
    tokens: int  # tokens read, repeatedly where the text is short
    seconds: float  # time of the steps, those before a restart included
    passes: float  # passes over the text
    first: float  # mean loss of the first tenth of the steps, in nats/token
    last: float  # mean loss of the last tenth

    @property
    def words(self) -> str:
        """The summary in one sentence."""
        return (
            f"{self.method}: {self.steps:,} steps, {self.tokens:,} tokens ({self.passes:.1f} "
            f"passes over the text), {self.seconds:.0f} s; loss {self.first:.3f} to "
            f"{self.last:.3f} nats/token"
        )


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
    same: bool = False,
    progress: StageProgress | None = None,
) -> Trained:
    """Minimise a loss over a text by AdamW, with warm-up and a cosine decay to the nearest limit.

    Args:
        adapters: parameters by name; trained in place.
        loss_of: step and windows [B, T] to the mean loss.
        windows: [windows, T] int64, the text; tokens without a loss are coded.
        settings: how, and for how long.
        checkpoint: file to continue from; holds the adapters at the end.
        identity: all that the training depends on; a checkpoint of another one is refused.
        device: of the windows of a step.
        dtype: in which the model computes.
        same: whether `loss_of` does the same at every step; on CUDA it becomes a graph.
        progress: called with steps done and allowed; with seconds if these alone are limited.

    Raises:
        LmscoutError: the checkpoint does not fit or cannot be written, or the loss or its gradient
            is not finite.
    """
    batch = settings.batch(windows.shape[1])
    steps, tokens = settings.last_step(windows.shape[1]), batch * windows.shape[1]
    cuda = device.type == "cuda"
    same = same and len({one.device for one in adapters.values()}) == 1
    optimizer = torch.optim.AdamW(
        list(adapters.values()),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=cuda,
    )
    losses: list[float] = []
    seconds, ended = 0.0, False
    if (state := _fitting_state(checkpoint, identity, adapters)) is not None:
        _restore(adapters, optimizer, state)
        losses, seconds, ended = list(state.losses), state.seconds, state.ended

    def save(ended: bool) -> None:
        kept = {} if ended else _optimizer_state(adapters, optimizer)
        header = dict(identity), tuple(losses), seconds, ended
        write_state(checkpoint, State(*header, adapters, kept))

    gradients = (_GradientGraph if cuda and same else _Gradients)(adapters, loss_of)
    limit = settings.seconds or math.inf
    total = settings.progress_total(windows.shape[1])
    saved_at = seconds
    if not ended:
        log = checkpoint.with_suffix(".jsonl")
        check_folder(log.parent, f"recovery {log.parent}", make=True)
        _keep_lines(log, len(losses))
    while not ended and len(losses) < steps and seconds < limit:
        started, step = time.perf_counter(), len(losses)
        if progress:
            progress(round(seconds) if settings.timed else step, total)
        rate = settings.learning_rate * schedule(step, steps, seconds / limit)
        for group in optimizer.param_groups:
            group["lr"] = rate
        text = batch_of(windows, batch, step, settings.seed).to(device)
        losses.append(_clipped(adapters, gradients, text, step, loss_scale(dtype, tokens)))
        optimizer.step()
        seconds += time.perf_counter() - started
        read = tokens * len(losses)
        _log_step(log, step=step, loss=losses[-1], learning_rate=rate, tokens=read, seconds=seconds)
        if seconds - saved_at >= settings.save_seconds:
            save(ended=False)
            saved_at = seconds
    if not ended:
        save(ended=True)
    if progress:
        progress(total, total)
    done, ends = len(losses), max(1, round(_ENDS * len(losses)))
    first, last = (sum(some) / ends for some in (losses[:ends], losses[-ends:]))
    passes = done * batch / len(windows)
    return Trained(
        settings.method, done, done * tokens, round(seconds, 3), passes, first=first, last=last
    )


def _keep_lines(log: Path, done: int) -> None:
    """Drop a log's lines of steps after the checkpoint, which are trained again."""
    try:
        lines = log.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LmscoutError(f"recovery log {log}: cannot be read ({error.strerror})") from error
    write_file(log, b"".join(lines[:done]), name=f"recovery log {log}")


def _log_step(log: Path, **step: float) -> None:
    """Append a step as a line of JSON."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")
    except OSError as error:
        raise LmscoutError(
            f"recovery log {log}: cannot be written ({error.strerror}); free space, or name "
            "another folder"
        ) from error


class _Gradients:
    """Computes the loss of a step and its gradient times a scale, in the adapters' `grad`."""

    def __init__(
        self, adapters: Mapping[str, nn.Parameter], loss_of: Callable[[int, Tensor], Tensor]
    ) -> None:
        self.adapters, self._loss_of = adapters, loss_of

    def __call__(self, step: int, tokens: Tensor, scale: float) -> Tensor:
        for one in self.adapters.values():
            one.grad = None
        return self._compute(step, tokens, scale)

    def _compute(self, step: int, tokens: Tensor, scale: float | Tensor) -> Tensor:
        loss = self._loss_of(step, tokens)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class _GradientGraph(_Gradients):
    """The same as a CUDA graph: launching thousands of small kernels would take longer than them.

    Tokens and scale are copied to where the graph reads them; `grad` is where it writes.
    """

    _graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: int, tokens: Tensor, scale: float) -> Tensor:
        if self._graph is None:
            self._capture(tokens)
        self._tokens.copy_(tokens)
        self._scale.fill_(scale)
        assert self._graph is not None
        self._graph.replay()
        return self._loss

    def _capture(self, tokens: Tensor) -> None:
        self._tokens = tokens.clone()
        self._scale = torch.ones((), device=tokens.device)
        side = torch.cuda.Stream(tokens.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_CALLS):  # lets libraries allocate before the capture
                super().__call__(0, self._tokens, 1.0)
        torch.cuda.current_stream(tokens.device).wait_stream(side)
        for one in self.adapters.values():
            one.grad = None
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._compute(0, self._tokens, self._scale)


def _clipped(
    adapters: Mapping[str, nn.Parameter],
    gradients: _Gradients,
    tokens: Tensor,
    step: int,
    scale: float,
) -> float:
    """Compute the clipped gradient of a step's loss; returns the loss.

    A loss scale whose gradient overflows is lowered for this step only, so that a training that
    continues from a checkpoint takes the same ones.
    """
    while True:
        loss = gradients(step, tokens, scale)
        found = [one.grad for one in adapters.values() if one.grad is not None]
        if scale > 1:
            torch._foreach_div_(found, scale)
        norm = nn.utils.get_total_norm(found)
        value, size = torch.stack([loss.float(), norm.to(loss.device)]).tolist()
        if not math.isfinite(value):
            raise LmscoutError(
                f"recovery: the loss of step {step} is {value}: lower the learning rate, "
                "or check the text"
            )
        if math.isfinite(size):
            nn.utils.clip_grads_with_norm_(adapters.values(), _GRADIENT_NORM, norm)
            return float(value)
        if scale == 1:
            raise LmscoutError(
                f"recovery: the gradient of step {step} is not finite: lower the learning rate, "
                "or train in float32 (dtype)"
            )
        scale = lower_scale(scale)


def schedule(step: int, steps: int, by_clock: float = 0.0) -> float:
    """Share of the highest learning rate at a step, with the share of the time that has passed."""
    warm_up = min(1.0, max((step + 1) / max(1.0, _WARM_UP * steps), by_clock / _WARM_UP))
    done = min(1.0, max(step / steps, by_clock))
    return warm_up * (_LOWEST_RATE + (1 - _LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer_state(
    adapters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; adapters without a gradient so far have none."""
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
        # the count of steps is on the CPU, but for an optimizer in one kernel
        alone = kind == "step" and not optimizer.defaults["fused"]
        place = value if alone else value.to(adapters[name].device)
        optimizer.state[adapters[name]][kind] = place
