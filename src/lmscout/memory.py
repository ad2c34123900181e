"""Available memory, to refuse what cannot fit before allocating it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmscout.errors import LmscoutError

GIB = 2**30

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 64 * GIB  # assumed if the system does not say
_NO_LIMIT = 2**62


def available_memory() -> int:
    """Bytes that this process can still allocate, by the machine and by its control group."""
    return min(_of_machine("MemAvailable", "SC_AVPHYS_PAGES"), _left_in_group())


def total_memory() -> int:
    """Bytes of the machine, or of the control group if that has fewer."""
    most = _number(_GROUP / "memory.max")
    return min(_of_machine("MemTotal", "SC_PHYS_PAGES"), most or _NO_LIMIT)


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raise LmscoutError if some work needs more memory than is available.

    Args:
        what: the work, for the message.
        needed: bytes.
        remedy: for the message.
    """
    if needed > 2**20 and needed > (there := available_memory()):
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
    """Bytes below the limit of the control group; page cache counts as free."""
    most, now = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if most is None or now is None:
        return _NO_LIMIT
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
