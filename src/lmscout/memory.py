"""Available memory and devices, to refuse what cannot fit or run before it begins."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmscout.errors import LmscoutError, first_line

if TYPE_CHECKING:
    import torch

GIB = 2**30

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 64 * GIB  # assumed if the system does not say


def available_memory() -> int:
    """Bytes that this process can still allocate, by the machine and by its control group."""
    kilobytes = _number(_MEMINFO, r"^MemAvailable:\s*(\d+) kB$")
    machine = _in_pages("SC_AVPHYS_PAGES") if kilobytes is None else 1024 * kilobytes
    most, now = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if most is None or now is None:
        return machine
    # Page cache counts as free.
    cached = _number(_GROUP / "memory.stat", r"^(?:in)?active_file (\d+)$") or 0
    return min(machine, max(0, most - max(0, now - cached)))


def total_memory() -> int:
    """Bytes of the machine, or of the control group if that has fewer."""
    machine, group = _in_pages("SC_PHYS_PAGES"), _number(_GROUP / "memory.max")
    return min(machine, group or machine)


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raise LmscoutError if some work needs more bytes than are available; "WHAT needs ..."."""
    if needed > 2**20 and needed > (there := available_memory()):
        raise LmscoutError(
            f"{what} needs too much memory (got {needed / GIB:,.4g} GiB, expected at most "
            f"{there / GIB:,.4g} GiB that are free); {remedy}"
        )


def usable_device(name: str) -> torch.device:
    """A device by PyTorch's name, with its index; raises LmscoutError if it cannot be used."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, torch.accelerator.current_device_index())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        kind = torch.accelerator.current_accelerator() if there else None
        known = ", ".join(["cpu", *(f"{kind}:{number}" for number in range(there))])
        raise LmscoutError(
            f"device {name!r} cannot be used ({first_line(error)}): there is {known}"
        ) from None
    return device


@cache
def free_at_first(device: str) -> int:
    """Bytes of a GPU that were free at the first call, before processes of this one used it."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _in_pages(name: str) -> int:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _number(path: Path, form: str = r"^(\d+)$") -> int | None:
    """The sum of the numbers of that form in a file of the system; None without any."""
    try:
        found = re.findall(form, path.read_text("ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return sum(map(int, found)) if found else None
