"""A lock on a study: one process at a time measures for it, or one group of them; others wait.

The lock is an empty study in the same storage, named after the process that holds it, so it works
on every storage and between machines.  A process adds such a study first and looks for others
then; if there are any it removes its own and waits.  So two never hold the lock at once, unless
they are of one group: these `claim` plans, each of which one process has.  A claim is an attribute
of the study, whose names are unique, and holds as long as the lock of its process.

The lock of a dead process is removed: at once if the process ran on this machine, else after
`LEASE` seconds without a heartbeat by the clock of the process that waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from sqlalchemy import Engine, and_, column, create_engine, delete, insert, select, table, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import ERRORS, Storage, patiently, reported, shown_url

HEARTBEAT = 10  # seconds between two heartbeats of a holder
LEASE = 90  # seconds without a heartbeat after which a holder on another machine counts as dead
_POLL = 0.3  # seconds between two attempts of a waiting process, at most
_TIMEOUT = 60  # seconds that acquiring waits for a locked SQLite file
_SHORT_TIMEOUT = 2  # the same for a heartbeat and the release
_KEY = "heartbeat"
_CLAIM = "lmscout.claim:"
_MARK = "|lock|"

_STUDIES = table("studies", column("study_id"), column("study_name"))
_DIRECTIONS = table("study_directions", column("study_id"))
_ATTRIBUTES = table(
    "study_user_attributes", column("study_id"), column("key"), column("value_json")
)

_log = logging.getLogger("lmscout")


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock of a study, or requests it."""

    study: str  # name of the locked study
    node: str  # name of its machine, for messages
    machine: str  # identity of the machine since it was started, and of the process namespace
    process: int  # process id
    started: str  # start time in the machine's ticks; "" if unknown
    token: str  # unique to this request; with its group after a dot, if it has one

    @property
    def group(self) -> str:
        """What the processes of one group have in common; "" for none."""
        return self.token.partition(".")[2]

    @classmethod
    def this_process(cls, study: str, group: str = "") -> Holder:
        """A new request of this process."""
        node = platform.node().replace("|", "")[:64]
        process = os.getpid()
        token = uuid.uuid4().hex[:12] + (f".{group}" if group else "")
        return cls(study, node, _machine(), process, _start_time(process) or "", token)

    @classmethod
    def parse(cls, name: str) -> Holder | None:
        """The holder after which a study is named; None if the study is no lock."""
        study, mark, rest = name.partition(_MARK)
        parts = rest.split("|")
        if not mark or len(parts) != 5 or not parts[2].isdigit():
            return None
        node, machine, process, started, token = parts
        return cls(study, node, machine, int(process), started, token)

    @property
    def name(self) -> str:
        """Name of the study that stands for the lock."""
        return self.study + _MARK + "|".join(map(str, astuple(self)[1:]))

    @property
    def is_dead(self) -> bool | None:
        """Whether the process has ended; None if this machine cannot know."""
        if self.machine != _machine():
            return None
        started = _start_time(self.process)
        if started is not None:
            return started != self.started
        if self.started:
            return True
        try:
            os.kill(self.process, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError) or None
        return None  # another process may have the same id


