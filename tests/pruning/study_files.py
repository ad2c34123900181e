"""Stored studies from outside: as Optuna reads them, and as files that a process has open."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

sees_open_files = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="/proc says which files are open"
)


@contextmanager
def stored(url):
    """Optuna's own storage, closed again."""
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trials_of(url, study="lmscout"):
    """The trials of the study of a study."""
    with stored(url) as storage:
        return optuna.load_study(study_name=study, storage=storage).trials


def open_files(folder):
    """Names of the files in a folder that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            file = Path(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing itself
            continue
        if file.is_relative_to(folder):
            found.append(file.name)
    return found
