"""How far each kind of work spreads over workers: measured task times, simulated efficiency.

    python bench/scaling.py [--out bench/results/scaling.json]    # task times here, then simulation
    python bench/scaling.py --check                    # one worker and two of a local Ray cluster
    python bench/scaling.py --check --model FOLDER --calibration FILE    # also pairs of this model

Task times, in CPU seconds, are those of the built-in model (pairs), of pico's architectures
(statistics), of nano's (trainings) and of a search of the deep space; further pairs have the times
of a LLaMA-7B on an H200 (bench/results/pairs-7b-2.json).  A simulated worker takes the next task
when it is free.  The driver sends one task after the other, which is assumed to take 1.5 ms; steps
of pairs end before the next one is measured, or, with a tail, before the next but one.  Efficiency
is the work by the workers' time.

The check measures twice, once with each number of workers.  Its bare loops, tasks that only count,
say how much faster two cores of the machine are than one at the moment.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import lmscout
from lmscout.builtin import corpus_text, tiny_folder
from lmscout.pruning.study import STUDY
from provenance import commit

PAIRS = 100  # of the check
PAIRS_OF_MODEL = 60  # those of a given model
WORKERS = (8, 64, 512)
RESULTS = Path(__file__).parent / "results"
CALIBRATION = lmscout.CalibrationConfig(
    measured_tokens=3000, final_tokens=1500, moment_tokens=4000, gradient_windows=4
)


@dataclass(frozen=True)
class Work:
    """A kind of work, as large as users have it."""

    name: str
    task_seconds: tuple[float, ...]  # measured; tasks are drawn from them
    tasks: int
    steps: int = 1  # one after the other
    between: float = 0.0  # seconds of the driver between two steps
    tail: float = 0.0  # share of a step that is measured meanwhile
    send: float = 0.0015  # seconds of the driver for a task


def makespan(seconds: Sequence[float], workers: int, send: float) -> float:
    """Time until all tasks are done, in their order, by workers that are idle in the beginning."""
    free = [0.0] * min(workers, len(seconds))
    sent = end = 0.0
    for one in seconds:
        sent = max(sent + send, heapq.heappop(free))
        heapq.heappush(free, sent + one)
        end = max(end, sent + one)
    return end


def efficiency(work: Work, workers: int) -> float:
    """Seconds of tasks and driver on one worker, by those of all workers."""
    drawn = np.random.default_rng(0).choice(work.task_seconds, work.tasks)
    total = 0.0
    for step in np.array_split(drawn, work.steps):
        body = len(step) - round(work.tail * len(step))
        ends = makespan(step[:body].tolist(), workers, work.send)
        rest = makespan(step[body:].tolist(), workers, work.send)
        total += ends + (max(rest, work.between) if work.tail else work.between)
    alone = drawn.sum() + (0.0 if work.tail else work.between * work.steps)
    return float(alone / (workers * total))


def measured(folder: Path) -> list[Work]:
    """The kinds of work, with task times of this machine."""
    return [*pairs_here(folder), on_an_h200(), statistics(), trainings(folder), searches(folder)]


def pairs_here(folder: Path) -> list[Work]:
    """Pairs of the built-in model, and what lies between two steps."""
    import optuna

    watch = Watch("measuring pairs")
    pruned(folder / "run", None, pairs=60, progress=watch)
    url = f"sqlite:///{folder / 'run' / 'ledger.db'}"
    trials = optuna.load_study(study_name=STUDY, storage=url).trials
    seconds = np.diff([watch.at[number] for number in range(len(trials) + 1)])
    rounds = np.array([one.user_attrs["round"] for one in trials])
    starts = np.flatnonzero(np.diff(rounds)) + 1  # which wait for a proposal
    between = float(np.mean(seconds[starts]) - np.median(seconds))
    tasks = tuple(np.delete(seconds, [0, *starts]).tolist())
    return [Work("pairs, built-in model, CPU", tasks, 200, steps=9, between=between)]


def on_an_h200() -> Work:
    """Pairs of a LLaMA-7B; a step is proposed in 3.5 s of a CPU (docs/scale.md)."""
    figures = json.loads((RESULTS / "pairs-7b-2.json").read_text())["on_1"]
    mean = figures["pairs_measuring_seconds"] / 525
    early = mean * 0.5  # plans that are dropped early take about half
    times = (early,) * 237 + ((525 * mean - 237 * early) / 288,) * 288
    return Work("pairs, LLaMA-7B, H200", times, 525, steps=20, between=3.5, tail=0.75)


def statistics() -> Work:
    """Statistics of pico's architectures."""
    bench = lmscout.load_benchmark("pico").subset(range(0, 240, 8))
    watch = Watch("statistics")
    lmscout.discover(bench, n_search=15, workers=1, progress=watch)
    return Work("statistics, pico, CPU", watch.seconds, 500)


