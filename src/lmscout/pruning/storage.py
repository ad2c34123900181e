"""The storage of a study: its URL, opening it, and its errors in one line without secrets."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from lmscout.errors import LmscoutError, without_passwords
from lmscout.files import check_folder
from lmscout.pruning.backends import Database, Journal, Storage

FILE_NAME = "ledger.db"
PATIENCE = 180  # seconds for which a storage that went away during a run is tried again
_ERRORS = (
    *(ImportError, ValueError, sqlite3.Error, optuna.exceptions.OptunaError, SQLAlchemyError),
    *(RuntimeError, OSError),
)
_AWAY = {"OperationalError", "InterfaceError", "ConnectionError", "TimeoutError"}  # error types
_AWAY_FILE = {  # errors of a shared file system
    *(errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_Result = TypeVar("_Result")
_CHECK_TIMEOUT = 10  # seconds of waiting for a locked SQLite file before a run
_ATTEMPTS = 40  # to create tables that another process creates at the same time

_JOURNAL = "journal:"
_JOURNAL_START = b'{"op_code":'
_SCHEME = re.compile(rf"[A-Za-z][\w+.-]*://|://|{_JOURNAL}")
_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|pwd|secret|token|api_?key|credential|^pw$|auth|odbc_connect",
    re.IGNORECASE,
)
_QUERY_VALUE = re.compile(r"[?&;]([^=&;?]+)=([^&;]*)")
_LONG_SECRET = 6  # letters from which a secret is masked inside other words as well
_SQLITE_OPTIONS = {  # that the query of a SQLite URL may have
    *("uri", "timeout", "isolation_level", "detect_types", "check_same_thread"),
    *("cached_statements", "mode", "cache", "psow", "nolock", "immutable", "vfs"),
}
_TABLES = {"studies", "trials", "version_info", "alembic_version", "study_directions"}
_RESTORE = "restore a copy of it, or use another folder or storage"
_FULL = "no space is left to write to; make room, and run the same command again"
_READ_ONLY = "is read-only; make file and folder writable, or use another folder"
_SQLITE_PROBLEMS = (  # patterns of SQLite's errors, and the message
    (
        r"busy|locked",
        "is locked by another process; wait until that has ended, or end it, and run the same "
        "command again",
    ),
    (
        r"notadb|not a database",
        "is no SQLite database (file is not a database); name another file or folder",
    ),
    (r"corrupt|malformed", f"is damaged ({{}}); {_RESTORE}"),
    (r"readonly|sqlite_perm", _READ_ONLY),
    (r"sqlite_full|disk is full", _FULL),
    (r"cantopen|unable to open", "cannot be opened ({}); check its path and permissions"),
    (r"no such (table|column)", f"is damaged, or of another version ({{}}); {_RESTORE}"),
    (r"", f"{{}}; {_RESTORE}"),
)
_NAME_RUN = "name the folder of a prune run, or the URL of its storage"

_log = logging.getLogger("lmscout")


def storage_url(storage: str | Path) -> str:
    """The URL of a storage: of ``ledger.db`` in a folder, which is created, or a URL."""
    if is_url(storage):
        return _checked(str(storage))
    folder = Path(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LmscoutError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    return _file_url(folder / FILE_NAME)


def storage_option_url(storage: str) -> str:
    """The URL of what ``--storage`` names: a URL, a file, or a folder; see `check_storage`."""
    url = storage
    if not is_url(storage):
        path = home_path(storage)
        url = _file_url(path / FILE_NAME if path.is_dir() else path)
    url = _checked(url, "storage ")
    check_storage(url)
    return url


def existing_storage_url(storage: str | Path) -> str:
    """The URL of a study in a run folder, a file, or at a URL; LmscoutError if there is none."""
    if is_url(storage):
        return _checked(str(storage))
    path = home_path(storage)
    try:
        file = path / FILE_NAME if path.is_dir() else path
        if not file.exists():
            raise LmscoutError(f"{storage}: holds no study (no file {file}); {_NAME_RUN}")
    except OSError as error:
        raise LmscoutError(f"{storage}: cannot be read ({error.strerror}); {_NAME_RUN}") from error
    return _file_url(file)


def home_path(path: str | Path) -> Path:
    """A path, where ``~`` is the home folder unless a file here has that name."""
    given = Path(path)
    if given.parts[:1] == ("~",) and not Path("~").exists():
        return given.expanduser()
    return given


def is_url(storage: str | Path) -> bool:
    """Whether a text is the URL of a storage."""
    return isinstance(storage, str) and _SCHEME.match(storage) is not None


def shown_url(storage: str | Path) -> str:
    """A URL without its secrets, for messages and results; a path as it is."""
    url = str(storage)
    if not is_url(storage):
        return url
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        shown = re.sub(r"://([^/@:]*):.*@", r"://\1:***@", url)
    shown = _QUERY_VALUE.sub(_without_secret, shown)
    return url if shown.replace("***", "") == url else shown


def masked(text: str, url: str) -> str:
    """Text without the secrets of a URL, in any spelling, and of any other URL."""
    text = text.replace(url, shown_url(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        pattern = re.escape(secret)
        if len(secret) < _LONG_SECRET:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        text = re.sub(pattern, "***", text)
    return without_passwords(text)


def may_exist(storage: str | Path) -> bool:
    """Whether a storage may hold a study already; creates no file."""
    if not is_url(storage):
        return (Path(storage) / FILE_NAME).is_file()
    file = storage_file(_checked(str(storage)))
    return file is None or file.is_file()


def check_storage(url: str, *, create: bool = True) -> None:
    """Raise LmscoutError for a file that holds no study, or in which none can be stored.

    Missing, unreadable, locked, damaged and foreign files have messages of their own.  Problems
    of a server show when it is opened.  With `create` the file need not exist.
    """
    file = storage_file(url)
    if file is None:
        return
    with reported(url):
        if create and not file.parent.is_dir():
            _refuse(url, f"folder {file.parent} does not exist; create it first")
        if not file.exists():
            if not create:
                _refuse(url, f"there is no such file; {_NAME_RUN}")
            if not _writable(file.parent):
                _refuse(url, f"folder {file.parent} cannot be written; name another")
            return
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "no ordinary file"
            _refuse(url, f"is {kind}; name a file")
        if not os.access(file, os.R_OK):
            _refuse(url, "cannot be read (permission denied); change its permissions")
        writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
        if create and not (writable and _writable(file.parent)):
            _refuse(url, _READ_ONLY)
        if url.startswith(_JOURNAL):
            with file.open("rb") as opened:
                start = opened.read(len(_JOURNAL_START))
            kind = "no journal of Optuna"
            foreign, empty = not _JOURNAL_START.startswith(start), not start
        else:
            tables = _tables(file, "rw" if writable else "ro")
            kind = "a SQLite database of something else"
            foreign = bool(tables) and not tables & _TABLES
            empty = not {"studies", "version_info"} <= tables
        if foreign:
            _refuse(url, f"is {kind}, and no study; name another")
        if empty and not create:
            _refuse(url, f"holds no study; {_NAME_RUN}")


def open_storage(url: str, *, create: bool = True, patient: bool = False) -> Storage:
    """Open a storage; with `create` missing tables are created; see `patiently` for `patient`."""
    check_storage(url, create=create)
    if patient:
        return patiently(url, lambda: _opened(url))
    with reported(url):
        return _opened(url)


def _opened(url: str) -> Storage:
    if url.startswith(_JOURNAL):
        try:
            return Journal(Path(url.removeprefix(_JOURNAL)))
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            _refuse(url, f"is damaged, or of another version ({str(error)[:200]}); {_RESTORE}")
    for left in reversed(range(_ATTEMPTS)):
        try:
            return Database(url)
        except _ERRORS as error:
            if not left or not _created_elsewhere(error):
                raise
            time.sleep(random.uniform(0.02, 0.2))
    raise AssertionError("the last attempt raises")


def patiently(url: str, work: Callable[[], _Result]) -> _Result:
    """Do work on a storage, `reported`; again while it does not answer, for `PATIENCE` seconds.

    The work may have been done although its answer was lost, so it must find out.
    """
    since, warned = time.monotonic(), False
    while True:
        try:
            with reported(url):
                return work()
        except LmscoutError as error:
            if not _is_away(error, url) or time.monotonic() - since > PATIENCE:
                raise
            if not warned:
                _log.warning("lmscout: %s; waiting for it, for up to %d s", error, PATIENCE)
            warned = True
        time.sleep(random.uniform(0.3, 1.0))


def _is_away(error: BaseException, url: str) -> bool:
    """Whether a storage does not answer: errors of SQLAlchemy, or of a driver itself, by name."""
    if url.startswith("sqlite"):
        return False
    chain = _chain(error)
    if url.startswith(_JOURNAL):
        # Optuna's lock of a file was taken from this process, which had stalled.
        lost = (type(one) is RuntimeError and "did not possess" in str(one) for one in chain)
        return any(lost) or any(getattr(one, "errno", None) in _AWAY_FILE for one in chain)
    return not _AWAY.isdisjoint(base.__name__ for one in chain for base in type(one).__mro__)


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Silence Optuna, and raise errors of a storage as LmscoutError, one line without secrets."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    except LmscoutError:
        raise
    except Exception as error:
        if not isinstance(error, _ERRORS) and not _is_away(error, url):
            raise
        line = f"study at {shown_url(url)}: {_problem(error, url)}"
        if any(masked(str(one), url) != str(one) for one in _chain(error)):
            raise LmscoutError(line) from None  # a traceback would show the secret
        raise LmscoutError(line) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def storage_file(url: str) -> Path | None:
    """The file of a SQLite database or a journal by its URL from `storage_url`; None for others."""
    if url.startswith(_JOURNAL):
        return Path(url.removeprefix(_JOURNAL))
    if not url.startswith("sqlite"):
        return None
    parsed = make_url(url)
    name = parsed.database or ""
    if _is_uri(parsed) and name.startswith("file:"):
        name = unquote(re.sub(r"^file:(//[^/]*)?", "", name).partition("?")[0])
    return Path(name)


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, by making one: permissions do not tell it all."""
    try:
        check_folder(folder, str(folder), make=False)
    except LmscoutError:
        return False
    return True


