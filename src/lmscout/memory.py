"""Memory that is there, so that what cannot fit is refused before any of it is taken."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmscout.errors import LmscoutError

GIB = 2**30

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 64 * GIB  # where the system does not say


def available_memory() -> int:
    """Bytes that this process can still take: of the machine, and of its control group."""
    return min(_of_machine("MemAvailable", "SC_AVPHYS_PAGES"), _left_in_group())


def total_memory() -> int:
    """Bytes of the machine, or of the control group where that has fewer."""
    most = _number(_GROUP / "memory.max")
    return min(_of_machine("MemTotal", "SC_PHYS_PAGES"), most or _UNKNOWN**2)


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Refuse what needs more memory than this process can take.

    Args:
        what: that needs it; begins the message.
        needed: bytes.
        remedy: ends the message.

    Raises:
        LmscoutError: it needs more.
    """
    if needed <= 2**20:
        return
    there = available_memory()
    if needed > there:
        raise LmscoutError(
            f"{what} needs too much memory (got {needed / GIB:,.4g} GiB, expected at most "
            f"{there / GIB:,.4g} GiB that are free); {remedy}"
        )


def _of_machine(field: str, pages: str) -> int:
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB$", _MEMINFO.read_text("ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _left_in_group() -> int:
    """What a limit of the control group leaves; page cache counts as free."""
    most, now = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if most is None or now is None:
        return _UNKNOWN**2
    try:
        stat = (_GROUP / "memory.stat").read_text("ascii")
    except OSError:
        stat = ""
    cached = sum(int(one) for one in re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE))
    return max(0, most - max(0, now - cached))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None
