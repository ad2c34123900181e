"""Which commit a result is of."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """The commit measured; unknown where there is no repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
