"""Where a study is kept: what cannot be opened is one line, and leaves no file open."""

import sqlite3

import pytest
from study_files import open_files, sees_open_files

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import FILE_NAME, open_storage, storage_url


def test_a_folder_is_made_and_a_url_is_left_as_it_is(tmp_path):
    folder = tmp_path / "some" / "run"
    assert storage_url(folder) == f"sqlite:///{folder}/{FILE_NAME}"
    assert folder.is_dir()
    assert storage_url("postgresql://me@there/pairs") == "postgresql://me@there/pairs"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("words")
    with pytest.raises(LmscoutError, match="cannot be made a folder") as caught:
        storage_url(tmp_path / "file")
    assert "\n" not in str(caught.value)


@sees_open_files
def test_it_is_open_until_it_is_closed(tmp_path):
    storage = open_storage(storage_url(tmp_path))
    assert FILE_NAME in open_files(tmp_path)
    storage.close()
    assert open_files(tmp_path) == []


@sees_open_files
def test_a_file_that_is_no_database_is_not_left_open(tmp_path):
    url = storage_url(tmp_path)
    (tmp_path / FILE_NAME).write_text("words" * 1000)
    with pytest.raises(LmscoutError, match="file is not a database") as caught:
        open_storage(url)
    assert open_files(tmp_path) == []
    assert caught.tb  # it holds what was opened: the garbage collector has not closed it


@sees_open_files
def test_tables_of_another_version_are_not_left_open(tmp_path):
    url = storage_url(tmp_path)
    open_storage(url).close()
    tables = sqlite3.connect(tmp_path / FILE_NAME)
    tables.execute("update alembic_version set version_num = 'v0.9.0.a'")
    tables.commit()
    tables.close()
    with pytest.raises(LmscoutError, match="no longer compatible") as caught:
        open_storage(url)
    assert open_files(tmp_path) == []
    assert caught.tb
