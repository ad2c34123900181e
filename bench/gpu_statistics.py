"""Commands that compute statistics, on the CPU and on a GPU, each from an empty cache.

    python bench/gpu_statistics.py [--devices cuda,cpu] [--workers -1,8,4] [--json FILE]

Without other options the commands are ``rank lts:random_GPT2_wt103 --proxy champion-decoder`` and
``discover flexibert --space deep``.  A line each: seconds from the start of the process to its end,
and of them those of every stage; the rest is the start: imports and the benchmark's files.  With
several numbers of workers the commands run once with each (on the CPU beside a GPU with the first
alone); the numbers of one device must be equal.

Then the cache files of both devices are compared, those that hold the same numbers: the largest
difference relative to the size of the number, and for a score the least Spearman correlation.
The found formulas are compared as texts, and by their figures on the test split.

Last, seconds of one architecture in one thread of this process, the mean over a sample: weights
drawn, one bare pass, the scores by a proxy and a sketch (both with their own draw and pass).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from safetensors import safe_open

from lmscout.benchmarks import load
from lmscout.models import ArchitectureSpec
from lmscout.proxies import resolve
from lmscout.statistics import Batch, deep_values, sketches
from lmscout.statistics.collect import Build, one_thread
from lmscout.statistics.single_pass import run_pass

TINY = 1e-12  # numbers that count as 0 beside a difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="cuda,cpu")
    parser.add_argument("--workers", default="-1", help="the first one for the CPU")
    parser.add_argument("--rank", default="lts:random_GPT2_wt103")
    parser.add_argument("--proxy", default="champion-decoder")
    parser.add_argument("--discover", default="flexibert")
    parser.add_argument("--options", default="", help="more of discover, as --evaluations=60")
    parser.add_argument("--models", type=int, default=8, help="of the sample")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    deep = ["discover", options.discover, "--space", "deep", *options.options.split()]
    commands = {
        "rank": ["rank", options.rank, "--proxy", options.proxy],
        "discover": deep,
    }
    report: dict[str, Any] = {"start": start_seconds(options.devices.split(","))}
    with tempfile.TemporaryDirectory() as work:
        for name, arguments in commands.items():
            runs = {}
            for device in options.devices.split(","):
                counts = options.workers.split(",")
                for workers in counts[:1] if options.devices != "cpu" == device else counts:
                    given = [*arguments, "--device", device, "--workers", workers]
                    runs[device, workers] = run(given, Path(work, name, device, workers))
                    print(line(name, device, workers, runs[device, workers]), flush=True)
            first, *others = runs
            report[name] = {
                "runs": {" ".join(key): timed(one) for key, one in runs.items()},
                "compared": {" ".join(key): compared(runs[first], runs[key]) for key in others},
            }
            print(json.dumps(report[name]["compared"], indent=1), flush=True)
    report["architecture"] = [
        of_one(benchmark, options.proxy, device, options.models)
        for benchmark in (options.rank, options.discover)
        for device in options.devices.split(",")
    ]
    for row in report["architecture"]:
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def start_seconds(devices: list[str]) -> dict[str, float]:
    """Seconds of a process that imports what every command does and uses a device, for each."""
    found = {}
    for device in devices:
        code = f"import lmscout.discovery, torch; torch.ones(9, device={device!r}).sum().item()"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        found[device] = round(time.perf_counter() - start, 2)
    print("imports and the first use of a device:", found, flush=True)
    return found


def run(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The JSON result of a command, its seconds and its cache."""
    folder.mkdir(parents=True)
    own = {"LMSCOUT_CACHE": str(folder / "cache"), "TRITON_CACHE_DIR": str(folder / "triton")}
    end = ["--out", str(folder / "run"), "--json", str(folder / "result.json")]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lmscout", *arguments, *end],
        env=os.environ | own,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    result = json.loads((folder / "result.json").read_text())
    return {"wall": time.perf_counter() - start, "cache": folder / "cache", "result": result}


def timed(found: dict[str, Any]) -> dict[str, Any]:
    stages = found["result"]["seconds"]
    return {"seconds": found["wall"], "start": found["wall"] - sum(stages.values()), **stages}


def line(name: str, device: str, workers: str, found: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in timed(found).items())
    return f"{name} on {device}, workers {workers}: {stages}"


def compared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Differences of the numbers that both have computed, and of what was chosen."""
    rows, others = (numbers(each["cache"]) for each in (one, other))
    both = [kind for kind in rows if kind in others]
    result: dict[str, Any] = {
        f"{place} {json.loads(kind)['what']}": difference(rows[kind], others[kind])
        for place, kind in enumerate(both)
    }
    best = [each["result"].get("best") for each in (one, other)]
    if None not in best:
        result["formula"] = "same" if best[0]["proxy"] == best[1]["proxy"] else best
    result["test"] = [test_figures(each["result"]) for each in (one, other)]
    return result


def test_figures(result: dict[str, Any]) -> Any:
    tested = result["best"]["test"] if "best" in result else result["proxies"][0]
    return {name: round(tested[name]["value"], 4) for name in ("spearman", "kendall")}


def numbers(cache: Path) -> dict[str, np.ndarray]:
    """The rows of every file by its provenance, less the device."""
    found = {}
    for path in sorted(cache.rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as stored:
            source = json.loads(stored.metadata()["provenance"])
            source.pop("device", None)
            found[json.dumps(source, sort_keys=True)] = stored.get_tensor("rows")
    return found


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    finite = np.isfinite(one) & np.isfinite(other)
    size = np.maximum(np.maximum(np.abs(one), np.abs(other)), TINY)
    apart = (np.abs(one - other) / size)[finite]
    result = {
        "numbers": one.size,
        "equal": bool(np.array_equal(one, other, equal_nan=True)),
        "finite in one alone": int((np.isfinite(one) != np.isfinite(other)).sum()),
        "median": float(np.median(apart)),
        "99 %": float(np.quantile(apart, 0.99)),
        "largest": float(apart.max()),
    }
    if one.ndim == 2:  # scores [architectures, proxies]
        rho = [
            scipy.stats.spearmanr(a[f], b[f]).statistic
            for a, b, f in zip(one.T, other.T, finite.T, strict=True)
        ]
        result["least rho"] = float(np.nanmin(rho))
    return result


def of_one(benchmark: str, proxy: str, device: str, models: int) -> dict[str, Any]:
    """Mean seconds of the parts of one architecture's evaluation."""
    specs = list(load(benchmark).specs)
    random.Random(0).shuffle(specs)
    spent: dict[str, float] = {}

    def timed_part(part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        done = work()
        if device != "cpu":
            torch.cuda.synchronize()
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
        return done

    def one(spec: ArchitectureSpec) -> None:
        build = Build(0, Batch(), device)
        model, tokens = timed_part("draw", lambda: build(spec))
        timed_part("pass", lambda: run_pass(model, tokens, lambda *_: None, act_gradients=True))
        proxies = (resolve(proxy),)
        timed_part("score", lambda: deep_values._measure(build, spec, proxies=proxies, ones=""))
        slots, size = sketches.ROOM * spec.depth, (sketches.ROWS, sketches.COLUMNS)
        timed_part("sketch", lambda: sketches._measure(build, spec, slots=slots, size=size))

    with one_thread():
        one(specs[models])  # warm up
        spent.clear()
        for spec in specs[:models]:
            one(spec)
    means = {part: round(seconds / models, 4) for part, seconds in spent.items()}
    return {"benchmark": benchmark, "device": device, **means}


if __name__ == "__main__":
    main()
