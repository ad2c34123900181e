"""Write files and folders atomically: one way for files, one for folders.

A reader sees the complete new content or the old one, at any moment and after a kill.  Content
is written into a draft first: a folder beside the target, with a random name, that only its
owner can enter.  A running process holds a lock on each of its drafts, so that another process
can tell drafts of killed processes and remove them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lmscout.errors import LmscoutError

try:
    import fcntl
except ImportError:  # no locks on this system: no draft is taken for abandoned
    fcntl = None  # type: ignore[assignment]

_DRAFT = ".lmscout-draft"  # end of a draft's name
_LONGEST = 200  # bytes of the target's name in a draft's name: names end at 255
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_STORAGE = (*_FULL, errno.EROFS, errno.EIO)
_NO_LOCK_HELD = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOSYS)
_NATIVE = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust name an error of the system
_SQLITE_FULL = "database or disk is full"

Content = str | bytes | Callable[[Path], object]


def write_file(
    path: Path, content: Content, *, name: str | None = None, remedy: str = "name another"
) -> None:
    """Write a file atomically.

    A link is followed.  A device or a pipe is written to.  A new file has the permissions that
    the umask gives, a replaced one keeps its own.

    Args:
        path: the file, in a folder that exists.
        content: text, written as UTF-8; bytes; or a function that writes to the path that it is
            called with, for libraries that write files themselves.
        name: the file in error messages, such as ``--json FILE``; its path if None.
        remedy: what a user can do if the file cannot be written, other than free space.

    Raises:
        LmscoutError: the file cannot be written; what was there before is unchanged.
    """
    with _one_line(name or str(path), remedy):
        target = _target(path)
        if target is None:
            _write_into(path, content)
            return
        try:
            with _draft(target) as draft:
                part = draft / "content"
                if callable(content):
                    content(part)
                    mode = _usual_mode(draft)
                else:
                    with part.open("xb") as file:
                        file.write(encoded(content))
                    mode = stat.S_IMODE(part.stat().st_mode)
                with contextlib.suppress(FileNotFoundError):
                    mode = stat.S_IMODE(target.stat().st_mode)
                part.chmod(mode)
                _sync(part)
                os.replace(part, target)
            _sync(target.parent)
        except OSError as error:
            # A mounted file, or a file that may be written in a folder that may not.
            in_place = error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
            if not (in_place and target.is_file() and os.access(target, os.W_OK)):
                raise
            _write_into(target, content, truncate=True)


@contextmanager
def atomic_folder(
    folder: Path,
    *,
    last: str | None = None,
    name: str | None = None,
    remedy: str = "name another",
) -> Iterator[Path]:
    """A draft to write into, which becomes `folder` once the block ends without an error.

    Args:
        folder: must not exist, or be empty, unless `last` is given.
        last: file that makes the folder complete. A folder that holds something already keeps
            it: the draft's files are moved into it, this file after all others.
        name: the folder in error messages; its path if None.
        remedy: what a user can do if the folder cannot be written, other than free space.

    Raises:
        LmscoutError: the folder is not empty or cannot be written; nothing is left behind.
    """
    name = name or f"folder {folder}"
    with contextlib.ExitStack() as stack:
        with _one_line(name, remedy):
            folder = Path(os.path.realpath(folder))
            _refuse_filled(folder, name, remedy, last)
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(_draft(folder))
            usual, of_folder = _usual_mode(draft), _usual_mode(draft, folder=True)
        with _one_line(name, remedy, of_storage=True):
            yield draft
        with _one_line(name, remedy):
            for path in draft.rglob("*"):
                if not path.is_symlink():
                    path.chmod(of_folder if path.is_dir() else usual)
                    _sync(path)
            _refuse_filled(folder, name, remedy, last)
            if last is not None and folder.is_dir() and any(folder.iterdir()):
                names = sorted(path.name for path in draft.iterdir())
                for one in sorted(names, key=lambda one: one == last):
                    os.replace(draft / one, folder / one)
            else:
                draft.chmod(of_folder)
                if folder.is_dir():
                    folder.rmdir()
                os.replace(draft, folder)
            _sync(folder.parent)


def remove_drafts(folder: Path, of: str | None = None) -> None:
    """Remove the drafts in a folder that killed processes have left behind.

    Drafts of running processes stay.

    Args:
        folder: where drafts may be; need not exist.
        of: name of the file or folder that they are drafts of; of any if None.
    """
    begin = "." if of is None else _draft_prefix(of)
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(begin) and path.name.endswith(_DRAFT):
                _remove_abandoned(path)


def check_file(path: Path, name: str) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
        path: the file.
        name: the option that it was given to.

    Raises:
        LmscoutError: its folder does not exist or cannot be written, or it is a folder.
    """
    shown = f"{name} {path}"
    try:
        if path.is_dir():
            raise LmscoutError(f"{shown} is a folder: name a file")
        target = _target(path)
        if target is None:
            return
        if not target.parent.is_dir():
            raise LmscoutError(f"{shown}: its folder does not exist; create it first")
    except OSError as error:
        raise LmscoutError(f"{shown} cannot be written ({error.strerror}): name another") from None
    if target.exists():
        if not os.access(target, os.W_OK):
            reason = os.strerror(errno.EACCES)
            raise LmscoutError(f"{shown} cannot be written ({reason}): name another file")
        return
    with _one_line(shown, "name another file"), _draft(target):
        pass


