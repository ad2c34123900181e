"""Turns: of the processes that would measure for one study, one does, and the others wait.

A turn is kept in the storage itself, so that it holds on every storage and between machines: as an
empty study whose name says which process has it.  It is there while the turn is held.  A process
that wants a turn writes its own such study and then looks for others: where there is one it takes
its own back and waits.  So no two hold a turn at once, in whatever order they come.

The turn of a process that has ended is taken over: at once where that process was on this machine,
else when it has given no sign for `EXPIRY` seconds by the clock of the one that waits.

A run folder, which is of one machine, is simply locked.
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
from dataclasses import dataclass
from pathlib import Path

from optuna.study import StudyDirection
from sqlalchemy import Engine, column, create_engine, delete, select, table, update
from sqlalchemy.pool import NullPool

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import ERRORS, Storage, reported, shown_url

SIGN = 10  # seconds between two signs that a process gives
EXPIRY = 90  # seconds without a sign, after which a process on another machine has ended
_LOOK = 0.3  # seconds between two looks of a process that waits
_PATIENCE = 60  # seconds in which a SQLite file lets a turn be taken
_SHORT_PATIENCE = 2  # the same for a sign, and for giving it back
_KEY = "sign"
_MARK = "|turn|"

_STUDIES = table("studies", column("study_id"), column("study_name"))
_DIRECTIONS = table("study_directions", column("study_id"))
_ATTRIBUTES = table(
    "study_user_attributes", column("study_id"), column("key"), column("value_json")
)

_log = logging.getLogger("lmscout")


@dataclass(frozen=True)
class Holder:
    """The process that has a turn, or wants it.

    Attributes:
        study: the name of the study that is measured for.
        node: name of its machine, for messages.
        machine: identity of the machine as long as it runs, and of the processes' namespace.
        process: number of the process.
        started: when it started, as the machine counts; "" where that cannot be seen.
        token: that no other turn has.
    """

    study: str
    node: str
    machine: str
    process: int
    started: str
    token: str

    @classmethod
    def here(cls, study: str) -> Holder:
        """A new turn of this process."""
        node = platform.node().replace("|", "")[:64]
        number = os.getpid()
        return cls(study, node, _machine(), number, _started(number) or "", uuid.uuid4().hex[:12])

    @classmethod
    def of(cls, name: str) -> Holder | None:
        """The holder that a study's name tells of; None where it is no turn."""
        study, mark, rest = name.partition(_MARK)
        parts = rest.split("|")
        if not mark or len(parts) != 5 or not parts[2].isdigit():
            return None
        return cls(study, parts[0], parts[1], int(parts[2]), parts[3], parts[4])

    @property
    def name(self) -> str:
        """Of the study that stands for the turn."""
        parts = (self.node, self.machine, str(self.process), self.started, self.token)
        return f"{self.study}{_MARK}{'|'.join(parts)}"

    @property
    def has_ended(self) -> bool | None:
        """Whether the process is gone; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        started = _started(self.process)
        if started is not None:
            return started != self.started
        if self.started:  # it could be seen, and is there no more
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return None  # another process may have its number


class StudyLock:
    """A turn that this process has; others wait until it is given back."""

    def __init__(self, url: str, holder: Holder) -> None:
        """Give signs from now on, from a thread."""
        self._url, self._name = url, holder.name
        self._engine = _engine(url, _SHORT_PATIENCE)
        self._over = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._give_signs, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where another process has taken over.

        Raises:
            LmscoutError: this process gave no sign for too long, and its turn was taken.
        """
        if self._lost:
            raise LmscoutError(
                f"study at {shown_url(self._url)}: another run took over, as this one gave no "
                f"sign for {EXPIRY} s; run the same command again"
            )

    def give_back(self) -> None:
        """Let others have it; of a storage that cannot be reached they take it."""
        self._over.set()
        self._thread.join(2 * _SHORT_PATIENCE)
        with suppress(*ERRORS):
            _remove(self._engine, self._name)
        self._engine.dispose()

    def _give_signs(self) -> None:
        number = 0
        while not self._over.wait(SIGN):
            number += 1
            mine = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == self._name)
            sign = (
                update(_ATTRIBUTES)
                .where(_ATTRIBUTES.c.key == _KEY)
                .where(_ATTRIBUTES.c.study_id == mine.scalar_subquery())
                .values(value_json=str(number))
            )
            with suppress(*ERRORS), self._engine.begin() as connection:
                if not connection.execute(sign).rowcount:
                    self._lost = True
                    return


