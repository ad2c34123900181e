"""Cost of a model: bytes and multiply-adds counted, seconds and peak memory measured."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmscout.evaluation.protocols import longest_window

_STATUS = Path("/proc/self/status")  # of Linux
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Speed:
    """Duration of a forward pass.

    Attributes:
        seconds: median over the repeats.
        tokens_per_second: batch * length / seconds.
        batch: sequences per forward pass.
        length: tokens per sequence.
        repeats: number of timed forward passes.
        peak_bytes: the most memory held meanwhile, weights included: allocated by PyTorch on
            CUDA, held by the process on a CPU; None if the system does not say.
    """

    seconds: float
    tokens_per_second: float
    batch: int
    length: int
    repeats: int
    peak_bytes: int | None = None


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(one.numel() for one in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in memory; tied ones count once."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of a model's embedding."""
    rows: int = next(model.get_input_embeddings().parameters()).shape[0]
    return rows


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of a token in the linear layers.

    One per weight of an `nn.Linear` or of transformers' `Conv1D`, the output head included, tied
    or not.  Embeddings, norms, biases and the products of attention, which grow with the length,
    are not counted; of a mixture of experts, all are.
    """
    linears = (one for one in model.modules() if isinstance(one, nn.Linear | Conv1D))
    return sum(linear.weight.numel() for linear in linears)


@torch.inference_mode()
def measure_speed(
    model: PreTrainedModel,
    batch: int,
    length: int,
    *,
    repeats: int = 5,
) -> Speed:
    """Time a forward pass that computes the logits of random tokens, without a cache.

    One pass before the timed ones is left out.

    Args:
        model: in eval mode, on the device to time; its forward takes `input_ids`.
        batch: sequences per forward pass.
        length: tokens per sequence, at most; fewer if the model reads fewer.
        repeats: number of timed forward passes.
    """
    length = min(length, longest_window(model.config) or length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary_size(model), (batch, length), generator=generator)
    tokens = tokens.to(model.device)
    _reset_peak(tokens.device)
    median = median_seconds(
        lambda: model(input_ids=tokens, use_cache=False), tokens.device, repeats
    )
    return Speed(median, batch * length / median, batch, length, repeats, _peak(tokens.device))


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median duration of a call on a device; one call before the timed ones is left out."""
    seconds = []
    for _ in range(1 + repeats):
        await_device(device)
        start = time.perf_counter()
        run()
        await_device(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def await_device(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process may still take; what it has cached is not free."""
    free, total = torch.cuda.mem_get_info(device)
    most = torch.cuda.get_per_process_memory_fraction(device) * total
    return min(free, int(most) - torch.cuda.memory_reserved(device))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        with suppress(OSError):  # not every container lets a process reset its own peak
            _CLEAR.write_text("5")


def _peak(device: torch.device) -> int | None:
    """The most memory held since the reset, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and _STATUS.exists():
        kilobytes = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return int(kilobytes[1]) * 1024 if kilobytes else None
    return None
