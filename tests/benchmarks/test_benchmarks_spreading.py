import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from lmscout.benchmarks.build import default_workers, devices_of, spread
from lmscout.errors import LmscoutError


def processes(folder):
    return {path.name.split("-")[1] for path in folder.iterdir()}


def note(job, device, *, folder):
    (folder / f"{job}-{os.getpid()}").write_text(device)
    deadline = time.monotonic() + 60
    while job == 0 and len(processes(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # until another worker has done a job
    if job == 7:
        raise LmscoutError("seven cannot be done")
    if job == 8:
        raise ZeroDivisionError("eight")
    if job == 9:
        os._exit(3)


def test_every_job_is_done_once_and_devices_take_turns(tmp_path):
    done = list(spread(partial(note, folder=tmp_path), [0, 1, 2, 3, 4], ["one", "two"], 2))
    assert done == [1, 2, 3, 4, 5]
    seen = [(*path.name.split("-"), path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert [job for job, _, _ in seen] == ["0", "1", "2", "3", "4"]
    assert len({pid for _, pid, _ in seen}) == 2
    assert str(os.getpid()) not in {pid for _, pid, _ in seen}
    assert len({(pid, device) for _, pid, device in seen}) == 2  # a worker has one device
    assert {device for _, _, device in seen} == {"one", "two"}


def test_one_worker_on_the_cpu_is_this_process(tmp_path):
    assert list(spread(partial(note, folder=tmp_path), [1, 2], ["cpu"], 1)) == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {f"{job}-{os.getpid()}" for job in (1, 2)}


@pytest.mark.parametrize(
    ("job", "error", "said"),
    [
        (7, LmscoutError, "^seven cannot be done$"),
        pytest.param(
            8,
            ZeroDivisionError,
            "^eight$",
            marks=pytest.mark.slow,
        ),
        (9, LmscoutError, "a worker process has ended .EXIT.3.., .* with fewer workers"),
    ],
)
def test_a_failure_ends_the_work(tmp_path, job, error, said):
    done = []
    with pytest.raises(error, match=said):
        done.extend(spread(partial(note, folder=tmp_path), [job, 1, 2], ["one"], 1))


def test_without_jobs_no_worker_is_started(tmp_path):
    assert list(spread(partial(note, folder=tmp_path), [], ["one"], 3)) == []


def test_devices_by_a_users_word():
    gpus = torch.cuda.device_count()
    assert devices_of("cpu") == ("cpu",)
    assert devices_of("auto") == (tuple(f"cuda:{n}" for n in range(gpus)) or ("cpu",))
    for word in ("cuda:99", "tpu", *(["cuda"] if gpus == 0 else [])):
        with pytest.raises(LmscoutError, match=f"device {word}: there is no such device here"):
            devices_of(word)


def test_workers_are_as_many_as_cores_but_few_a_gpu():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_workers(("cpu",)) == cores
    assert default_workers(("cuda:0",)) == min(8, cores)
    assert default_workers(("cuda:0", "cuda:1")) == min(16, cores)


SCRIPT = """
import sys
import lmscout

print("begun")
lmscout.build_benchmark(
    "nano", n=2, seeds=1, tokens=20_000, workers=2, out=sys.argv[1], progress=False
)
"""


def test_a_script_without_a_main_block_is_run_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "built")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "begun\n"
