"""Where a study is kept: a path means the file that it says, and secrets are in no message."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from contextlib import closing
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import optuna
import pytest
from study_files import stored
from test_pruning_study import SETTINGS, SHAPE, pair, plans

from lmscout.errors import LmscoutError, without_passwords
from lmscout.pruning.storage import (
    FILE_NAME,
    check_storage,
    existing_storage_url,
    masked,
    open_storage,
    shown_url,
    storage_option_url,
    storage_url,
)
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_record import read_recorded, recorded_chunks

NAMES = [
    *("half?1", "a#b", "50%", "a%20b", "a b", "k=v&w", "größe", "{x}", "~mine", "a+b", "a@b:c"),
    *("a:b", "x?uri=true", "x?mode=memory", ":memory:"),
]


def files_in(folder):
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_folder_of_any_name_holds_its_study(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with PairStudy(Path(name), SHAPE, SETTINGS) as pair_study:
        pair_study.add(pair(plans(1)[0]))
    assert files_in(tmp_path) == [f"{name}/{FILE_NAME}"]
    assert recorded_chunks(Path(name)) == 2
    url = existing_storage_url(name)
    for again in (f"{name}/{FILE_NAME}", str(tmp_path / name)):
        assert existing_storage_url(again) == url
    with PairStudy(url, SHAPE, SETTINGS, create=False) as kept:
        assert len(kept) == 1
    monkeypatch.chdir("/")
    with stored(pair_study.url) as storage:  # what is shown is what Optuna's tools open
        assert len(optuna.load_study(study_name="lmscout", storage=storage).trials) == 1
    assert files_in(tmp_path) == [f"{name}/{FILE_NAME}"]


@pytest.mark.parametrize("name", [f"{name}.db" for name in NAMES])
def test_a_storage_without_a_scheme_is_the_file_that_it_says(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    url = storage_option_url(name)
    assert storage_option_url(str(tmp_path / name)) == url
    PairStudy(url, SHAPE, SETTINGS).close()
    assert files_in(tmp_path) == [name]


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///x.db", "x.db"),
        ("sqlite:///HERE/x.db", "x.db"),
        ("sqlite+pysqlite:///x.db", "x.db"),
        ("sqlite:///x.db?timeout=3", "x.db"),
        ("sqlite:///half?1.db", "half?1.db"),
        ("sqlite:///half?a=b.db", "half?a=b.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///a b#c.db", "a b#c.db"),
        ("sqlite:///file:HERE/x.db?uri=true&mode=rwc", "x.db"),
    ],
)
def test_sqlite_urls_relative_and_absolute(tmp_path, monkeypatch, url, file):
    monkeypatch.chdir(tmp_path)
    url = storage_option_url(url.replace("HERE", str(tmp_path)))
    with PairStudy(url, SHAPE, SETTINGS) as pair_study:
        pair_study.add(pair(plans(1)[0]))
    assert files_in(tmp_path) == [file]
    monkeypatch.chdir("/")
    with PairStudy(existing_storage_url(pair_study.url), SHAPE, SETTINGS, create=False) as kept:
        assert len(kept) == 1


def test_home_is_home_unless_a_file_here_is_called_so(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for asked in ("~/x.db", "sqlite:///~/x.db"):
        assert storage_option_url(asked) == f"sqlite:///{home}/x.db"
    (here / "~").mkdir()
    assert unquote(storage_option_url("~/x.db")) == f"sqlite:///{here}/~/x.db"


def test_a_folder_that_exists_holds_the_study_and_one_that_is_missing_is_told(tmp_path):
    assert storage_option_url(str(tmp_path)) == storage_url(tmp_path)
    for asked in (f"{tmp_path}/no/x.db", f"sqlite:///{tmp_path}/no/x.db"):
        with pytest.raises(LmscoutError, match="no does not exist; create it first"):
            storage_option_url(asked)
    for asked in ("sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"):
        with pytest.raises(LmscoutError, match="is in memory"):
            storage_option_url(asked)
    assert files_in(tmp_path) == []


SECRET = "S3cr/et@P:w%d"  # as it is; quoted, "S3cr%2Fet%40P%3Aw%25d"
QUOTED = "S3cr%2Fet%40P%3Aw%25d"
URLS = [
    f"nosuch+driver://user:{QUOTED}@127.0.0.1/db",
    f"postgresql://user:{QUOTED}@127.0.0.1:notaport/db",
    f"postgresql://user:{SECRET}@127.0.0.1/db",
    f"postgresql://:{QUOTED}@127.0.0.1/db",
    f"mysql+pymysql://user@127.0.0.1/db?password={QUOTED}&charset=utf8",
    f"mysql://127.0.0.1/db?charset=utf8&ssl_key_passwd={QUOTED}",
    f"postgresql://127.0.0.1/db?PassWord={QUOTED}",
    f"sqlite://user:{QUOTED}@host/x.db",
    f"://user:{QUOTED}@host/x.db",
    f"postgresql://user:{QUOTED}@[::1/db",
]


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_in_no_message_and_no_traceback(url, tmp_path):
    for opens in (
        lambda: PairStudy(url, SHAPE, SETTINGS),
        lambda: storage_option_url(url) and open_storage(url),
        lambda: read_recorded(url),
        lambda: recorded_chunks(url),
    ):
        with pytest.raises(LmscoutError) as caught:
            opens()
        assert "\n" not in str(caught.value)
        trace = "".join(traceback.format_exception(caught.value))
        for secret in (SECRET, QUOTED, "S3cr"):
            assert secret not in trace, trace
    assert "S3cr" not in shown_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@there:5432/db", "postgresql://me:***@there:5432/db"),
        ("postgresql://db:db@db/db", "postgresql://db:***@db/db"),
        ("postgresql://there/db?passfile=/a/b", "postgresql://there/db?passfile=/a/b"),
        ("mysql://me@there/db?passwd=pw", "mysql://me@there/db?passwd=***"),
        ("sqlite:////a/b:c@d.db", "sqlite:////a/b:c@d.db"),
        ("runs/a:b@c", "runs/a:b@c"),
    ],
)
def test_what_is_shown_of_a_url_is_all_but_its_secrets(url, shown):
    assert shown_url(url).replace("%2F", "/").replace("%3A", ":").replace("%40", "@") == shown


def test_what_a_driver_says_is_masked_however_it_spells_the_secret():
    url = f"postgresql://me:{QUOTED}@there/db"
    for words in (f"dsn {url}", f"password={SECRET}", f"for {QUOTED!r}", "at a://b:c@d"):
        assert not any(one in masked(words, url) for one in ("S3cr", "b:c@")), words
    for words in ("ledger:a://b:PW@d is", "at a://d?x=1&password=PW: is", "a://d?token=PW"):
        assert "PW" not in without_passwords(words), words
    assert without_passwords("at a://d?password=***: is") == "at a://d?password=***: is"
    assert masked("no password given", "postgresql://me:w@there/db") == "no password given"


def measured(folder):
    with PairStudy(folder, SHAPE, SETTINGS) as pair_study:
        for plan in plans(12):
            pair_study.add(pair(plan))


@cache
def content():
    with tempfile.TemporaryDirectory() as folder:
        measured(folder)
        return (Path(folder) / FILE_NAME).read_bytes()


def made(folder):
    (folder / FILE_NAME).write_bytes(content())
    return folder / FILE_NAME


def damaged(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 // 4096 * 4096])


def garbled(file):
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def foreign(file):
    file.unlink()
    with closing(sqlite3.connect(file)) as tables:
        tables.execute("create table bookmarks (address text)")


def of_others(file):
    file.unlink()
    with stored(f"sqlite:///{file}") as storage:
        study = optuna.create_study(storage=storage, study_name="lmscout")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


def without_study(file):
    file.unlink()
    with stored(f"sqlite:///{file}") as storage:
        optuna.create_study(storage=storage, study_name="theirs")


def replaced_by_folder(file):
    file.unlink()
    file.mkdir()


CONDITIONS = [  # what happened to a study's file, what reading says of it, and what writing says
    (lambda file: file.unlink(), "no such file|holds no study", None),
    (lambda file: file.write_text("words" * 2000), "is no SQLite database", "is no SQLite"),
    (lambda file: file.write_bytes(b""), "holds no study", None),
    (damaged, "is damaged", "is damaged"),
    (garbled, "is damaged", "is damaged"),
    (foreign, "database of something else", "database of something else"),
    (of_others, "is a study of something else", "is a study of something else"),
    (without_study, "there is no study 'lmscout'", None),
    (replaced_by_folder, "is a folder", "is a folder"),
]


@pytest.mark.parametrize(("happened", "read", "written"), CONDITIONS)
def test_what_is_wrong_with_a_file_is_told_apart_in_one_line(tmp_path, happened, read, written):
    file = made(tmp_path)
    happened(file)
    content = file.read_bytes() if file.is_file() else None
    with pytest.raises(LmscoutError, match=read) as caught:
        read_recorded(f"sqlite:///{file}")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # the remedy
    assert content == (file.read_bytes() if file.is_file() else None)
    if written is None:
        measured(tmp_path)
        return
    with pytest.raises(LmscoutError, match=written) as caught:
        PairStudy(tmp_path, SHAPE, SETTINGS)
    assert "; " in str(caught.value)
    assert content == (file.read_bytes() if file.is_file() else None)


def test_a_locked_study_is_said_to_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("lmscout.pruning.storage._CHECK_TIMEOUT", 0.2)
    file = made(tmp_path)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("begin exclusive")
        for opens in (read_recorded, recorded_chunks, lambda at: PairStudy(at, SHAPE, SETTINGS)):
            with pytest.raises(LmscoutError, match="is locked by another process; wait") as caught:
                opens(tmp_path)
            assert "\n" not in str(caught.value)
        other.execute("rollback")
    assert len(made_pairs(tmp_path)) == 12


def made_pairs(folder):
    with PairStudy(folder, SHAPE, SETTINGS, create=False) as pair_study:
        return pair_study.pairs()


UNPRIVILEGED = """
import os, sys
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
from lmscout.errors import LmscoutError, without_passwords
from lmscout.pruning.storage import check_storage
for create in (False, True):
    try:
        check_storage("sqlite:///" + sys.argv[1], create=create)
        print("good")
    except LmscoutError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("mode", "read", "written"),
    [(0o444, "good", "is read-only; make"), (0o000, "cannot be read (permission", "cannot be re")],
)
def test_a_study_that_may_not_be_read_or_written(tmp_path_factory, mode, read, written):
    folder = tmp_path_factory.mktemp("kept")
    for one in (folder, *folder.parents):
        if one.is_relative_to(tempfile.gettempdir()) and one != Path(tempfile.gettempdir()):
            one.chmod(0o755)
    file = made(folder)
    file.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(file)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if "No module named" in done.stderr or "Permission" in done.stderr:
        pytest.skip("nobody may read the modules here")
    first, second = done.stdout.splitlines()
    assert read in first
    assert written in second


def test_a_study_on_a_read_only_medium_is_read(tmp_path):
    file = made(tmp_path)
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    check_storage(url, create=False)
    with PairStudy(url, SHAPE, SETTINGS, create=False) as pair_study:
        assert len(pair_study) == 12
        with pytest.raises(LmscoutError, match="is read-only; make"):
            pair_study.add(pair(SHAPE.dense))
