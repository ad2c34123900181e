"""What a study needs of Optuna's storages, a database or a journal file, beyond what they have.

That is a trial that is added only if no other process has added one meanwhile, and the locks and
claims of `study_lock`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial
from sqlalchemy import (
    Engine,
    and_,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    table,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

HEARTBEAT = "heartbeat"  # attribute of a lock
LOCK = "|lock|"  # in the name of a study that is a lock
_CLAIM = "lmscout.claim:"
_TIMEOUT = 60  # seconds of waiting for another process that writes to the same SQLite file
_SHORT_TIMEOUT = 2  # the same for a heartbeat
_LIBPQ = {  # seconds until a machine that does not answer counts as away; milliseconds the last
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}

_STUDIES = table("studies", column("study_id"), column("study_name"))
_DIRECTIONS = table("study_directions", column("study_id"))
_ATTRIBUTES = table(
    "study_user_attributes", column("study_id"), column("key"), column("value_json")
)
_TRIALS = table("trials", column("study_id"), column("trial_id"), column("number"))


Living = Callable[[], Collection[str]]  # names of locks


class Database(RDBStorage):
    """Optuna's storage in a database."""

    def __init__(self, url: str) -> None:
        # Optuna formats the URL as a template.
        arguments = {"connect_args": connection_arguments(url, _TIMEOUT)}
        try:
            super().__init__(url.replace("{", "{{").replace("}", "}}"), arguments)
        except BaseException:  # also of the file that Optuna refuses once it is connected
            self.close()
            raise

    def close(self) -> None:
        """Close the session of this thread and the pooled connections."""
        if hasattr(self, "scoped_session"):  # else the URL was refused, and nothing is open
            self.remove_session()
            self.engine.dispose()

    def locks(self, *, of_thread: bool = False) -> Locks:
        """The locks; of a thread of its own, with short waits."""
        return _DatabaseLocks(self.url, _SHORT_TIMEOUT if of_thread else _TIMEOUT)

    def attribute_rows(self, study: int) -> list[tuple[str, Any]]:
        """Keys and JSON of a study's attributes, read without Optuna, which fails on edits."""
        query = select(_ATTRIBUTES.c.key, _ATTRIBUTES.c.value_json)
        with self.engine.connect() as connection:
            found = connection.execute(query.where(_ATTRIBUTES.c.study_id == study))
            return [(str(key), value) for key, value in found]

    def trial_numbers(self, study: int) -> list[tuple[object, Any]]:
        """Numbers and identifiers of a study's trials, read without Optuna."""
        query = select(_TRIALS.c.number, _TRIALS.c.trial_id).where(_TRIALS.c.study_id == study)
        with self.engine.connect() as connection:
            return [(number, identifier) for number, identifier in connection.execute(query)]

    def add_trial(self, study: int, trial: FrozenTrial, number: int) -> bool:
        """Add a trial if the study has this number of trials; False if it has others by now.

        Optuna locks the row of the study first, so trials are added one after another.  It repeats
        a transaction whose commit was not acknowledged: that one may have added the trial.
        """
        count = select(func.count()).select_from(_TRIALS).where(_TRIALS.c.study_id == study)

        def check(session: Session) -> None:
            session.flush()
            if session.scalar(count) != number + 1:
                raise _OthersAddedError

        event.listen(self.scoped_session, "before_commit", check)
        try:
            self.create_new_trial(study, trial)
        except _OthersAddedError:
            return False
        finally:
            event.remove(self.scoped_session, "before_commit", check)
        return True


class _OthersAddedError(Exception):
    """A study has trials that were not expected."""