@contextmanager
def study_lock(
    storage: Storage,
    url: str,
    study: str,
    *,
    waiting: Callable[[], None] | None = None,
) -> Iterator[StudyLock]:
    """Have the turn at a study within a ``with`` block.

    Args:
        storage: of the study, open.
        url: of the storage.
        study: its name.
        waiting: called now and then while another process has the turn, of which a warning
            tells; None where that takes a moment.

    Raises:
        LmscoutError: the storage cannot be read or written, or others keep making turns.
    """
    mine = Holder.here(study)
    engine = _engine(url, _PATIENCE)
    try:
        with reported(url):
            _take(storage, engine, mine, url, waiting)
        held = StudyLock(url, mine)
    except BaseException:
        with suppress(*ERRORS):
            _remove(engine, mine.name)
        raise
    finally:
        engine.dispose()
    try:
        yield held
    finally:
        held.give_back()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Write to a run folder, which is made, while no other process of this machine does.

    Args:
        folder: of the run.

    Raises:
        LmscoutError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LmscoutError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    try:
        update = False
        while not _locked(opened):
            if not update:
                update = True
                _log.warning("lmscout: waiting for another run that writes to %s", folder)
            time.sleep(_LOOK)
        yield
    finally:
        os.close(opened)  # which gives it back


def _locked(folder: int) -> bool:
    """Whether this process has an open folder for itself; so where folders cannot be locked."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _take(
    storage: Storage,
    engine: Engine,
    mine: Holder,
    url: str,
    waiting: Callable[[], None] | None,
) -> None:
    seen: dict[str, tuple[str, float]] = {}  # the last sign of others, and since when it is so
    update = False
    began = time.monotonic()
    while True:
        others = _others(engine, mine, seen)
        if not others:
            # Optuna's tools expect of every study that it has a direction.
            number = storage.create_new_study([StudyDirection.MINIMIZE], mine.name)
            storage.set_study_user_attr(number, _KEY, 0)
            others = _others(engine, mine, seen)
            if not others:
                return
            _remove(engine, mine.name)
        if waiting:
            waiting()
        if waiting and not update and time.monotonic() - began > 3 * _LOOK:
            update = True
            first = others[0]
            _log.warning(
                "lmscout: waiting for process %d on %s, which measures for study %r at %s",
                *(first.process, first.node, mine.study, shown_url(url)),
            )
        time.sleep(random.uniform(_LOOK / 6, _LOOK))


def _others(engine: Engine, mine: Holder, seen: dict[str, tuple[str, float]]) -> Sequence[Holder]:
    """Those that have the turn of a study or want it; turns of processes that ended go."""
    sign = (
        select(_STUDIES.c.study_name, _ATTRIBUTES.c.value_json)
        .select_from(
            _STUDIES.outerjoin(
                _ATTRIBUTES,
                (_STUDIES.c.study_id == _ATTRIBUTES.c.study_id) & (_ATTRIBUTES.c.key == _KEY),
            )
        )
        .where(_STUDIES.c.study_name.contains(_MARK, autoescape=True))
    )
    with engine.connect() as connection:
        rows = connection.execute(sign).all()
    found = []
    now = time.monotonic()
    for name, value in rows:
        one = Holder.of(str(name))
        if one is None or one.study != mine.study or one.token == mine.token:
            continue
        last, since = seen.get(one.name, (None, now))
        if last != str(value):
            since = now
        seen[one.name] = str(value), since
        ended = one.has_ended
        if ended or (ended is None and now - since > EXPIRY):
            _remove(engine, str(name))
        else:
            found.append(one)
    return found


def _remove(engine: Engine, name: str) -> None:
    """Remove the study of a turn, by its name: SQLite gives numbers of removed rows anew."""
    number = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
    with engine.begin() as connection:
        for one in (_ATTRIBUTES, _DIRECTIONS):
            connection.execute(delete(one).where(one.c.study_id == number))
        connection.execute(delete(_STUDIES).where(_STUDIES.c.study_name == name))


def _engine(url: str, patience: float) -> Engine:
    """Connections of its own, each closed when it has been used."""
    arguments = {"timeout": patience} if url.startswith("sqlite") else {}
    return create_engine(url, poolclass=NullPool, connect_args=arguments)


def _machine() -> str:
    """What tells this machine, since it runs, from others; and containers from each other."""
    words = platform.node()
    with suppress(OSError):
        words += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink(
            "/proc/self/ns/pid"
        )
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _started(process: int) -> str | None:
    """When a process started, in ticks of its machine; None where it runs no more, or unseen."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
