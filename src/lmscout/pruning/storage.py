"""Where a study is kept: its URL, opening it, and what is wrong with it in one line.

A path means the file that it says, whatever signs its name has.  Passwords are in no message: what
is shown is `shown_url`, and what drivers say goes through `masked`.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from lmscout.errors import LmscoutError, without_passwords

FILE_NAME = "ledger.db"
ERRORS = (optuna.exceptions.OptunaError, SQLAlchemyError, RuntimeError, OSError)  # of a storage
_PATIENCE = 60  # seconds that a process waits for another that writes to the same file
_FIRST_PATIENCE = 10  # the same, before there is any work that would be lost
_BEGINNINGS = 40  # attempts to make tables that another process makes as well

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://|://")
_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|pwd|secret|token|api_?key|credential|^pw$|auth|odbc_connect",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"[?&;]([^=&;?]+)=([^&;]*)")
_LONG = 6  # letters, from which on a secret is found inside other words as well
_OPTIONS = {  # that the query of a SQLite URL may have
    *("uri", "timeout", "isolation_level", "detect_types", "check_same_thread"),
    *("cached_statements", "mode", "cache", "psow", "nolock", "immutable", "vfs"),
}
_TABLES = {"studies", "trials", "version_info", "alembic_version", "study_directions"}
_REMEDY = "restore a copy of it, or use another folder or storage"
_KNOWN = (  # what SQLite says, and what it means for a study
    (
        r"busy|locked",
        "is locked by another process; wait until that has ended, or end it, and run the same "
        "command again",
    ),
    (
        r"notadb|not a database",
        "is no SQLite database (file is not a database); name another file or folder",
    ),
    (r"corrupt|malformed", f"is damaged ({{}}); {_REMEDY}"),
    (
        r"readonly|sqlite_perm",
        "is read-only; make file and folder writable, or use another folder",
    ),
    (
        r"sqlite_full|disk is full",
        "no space is left to write to; make room, and run the same command again",
    ),
    (r"cantopen|unable to open", "cannot be opened ({}); check its path and permissions"),
    (r"no such (table|column)", f"is damaged, or of another version ({{}}); {_REMEDY}"),
)
_OTHER = "name the folder of a prune run, or the URL of its storage"


class Storage(RDBStorage):
    """Optuna's storage, which closes its connections when told, and when it cannot be opened.

    Optuna's own may refuse a file after it has connected to it, because it is no database or
    its tables are of another version; nobody then has anything to close.  A connection left to
    the garbage collector keeps its file open, and Python 3.13 warns of it.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        # Optuna fills braces of a URL in by itself: a name with such is no template.
        try:
            super().__init__(url.replace("{", "{{").replace("}", "}}"), engine_kwargs)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of this thread's session, and those that wait in the pool."""
        if hasattr(self, "scoped_session"):  # else the URL was refused, and nothing is open
            self.remove_session()
            self.engine.dispose()