class _DatabaseLocks:
    """Locks as rows of studies, named after the processes that hold them.

    Claims are attributes of the study to which they belong, whose names are unique.
    """

    def __init__(self, url: str, timeout: float) -> None:
        # Connections are closed after each use.
        arguments = connection_arguments(url, timeout)
        self._engine: Engine = create_engine(url, poolclass=NullPool, connect_args=arguments)

    def heartbeats(self) -> dict[str, str]:
        """The last heartbeat of every lock, by name."""
        own = and_(_STUDIES.c.study_id == _ATTRIBUTES.c.study_id, _ATTRIBUTES.c.key == HEARTBEAT)
        query = (
            select(_STUDIES.c.study_name, _ATTRIBUTES.c.value_json)
            .select_from(_STUDIES.outerjoin(_ATTRIBUTES, own))
            .where(_STUDIES.c.study_name.contains(LOCK, autoescape=True))
        )
        with self._engine.connect() as connection:
            return {str(name): str(value) for name, value in connection.execute(query)}

    def beat(self, name: str, number: int) -> bool:
        """Write a heartbeat; False if the lock was removed."""
        own = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
        same = _ATTRIBUTES.c.key == HEARTBEAT, _ATTRIBUTES.c.study_id == own
        with self._engine.begin() as connection:
            change = update(_ATTRIBUTES).where(*same).values(value_json=str(number))
            return bool(connection.execute(change).rowcount)

    def remove(self, name: str) -> None:
        # By its name, as SQLite reuses the numbers of removed rows.
        number = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
        with self._engine.begin() as connection:
            for rows in (_ATTRIBUTES, _DIRECTIONS):
                connection.execute(delete(rows).where(rows.c.study_id == number))
            connection.execute(delete(_STUDIES).where(_STUDIES.c.study_name == name))

    def claim(
        self, study: int, keys: Sequence[str], most: int, name: str, living: Living
    ) -> list[str]:
        """Claim the first keys that are free, at most so many, for a lock; also its earlier ones.

        Args:
            study: number of the study to which the keys belong.
            keys: of what is to be done.
            most: number of keys.
            name: of the lock.
            living: removes the locks of dead processes, whose claims are free, and returns the
                names of the others; called after the claims of others are known.
        """
        query = select(_ATTRIBUTES.c.key, _ATTRIBUTES.c.value_json).where(*_claims(study))
        with self._engine.connect() as connection:
            holders = {str(key): str(value) for key, value in connection.execute(query)}
        alive = living()
        own = json.dumps(name)
        claimed: list[str] = []
        changes: dict[str, Any] = {}
        for key in keys:
            holder = holders.get(_CLAIM + key)
            row = {"study_id": study, "key": _CLAIM + key}
            if len(claimed) + len(changes) == most:
                break
            if holder is None:
                changes[key] = insert(_ATTRIBUTES).values(**row, value_json=own)
            elif holder == own:
                claimed.append(key)
            elif json.loads(holder) not in alive:
                same = [_ATTRIBUTES.c[one] == value for one, value in row.items()]
                of_dead = update(_ATTRIBUTES).where(*same, _ATTRIBUTES.c.value_json == holder)
                changes[key] = of_dead.values(value_json=own)
        try:
            return [*claimed, *self._changed(changes)]
        except IntegrityError:  # another process has claimed some of them meanwhile
            for key, change in changes.items():
                with suppress(IntegrityError):
                    claimed += self._changed({key: change})
            return claimed

    def _changed(self, changes: Mapping[str, Any]) -> list[str]:
        """Do all changes or none; those that had an effect."""
        with self._engine.begin() as connection:
            return [key for key, one in changes.items() if connection.execute(one).rowcount]

    def drop_claims(self, study: int, name: str) -> None:
        own = _ATTRIBUTES.c.value_json == json.dumps(name)
        with self._engine.begin() as connection:
            connection.execute(delete(_ATTRIBUTES).where(*_claims(study), own))


def _claims(study: int) -> tuple[Any, Any]:
    return _ATTRIBUTES.c.study_id == study, _ATTRIBUTES.c.key.startswith(_CLAIM)


def connection_arguments(url: str, timeout: float) -> dict[str, Any]:
    """Arguments of a driver, but those that the URL has."""
    if url.startswith("sqlite"):
        return {"timeout": timeout}
    parsed = make_url(url)
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {name: value for name, value in _LIBPQ.items() if name not in parsed.query}


