"""Atomic writes of files and folders.

A reader sees the complete new content or the old one, at any moment and after a kill.  Content is
written into a draft first: a folder beside the target, with a random name, that only its owner can
enter.  A running process holds a lock on each of its drafts, so that other processes can recognise
and remove the drafts of killed ones.
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
except ImportError:  # no locks on this system: drafts are never removed by others
    fcntl = None  # type: ignore[assignment]

_DRAFT = ".lmscout-draft"  # end of a draft's name
_LONGEST = 200  # bytes of the target's name in a draft's name; a file system allows 255
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_STORAGE = (*_FULL, errno.EROFS, errno.EIO)
_NO_LOCK_HELD = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOSYS)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_NATIVE = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust name an error of the system
_SQLITE_FULL = "database or disk is full"

Content = str | bytes | Callable[[Path], object]


def write_file(
    path: Path, content: Content, *, name: str | None = None, remedy: str = "name another"
) -> None:
    """Write a file atomically.

    A link is followed.  A device or a pipe is written to.  A new file has the permissions that
    the umask gives, a replaced one keeps its own.  The content is text, written as UTF-8; bytes;
    or a function that writes to the path that it is called with, for libraries that write files.

    LmscoutError, with the file's name (its path if None) and the remedy, if the file cannot be
    written; it is unchanged.
    """
    with _one_line(name or str(path), remedy):
        target = _target(path)
        if target is None:
            _write_into(path, content)
            return
        try:
            with _draft(target) as draft:
                part, mode = draft / "content", _usual_mode(draft)
                if callable(content):
                    content(part)
                else:
                    part.write_bytes(encoded(content))
                with contextlib.suppress(FileNotFoundError):
                    mode = stat.S_IMODE(target.stat().st_mode)
                part.chmod(mode)
                _sync(part)
                os.replace(part, target)
            _sync(target.parent)
        except OSError as error:
            # A mounted file, or a writable file in a folder that is not writable.
            in_place = error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
            if not (in_place and target.is_file() and os.access(target, os.W_OK)):
                raise
            _write_into(target, content, truncate=True)


@contextmanager
def atomic_folder(
    folder: Path, *, last: str | None = None, name: str | None = None, remedy: str = "name another"
) -> Iterator[Path]:
    """A draft to write into, which becomes `folder` once the block ends without an error.

    The folder must not exist, or be empty, unless `last` names the file that makes it complete: it
    keeps its files then, and the draft's files are moved into it, this one after all others.

    LmscoutError, with the folder's name (its path if None) and the remedy, if it is not empty or
    cannot be written; nothing is left behind.
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
            if last is not None and folder.is_dir():  # perhaps the current one of a process
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
    """Remove the drafts of killed processes in a folder: those of one name, or all."""
    prefix = "." if of is None else _draft_prefix(of)
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(prefix) and path.name.endswith(_DRAFT):
                _remove_abandoned(path)


def check_file(path: Path, name: str) -> None:
    """Raise LmscoutError if a file given to the option `name` could not be written."""
    shown = f"{name} {path}"
    with _one_line(shown, "name another"):
        if path.is_dir():
            raise LmscoutError(f"{shown} is a folder: name a file")
        target = _target(path)
        if target is None:
            return
        if not target.parent.is_dir():
            raise LmscoutError(f"{shown}: its folder does not exist; create it first")
        if not target.exists():
            with _draft(target):
                return
        if not os.access(target, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def check_folder(folder: Path, name: str, remedy: str = "name another", *, make: bool) -> None:
    """Raise LmscoutError if a folder could not be written.

    The folders above it are made, and the folder itself if `make`.  `name` and `remedy` are those
    of the message.
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

    Lone surrogates stand for bytes of file names; if these are no UTF-8, they are escaped as in
    JSON.
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
    """The problem of the storage that caused an error, such as "No space left on device".

    None if the error, which may be a library's that wraps one of the system, has another cause.
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
    """Turn errors of the system, also wrapped by libraries, or of the storage, into one line."""
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
    """The file that is replaced, links followed; None for a device, pipe or open descriptor."""
    link = path.absolute()
    for _ in range(40):  # as many as the system follows
        parent = os.path.realpath(link.parent)
        if parent.startswith("/proc/") or parent == "/dev/fd":  # a descriptor of a process
            return None
        link = Path(parent) / link.name
        if not link.is_symlink():
            return None if link.exists() and not link.is_file() else link
        link = link.parent / os.readlink(link)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _write_into(path: Path, content: Content, *, truncate: bool = False) -> None:
    """Write to a device, a pipe or an existing file without replacing it."""
    if callable(content):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "content"
            content(part)
            content = part.read_bytes()
    with open(path if truncate else _descriptor(path), "wb") as file:
        file.write(encoded(content))


def _descriptor(path: Path) -> int:
    """A descriptor that appends; standard output and error keep their position."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                stream.flush()
                return os.dup(stream.fileno())
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
    # Cut between characters, encoded as names are on this system, whatever its locale.
    short = os.fsencode(name)[:_LONGEST].decode("utf-8", "ignore")
    return f".{os.fsdecode(short.encode())}-"


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A locked draft beside a target, removed at the end; first remove abandoned ones."""
    remove_drafts(target.parent, target.name)
    prefix = _draft_prefix(target.name)
    while True:
        draft = Path(tempfile.mkdtemp(_DRAFT, prefix, target.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = _locked(draft, wait=True)
            if lock is None or _is_at(lock, draft):
                break
            os.close(lock)
        # Another process removed it as abandoned before it was locked.
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(draft: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a draft; None if the file system has no locks."""
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
    with contextlib.suppress(OSError):  # a running process holds it
        lock = _locked(draft, wait=False)
        if lock is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(lock)


def _usual_mode(draft: Path, *, folder: bool = False) -> int:
    """Permissions of new files, or folders, by the umask and the folder's rules."""
    probe = draft / ".mode"
    probe.mkdir() if folder else probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir() if folder else probe.unlink()
    return mode


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, if the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