def check_folder(folder: Path, name: str, remedy: str = "name another", *, make: bool) -> None:
    """Refuse a folder that could not be written, before any work is done.

    Args:
        folder: the folder; the folders above it are made.
        name: the folder in error messages.
        remedy: what a user can do.
        make: whether to make the folder itself.

    Raises:
        LmscoutError: it cannot be written.
    """
    with _one_line(name, remedy):
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        folder = Path(os.path.realpath(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _draft(folder / "check" if folder.is_dir() else folder):
            pass


def as_json(value: Mapping[str, object]) -> str:
    """An object as indented JSON; numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def encoded(content: str | bytes) -> bytes:
    """Text as UTF-8, bytes as they are.

    Half characters stand for bytes of names that the locale has no letters for; where these are no
    UTF-8 either, they are escaped, as JSON can.
    """
    if isinstance(content, bytes):
        return content
    try:
        plain = content.encode("utf-8", "surrogateescape")
        plain.decode()
    except UnicodeError:
        return content.encode("utf-8", "backslashreplace")
    return plain


def storage_problem(error: BaseException | None) -> str | None:
    """What is wrong with the storage if that is why something failed, such as a full disk.

    Args:
        error: an error of the system, or of a library that wraps one.

    Returns:
        The reason, such as "No space left on device"; None if the error is another one.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = _number_of(error)
        if number in _OF_STORAGE:
            return os.strerror(number)
        if _SQLITE_FULL in str(error):
            return _SQLITE_FULL
        error = error.__cause__ or error.__context__
    return None


def _number_of(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NATIVE.search(str(error))
    return int(found[1]) if found else 0


@contextmanager
def _one_line(name: str, remedy: str, *, of_storage: bool = False) -> Iterator[None]:
    """Turn errors of the system, and of libraries that wrap one, into one line.

    With `of_storage` only those that say that nothing can be stored.
    """
    try:
        yield
    except LmscoutError:
        raise
    except Exception as error:
        reason, number = storage_problem(error), _number_of(error)
        if reason is None:
            if of_storage or not (number or isinstance(error, OSError)):
                raise
            reason = os.strerror(number) if number else str(error)
        elif number in _FULL or reason == _SQLITE_FULL:
            remedy = f"free some space, or {remedy}"
        raise LmscoutError(f"{name} cannot be written ({reason}): {remedy}") from error


def _target(path: Path) -> Path | None:
    """The file that is replaced, its links followed; None if what is there is written into."""
    link = path.absolute()
    for _ in range(40):  # as many as the system follows
        parent = os.path.realpath(link.parent)
        if parent.startswith("/proc/") or parent == "/dev/fd":  # a descriptor of a process
            return None
        link = Path(parent) / link.name
        if not link.is_symlink():
            break
        link = link.parent / os.readlink(link)
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if link.exists() and not link.is_file():
        return None
    return link


def _write_into(path: Path, content: Content, *, truncate: bool = False) -> None:
    """Write to what is there, whatever it is, without replacing it."""
    if callable(content):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "content"
            content(part)
            content = part.read_bytes()
    if truncate:
        path.write_bytes(encoded(content))
        return
    with open(_descriptor(path), "wb") as file:
        file.write(encoded(content))


def _descriptor(path: Path) -> int:
    """What is there, opened for writing; what was written to it before stays."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                stream.flush()
                return os.dup(stream.fileno())  # of a file, with the place that it is at
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _refuse_filled(folder: Path, name: str, remedy: str, last: str | None) -> None:
    if folder.exists() and (not folder.is_dir() or (last is None and any(folder.iterdir()))):
        raise LmscoutError(f"{name} is not empty: {remedy}")


def _draft_prefix(name: str) -> str:
    # Cut between letters, and as names are on this system, whatever its locale.
    short = os.fsencode(name)[:_LONGEST].decode("utf-8", "ignore")
    return f".{os.fsdecode(short.encode())}-"


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A locked draft beside a target; removed at the end if it is still there.

    Drafts of the same target that killed processes have left behind are removed first.
    """
    remove_drafts(target.parent, target.name)
    prefix = _draft_prefix(target.name)
    while True:
        draft = Path(tempfile.mkdtemp(_DRAFT, prefix, target.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = _locked(draft, wait=True)
            if lock is None or _is_at(lock, draft):
                break
            os.close(lock)
        # Another process took it for abandoned before it was locked.
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(draft: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a draft; None if the file system knows no locks.

    Raises:
        OSError: there is no such draft, or another process holds the lock.
    """
    if fcntl is None:
        return None
    lock = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(lock)
        if error.errno in _NO_LOCK_HELD:
            return None
        raise
    return lock


def _is_at(lock: int, draft: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(draft))
    except FileNotFoundError:
        return False


def _remove_abandoned(draft: Path) -> None:
    try:
        lock = _locked(draft, wait=False)
    except OSError:
        return  # a running process holds it
    if lock is None:
        return
    try:
        shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(lock)


def _usual_mode(draft: Path, *, folder: bool = False) -> int:
    """Permissions that the umask, or the folder, gives to what is made in the usual way."""
    probe = draft / ".mode"
    if folder:
        probe.mkdir()
    else:
        probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    if folder:
        probe.rmdir()
    else:
        probe.unlink()
    return mode


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk, where the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