class Journal(JournalStorage):
    """Optuna's storage in a journal, a file to which every process appends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = _JournalLock(file)
        super().__init__(JournalFileBackend(str(file), self._lock))

    def close(self) -> None:
        """Do nothing: the file is open only while it is read or written."""

    def locks(self, *, of_thread: bool = False) -> Locks:
        """The locks; of a thread of its own, with its own copy of the journal."""
        return _JournalLocks(None if of_thread else self, self._file)

    def attribute_rows(self, study: int) -> list[tuple[str, Any]]:
        """Keys and JSON of a study's attributes."""
        found = self.get_study_user_attrs(study)
        return [(key, json.dumps(value)) for key, value in found.items()]

    def trial_numbers(self, study: int) -> list[tuple[object, Any]]:
        """Numbers and identifiers of a study's trials."""
        return [(one.number, one._trial_id) for one in self.get_all_trials(study, deepcopy=False)]

    def add_trial(self, study: int, trial: FrozenTrial, number: int) -> bool:
        """Add a trial if the study has this number of trials; False if it has others by now."""
        with self.exclusive():
            if len(self.get_all_trials(study, deepcopy=False)) != number:
                return False
            self.create_new_trial(study, trial)
            return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Read and write while no other process writes."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


class _JournalLock(JournalFileSymlinkLock):
    """Optuna's lock of a file, which its holder may acquire again; not for threads.

    Optuna takes the lock of a process that has held it for 30 seconds without writing.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file, self._depth = file, 0

    def acquire(self) -> bool:
        """Wait for the lock, and cut off a line that a killed process has not finished."""
        if not self._depth:
            super().acquire()
            _cut_unfinished_line(self._file)
        self._depth += 1
        return True

    def release(self) -> None:
        """Release the lock; that of another process while waiting for it."""
        if self._depth > 1:
            self._depth -= 1
            return
        self._depth = 0
        super().release()


def _cut_unfinished_line(file: Path) -> None:
    """Readers skip a last line without its end; one in the middle would damage the journal."""
    with file.open("r+b") as opened:
        if not opened.seek(0, os.SEEK_END):
            return
        opened.seek(-1, os.SEEK_END)
        if opened.read() != b"\n":
            opened.seek(0)
            opened.truncate(opened.read().rfind(b"\n") + 1)


class _JournalLocks:
    """The same in a journal; claims are attributes of locks, with which they go."""

    def __init__(self, storage: Journal | None, file: Path) -> None:
        self._opened, self._file = storage, file

    @property
    def _storage(self) -> Journal:
        self._opened = self._opened or Journal(self._file)
        return self._opened

    def _attributes(self) -> dict[str, dict[str, Any]]:
        """The attributes of every lock, by name."""
        found = self._storage.get_all_studies()
        return {one.study_name: one.user_attrs for one in found if LOCK in one.study_name}

    def heartbeats(self) -> dict[str, str]:
        return {name: str(found.get(HEARTBEAT)) for name, found in self._attributes().items()}

    def beat(self, name: str, number: int) -> bool:
        with suppress(KeyError):
            storage = self._storage
            storage.set_study_user_attr(storage.get_study_id_from_name(name), HEARTBEAT, number)
            return True
        return False

    def remove(self, name: str) -> None:
        with suppress(KeyError):
            self._storage.delete_study(self._storage.get_study_id_from_name(name))

    def claim(
        self, study: int, keys: Sequence[str], most: int, name: str, living: Living
    ) -> list[str]:
        living()
        start = f"{_CLAIM}{study}:"
        with self._storage.exclusive():
            found = self._attributes()
            holders = {
                key: holder
                for holder, attributes in found.items()
                for claim, some in attributes.items()
                if claim.startswith(start)
                for key in some
            }
            claimed = [key for key in keys if holders.get(key, name) == name][:most]
            new = [key for key in claimed if key not in holders]
            if new and name in found:  # else the lock was removed
                number = self._storage.get_study_id_from_name(name)
                self._storage.set_study_user_attr(number, f"{start}{len(found[name])}", new)
            return claimed if name in found else []

    def drop_claims(self, study: int, name: str) -> None:
        """Do nothing: the lock is removed next."""


Storage = Database | Journal
Locks = _DatabaseLocks | _JournalLocks


def add_lock(storage: BaseStorage, name: str) -> None:
    """Add a lock, unless an earlier attempt whose answer was lost has added it."""
    # Optuna's tools expect a direction of every study.
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    storage.set_study_user_attr(study._study_id, HEARTBEAT, 0)
