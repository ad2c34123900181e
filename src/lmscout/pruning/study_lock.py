"""A lock on a study: one process at a time measures for it, or one group of them; others wait.

The lock is an empty study in the same storage, named after the process that holds it, so it works
on every storage and between machines.  A process adds such a study first and looks for others
then; if there are any it removes its own and waits.  So two never hold the lock at once, unless
they are of one group: these `claim` plans, each of which one process has.  A claim holds as long as
the lock of its process.

The lock of a dead process is removed: at once if the process ran on this machine, else after
`LEASE` seconds without a heartbeat by the clock of the process that waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from lmscout.errors import LmscoutError
from lmscout.pruning.backends import LOCK, Locks, Storage, add_lock
from lmscout.pruning.storage import patiently, shown_url

HEARTBEAT = 10  # seconds between two heartbeats of a holder
LEASE = 90  # seconds without a heartbeat after which a holder on another machine counts as dead
_POLL = 0.3  # seconds between two attempts of a waiting process, at most
_ENDING = 4  # seconds that the release waits for the thread of heartbeats

_HELD: set[str] = set()  # tokens of this process
_Seen = dict[str, tuple[str, float]]  # by lock, the last heartbeat, and when it was first seen

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
        study, mark, rest = name.partition(LOCK)
        parts = rest.split("|")
        if not mark or len(parts) != 5 or not parts[2].isdigit():
            return None
        node, machine, process, started, token = parts
        return cls(study, node, machine, int(process), started, token)

    @property
    def name(self) -> str:
        """Name of the study that stands for the lock."""
        return self.study + LOCK + "|".join(map(str, astuple(self)[1:]))

    @property
    def is_dead(self) -> bool | None:
        """Whether the process has ended; None if this machine cannot know."""
        if self.machine != _machine():
            return None
        if self.process == os.getpid():  # its release was interrupted while the storage was away
            return self.token not in _HELD
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

    def __init__(self, storage: Storage, locks: Locks, url: str, holder: Holder) -> None:
        self._url, self._name, self._holder, self.group = url, holder.name, holder, holder.group
        self._locks = locks
        self._seen: _Seen = {}
        self._released = threading.Event()
        self._lost = False
        self._heartbeats = storage.locks(of_thread=True)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LmscoutError if another process has taken the lock, as heartbeats came too late."""
        if self._lost:
            raise LmscoutError(
                f"study at {shown_url(self._url)}: another run took over, as this one gave no "
                f"sign for {LEASE} s; run the same command again"
            )

    def others(self) -> list[str]:
        """The other processes of the group."""
        found = patiently(self._url, partial(_holders, self._locks, self._holder, self._seen))
        return [one.name for one in found if one.group == self.group]

    def claim(self, study: int, keys: Sequence[str], most: int) -> list[str]:
        """Claim things to do for a study, by its number: the first ones that no other process has.

        What was done by others before must be looked up afterwards.
        """
        self.check()

        def living() -> list[str]:
            return [self._name, *self.others()]

        work = partial(self._locks.claim, study, keys, most, self._name, living)
        return patiently(self._url, work)

    def drop_claims(self, study: int) -> None:
        """Remove the claims of this process, once what was claimed is done."""
        patiently(self._url, partial(self._locks.drop_claims, study, self._name))

    def release(self, *, patient: bool = True) -> None:
        """Remove the lock; if the storage cannot be reached, the lease runs out."""
        self._released.set()
        self._thread.join(_ENDING)
        with suppress(Exception):
            if patient:
                patiently(self._url, partial(self._locks.remove, self._name))
            else:
                self._heartbeats.remove(self._name)

    def _send(self) -> None:
        """Send heartbeats until the release."""
        number = 0
        while not (self._lost or self._released.wait(HEARTBEAT)):
            number += 1
            try:
                self._lost = not self._heartbeats.beat(self._name, number)
            except Exception:  # the storage does not answer; nor do others reach it
                self._seen.clear()


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
    locks = storage.locks()
    _HELD.add(own.token)
    try:
        try:
            _acquire(storage, locks, own, url, waiting)
            lock = StudyLock(storage, locks, url, own)
        except BaseException:
            with suppress(Exception):
                locks.remove(own.name)
            raise
        try:
            yield lock
        except BaseException:
            lock.release(patient=False)
            raise
        lock.release()
    finally:
        _HELD.discard(own.token)


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
    storage: Storage, locks: Locks, own: Holder, url: str, waiting: Callable[[], None] | None
) -> None:
    seen: _Seen = {}
    requested, warned, started = False, False, time.monotonic()

    def request() -> list[Holder]:
        nonlocal requested
        others = _others(locks, own, seen)
        if not others:
            requested = True
            add_lock(storage, own.name)
            others = _others(locks, own, seen)
        if others and requested:
            locks.remove(own.name)
            requested = False
        return others

    while others := patiently(url, request):
        if waiting:
            waiting()
            if not warned and time.monotonic() - started > 3 * _POLL:
                warned = True
                _log.warning(
                    "lmscout: waiting for process %d on %s, which measures for study %r at %s",
                    *(others[0].process, others[0].node, own.study, shown_url(url)),
                )
        time.sleep(random.uniform(_POLL / 6, _POLL))


def _others(locks: Locks, own: Holder, seen: _Seen) -> list[Holder]:
    """Other holders and requests of a study that exclude an own one, see `_holders`."""
    return [one for one in _holders(locks, own, seen) if not own.group or one.group != own.group]


def _holders(locks: Locks, own: Holder, seen: _Seen) -> list[Holder]:
    """Other holders and requests of a study; all locks of dead processes are removed.

    `seen` is updated.
    """
    try:
        heartbeats = locks.heartbeats()
    except BaseException:  # no heartbeat can be sent while the storage is away
        seen.clear()
        raise
    found = []
    now = time.monotonic()
    for name, value in heartbeats.items():
        holder = Holder.parse(name)
        if holder is None or holder.token == own.token:
            continue
        last, since = seen.get(name, (None, now))
        if last != value:
            since = now
        seen[name] = value, since
        dead = holder.is_dead
        if dead or (dead is None and now - since > LEASE):
            locks.remove(name)
        elif holder.study == own.study:
            found.append(holder)
    return found


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
