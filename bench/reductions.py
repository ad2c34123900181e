"""What the twenty means of a tensor cost on a GPU, beside reading the tensor once.

    python bench/reductions.py [--json FILE] [--tune]

Reading once is the tensor's bytes at the bandwidth of a device copy, bytes read and written
counted, measured in the same run.  The launches are timed by the device (CUDA graphs over
tensors that together exceed the cache by far, the median of runs); "call" is what a call from
Python costs where calls follow one another.  Beside them the plain walk on the same GPU, the
twenty formulas in torch one by one, and the largest difference of any mean from the
definition in float64, in units of the mean size of the elements.  `--tune` first tries
several ways on one matrix and on all of a block, and goes on with what is fastest for these.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from lmscout.proxies.primitives import UNARY
from lmscout.statistics import OPERATIONS
from lmscout.statistics.fused_pieces import Tuning
from lmscout.statistics.fused_reductions import fused_totals, prepare
from lmscout.statistics.plain_walk import plain_totals
from lmscout.statistics.totals import means_of_totals
from provenance import commit

SHAPES = {
    "attention weight": (4096, 4096),
    "down weight": (4096, 11008),
    "gate weight": (11008, 4096),
    "embedding": (32000, 4096),
    "activations": (2048, 11008),
    "activations, a batch of one": (1, 2048, 11008),
    "probabilities of 32 heads": (32, 2048, 2048),
    "probabilities, a batch of one": (1, 32, 2048, 2048),
    "pruned weight": (4096, 8806),
    "pruned weight, odd": (4096, 8807),
}
SCALED = {
    "down weight x 50": 50,  # not small: with exponentials
    "down weight x 3,000": 3000,  # beyond what pairs of float32 hold: read twice
}
BLOCK = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
TUNINGS = {
    "4 elements, 80 registers": Tuning(),
    "a step ahead": Tuning(slots=2),
    "no step ahead": Tuning(slots=0),
    "no sums of powers": Tuning(small=False),
    "4 elements, 72 registers": Tuning(programs=7, registers=72),
    "4 elements, 96 registers": Tuning(programs=5, registers=96),
    "8 elements, 128 registers": Tuning(programs=4, registers=128, vector=8),
}
CACHE = 300e6  # bytes that a cycle over tensors has to exceed
RUNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    started = time.perf_counter()
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s")
    tuning, tried = Tuning(), {}
    if arguments.tune:
        tuning, tried = tune(bandwidth)
    rows = []
    for name, shape in SHAPES.items():
        rows.append(measure(name, [shape], bandwidth, tuning))
        show(rows[-1])
    others = {"all weights of a block": BLOCK} | dict.fromkeys(SCALED, BLOCK[-1:])
    for name, shapes in others.items():
        rows.append(measure(name, shapes, bandwidth, tuning))
        show(rows[-1])
    print(f"{time.perf_counter() - started:.0f} s in all")
    if arguments.json:
        told = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "copy_bytes_per_second": bandwidth,
            "tuning": asdict(tuning),
            "tried": tried,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.zeros(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / float(np.median(times))


def tune(bandwidth: float) -> tuple[Tuning, dict[str, dict[str, float]]]:
    """The tuning with which the weights of a block are fastest."""
    sets = {"a matrix": several(BLOCK[-1:]), "a block": several(BLOCK)}
    tried, best, fastest = {}, Tuning(), np.inf
    for name, trial in TUNINGS.items():
        ratios, told = {}, []
        for kind, tensors in sets.items():
            read = sum(t.nbytes for some in tensors for t in some) / bandwidth
            launches = [launch for some in tensors for _, launch in prepare(some, trial)]
            compiled = launches[0].run()
            seconds = graph_seconds(lambda some=launches: [one.run() for one in some])
            ratios[kind] = seconds / read
            told.append(
                f"{kind} {ratios[kind]:.2f} x reading in {launches[0].sums.shape[1]} pieces"
            )
        tried[name] = ratios
        print(
            f"  {name}: {', '.join(told)}; {getattr(compiled, 'n_regs', '?')} registers, "
            f"{getattr(compiled, 'n_spills', '?')} bytes spilt",
            flush=True,
        )
        if ratios["a block"] < fastest:
            best, fastest = trial, ratios["a block"]
    return best, tried


def several(shapes) -> list[list[torch.Tensor]]:
    """Random tensors of the shapes, again and again until they exceed the cache by far."""
    sets, n_bytes = [], 0
    while n_bytes < CACHE or len(sets) < 2:
        made = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02 for shape in shapes]
        if shapes[0][-1] == 2048:
            made = [(tensor * 100).softmax(-1) for tensor in made]
        sets.append(made)
        n_bytes += sum(tensor.nbytes for tensor in made)
    return sets


def measure(name: str, shapes, bandwidth: float, tuning: Tuning) -> dict[str, object]:
    sets = several(shapes)
    if name in SCALED:
        sets = [[tensor * SCALED[name] for tensor in some] for some in sets]
    n_bytes = sum(tensor.nbytes for tensor in sets[0])
    launches = [launch for some in sets for _, launch in prepare(some, tuning)]
    fused = graph_seconds(lambda: [launch.run() for launch in launches]) / len(sets)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        for some in sets:
            fused_totals(some, tuning)
    torch.cuda.synchronize()
    call = (time.perf_counter() - start) / 5 / len(sets)
    got = means_of_totals(fused_totals(sets[0], tuning).cpu().numpy())
    again = means_of_totals(fused_totals(sets[0], tuning).cpu().numpy())
    tensor = sets[0][0]
    walk = wall_seconds(lambda: plain_totals(tensor))
    ops = wall_seconds(lambda: [float(u.apply(tensor).mean()) for u in UNARY])
    share = tensor.nbytes / n_bytes  # the plain ways read one tensor of a block
    return {
        "name": name,
        "shapes": [list(shape) for shape in shapes],
        "read_ms": n_bytes / bandwidth * 1e3,
        "fused_ms": fused * 1e3,
        "ratio": fused / (n_bytes / bandwidth),
        "call_ms": call * 1e3,
        "plain_walk_ms": walk / share * 1e3,
        "plain_formulas_ms": ops / share * 1e3,
        "same_again": bool(np.array_equal(got, again, equal_nan=True)),
        "error": max(error(t, row) for t, row in list(zip(sets[0], got, strict=True))[-2:]),
        "launches": len(launches) // len(sets),
        "pieces": launches[0].sums.shape[1],
    }


def show(row) -> None:
    shapes = " ".join(str(tuple(shape)) for shape in row["shapes"][:1])
    print(
        f"{row['name']:<30} {shapes:<22} read {row['read_ms']:.4f} ms, fused {row['fused_ms']:.4f} "
        f"= {row['ratio']:.2f} x; call {row['call_ms']:.3f}; walk {row['plain_walk_ms']:.0f}, "
        f"formulas {row['plain_formulas_ms']:.2f} ms; error {row['error']:.1e}"
        f"{'' if row['same_again'] else '; NOT THE SAME AGAIN'}; {row['pieces']} pieces",
        flush=True,
    )


def error(tensor: torch.Tensor, got) -> float:
    """The largest difference from the definition in float64, over the mean size of elements."""
    x = tensor.double()
    worst = 0.0
    for operation, value in zip(UNARY, got, strict=True):
        if operation.name == "normalize":
            continue
        if operation.name == "invert":  # its shift is float32's
            elements = (tensor.float() + 1e-9).double().reciprocal()
        else:
            elements = operation.formula(x)
        if np.isinf(value) and elements.amax().item() > torch.finfo(torch.float32).max:
            continue  # float32's overflow is part of the definition
        of = x if operation.name in ("mean", "meansum") else elements  # whose terms cancel
        size = of.abs().mean().item()
        apart = abs(elements.mean().item() - float(value))
        if size == 0.0:  # all elements are 0, and so has their mean to be
            worst = max(worst, 0.0 if apart == 0.0 else float("inf"))
        else:
            worst = max(worst, apart / size)
        del elements
    assert len(got) == len(OPERATIONS)
    return worst


def graph_seconds(work) -> float:
    """Median seconds of what work enqueues, as the device replays it."""
    work()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(np.median(times))


def wall_seconds(work) -> float:
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