def _refuse(url: str, problem: str) -> NoReturn:
    raise LmscoutError(f"study at {shown_url(url)}: {problem}")


def _file_url(path: Path) -> str:
    """The URL of a SQLite file, quoted for SQLAlchemy."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def _checked(url: str, option: str = "") -> str:
    """A URL that SQLAlchemy understands, or of a journal; of a file with its absolute path.

    What follows a question mark belongs to the path, unless all of it is options of SQLite.
    """
    if url.startswith(_JOURNAL):
        if url == _JOURNAL:
            raise LmscoutError(f"{option}{url}: names no file: give one, as in {_JOURNAL}FILE")
        if url.startswith(f"{_JOURNAL}//"):
            raise LmscoutError(
                f"{option}{url}: a journal has no host: give a file, as in {_JOURNAL}FILE"
            )
        return f"{_JOURNAL}{home_path(url.removeprefix(_JOURNAL)).absolute()}"
    head, _, rest = url.partition(":///")
    if rest and head.split("+")[0] == "sqlite" and "?" in rest:
        path, _, query = rest.partition("?")
        options = [one.partition("=") for one in query.split("&")]
        if not all(key in _SQLITE_OPTIONS and equals for key, equals, _ in options):
            url = f"{head}:///{path}{quote('?' + query)}"
    with reported(url):
        parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.username or parsed.password or parsed.host or parsed.port:
        raise LmscoutError(
            f"{option}{shown_url(url)}: a SQLite URL has no host: give a file, as in sqlite:///FILE"
        )
    name = parsed.database or ""
    if name in ("", ":memory:") or "mode=memory" in url or name.startswith("file::memory:"):
        raise LmscoutError(
            f"{option}{url}: is in memory, and gone when this process ends: name a file, as in "
            "sqlite:///FILE"
        )
    if _is_uri(parsed):
        return url
    path_ = str(home_path(name).absolute())
    return parsed.set(database=path_).render_as_string(hide_password=False)


def _is_uri(parsed: URL) -> bool:
    """Whether SQLite itself reads the name, as ``file:PATH``."""
    return str(parsed.query.get("uri", "")).lower() in ("true", "1", "yes", "on", "t", "y")


def _without_secret(found: re.Match[str]) -> str:
    """A part of a query, its value masked if it is a secret."""
    name = found[1]
    return f"{found[0][0]}{name}=***" if _SECRET.search(unquote_plus(name)) else found[0]


def _secrets(url: str) -> set[str]:
    """The password of a URL and secret values of its query, in all spellings."""
    found = set(re.findall(r"://[^/@:]*:(.*)@", url))
    found |= {
        value for key, value in _QUERY_VALUE.findall(url) if _SECRET.search(unquote_plus(key))
    }
    public: set[str] = set()
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        pass
    else:
        found.add(str(parsed.password or ""))
        public = {parsed.username or "", parsed.host or "", parsed.database or ""}
    spellings = set()
    for secret in found:
        for plain in (secret, unquote(secret), unquote_plus(secret)):
            spellings |= {plain, quote(plain), quote(plain, safe=" +"), quote(plain, safe="")}
            spellings |= {quote_plus(plain), repr(plain)[1:-1]}
    return spellings - public - {"", "***"}


def _tables(file: Path, mode: str) -> set[str]:
    """Names of the tables of a SQLite file; sqlite3.DatabaseError if it is damaged."""
    address = f"file:{quote(str(file.absolute()))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_CHECK_TIMEOUT)) as connection:
        names = {str(name) for (name,) in connection.execute("select name from sqlite_master")}
        (result,) = connection.execute("pragma quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {result}")
    return names


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes, the first cause last."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return found


def _created_elsewhere(error: BaseException) -> bool:
    """Whether creating tables failed because another process created them."""
    text = " ".join(f"{type(one).__name__} {one}" for one in _chain(error)).lower()
    return any(one in text for one in ("already exists", "integrityerror", "uniqueviolation"))


def _problem(error: BaseException, url: str) -> str:
    """The problem of a storage and its remedy, in one line."""
    chain = _chain(error)
    # The first line of a driver's message is for users.
    lines = [line for one in reversed(chain) for line in str(one).strip().splitlines()[:1]]
    text = masked(next(filter(None, lines), type(error).__name__), url)
    causes = [one for one in chain if isinstance(one, sqlite3.Error)]
    if causes:
        found = f"{getattr(causes[-1], 'sqlite_errorname', '')} {text}".lower()
        line = next(line for pattern, line in _SQLITE_PROBLEMS if re.search(pattern, found))
        return line.format(text)
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return _FULL
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return f"cannot be read or written ({error.strerror or text}); name another"
    if url.startswith(_JOURNAL):
        return f"{text}; {_RESTORE}"
    if type(error) is RuntimeError:  # Optuna's, of tables of another version, with its remedy
        return text
    return f"{text}; check the storage's URL, and that it can be reached"