def trainings(folder: Path) -> Work:
    """Trainings of nano's architectures, on fewer tokens than a benchmark has."""
    watch = Watch("training")
    lmscout.build_benchmark(
        "nano", n=6, seeds=1, tokens=20_000, device="cpu", workers=1, out=folder / "built",
        progress=watch,
    )  # fmt: skip
    return Work("trainings, nano, CPU", watch.seconds, 240)


def searches(folder: Path) -> Work:
    """Searches of the deep space."""
    bench = lmscout.load_benchmark("pico").subset(range(0, 240, 8))
    config = lmscout.DeepSearchConfig(evaluations=20, searches=1)
    watch = Watch("searching")
    lmscout.discover(
        bench, space="deep", n_search=15, config=config, workers=1, out=folder / "deep",
        progress=watch,
    )  # fmt: skip
    return Work(
        "searches, deep space, CPU", (watch.first["re-scoring"] - watch.last["sketches"],), 4
    )


class Watch:
    """CPU seconds at which a stage has done so many tasks: a busy machine changes them little."""

    def __init__(self, stage: str) -> None:
        self.at: dict[int, float] = {}
        self.first: dict[str, float] = {}  # of any stage
        self.last: dict[str, float] = {}
        self._stage = stage

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note the time, as a progress callback."""
        now = self.last[stage] = time.process_time()
        self.first.setdefault(stage, now)
        if stage == self._stage:
            self.at.setdefault(done, now)

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of each task."""
        return tuple(np.diff([self.at[done] for done in sorted(self.at)]).tolist())


