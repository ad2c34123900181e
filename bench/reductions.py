"""The twenty means of a tensor on a GPU: plain and fused side by side, right and fast.

    python bench/reductions.py [--json FILE]     # seconds, and their ratio to one read
    python bench/reductions.py --check           # errors; exit code 1 where one is too large

Reading once is the tensor's bytes at the bandwidth of a device copy, bytes read and written
counted, measured in the same run.  "fused" is one call of `fused_totals` with its result on the
host, the median of calls; beside it the plain walk on the same GPU, and the twenty formulas in
torch one by one.  `--check` compares the means with the definitions in float64, then every
proxy's scores and the statistics of small architectures on the GPU with those on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec
from lmscout.models.flexibert import MIXERS
from lmscout.proxies import CATALOG
from lmscout.proxies.primitives import UNARY
from lmscout.statistics import INPUT_NAMES, OPERATIONS, Batch, Workers, collect, score_proxies
from lmscout.statistics.fused import DTYPES, fused_totals
from lmscout.statistics.reductions import means_of_totals, plain_totals
from provenance import commit

SHAPES = {
    "attention weight": (4096, 4096),
    "down weight": (4096, 11008),
    "pruned weight, odd": (4096, 8807),
    "activations": (2048, 11008),
    "activations, a batch of one": (1, 2048, 11008),
    "probabilities of 32 heads": (32, 2048, 2048),
    "a small model's weight": (256, 256),
}
LIMIT, PLAIN_LIMIT = 1e-6, 1e-4  # largest relative error of a mean: float64's, float32's sums
NOISY = ("invert", "log", "abslog", "minmax")  # decided by elements near 0, or near each other
SCORE_LIMIT = 2e-3  # of a score: models are run in float32, in another order of sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.check:
        fine = check_tensors(arguments.device)
        fine &= arguments.device == "cpu" or check_architectures(arguments.device)
        print("all within the limits" if fine else "NOT ALL WITHIN THE LIMITS")
        sys.exit(0 if fine else 1)
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s")
    rows = [measure(name, shape, bandwidth) for name, shape in SHAPES.items()]
    if arguments.json:
        record = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "copy_bytes_per_second": bandwidth,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def seconds(work, runs: int = 15) -> float:
    """Median seconds of work, the device waited for."""
    times = []
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def measure(name: str, shape: tuple[int, ...], bandwidth: float) -> dict[str, object]:
    tensor = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
    if shape[-1] == 2048:
        tensor = (tensor * 100).softmax(-1)
    row = {
        "name": name,
        "shape": list(shape),
        "read_ms": tensor.nbytes / bandwidth * 1e3,
        "fused_ms": seconds(lambda: fused_totals([tensor])) * 1e3,
        "plain_walk_ms": seconds(lambda: plain_totals(tensor), 1) * 1e3,
        "plain_formulas_ms": seconds(lambda: [float(u.apply(tensor).mean()) for u in UNARY], 1)
        * 1e3,
    }
    row["ratio"] = row["fused_ms"] / row["read_ms"]
    print(
        f"{name:<28} {tuple(shape)!s:<18} read {row['read_ms']:.4f} ms, fused "
        f"{row['fused_ms']:.3f} = {row['ratio']:.1f} x; plain walk {row['plain_walk_ms']:.1f}, "
        f"formulas {row['plain_formulas_ms']:.2f} ms",
        flush=True,
    )
    return row


def tensors_to_check() -> dict[str, Tensor]:
    """Float32 on the CPU, of every kind that a model or a chain of operations makes."""

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(shape) * scale + shift

    bad = {name: normal(70, 90) for name in ("nan", "inf", "-inf")}
    for name, tensor in bad.items():
        tensor[30, 40] = float(name)
    return {
        **bad,
        "empty": torch.empty(0, 3),
        "weights": normal(700, 900, scale=0.02),
        "rows and columns left over": normal(333, 517),
        "one element": torch.tensor([[-0.3]]),
        "0-dimensional": torch.tensor(0.7),
        "vector": normal(20_000),
        "one row": normal(1, 40, 1200),
        "one column": normal(50_000, 1),
        "few rows": normal(3, 5, 7000),
        "heads": normal(8, 4, 64, 64).softmax(-1),
        "causal probabilities": (normal(64, 64) + torch.full((64, 64), -math.inf).triu(1)).softmax(
            -1
        ),
        "transposed": normal(200, 300).T,
        "strided": normal(300, 200)[::2, 1::3],
        "expanded": normal(1, 7).expand(150, 7),
        "all zero": torch.zeros(140, 130),
        "constant": torch.full((140, 130), 0.1),
        "half of them zero": normal(140, 130).relu(),
        "negative": -normal(140, 130).abs() - 0.01,
        "like gradients": normal(300, 400, scale=1e-6),
        "tiny": normal(140, 130, scale=1e-12),
        "denormal": normal(140, 130, scale=1e-39),
        "ever smaller": normal(132, 128) * torch.logspace(0, -30, 132)[:, None],
        "poles of the reciprocal": torch.tensor([-1e-9, 0.5, -1e-9, 2.0]).repeat(140, 30),
        "mean >> std": normal(140, 130, scale=1e-3, shift=7.0),
        "mean >>> std": normal(140, 130, shift=1e6),
        "all near 85": normal(140, 130, shift=85.0),
        "all near -85": normal(140, 130, shift=-85.0),
        "up to 300": normal(140, 130).clamp(-3, 3) * 100,
        "up to 590": normal(400, 130).clamp(-3, 3) * 196,
        "beyond 600": normal(140, 130) * 1e3,
        "squares beyond float32": normal(140, 130, scale=1e25),
        "huge": normal(140, 130).clamp(-3, 3) * 1e38,
    }


def check_tensors(device: str) -> bool:
    """Compare fused and plain means with the definitions; print the largest relative errors."""
    fine, took = True, 0
    print(f"{'tensor':<28} {'dtype':<9} {'fused':>9} {'plain':>9}")
    for name, whole in tensors_to_check().items():
        for dtype in (*DTYPES, torch.float64):
            tensor = whole.to(dtype)
            placed = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
            placed = tensor.to(device) if 0 in tensor.stride() else placed.copy_(tensor)
            (totals,), (again,) = fused_totals([placed]), fused_totals([placed])
            took += totals is not None
            plain = error(tensor, plain_totals(placed))
            fused = plain if totals is None else error(tensor, totals)
            right = fused <= (PLAIN_LIMIT if totals is None else LIMIT) and totals == again
            cell = "   (plain)" if totals is None else f"{fused:10.1e}"
            word = str(dtype).removeprefix("torch.")
            print(
                f"{name:<28} {word:<9}{cell} {plain:9.1e}{'' if right else '  WRONG'}", flush=True
            )
            fine &= right
    several = [torch.randn(100, 90, device=device) * scale for scale in (0.02, 1.0, 1e9, 30.0)]
    fine &= fused_totals(several) == [fused_totals([one])[0] for one in several]
    print(f"the kernel took {took} tensors")
    return fine and took > 60  # else Triton is missing, and nothing was compared


def error(tensor: Tensor, totals: tuple[float, ...]) -> float:
    """The largest difference of a mean from its definition in float64, over the terms' size."""
    got = means_of_totals(np.array([totals], np.float64))[0]
    if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
        return 0.0 if np.isnan(got).all() else math.inf
    narrow = tensor.float()
    x, largest = narrow.double(), torch.finfo(torch.float32).max
    worst = 0.0
    for operation, value in zip(UNARY, got.tolist(), strict=True):
        # Where terms cancel, a sum rounds in proportion to them.
        sizes = {"minmax": 1.0, "logsoftmax": 1.0 + x.abs().max().item(), "normalize": 1.0}
        sizes |= dict.fromkeys(("mean", "meansum", "identity", "negate"), x.abs().mean().item())
        if operation.name == "invert":  # its shift is float32's
            shifted = (narrow + 1e-9).double()
            elements = torch.where(shifted == 0, 0.0, shifted.reciprocal())
        else:
            elements = operation.formula(x)
        expected = elements.mean().item()
        if operation.name in ("exp", "square") and elements.max().item() > largest:
            worst = max(worst, 0.0 if value == math.inf else math.inf)
            continue
        size = sizes.get(operation.name, elements.abs().mean().item())
        apart = abs(expected - value)
        if apart > 1e-42:  # the last digit of a denormal
            worst = max(worst, apart / size if size > 0.0 else math.inf)
    return worst


