"""What a command leaves behind: settings and result, which it prints again."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from forked import errors

import lmscout as package

LMSCOUT = (sys.executable, "-m", "lmscout")
VERSIONS = {"lmscout", "python", "torch", "transformers", "platform", "threads"}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def commands(flexibert_file):
    """Each command that keeps a run folder, and a change that makes it another run."""
    benchmark = f"flexibert:{flexibert_file}"
    return {
        "rank": (
            ["rank", benchmark, "--proxy", "snip", "--workers", "1"],
            ["--seed", "1"],
            "seed 0, not 1",
        ),
        "discover": (
            ["discover", benchmark, "--search", "12", "--workers", "1"],
            ["--search", "13"],
            "search 12, not 13",
        ),
        "check": (["bench", "check", "pico"], ["--seed", "3"], "seed 0, not 3"),
        "build": (
            *(["bench", "build", "nano", "--n", "2", "--seeds", "1", "--tokens", "20000"],),
            ["--seed", "5"],
            "seed 0, not 5",
        ),
    }


@pytest.mark.parametrize("name", ["rank", "discover", "check", "build"])
def test_a_finished_run_is_printed_again_and_others_are_refused(
    name, lmscout, flexibert_file, tokens, tmp_path
):
    arguments, change, differing = commands(flexibert_file)[name]
    if name == "build":
        arguments += ["--corpus", tokens, "--device", "cpu", "--workers", "1"]
    out = tmp_path / "run ä"
    code, table, err = lmscout(*arguments, "--out", out)
    assert (code, err) == (0, "")
    before = snapshot(out)
    result = json.loads((out / "result.json").read_text("utf-8"))
    settings = json.loads((out / "settings.json").read_text("utf-8"))
    for one in (result, settings):
        assert one["schema"] == 1
        assert one["command"] == " ".join(arguments[: 2 if name in ("check", "build") else 1])
        assert set(one["environment"]) == VERSIONS
        assert one["environment"]["lmscout"] == package.__version__
    # Another model's cache: whatever was measured anew would be found there.
    empty = tmp_path / "empty"
    empty.mkdir()
    code, again, err = lmscout(*arguments, "--out", out, LMSCOUT_CACHE=str(empty))
    assert code == 0
    assert re.fullmatch(r"lmscout: run folder .*: holds a finished run .*\n", err)
    assert again == table
    assert not list(empty.iterdir())
    if name != "build":
        code, printed, err = lmscout(*arguments, "--out", out, "--json", "-")
        assert code == 0
        assert re.fullmatch(r"lmscout: run folder .*: holds a finished run .*\n", err)
        assert json.loads(printed).items() <= result.items()
    code, printed, err = lmscout(*arguments, *change, "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert f"holds a run with {differing}: name another folder" in err
    assert snapshot(out) == before
    assert not [one for one in out.parent.iterdir() if one.name.endswith("draft")]


def test_another_command_on_the_folder_is_refused(lmscout, flexibert_file, tmp_path):
    benchmark, out = f"flexibert:{flexibert_file}", tmp_path / "run"
    one = ("--proxy", "parameters", "--workers", 1)
    assert lmscout("rank", benchmark, *one, "--out", out)[0] == 0
    code, _, err = lmscout("discover", benchmark, "--search", "12", "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds a run of lmscout rank: name another" in err
    # A changed benchmark is another one.
    changed = tmp_path / "changed.json"
    changed.write_text(flexibert_file.read_text())
    again = ("rank", f"flexibert:{changed}", *one, "--out", tmp_path / "second")
    assert lmscout(*again)[0] == 0
    changed.write_text(
        re.sub(r'"glue": [\d.]+', '"glue": 1.5', flexibert_file.read_text(), count=1)
    )
    code, _, err = lmscout(*again)
    assert (code, err.count("\n")) == (2, 1)
    assert "another benchmark_sha256" in err
    result = out / "result.json"
    for damage in ('{"schema": 1, "fields": {"schema": 1}}', "\xff"):
        result.write_text(damage, "latin-1")
        code, _, err = lmscout("rank", benchmark, *one, "--out", out)
        assert (code, err.count("\n")) == (2, 1), err
        assert "result.json: " in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize(
    ("command", "target"),
    [
        (("rank", "--proxy", "parameters", "--out", "run"), "link"),
        (("rank", "--proxy", "parameters", "--out", "run"), "-"),
        (("design", "--proxy", "parameters", "--max-params", "1G", "--on-benchmark"), "/dev/full"),
    ],
)
def test_a_target_that_cannot_be_written_loses_nothing(
    command, target, lmscout, flexibert_file, tmp_path
):
    """Neither with a run folder nor, as with design, without one."""
    (tmp_path / "link").symlink_to("/dev/full")
    name, *options = command
    benchmark = f"flexibert:{flexibert_file}"
    stdout = "/dev/full" if target == "-" else None
    asked = (name, benchmark, *options, "--workers", "1", "--json", target)
    code, _, err = lmscout(*asked, stdout=stdout)
    assert (code, err.count("\n")) == (2, 1), err
    assert "No space left on device" in err
    (where,) = re.findall(r"the result is in (\S+)", err)
    assert json.loads((tmp_path / where).read_text())["benchmark"] == benchmark


def test_an_earlier_json_file_survives_a_disk_that_fills_up(flexibert_file, cache, tmp_path):
    target = tmp_path / "result.json"
    target.write_text("earlier")
    arguments = ["design", f"flexibert:{flexibert_file}", "--proxy", "parameters"]
    arguments += ["--max-params", "1G", "--on-benchmark", "--workers", "1", "--json", str(target)]
    done = subprocess.run(
        [*LMSCOUT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"LMSCOUT_CACHE": str(cache)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
    )
    assert (done.returncode, errors(done.stderr).count("\n")) == (2, 1), done.stderr
    assert "File too large" in done.stderr
    assert target.read_text() == "earlier"
    assert [one.name for one in tmp_path.iterdir() if "draft" in one.name] == []


def test_json_to_standard_output_by_name_follows_the_table(flexibert_file, cache, tmp_path):
    (tmp_path / "büch.json").write_text(flexibert_file.read_text())
    command = [*LMSCOUT, "rank", "flexibert:büch.json", "--proxy", "parameters", "--workers", "1"]
    command += ["--out", "läuft", "--json", "/dev/stdout"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with (tmp_path / "printed").open("w") as printed:
        done = subprocess.run(
            command,
            stdout=printed,
            stderr=subprocess.PIPE,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"LMSCOUT_CACHE": str(cache)} | ascii_only,
        )
    assert (done.returncode, errors(done.stderr.decode())) == (0, "")
    text = (tmp_path / "printed").read_bytes().decode("utf-8", "replace")
    table, brace, rest = text.partition("\n{")
    assert "parameters" in table
    assert json.loads(brace + rest)["benchmark"] == "flexibert:büch.json"
    result = (tmp_path / "läuft" / "result.json").read_bytes().decode("utf-8")
    assert json.loads(result)["benchmark"] == "flexibert:büch.json"


def test_json_never_takes_the_place_of_a_file_of_the_run(lmscout, tmp_path):
    arguments = ["bench", "check", "pico", "--out", "here"]
    assert lmscout(*arguments)[0] == 0
    before = (tmp_path / "here" / "result.json").read_bytes()
    for name in ("result.json", "settings.json", "config.json"):
        code, _, err = lmscout(*arguments, "--json", f"here/{name}")
        assert code == 2
        assert f"lmscout: --json here/{name}: is a file of the run" in err.splitlines()[-1]
        assert (tmp_path / "here" / "result.json").read_bytes() == before
    assert lmscout(*arguments, "--json", "here/mine.json")[0] == 0