def pruned(
    out: Path,
    cluster: str | None,
    *,
    pairs: int,
    calibration: lmscout.CalibrationConfig = CALIBRATION,
    model: tuple[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Measure pairs of the built-in model, or of a model with its calibration text."""
    if model is None:
        text = out.parent / "train.txt"
        text.write_text(corpus_text("train")[:120_000])
        model = str(tiny_folder()), str(text)
    config = lmscout.PruneConfig(
        pairs=pairs, refit="none", calibration=calibration, cluster=cluster
    )
    lmscout.prune(
        model[0],
        calibration=model[1],
        out=out,
        config=config,
        progress=progress or False,
    )


@dataclass(frozen=True)
class Spent:
    """Wall seconds of a kind of work on a cluster."""

    start: float  # of workers that the work needs, idle before
    work: float  # with workers that have started
    driver: float  # CPU seconds of this process during the work


def check(folder: Path, model: tuple[str, str] | None) -> list[str]:
    """Speed-up of two workers of a local Ray cluster over one, by kind of work."""
    import ray

    torch.set_num_threads(1)  # as many cores has a worker of pairs
    found = []
    for count in (1, 2):
        ray.init("local", num_cpus=count, include_dashboard=False, log_to_driver=False)
        (folder / str(count)).mkdir()
        found.append(on_ray(folder / str(count), folder / "shared", model))
        ray.shutdown()
    rows = []
    for name, one in found[0].items():
        two = found[1][name]
        whole = (one.start + one.work) / (two.start + two.work)
        rows.append(
            f"{name:12} {one.work / two.work:.2f} times as fast with two workers, {whole:.2f} with "
            f"their start; one: {one.start:.1f} + {one.work:.1f} s, two: {two.start:.1f} + "
            f"{two.work:.1f} s, of which this process computes {two.driver:.1f} s"
        )
    return rows


def spent(start: Callable[[], object], work: Callable[[], object]) -> Spent:
    """Wall seconds of two calls, and CPU seconds of this process during the second."""
    began = time.perf_counter()
    start()
    between, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(between - began, time.perf_counter() - between, time.process_time() - cpu)


class Searched(Exception):  # noqa: N818 - no error
    """The searches of a discovery have ended."""


def searched(searches: int, evaluations: int) -> Spent:
    """Seconds of searches of the deep space, on the smallest architectures of pico."""
    bench = lmscout.load_benchmark("pico")
    smallest = np.argsort([one.parameters() for one in bench.specs])[:68]
    at: list[tuple[float, float]] = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage in ("sketches", "searching"):
            now = time.perf_counter(), time.process_time()
            at[stage == "searching" :] = [now]
        elif stage == "re-scoring":
            raise Searched

    config = lmscout.DeepSearchConfig(searches=searches, evaluations=evaluations)
    with TemporaryDirectory() as out, suppress(Searched):
        lmscout.discover(
            bench.subset(sorted(smallest.tolist())), space="deep", n_search=60, config=config,
            cluster="auto", out=Path(out) / "run", progress=watch,
        )  # fmt: skip
    (began, before), (ended, after) = at
    return Spent(0.0, ended - began, after - before)


def bare(task: Callable[[], object]) -> float:
    """Seconds of 16 bare tasks: how fast this machine's cores or memory are at the moment."""
    import ray

    remote = ray.remote(task)
    started = time.perf_counter()
    ray.get([remote.remote() for _ in range(16)])
    return time.perf_counter() - started


def _count() -> int:
    total = 0
    for number in range(5_000_000):
        total += number
    return total


def _copy() -> None:
    source = np.ones(1 << 24, np.float32)  # 64 MiB, more than caches hold
    target = np.empty_like(source)
    for _ in range(20):
        target[:] = source


def on_ray(folder: Path, shared: Path, model: tuple[str, str] | None) -> dict[str, Spent]:
    """Seconds of each kind of work on the cluster that this process is connected to.

    The first call of a kind starts its workers, on little work.  Bare loops and copies of memory
    run before each kind, since cores may share what limits them.
    """
    os.environ["LMSCOUT_CACHE"] = str(folder)
    bench = lmscout.load_benchmark("pico").subset(range(0, 240, 2))
    on: dict[str, Any] = {"cluster": "auto", "progress": False}

    def trained(n: int, tokens: int) -> None:
        lmscout.build_benchmark(
            *("nano",), n=n, seeds=1, tokens=tokens, device="cpu", out=folder / f"{n}", **on
        )

    bare(_count)  # starts workers
    loops, copies = [bare(_count)], [bare(_copy)]
    found = {
        "statistics": spent(
            lambda: lmscout.rank(bench.subset(range(2)), "grad-norm", **on),
            lambda: lmscout.rank(bench, "snip", **on),
        )
    }
    loops.append(bare(_count))
    copies.append(bare(_copy))
    found["trainings"] = spent(lambda: trained(2, 10_240), lambda: trained(8, 40_000))
    loops.append(bare(_count))
    copies.append(bare(_copy))
    # Sketches are the same for one worker and two, and the proxy that is found is not tested.
    os.environ["LMSCOUT_CACHE"] = str(shared)
    start = searched(2, 4).work
    found["searches"] = replace(searched(8, 240), start=start)
    loops.append(bare(_count))
    copies.append(bare(_copy))
    found["pairs"] = pairs_on_ray(folder / "run", PAIRS, lmscout.CalibrationConfig())
    if model:
        less = lmscout.CalibrationConfig(measured_tokens=6000)
        found["of model"] = pairs_on_ray(folder / "model", PAIRS_OF_MODEL, less, model)
    bound = {"bare loops": sum(loops), "bare copies": sum(copies)}
    return found | {name: Spent(0.0, seconds, 0.0) for name, seconds in bound.items()}


def pairs_on_ray(
    out: Path,
    pairs: int,
    calibration: lmscout.CalibrationConfig,
    model: tuple[str, str] | None = None,
) -> Spent:
    """Seconds of measuring pairs; what passes before the first one is the start."""
    at: dict[int, float] = {}
    cpu: list[float] = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "measuring pairs":
            at.setdefault(done, time.perf_counter())
            cpu.append(time.process_time())

    pruned(out, "auto", pairs=pairs, calibration=calibration, model=model, progress=watch)
    first, *_, last = sorted(set(at) - {0})
    work = (at[last] - at[first]) / (last - first) * last
    return Spent(at[last] - at[0] - work, work, cpu[-1] - cpu[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--model", help="folder of a model whose pairs are measured as well")
    parser.add_argument("--calibration", help="its calibration text")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.calibration is None):
        parser.error("--model and --calibration go together")
    with TemporaryDirectory() as temporary:
        os.environ["LMSCOUT_CACHE"] = temporary
        if arguments.check:
            given = arguments.model and (arguments.model, arguments.calibration)
            print(*check(Path(temporary), given), sep="\n")
            return
        kinds = measured(Path(temporary))
    kinds += [replace(one, name=f"{one.name}, 64 of them", tasks=64) for one in kinds[-1:]]
    print(f"{'':32} {'seconds':>8} {'tasks':>6} " + " ".join(f"{n:>6}" for n in WORKERS))
    rows = []
    for work in kinds:
        figures = {count: efficiency(work, count) for count in WORKERS}
        mean = float(np.mean(work.task_seconds))
        shown = " ".join(f"{one:6.1%}" for one in figures.values())
        print(f"{work.name:32} {mean:8.3f} {work.tasks:6} {shown}")
        rows.append({**asdict(work), "task_seconds": mean, "efficiency": figures})
    if arguments.out:
        figures = {"machine": platform.machine(), "cores": os.cpu_count(), "commit": commit()}
        arguments.out.write_text(json.dumps({**figures, "kinds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
