"""Silence for libraries that write to stderr while they load, and their errors as one line."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

from lmscout.progress import is_terminal

_transformers: Any = transformers_logging  # its functions carry no types
_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the Hub's client from warning and drawing bars while the block runs.

    What matters of their warnings (missing weights, an encoder) is checked and raised instead.
    The bars of a download, which can take minutes, stay on a terminal.  These settings, and what
    transformers replaces while it loads, are the process's: other threads wait.
    """
    with _lock, ExitStack() as stack:
        for library in (_transformers, hub_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity(logging.ERROR)
        if _transformers.is_progress_bar_enabled():
            stack.callback(_transformers.enable_progress_bar)
            _transformers.disable_progress_bar()
        if not is_terminal(sys.stderr) and not are_progress_bars_disabled():
            stack.callback(enable_progress_bars)
            disable_progress_bars()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
