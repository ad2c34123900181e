"""The tokens and the recipe by which a benchmark's architectures are trained and validated.

Every architecture sees as many tokens, in the order that its seed gives, under the same
optimizer and schedule.  On a GPU the models are so small that launching kernels costs more than
computing: after a few steps a whole step is captured once and replayed.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_

from lmscout.errors import LmscoutError, brief, check_whole
from lmscout.memory import require_memory
from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.models.layers import fuse_attention
from lmscout.reading import check_safetensors_header, read_text

_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # in a file of tokens

HELD_OUT = 20  # of a user's text, the last twentieth validates
POINTS = 5  # validation losses during training, at equal distances
TRAINING_COST = 3  # of a token, in forward passes
EAGER_STEPS = 3  # before a step is captured: they make the optimizer's state
EVALUATED = 256  # windows of validation in one batch


@dataclass(frozen=True, eq=False)
class TokenData:
    """Training and validation tokens."""

    train: Tensor  # ``[n]`` int64
    validation: Tensor  # ``[m]`` int64
    made_of: dict[str, str]  # their origin, such as the digests of the texts

    def describe(self) -> dict[str, object]:
        """The record in a benchmark's settings: counts, SHA-256 of the tokens, origin."""
        digest = hashlib.sha256()
        for tokens in (self.train, self.validation):
            digest.update(f"{len(tokens)}\0".encode() + tokens.numpy().astype("<i8").tobytes())
        return {
            "train_tokens": len(self.train),
            "validation_tokens": len(self.validation),
            "tokens_sha256": digest.hexdigest(),
            "made_of": dict(sorted(self.made_of.items())),
        }


def builtin_tokens() -> TokenData:
    """The built-in text of the running Python, by the built-in tokenizer."""
    from lmscout.builtin import corpus_digest, encode

    made_of = {"python": platform.python_version()}
    for side in ("train", "validation"):
        made_of[f"{side}_sha256"] = corpus_digest(side)
    return TokenData(encode("train"), encode("validation"), made_of)


def stored_tokens(file: Path) -> TokenData:
    """Tokens of a safetensors file with the integer vectors ``train`` and ``validation``.

    LmscoutError if it cannot be read, lacks one of them, or holds no tokens.
    """
    check_safetensors_header(file)
    try:
        with safe_open(file, framework="pt") as stored:
            made_of = dict(stored.metadata() or {})
            for side in ("train", "validation"):
                _check_kind(stored.get_slice(side), f"{file}: {side}")
            sides = [stored.get_tensor(side).long() for side in ("train", "validation")]
    except (OSError, SafetensorError) as error:
        raise LmscoutError(
            f"{file}: is no safetensors file with the tensors train and validation "
            f"({' '.join(str(error)[:200].split())})"
        ) from None
    for side, tokens in zip(("train", "validation"), sides, strict=True):
        if len(tokens) and (least := int(tokens.min())) < 0:
            raise LmscoutError(
                f"{file}: {side} holds an invalid token (got {least}, expected 0 or more); "
                "write the token ids of a tokenizer"
            )
    kept = {key: value for key, value in made_of.items() if not key.startswith("test")}
    return TokenData(sides[0], sides[1], kept)


def _check_kind(stored: Any, what: str) -> None:
    """Refuse a tensor that is no vector of whole numbers, before it is read."""
    shape, dtype = stored.get_shape(), str(stored.get_dtype())
    if len(shape) != 1 or dtype not in _INTEGERS:
        raise LmscoutError(
            f"{what}: must be a vector of whole numbers (got {dtype} {brief(list(shape))}, "
            f"expected one of {', '.join(_INTEGERS)})"
        )
    require_memory(what, 8 * int(shape[0]), "give fewer tokens")


