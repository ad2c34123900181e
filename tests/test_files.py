"""Files and folders that are complete or as before, whatever happens while they are written."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmscout.errors import LmscoutError
from lmscout.files import (
    as_json,
    atomic_folder,
    check_file,
    check_folder,
    remove_drafts,
    storage_problem,
    write_file,
)

NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(code, *arguments, **how):
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=120,
        **how,
    )


def test_a_file_is_written_as_an_ordinary_open_would(tmp_path):
    write_file(tmp_path / "text", "ρ é \udc80\n")
    assert (tmp_path / "text").read_bytes() == "ρ é \\udc80\n".encode()
    write_file(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    tensors = {"a": np.arange(3)}
    write_file(tmp_path / "library", lambda draft: save_file(tensors, draft))
    np.testing.assert_array_equal(load_file(tmp_path / "library")["a"], tensors["a"])
    (tmp_path / "ordinary").touch()
    mode = (tmp_path / "ordinary").stat().st_mode
    for name in ("text", "bytes", "library"):
        assert (tmp_path / name).stat().st_mode == mode, name
    (tmp_path / "text").chmod(0o640)
    write_file(tmp_path / "text", "new")
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o640
    assert names(tmp_path) == ["bytes", "library", "ordinary", "text"]


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(Path("deep") / "file")
    check_file(tmp_path / "first", "--json")
    write_file(tmp_path / "first", "one")  # a link to nothing makes what it names
    write_file(tmp_path / "first", "two")
    assert (tmp_path / "deep" / "file").read_text() == "two"
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(LmscoutError, match="Too many levels of symbolic links"):
        check_file(tmp_path / "round", "--json")


@NEEDS_FULL
def test_devices_and_pipes_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    check_file(pipe, "--json")
    write_file(pipe, "through")
    assert reader.communicate(timeout=60)[0] == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "link").symlink_to("/dev/full")
    for path in (Path("/dev/full"), tmp_path / "link"):
        check_file(path, "--json")
        with pytest.raises(LmscoutError, match=r"full|link cannot be written \(No space left"):
            write_file(path, "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    write_file(Path("/dev/null"), "x")


def test_standard_output_by_name_comes_after_what_was_printed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lmscout.files import write_file\n"
        "print('before'); write_file(Path(sys.argv[1]), 'it\\n'); print('after')"
    )
    for mode in ("w", "a"):
        with (tmp_path / "out").open(mode) as out:
            subprocess.run([sys.executable, "-c", code, "/dev/stdout"], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nit\nafter\n" * 2
    assert run(code, "/dev/stdout").stdout == b"before\nit\nafter\n"
    assert run(code, "/proc/self/fd/1").stdout == b"before\nit\nafter\n"


def test_what_cannot_be_written_is_told_before_and_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, said in (
        (tmp_path / "none" / "x", "its folder does not exist"),
        (tmp_path / "file" / "x", "its folder does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(LmscoutError, match=said):
            check_file(path, "--json")
    with pytest.raises(LmscoutError, match=r"folder .* cannot be written \(Not a directory\)"):
        check_folder(tmp_path / "file" / "x", "folder x", make=True)
    with pytest.raises(RuntimeError, match="half"):
        write_file(tmp_path / "file", broken)
    with pytest.raises(RuntimeError, match="half"), atomic_folder(tmp_path / "new") as draft:
        broken(draft / "file")
    with pytest.raises(LmscoutError, match=r"folder .* is not empty"), atomic_folder(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file"]


def broken(path):
    path.write_text("half")
    raise RuntimeError("half")


def test_a_full_disk_is_one_line_whatever_library_writes(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from lmscout.errors import LmscoutError
from lmscout.files import atomic_folder, write_file
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
table = pa.table({"a": np.random.default_rng(0).normal(size=1000)})
tokenizer = Tokenizer(models.WordLevel({f"word{one}": one for one in range(100)}, "word0"))
for write in (
    "x" * 1000,
    lambda draft: save_file({"a": np.zeros(1000)}, draft),
    lambda draft: pq.write_table(table, draft),
    lambda draft: tokenizer.save(str(draft)),
):
    for way in ("file", "folder"):
        try:
            if way == "file":
                write_file(folder / "file", write)
            else:
                with atomic_folder(folder / "folder") as draft:
                    write(draft / "x") if callable(write) else (draft / "x").write_text(write)
        except LmscoutError as error:
            print(error)
"""
    (tmp_path / "file").write_text("mine")
    done = run(code, tmp_path, text=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert "cannot be written (File too large): free some space, or name another" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file"]


def test_a_problem_of_the_storage_is_told_from_others():
    for error, reason in (
        (OSError(errno.ENOSPC, "no room"), "No space left on device"),
        (Exception("write failed: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "disk is full"),
        (OSError(errno.ENOENT, "gone"), None),
        (ValueError("disk"), None),
    ):
        found = storage_problem(error)
        assert found is None if reason is None else reason in found
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = OSError(errno.EDQUOT, "quota")
    assert storage_problem(wrapped) == os.strerror(errno.EDQUOT)


def test_a_folder_appears_at_once_or_is_filled_with_one_file_last(tmp_path):
    folder = tmp_path / "above" / "run"
    with atomic_folder(folder) as draft:
        (draft / "in").mkdir()
        (draft / "in" / "file").write_text("x")
        (draft / "in" / "file").chmod(0o600)
        assert not folder.exists()
    assert (folder / "in" / "file").read_text() == "x"
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    for own, usual in ((folder, "usual"), (folder / "in" / "file", "usual/file")):
        assert own.stat().st_mode == (tmp_path / usual).stat().st_mode
    with atomic_folder(folder, last="config.json") as draft:
        for name in ("config.json", "weights"):
            (draft / name).write_text("new")
        assert names(folder) == ["in"]
    assert names(folder) == ["config.json", "in", "weights"]
    assert names(folder.parent) == ["run"]


WRITING = """
import sys, time
from pathlib import Path
from lmscout.files import atomic_folder, write_file
def slowly(draft):
    draft.write_text("half"); print("writing", flush=True); time.sleep(60)
if sys.argv[2] == "file":
    write_file(Path(sys.argv[1]) / "it", slowly)
else:
    with atomic_folder(Path(sys.argv[1]) / "it") as draft:
        slowly(draft / "file")
"""


@pytest.mark.parametrize("way", ["file", "folder"])
def test_drafts_of_killed_processes_go_and_those_of_running_ones_stay(tmp_path, way):
    (tmp_path / ".it-mine").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(tmp_path), way], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    (draft,) = tmp_path.glob(".it-*.lmscout-draft")
    assert stat.S_IMODE(draft.stat().st_mode) == 0o700
    remove_drafts(tmp_path)
    write_file(tmp_path / "it", "x")  # which looks for drafts of its own
    assert draft.exists()
    process.kill()
    process.communicate()
    remove_drafts(tmp_path, "other")
    assert draft.exists()
    if way == "file":
        write_file(tmp_path / "it", "y")
    else:
        remove_drafts(tmp_path)
    assert names(tmp_path) == [".it-mine", "it"]


def test_many_who_write_at_once_leave_one_of_their_files(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lmscout.files import write_file\n"
        "for _ in range(40): write_file(Path(sys.argv[1]) / 'it', sys.argv[2] * 5000)"
    )
    every = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), one]) for one in "abc"]
    until = time.monotonic() + 120
    while any(one.poll() is None for one in every) and time.monotonic() < until:
        if (tmp_path / "it").exists():
            found = (tmp_path / "it").read_text()
            assert (len(found), len(set(found))) == (5000, 1)
    assert [one.wait() for one in every] == [0, 0, 0]
    assert names(tmp_path) == ["it"]


def test_numbers_that_are_not_finite_are_null():
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"é": (-float("inf"), None, 2)}}
    text = as_json(value)
    assert "é" in text
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"é": [None, None, 2]}}
