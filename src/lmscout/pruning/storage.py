"""Where a ledger is kept: the storage's URL, opening it, and letting go of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lmscout.errors import LmscoutError

FILE_NAME = "ledger.db"
ERRORS = (optuna.exceptions.OptunaError, SQLAlchemyError, RuntimeError, OSError)  # of a storage
_IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
_LOCKED = 60  # seconds that a process waits for another that writes to the same file


class Storage(RDBStorage):
    """Optuna's storage, which closes its connections when told, and when it cannot be opened.

    Optuna's own may refuse a file after it has connected to it, because it is no database or
    its tables are of another version; nobody then has anything to close.  A connection left to
    the garbage collector keeps its file open, and Python 3.13 warns of it.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        try:
            super().__init__(url, engine_kwargs)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of this thread's session, and those that wait in the pool."""
        if hasattr(self, "scoped_session"):  # else the URL was refused, and nothing is open
            self.remove_session()
            self.engine.dispose()


def storage_url(storage: str | Path) -> str:
    """The URL of a ledger: a URL as it is, or ``ledger.db`` in a folder, which is made.

    Raises:
        LmscoutError: the folder cannot be made, or the URL is of a database in memory.
    """
    if "://" in str(storage):
        if str(storage) in _IN_MEMORY:
            raise LmscoutError(
                f"{storage}: is in memory, and gone when this process ends: name a file, as in "
                "sqlite:///FILE"
            )
        return str(storage)
    folder = Path(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LmscoutError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    return f"sqlite:///{(folder / FILE_NAME).resolve()}"


def is_there(storage: str | Path) -> bool:
    """Whether a ledger's storage may hold something already; looking makes no file.

    Raises:
        LmscoutError: the URL is none.
    """
    if "://" not in str(storage):
        return (Path(storage) / FILE_NAME).is_file()
    try:
        url = make_url(str(storage))
    except SQLAlchemyError as error:
        raise LmscoutError(f"ledger at {storage}: {error}") from error
    if url.get_backend_name() != "sqlite" or url.database is None:
        return True
    return Path(url.database).is_file()


def open_storage(url: str) -> Storage:
    """Open the storage at a URL, making its tables where there are none.

    Raises:
        LmscoutError: the URL is none, or there is no driver for its database.
        ERRORS: whatever else is wrong with it.
    """
    waiting = {"connect_args": {"timeout": _LOCKED}} if url.startswith("sqlite") else {}
    try:
        return Storage(url, waiting)
    except (ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LmscoutError(f"ledger at {url}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from telling of studies that it makes and opens; as before afterwards."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
