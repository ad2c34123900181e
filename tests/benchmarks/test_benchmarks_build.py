"""A build may be stopped anywhere; what it ends with is the same."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import RECIPE, SPACE, N, text, without_seconds

from lmscout.benchmarks.build import build, jobs
from lmscout.benchmarks.space import PICO
from lmscout.benchmarks.training import TokenData
from lmscout.errors import LmscoutError

HERE = Path(__file__).parent
ROWS = N + 2  # every tenth of twelve, one, has three seeds


def build_tiny(folder, **changes):
    given = {"data": text(), "recipe": RECIPE, "device": "cpu", "workers": 1, **changes}
    return build(SPACE, N, folder, **given)


def process(folder, workers, pace):
    return subprocess.Popen(
        [sys.executable, HERE / "building_process.py", folder, str(workers), str(pace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def rows(folder):
    return len(list((folder / "rows").glob("*.json")))


def is_gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    built = build_tiny(folder)
    assert built.table == folder / "table.jsonl"
    assert (built.n_architectures, built.n_models, built.n_left_out) == (N, ROWS, 0)
    return folder


def test_seconds_are_wall_time(undisturbed, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(undisturbed, folder)
    files = sorted((folder / "rows").glob("*.json"))
    spent = [json.loads(file.read_text())["seconds"] for file in files]
    for end, expected in ((lambda number: 1e9, max(spent)), (lambda number: 1e9 * number, None)):
        for number, file in enumerate(files):
            os.utime(file, (0, end(number)))
        for name in ("result.json", "table.jsonl"):
            (folder / name).unlink()
        found = build_tiny(folder).seconds
        assert found == pytest.approx(sum(spent) if expected is None else expected, abs=0.011)


def test_a_build_trains_every_architecture_and_one_of_ten_with_three_seeds(undisturbed):
    found = without_seconds(undisturbed)
    assert [(row["architecture"], row["seed"]) for row in found] == sorted(
        (job.architecture, job.seed) for job in jobs(SPACE, N, seed=0, seeds=3)
    )
    assert len(found) == ROWS
    assert {row["architecture"] for row in found} == set(range(N))
    assert sorted({row["seed"] for row in found}) == [0, 1, 2]
    for row in found:
        assert len(row["validation_loss"]) == 5
        assert row["validation_loss"][-1] < row["validation_loss"][0]
        assert row["device"] == "cpu"
    several = [row["validation_loss"][-1] for row in found if row["seed"] > 0]
    assert len(set(several)) == 2
    settings = json.loads((undisturbed / "settings.json").read_text())
    assert settings["recipe"]["tokens"] == RECIPE.tokens
    assert settings["text"] == text().describe()
    assert settings["precision"] == "float32"


def test_the_files_are_those_of_the_user(undisturbed):
    umask = os.umask(0)
    os.umask(umask)
    for name in ("table.jsonl", "settings.json"):
        assert (undisturbed / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_finished_build_is_left_as_it_is(undisturbed):
    before = (undisturbed / "table.jsonl").read_bytes()
    calls = []
    again = build_tiny(undisturbed, progress=lambda *call: calls.append(call))
    assert calls == [(ROWS, ROWS)]
    result = json.loads((undisturbed / "result.json").read_text())
    assert json.loads(json.dumps(again.to_json())).items() <= result.items()
    assert (undisturbed / "table.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [0, 1, 5, ROWS - 1])
def test_an_interruption_after_any_row_is_continued(tmp_path, undisturbed, after):
    def interrupt(done, total):
        assert total == ROWS
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tiny(tmp_path, progress=interrupt)
    assert rows(tmp_path) == after
    assert not (tmp_path / "table.jsonl").exists()
    calls = []
    build_tiny(tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [(done, ROWS) for done in range(after, ROWS + 1)]
    assert without_seconds(tmp_path) == without_seconds(undisturbed)


def kill_after(folder, workers, wanted, pace=0.05):
    """Start a build and kill it with SIGKILL once so many rows are there."""
    running = process(folder, workers, pace)
    children = []
    for line in running.stdout:
        done, _, *children = map(int, line.split())
        if done >= wanted:
            break
    time.sleep(random.random() * pace)
    running.kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL, errors
    return children


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_process_killed_at_random_is_continued(tmp_path, undisturbed, workers):
    children = kill_after(tmp_path, workers, random.randint(1, ROWS // 2))
    deadline = time.monotonic() + 20
    while not all(map(is_gone, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(is_gone, children))  # workers end with their parent
    assert 0 < rows(tmp_path) < ROWS
    assert not (tmp_path / "table.jsonl").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "rows").glob("*.json")}
    build_tiny(tmp_path)
    for name, content in kept.items():
        assert (tmp_path / "rows" / name).read_bytes() == content
    assert without_seconds(tmp_path) == without_seconds(undisturbed)


@pytest.mark.slow
def test_many_kills_and_changing_workers_end_in_the_same_table(tmp_path, undisturbed):
    for _ in range(8):
        running = process(tmp_path, random.choice([1, 2, 3]), 0.3)
        time.sleep(random.uniform(1, 12))
        running.kill()
        running.communicate(timeout=60)
    running = process(tmp_path, 2, 0)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    assert without_seconds(tmp_path) == without_seconds(undisturbed)
    assert not list((tmp_path / "rows").glob(".*"))


def test_what_a_killed_process_left_half_done_is_done_again(tmp_path, undisturbed):
    with contextlib.suppress(KeyboardInterrupt):
        build_tiny(tmp_path, progress=stop_at(3))
    paths = sorted((tmp_path / "rows").glob("*.json"))
    assert len(paths) == 3
    paths[0].write_text(paths[0].read_text()[:40])
    paths[1].write_text("")
    other = json.loads(paths[2].read_text())
    other["spec"]["width"] = 999
    paths[2].write_text(json.dumps(other))
    draft = tmp_path / "rows" / ".00001-0.json-12345678.lmscout-draft"
    draft.mkdir()
    (draft / "content").write_text("{")
    calls = []
    build_tiny(tmp_path, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, ROWS)
    assert without_seconds(tmp_path) == without_seconds(undisturbed)
    assert not draft.exists()


def stop_at(count):
    def progress(done, _):
        if done == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"recipe": replace(RECIPE, tokens=RECIPE.tokens + 64)}, "recipe"),
        ({"data": TokenData(text().train[1:], text().validation, {})}, "text"),
        ({"seed": 1}, "seed"),
        ({"seeds": 2}, "seeds"),
    ],
)
def test_a_folder_of_another_benchmark_is_refused(undisturbed, changes, differing):
    before = (undisturbed / "table.jsonl").read_bytes()
    with pytest.raises(LmscoutError, match=rf"holds a run with (another )?{differing}\b") as caught:
        build_tiny(undisturbed, **changes)
    assert "\n" not in str(caught.value)
    assert (undisturbed / "table.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": TokenData(text().train * 2, text().validation, {})}, "go up to 62, .* have 32"),
        ({"recipe": replace(RECIPE, length=17)}, "windows of 17 tokens are too long"),
        ({"data": TokenData(text().train[:20], text().validation, {})}, "20 tokens to train on"),
        ({"data": TokenData(text().train, text().validation[:9], {})}, "9 tokens to validate on"),
        ({"device": "cuda:99"}, "device cuda:99: there is no such device here; there are cpu"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(tmp_path, changes, said):
    with pytest.raises(LmscoutError, match=said):
        build_tiny(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LmscoutError, match="cannot be written"):
        build_tiny(tmp_path / "file" / "folder")


def test_those_with_several_seeds_are_spread_over_sizes():
    found = jobs(PICO, 240, seed=0, seeds=3)
    assert len(found) == 240 + 2 * 24
    several = {job.architecture for job in found if job.seed > 0}
    assert len(several) == 24
    first = [job for job in found if job.seed == 0]
    first.sort(key=lambda job: (job.spec.parameters(), job.architecture))
    places = [place for place, job in enumerate(first) if job.architecture in several]
    assert places == list(range(5, 240, 10))
    assert len(jobs(SPACE, 2, seed=0, seeds=3)) == 4  # of few, one
    assert len(jobs(SPACE, 12, seed=0, seeds=1)) == 12
