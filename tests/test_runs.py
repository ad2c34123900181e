"""Run folders: one run each, distinguished by command and settings."""

import json
from dataclasses import dataclass

import pytest

from lmscout.errors import LmscoutError
from lmscout.results import Result
from lmscout.runs import default_run_folder, open_run


@dataclass(frozen=True)
class Found(Result):
    """A result."""

    word: str
    values: tuple[float, ...]

    def to_json(self):
        """As a command prints it."""
        return {"word": self.word, "first": self.values[0]}


def test_a_saved_run_is_finished_and_read_again(tmp_path):
    found = Found("ä\udcff", (1.5, float("nan")))
    run = open_run(tmp_path / "run", "rank", {"seed": 0, "names": ("a", "b")})
    assert (run.begun, run.finished) == (False, False)
    run.save(found)
    again = open_run(tmp_path / "run", "rank", {"seed": 0, "names": ("a", "b")})
    assert (again.begun, again.finished) == (True, True)
    assert again.load(Found).to_dict() == found.to_dict()
    result = json.loads((tmp_path / "run" / "result.json").read_bytes())
    assert (result["schema"], result["command"], result["word"]) == (1, "rank", "ä\udcff")
    for command, settings, said in (
        ("rank", {"seed": 1}, "holds a run with seed 0, not 1"),
        ("rank", {"names": ("a",)}, "holds a run with names a,b, not a"),
        ("rank", {"new": None, "newer": 1}, "holds a run with newer none, not 1"),
        ("rank", {"names": ["x" * 80]}, "holds a run with another names"),
        ("explain", {"seed": 0}, "holds a run of lmscout rank"),
    ):
        with pytest.raises(LmscoutError, match=said):
            open_run(tmp_path / "run", command, settings)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LmscoutError, match="not empty"):
        open_run(tmp_path, "rank", {})
    with pytest.raises(LmscoutError, match="not empty"):
        open_run(tmp_path / "file", "rank", {})
    settings = tmp_path / "settings.json"
    for text, said in (
        ("{", "damaged settings.json"),
        ("[" * 10**5, "damaged settings.json"),
        ("[]", "damaged settings.json"),
        ("{}", "a run of another program"),
        ('{"command": "rank"}', "schema None, expected 1"),
        ('{"command": "rank", "schema": 2}', "schema 2, expected 1"),
    ):
        settings.write_text(text)
        with pytest.raises(LmscoutError, match=said):
            open_run(tmp_path, "rank", {})


def test_an_edited_result_is_one_line(tmp_path):
    run = open_run(tmp_path / "run", "rank", {})
    run.save(Found("word", (1.0,)))
    path = tmp_path / "run" / "result.json"
    whole = json.loads(path.read_text())
    for change in (
        {"word": 3},
        {"word": None},
        {"values": "text"},
        {"values": [True]},
        {"values": [10**400]},
        {"values": []},  # from which nothing can be shown
        {"schema": 2},
        {"schema": None},
    ):
        path.write_text(json.dumps(whole | {"fields": whole["fields"] | change}))
        with pytest.raises(LmscoutError, match=r"result\.json: .*remove the file") as caught:
            run.load(Found)
        assert "\n" not in str(caught.value)
    for text in ("", "[]", "null", '{"fields": 3}', "[" * 10**5, "1" * 5000):
        path.write_text(text)
        with pytest.raises(LmscoutError, match=r"result\.json[:,] "):
            run.load(Found)


def test_two_runs_into_one_folder_are_both_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (open_run(tmp_path / "run", "rank", {"seed": seed}) for seed in (0, 1))
    first.save(Found("first", (0.0,)))
    with pytest.raises(LmscoutError, match="filled by another run meanwhile: the result is in"):
        second.save(Found("second", (0.0,)))
    assert first.load(Found).word == "first"
    (kept,) = (tmp_path / "runs").glob("run-*")
    assert Found.load(kept / "result.json").word == "second"


def test_runs_of_one_second_have_folders_of_their_own():
    assert len({default_run_folder("rank-lts:/a b/c") for _ in range(20)}) > 1
    assert default_run_folder("rank-lts:/a b/c").name.startswith("rank-lts--a-b-c-")
