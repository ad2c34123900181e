"""What a model costs: bytes and multiply-adds counted, seconds measured."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmscout.evaluation.protocols import longest_window

_STATUS = Path("/proc/self/status")  # of Linux


@dataclass(frozen=True)
class Speed:
    """How long one forward takes.

    Attributes:
        seconds: median over the repeats.
        tokens_per_second: batch * length / seconds.
        batch: sequences a forward.
        length: tokens a sequence.
        repeats: how many forwards were timed.
        peak_bytes: the most memory held during them, weights included: what PyTorch had
            allocated on an accelerator, what the process held elsewhere; None where the system
            does not say.
    """

    seconds: float
    tokens_per_second: float
    batch: int
    length: int
    repeats: int
    peak_bytes: int | None = None


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; those that are tied count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in memory; those that are tied count once."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Tokens that a model knows: the rows of its embedding."""
    rows: int = next(model.get_input_embeddings().parameters()).shape[0]
    return rows


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of a token in the linear layers.

    One for each weight of an `nn.Linear` or of transformers' `Conv1D`, the output head among
    them, tied or not.  Embeddings, norms, biases and the products of attention, which grow
    with the length, are not counted; where a token visits only some experts, all count.
    """
    return sum(linear.weight.numel() for linear in _linears(model))


@torch.inference_mode()
def measure_speed(
    model: PreTrainedModel,
    batch: int,
    length: int,
    *,
    repeats: int = 5,
    warm_up: int = 1,
    seed: int = 0,
) -> Speed:
    """Time a forward that computes the logits of random tokens, without a cache.

    Args:
        model: in eval mode, on the device to time it on; takes `input_ids`.
        batch: sequences a forward.
        length: tokens a sequence; fewer where the model does not read as many.
        repeats: forwards that are timed.
        warm_up: forwards before them.
        seed: of the tokens.

    Returns:
        The median and the throughput that follows from it.
    """
    length = min(length, longest_window(model.config) or length)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary_size(model), (batch, length), generator=generator)
    tokens = tokens.to(model.device)
    seconds = []
    _forget_peak(tokens.device)
    for _ in range(warm_up + repeats):
        await_device(tokens.device)
        start = time.perf_counter()
        model(input_ids=tokens, use_cache=False)
        await_device(tokens.device)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[warm_up:])
    peak = _peak(tokens.device)
    return Speed(median, batch * length / median, batch, length, repeats, peak)


def await_device(device: torch.device) -> None:
    """Wait until a device has done what it was given: accelerators run behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    """Begin anew to watch for the most memory held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        with suppress(OSError):  # not every container lets a process reset its own peak
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    """The most memory held since, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and _STATUS.exists():
        kilobytes = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return int(kilobytes[1]) * 1024 if kilobytes else None
    return None


def _linears(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    return (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
