"""Cost of a model: parameters, bytes and multiply-adds; seconds and free memory of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


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