def storage_url(storage: str | Path) -> str:
    """The URL of a study's storage: of ``ledger.db`` in a folder, which is made, or a URL.

    Args:
        storage: a run folder, or a URL, whose SQLite file becomes an absolute path.

    Raises:
        LmscoutError: the folder cannot be made, or the URL is none or of a database in memory.
    """
    if is_url(storage):
        return _checked(str(storage))
    folder = Path(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LmscoutError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    return _file_url(folder / FILE_NAME)


def asked_storage(storage: str) -> str:
    """The URL of what ``--storage`` names: a URL, a file, or a folder that exists.

    Raises:
        LmscoutError: nothing can be kept there; see `check_storage`.
    """
    url = storage
    if not is_url(storage):
        path = home_path(storage)
        url = _file_url(path / FILE_NAME if path.is_dir() else path)
    url = _checked(url, "--storage ")
    check_storage(url)
    return url


def kept_storage(storage: str | Path) -> str:
    """The URL of a study that is there: of a run folder, of a file, or a URL.

    Raises:
        LmscoutError: there is none; looking makes no file.
    """
    if is_url(storage):
        return _checked(str(storage))
    path = home_path(storage)
    try:
        file = path / FILE_NAME if path.is_dir() else path
        if not file.exists():
            raise LmscoutError(f"{storage}: holds no study (no file {file}); {_OTHER}")
    except OSError as error:
        raise LmscoutError(f"{storage}: cannot be read ({error.strerror}); {_OTHER}") from error
    return _file_url(file)


def home_path(path: str | Path) -> Path:
    """A path, where ``~`` is the home folder unless a file here has that name."""
    given = Path(path)
    if given.parts[:1] == ("~",) and not Path("~").exists():
        return given.expanduser()
    return given


def is_url(storage: str | Path) -> bool:
    """Whether a text names a storage by its URL."""
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
    shown = _SECRET_VALUE.sub(_hidden_value, shown)
    return url if shown.replace("***", "") == url else shown


def masked(words: str, url: str) -> str:
    """Words without the secrets of a URL, however they are spelled, and of any other URL."""
    words = words.replace(url, shown_url(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        pattern = re.escape(secret)
        if len(secret) < _LONG:  # it may be a part of other words
            pattern = rf"(?<!\w){pattern}(?!\w)"
        words = re.sub(pattern, "***", words)
    return without_passwords(words)


def is_there(storage: str | Path) -> bool:
    """Whether a storage may hold something already; looking makes no file.

    Raises:
        LmscoutError: the URL is none.
    """
    if not is_url(storage):
        return (Path(storage) / FILE_NAME).is_file()
    file = sqlite_file(_checked(str(storage)))
    return file is None or file.is_file()


def check_storage(url: str, *, begin: bool = True) -> None:
    """Refuse a SQLite file that holds no study, or in which none can be kept.

    Missing, unreadable, locked, damaged and foreign files are distinguished.  Of a storage on a
    server opening it says what is wrong.

    Args:
        url: of the storage.
        begin: whether pairs are to be written, so that the file need not be there.

    Raises:
        LmscoutError: it is refused; the line says why, and what to do.
    """
    file = sqlite_file(url)
    if file is None:
        return
    with reported(url):
        if begin and not file.parent.is_dir():
            _refuse(url, f"folder {file.parent} does not exist; create it first")
        if not file.exists():
            if not begin:
                _refuse(url, f"there is no such file; {_OTHER}")
            if not os.access(file.parent, os.W_OK):
                _refuse(url, f"folder {file.parent} cannot be written; name another")
            return
        if file.is_dir():
            _refuse(url, "is a folder; name a file")
        if not os.access(file, os.R_OK):
            _refuse(url, "cannot be read (permission denied); change its permissions")
        writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
        if begin and not writable:
            _refuse(url, "is read-only; make file and folder writable, or use another folder")
        names = _tables(file, "rw" if writable else "ro")
        if names and not names & _TABLES:
            _refuse(url, "is a SQLite database of something else, and no study; name another")
        if not begin and not {"studies", "version_info"} <= names:
            _refuse(url, f"holds no study; {_OTHER}")


def open_storage(url: str, *, begin: bool = True) -> Storage:
    """Open the storage at a URL.

    Args:
        url: of the storage.
        begin: whether its tables are made where there are none.

    Raises:
        LmscoutError: it cannot be opened; the line says why.
    """
    check_storage(url, begin=begin)
    kwargs = {"connect_args": {"timeout": _PATIENCE}} if url.startswith("sqlite") else {}
    with reported(url):
        for left in reversed(range(_BEGINNINGS)):
            try:
                return Storage(url, kwargs)
            except ERRORS as error:
                if not left or not _made_elsewhere(error):
                    raise
                time.sleep(random.uniform(0.02, 0.2))
    raise AssertionError  # the last attempt has raised


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Optuna quiet, and errors of its storage in one line without secrets.

    Raises:
        LmscoutError: for any of `ERRORS` within, and for a driver that is not there.
    """
    try:
        with quiet():
            yield
    except (ImportError, ValueError, sqlite3.Error, *ERRORS) as error:
        line = f"study at {shown_url(url)}: {_reason(error, url)}"
        chain = [str(one) for one in _chain(error)]
        if any(masked(one, url) != one for one in chain):  # a traceback would show it
            raise LmscoutError(line) from None
        raise LmscoutError(line) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from telling of studies that it makes and opens; as before afterwards."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _refuse(url: str, why: str) -> None:
    raise LmscoutError(f"study at {shown_url(url)}: {why}")


def _file_url(path: Path) -> str:
    """The URL of a SQLite file, quoted as SQLAlchemy reads it."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def _checked(url: str, option: str = "") -> str:
    """A URL that SQLAlchemy understands; of a SQLite file with its absolute path.

    What follows a question mark belongs to the path, unless all of it is options of SQLite.
    """
    head, _, rest = url.partition(":///")
    if rest and head.split("+")[0] == "sqlite" and "?" in rest:
        path, _, query = rest.partition("?")
        keys = [one.partition("=") for one in query.split("&")]
        if not all(key in _OPTIONS and equals for key, equals, _ in keys):
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
    place = home_path(name).absolute()
    return parsed.set(database=str(place)).render_as_string(hide_password=False)


def _is_uri(parsed: URL) -> bool:
    """Whether SQLite itself reads the name, as ``file:PATH``."""
    return str(parsed.query.get("uri", "")).lower() in ("true", "1", "yes", "on", "t", "y")


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL that `_checked` gave; None for others."""
    if not url.startswith("sqlite"):
        return None
    parsed = make_url(url)
    name = parsed.database or ""
    if _is_uri(parsed) and name.startswith("file:"):
        name = re.sub(r"^file:(//[^/]*)?", "", name).partition("?")[0]
        name = unquote(name)
    return Path(name)


def _hidden_value(found: re.Match[str]) -> str:
    """A part of a query, without its value if that is a secret."""
    name = found[1]
    return f"{found[0][0]}{name}=***" if _SECRET.search(unquote_plus(name)) else found[0]


def _secrets(url: str) -> set[str]:
    """Passwords of a URL and secret values of its query, as they may be spelled in messages."""
    found = set(re.findall(r"://[^/@:]*:(.*)@", url))
    public: set[str] = set()
    for key, value in _SECRET_VALUE.findall(url):
        if _SECRET.search(unquote_plus(key)):
            found.add(value)
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        pass
    else:
        found.add(str(parsed.password or ""))
        public = {parsed.username or "", parsed.host or "", parsed.database or ""}
    spelled = set()
    for secret in found:
        for plain in (secret, unquote(secret), unquote_plus(secret)):
            spelled |= {plain, quote(plain), quote(plain, safe=" +"), quote(plain, safe="")}
            spelled |= {quote_plus(plain), repr(plain)[1:-1]}
    return spelled - public - {"", "***"}


def _tables(file: Path, mode: str) -> set[str]:
    """Names of the tables of a SQLite file that is whole."""
    address = f"file:{quote(str(file.absolute()))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_FIRST_PATIENCE)) as opened:
        names = {str(name) for (name,) in opened.execute("select name from sqlite_master")}
        (verdict,) = opened.execute("pragma quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
    return names


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and those behind it, the first cause last."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return found


def _made_elsewhere(error: BaseException) -> bool:
    """Whether making tables failed because another process made them at the same moment."""
    words = " ".join(f"{type(one).__name__} {one}" for one in _chain(error)).lower()
    return "already exists" in words or "integrityerror" in words or "uniqueviolation" in words


def _reason(error: BaseException, url: str) -> str:
    """What is wrong with a storage, and what to do."""
    chain = _chain(error)
    causes = [one for one in chain if isinstance(one, sqlite3.Error)]
    words = [line for one in reversed(chain) for line in str(one).strip().splitlines()[:1]]
    said = masked(next(filter(None, words), type(error).__name__), url)
    if not causes:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            return f"cannot be read or written ({error.strerror or said}); name another"
        if type(error) is RuntimeError:  # Optuna's, of tables of another version, with its remedy
            return said
        # What SQLAlchemy and drivers say after the first line is for programmers.
        return f"{said}; check the storage's URL, and that it can be reached"
    # What SQLite calls it, or what it says where it gave no name.
    update = f"{getattr(causes[-1], 'sqlite_errorname', '')} {said}".lower()
    known = (words for pattern, words in _KNOWN if re.search(pattern, update))
    return next(known, f"{{}}; {_REMEDY}").format(said)