def check_architectures(device: str) -> bool:
    """Compare statistics and every proxy's scores of small architectures with the CPU's."""
    specs, batch = small_architectures(), Batch(size=4, length=12)
    chains = [(one,) for one in OPERATIONS if one not in NOISY]
    chains += [("abs", "sqrt"), ("square", "l1"), ("frobenius", "log")]
    names = [entry.name for entry in CATALOG]
    found = {}
    for place in ("cpu", device):
        with tempfile.TemporaryDirectory() as folder:
            at = {"name": "check", "folder": Path(folder), "batch": batch}
            at["workers"] = Workers(1, device=place)
            start = time.perf_counter()
            scores = np.stack(list(score_proxies(specs, names, **at).values()))
            values = collect(specs, chains, **at).values
            print(f"{len(specs)} architectures on {place}: {time.perf_counter() - start:.1f} s")
            found[place] = scores, values
    return compare(names, found["cpu"][0], found[device][0]) & compare(
        [f"statistics of {name}" for name in INPUT_NAMES],
        *(found[place][1].swapaxes(0, 1) for place in ("cpu", device)),
    )


def compare(names: Sequence[str], on_cpu: np.ndarray, on_gpu: np.ndarray) -> bool:
    """Print the largest relative difference of each row; whether all are small."""
    fine = True
    for name, first, second in zip(names, on_cpu, on_gpu, strict=True):
        there = np.isfinite(first)
        alike = np.array_equal(there, np.isfinite(second))
        sizes = np.abs(first[there]).astype(float)
        apart = np.abs(first[there] - second[there]) if alike else np.array([math.inf])
        # Of what nearly cancels the absolute difference counts.
        worst = (apart / np.maximum(sizes, 1e-3 * sizes.max(initial=1e-30))).max(initial=0.0)
        print(f"{name:<28} {worst:9.1e}{'' if worst <= SCORE_LIMIT else '  WRONG'}", flush=True)
        fine &= bool(worst <= SCORE_LIMIT)
    return fine


def small_architectures() -> list[FlexibertSpec | Gpt2Spec | LlamaSpec]:
    """One of every mixer, a GPT-2 and a LLaMA."""
    shared = {"width": 32, "vocabulary": 100, "max_length": 16}
    blocks = [(mixer, "SDP") for mixer in MIXERS]
    encoders = [
        FlexibertSpec(
            blocks=tuple(
                FlexibertBlock(mixer=one, heads=2, feed_forward=48, stack=2) for one in pair
            ),
            embedding_width=16,
            **shared,
        )
        for pair in blocks
    ]
    decoders = [
        Gpt2Spec(heads=(2, 4), inner=(48, 64), embedding_width=16, **shared),
        LlamaSpec(heads=(2, 4), key_value_heads=(1, 4), inner=(48, 64), **shared),
    ]
    return [*encoders, *decoders]


if __name__ == "__main__":
    main()