class StudyLock:
    """A held lock, whose heartbeats come from a thread until `release`."""

    def __init__(self, url: str, holder: Holder) -> None:
        self._url, self._name, self._holder = url, holder.name, holder
        self._seen: dict[str, tuple[str, float]] = {}
        self._engine = _engine(url, _SHORT_TIMEOUT)
        self._claims = _engine(url, _TIMEOUT)
        self._released = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LmscoutError if another process has taken the lock, as heartbeats came too late."""
        if self._lost:
            raise LmscoutError(
                f"study at {shown_url(self._url)}: another run took over, as this one gave no "
                f"sign for {LEASE} s; run the same command again"
            )

    @property
    def group(self) -> str:
        """The group of this process."""
        return self._holder.group

    def others(self) -> list[str]:
        """The other processes of the group."""
        found = patiently(self._url, lambda: _holders(self._claims, self._holder, self._seen))
        return [one.name for one in found if one.group == self._holder.group]

    def claim(self, study: int, keys: Sequence[str], most: int) -> list[str]:
        """Claim things to do for a study, by its number: the first ones that no other process has.

        What was done by others before must be looked up afterwards.
        """
        living = [self._name, *self.others()]
        return patiently(self._url, lambda: self._claim(study, keys, most, living))

    def _claim(
        self, study: int, keys: Sequence[str], most: int, living: Sequence[str]
    ) -> list[str]:
        query = select(_ATTRIBUTES.c.key, _ATTRIBUTES.c.value_json).where(*_claims(study))
        with self._claims.connect() as connection:
            holders = {str(key): str(value) for key, value in connection.execute(query)}
        own = json.dumps(self._name)
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
            elif json.loads(holder) not in living:
                same = [_ATTRIBUTES.c[name] == value for name, value in row.items()]
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
        with self._claims.begin() as connection:
            return [key for key, one in changes.items() if connection.execute(one).rowcount]

    def drop_claims(self, study: int) -> None:
        """Remove the claims of this process, once what was claimed is done."""
        own = _ATTRIBUTES.c.value_json == json.dumps(self._name)

        def remove() -> None:
            with self._claims.begin() as connection:
                connection.execute(delete(_ATTRIBUTES).where(*_claims(study), own))

        patiently(self._url, remove)

    def release(self) -> None:
        """Remove the lock; if the storage cannot be reached, the lease runs out."""
        self._released.set()
        self._thread.join(2 * _SHORT_TIMEOUT)
        with suppress(*ERRORS):
            _remove(self._engine, self._name)
        self._engine.dispose()

    def _send_heartbeats(self) -> None:
        number = 0
        own = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == self._name)
        heartbeat = (
            update(_ATTRIBUTES)
            .where(_ATTRIBUTES.c.key == _KEY)
            .where(_ATTRIBUTES.c.study_id == own.scalar_subquery())
        )
        while not self._released.wait(HEARTBEAT):
            number += 1
            with suppress(*ERRORS), self._engine.begin() as connection:
                if not connection.execute(heartbeat.values(value_json=str(number))).rowcount:
                    self._lost = True
                    return


def _claims(study: int) -> tuple[Any, Any]:
    return _ATTRIBUTES.c.study_id == study, _ATTRIBUTES.c.key.startswith(_CLAIM)


@contextmanager
def study_lock(
    storage: Storage,
    url: str,
    study: str,
    *,
    group: str = "",
    waiting: Callable[[], None] | None = None,
) -> Iterator[StudyLock]:
    """Hold the lock of a study in an open storage within a ``with`` block.

    With a `group` other processes of it may hold the lock, too.

    `waiting` is called repeatedly while another process holds the lock, which is logged as a
    warning; it is None for a lock that is held for a moment only.
    """
    own = Holder.this_process(study, group)
    engine = _engine(url, _TIMEOUT)
    try:
        with reported(url):
            _acquire(storage, engine, own, url, waiting)
        lock = StudyLock(url, own)
    except BaseException:
        with suppress(*ERRORS):
            _remove(engine, own.name)
        raise
    finally:
        engine.dispose()
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created, among the processes of this machine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LmscoutError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    try:
        if not _flock(descriptor):
            _log.warning("lmscout: waiting for another run that writes to %s", folder)
            while not _flock(descriptor):
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Whether a folder is locked now; True on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _acquire(
    storage: Storage, engine: Engine, own: Holder, url: str, waiting: Callable[[], None] | None
) -> None:
    heartbeats: dict[str, tuple[str, float]] = {}
    warned, started = False, time.monotonic()
    while True:
        others = _others(engine, own, heartbeats)
        if not others:
            # Optuna's tools expect a direction of every study.
            number = storage.create_new_study([StudyDirection.MINIMIZE], own.name)
            storage.set_study_user_attr(number, _KEY, 0)
            others = _others(engine, own, heartbeats)
            if not others:
                return
            _remove(engine, own.name)
        if waiting:
            waiting()
            if not warned and time.monotonic() - started > 3 * _POLL:
                warned = True
                _log.warning(
                    "lmscout: waiting for process %d on %s, which measures for study %r at %s",
                    *(others[0].process, others[0].node, own.study, shown_url(url)),
                )
        time.sleep(random.uniform(_POLL / 6, _POLL))


def _others(engine: Engine, own: Holder, heartbeats: dict[str, tuple[str, float]]) -> list[Holder]:
    """Other holders and requests of a study that exclude an own one, see `_holders`."""
    found = _holders(engine, own, heartbeats)
    return [one for one in found if not own.group or one.group != own.group]


def _holders(engine: Engine, own: Holder, heartbeats: dict[str, tuple[str, float]]) -> list[Holder]:
    """Other holders and requests of a study; all locks of dead processes are removed.

    Of each lock, `heartbeats` has the last one and when it was first seen; it is updated.
    """
    own_heartbeat = _STUDIES.c.study_id == _ATTRIBUTES.c.study_id, _ATTRIBUTES.c.key == _KEY
    locks = (
        select(_STUDIES.c.study_name, _ATTRIBUTES.c.value_json)
        .select_from(_STUDIES.outerjoin(_ATTRIBUTES, and_(*own_heartbeat)))
        .where(_STUDIES.c.study_name.contains(_MARK, autoescape=True))
    )
    try:
        with engine.connect() as connection:
            rows = connection.execute(locks).all()
    except BaseException:  # no heartbeat can be sent while the server is away
        heartbeats.clear()
        raise
    found = []
    now = time.monotonic()
    for name, value in rows:
        holder = Holder.parse(str(name))
        if holder is None or holder.token == own.token:
            continue
        last, since = heartbeats.get(holder.name, (None, now))
        if last != str(value):
            since = now
        heartbeats[holder.name] = str(value), since
        dead = holder.is_dead
        if dead or (dead is None and now - since > LEASE):
            _remove(engine, str(name))
        elif holder.study == own.study:
            found.append(holder)
    return found


def _remove(engine: Engine, name: str) -> None:
    """Remove a lock by its study's name, as SQLite reuses the numbers of removed rows."""
    number = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
    with engine.begin() as connection:
        for rows in (_ATTRIBUTES, _DIRECTIONS):
            connection.execute(delete(rows).where(rows.c.study_id == number))
        connection.execute(delete(_STUDIES).where(_STUDIES.c.study_name == name))


def _engine(url: str, timeout: float) -> Engine:
    """An engine whose connections are closed after each use."""
    arguments = {"timeout": timeout} if url.startswith("sqlite") else {}
    return create_engine(url, poolclass=NullPool, connect_args=arguments)


def _machine() -> str:
    """Identity of this machine since its start, and of the container."""
    identity = platform.node()
    with suppress(OSError):
        identity += Path("/proc/sys/kernel/random/boot_id").read_text()
        identity += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _start_time(process: int) -> str | None:
    """Start time of a process in ticks; None if it has ended or cannot be seen."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
