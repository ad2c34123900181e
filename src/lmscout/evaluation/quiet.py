"""Silence around libraries that talk on stderr while they load."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

_transformers: Any = transformers_logging  # its functions carry no types


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the Hub's client from warning and drawing bars.

    What they would warn of and lmscout cares about (weights that are missing, an encoder) is
    checked and raised instead.  The bars of a download stay where there is a terminal, since
    it can take minutes.  Everything is as before afterwards.
    """
    verbosity, bars = _transformers.get_verbosity(), _transformers.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hide_downloads = not sys.stderr.isatty() and not are_progress_bars_disabled()
    _transformers.set_verbosity_error()
    _transformers.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    if hide_downloads:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _transformers.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            _transformers.enable_progress_bar()
        if hide_downloads:
            enable_progress_bars()


def first_line(error: BaseException, limit: int = 200) -> str:
    """What an error of a library says, cut to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if line.endswith(":"):  # only announces what follows
        line = " ".join(lines[:2])
    return line if len(line) <= limit else line[: limit - 1] + "…"