def text_tokens(files: Sequence[Path]) -> TokenData:
    """Text files by the built-in tokenizer; the last twentieth of each one validates.

    LmscoutError if a file cannot be read, or is not UTF-8 text.
    """
    from lmscout.builtin import load_tokenizer

    tokenizer = load_tokenizer()
    train, validation, made_of = [], [], {}
    for file in files:
        text = read_text(file)
        tokens = torch.tensor(
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64
        )
        border = len(tokens) - len(tokens) // HELD_OUT
        train.append(tokens[:border])
        validation.append(tokens[border:])
        made_of[file.name] = hashlib.sha256(text.encode()).hexdigest()
    return TokenData(torch.cat(train), torch.cat(validation), made_of)


def tokens_of(files: Sequence[Path], corpus: Path | None) -> TokenData:
    """Tokens of text files, or of a safetensors file; the built-in text if neither is given.

    LmscoutError if both are given, or a file cannot be read.
    """
    if files and corpus is not None:
        raise LmscoutError("text and corpus: give one of them")
    if corpus is not None:
        return stored_tokens(corpus)
    return text_tokens(files) if files else builtin_tokens()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of every architecture of a benchmark: AdamW, a warm-up, half a cosine to 0."""

    tokens: int = 4_500_000  # in all; rounded down to whole steps
    sequences: int = 64  # windows a step
    length: int = 128  # tokens a window
    learning_rate: float = 2e-3  # largest one
    warm_up: float = 0.1  # share of the steps over which the rate increases
    weight_decay: float = 0.1  # of matrices; not of vectors
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    held_out: int = 131_072  # most validation tokens of a loss

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("sequences", 1), ("length", 2), ("held_out", 1)):
            check_whole(name, getattr(self, name), least)
        for name in ("learning_rate", "clip"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise LmscoutError(f"{name} of {value:g} is not above 0: give another")
        for name, below in (("warm_up", 1), ("beta1", 1), ("beta2", 1), ("weight_decay", math.inf)):
            if not 0 <= (value := getattr(self, name)) < below:
                raise LmscoutError(f"{name} of {value:g} is not from 0 to below {below:g}")
        if self.steps < POINTS:
            raise LmscoutError(
                f"{self.tokens} tokens are too few: at least {POINTS} steps of "
                f"{self.sequences} x {self.length} tokens, "
                f"{POINTS * self.sequences * self.length} in all"
            )
        windows = 16 * self.steps * self.sequences  # bytes of their places in the text
        require_memory(f"training on {self.tokens:,} tokens", windows, "give fewer tokens")

    @classmethod
    def of_tokens(cls, tokens: int | None, length: int) -> Recipe:
        """The recipe for windows of a length, and a number of training tokens unless it is None.

        All validation losses together cost at most as much as the training: a token of training
        is a forward and a backward pass, about three times that of validation.  LmscoutError if the
        tokens are too few.
        """
        if tokens is None:
            return cls(length=length)
        affordable = max(length, TRAINING_COST * tokens // POINTS)
        return cls(tokens=tokens, length=length, held_out=min(cls.held_out, affordable))

    @property
    def steps(self) -> int:
        """Updates of the weights."""
        return self.tokens // (self.sequences * self.length)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm_up = max(1, round(self.warm_up * self.steps))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        decayed = (step - warm_up) / (self.steps - warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))

    def measured_after(self) -> tuple[int, ...]:
        """Numbers of steps after which the validation losses are measured."""
        return tuple(self.steps * point // POINTS for point in range(1, POINTS + 1))


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    validation_loss: tuple[float | None, ...]  # at `POINTS` points, nats/token; None if not finite
    seconds: float


def train(
    spec: ArchitectureSpec, seed: int, data: TokenData, recipe: Recipe, device: str
) -> Trained:
    """Train an architecture by the recipe.

    The same seed gives the same losses to the last bit on the same device: weights and order
    come from the seed, and the algorithms are deterministic.  On a CPU it is float32 in one thread,
    on ``cuda:0`` bfloat16 autocast.  LmscoutError if tokens or memory do not suffice.
    """
    started = time.perf_counter()
    starts = window_starts(len(data.train), recipe, seed)
    check_validation(data, recipe)
    try:
        with _deterministic(device), sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            losses = _train(spec, seed, data, recipe, starts, torch.device(device))
    except torch.OutOfMemoryError:
        raise LmscoutError(
            f"{device}: out of memory while training a model of {spec.parameters():,} "
            "parameters; use fewer workers"
        ) from None
    finite = tuple(loss if math.isfinite(loss) else None for loss in losses)
    return Trained(finite, time.perf_counter() - started)


def window_starts(tokens: int, recipe: Recipe, seed: int) -> Tensor:
    """First tokens of the windows of every step.

    Each epoch reads the windows of a text of so many tokens once, in an order of its own and with
    another offset.  LmscoutError if the text has no two windows.

    Returns:
        ``[steps, sequences]`` int64.
    """
    count = tokens // recipe.length - 1
    if count < 1:
        raise LmscoutError(
            f"{tokens} tokens to train on are too few: at least {2 * recipe.length}; give more text"
        )
    generator = torch.Generator().manual_seed(seed)
    wanted = recipe.steps * recipe.sequences
    epochs = []
    for _ in range(-(-wanted // count)):
        cut = int(torch.randint(recipe.length, (), generator=generator))
        epochs.append(cut + recipe.length * torch.randperm(count, generator=generator))
    return torch.cat(epochs)[:wanted].view(recipe.steps, recipe.sequences)


def check_validation(data: TokenData, recipe: Recipe) -> None:
    """Raise LmscoutError if there is no whole window of validation."""
    read = min(len(data.validation), recipe.held_out)
    if read < recipe.length:
        raise LmscoutError(
            f"{read} tokens to validate on are too few: at least {recipe.length}; give more text"
        )


def _train(
    spec: ArchitectureSpec,
    seed: int,
    data: TokenData,
    recipe: Recipe,
    starts: Tensor,
    device: torch.device,
) -> list[float]:
    model = spec.build(seed).to(device)
    fuse_attention(model)
    text, held_out = data.train.to(device), data.validation[: recipe.held_out].to(device)
    starts = starts.to(device)
    window = torch.arange(recipe.length, device=device)
    optimizer = _optimizer(model, recipe, device)

    def step_on(tokens: Tensor) -> None:
        with _precision(device):
            loss = model.loss(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()

    advance: Callable[[Tensor], None] = step_on
    losses = []
    for step in range(recipe.steps):
        if step == EAGER_STEPS and device.type == "cuda":
            advance = _captured(step_on, optimizer, text[starts[step][:, None] + window])
        _set_rate(optimizer, recipe.rate(step))
        advance(text[starts[step][:, None] + window])
        if step + 1 in recipe.measured_after():
            losses.append(validation_loss(model, held_out, recipe.length))
    return losses


def _captured(
    step_on: Callable[[Tensor], None], optimizer: torch.optim.Optimizer, like: Tensor
) -> Callable[[Tensor], None]:
    """The step as one CUDA graph, on tokens copied into place."""
    held = like.clone()
    optimizer.zero_grad(set_to_none=True)  # so that the graph owns the gradients
    graph = torch.cuda.CUDAGraph()
    # The default stream of captures is on the device that was current at the first one.
    own = torch.cuda.Stream(held.device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(held.device), torch.cuda.graph(graph, stream=own):
        step_on(held)

    def replay(tokens: Tensor) -> None:
        held.copy_(tokens)
        graph.replay()

    return replay


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    on_gpu = device.type == "cuda"
    weights = list(model.parameters())
    rate = torch.tensor(recipe.learning_rate, device=device) if on_gpu else recipe.learning_rate
    return torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(recipe.beta1, recipe.beta2),
        fused=on_gpu,
        capturable=on_gpu,
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # in place, for a captured step
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def validation_loss(model: LanguageModel, tokens: Tensor, length: int) -> float:
    """Mean next-token cross-entropy over all whole windows, at least one, of a text, nats/token.

    The tokens are ``[m]`` int64 on the model's device; the first of a window is not predicted.
    """
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for some in torch.split(windows, EVALUATED):
        with _precision(tokens.device):
            total += model.loss(some).double() * len(some)
    return total.item() / len(windows)


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Deterministic algorithms, and on a CPU one thread, so that bits do not depend on cores."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        else:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at start
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled
