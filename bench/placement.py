"""A model on one device and spread over two: the same results, and more than one device may hold.

    python bench/placement.py [--devices cuda:0+cuda:1] [--out FILE]
    python bench/placement.py --devices cpu:0+cpu:1 --blocks 4 --width 64

First a small LLaMA of random weights, tied and not: the order of its units, the losses of plans
and the weights of a refit model are compared between one device and two, and so is the folder that
`lmscout.prune` saves.  On equal GPUs they are expected to be equal bit for bit; at most a relative
difference of 1e-5 is accepted.  Then a LLaMA of random weights in bfloat16 that is larger than
what the process may take of one device (`--cap` GiB): `lmscout.prune` is given both devices and
places it by itself.  Each comparison is a line of OK or FAILED; the script ends with 1 if one
failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# So near the limit, segments of fixed sizes leave too much unused.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import lmscout
from lmscout.builtin import corpus_text, load_tokenizer
from lmscout.evaluation import devices_of, load_config
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.estimate import estimate
from lmscout.pruning.families import family_of
from lmscout.pruning.placement import block_devices, place, spread
from lmscout.pruning.plan import Plan
from provenance import commit

GIB = 2**30
TOLERANCE = 1e-5  # relative
SMALL = CalibrationConfig(
    window=64, measured_tokens=2_048, final_tokens=2_048, moment_tokens=8_192, gradient_windows=16
)
KEEP = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="cuda:0+cuda:1")
    parser.add_argument("--cap", type=float, default=6.4, help="GiB of each device")
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", choices=("small", "large"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    devices = devices_of(arguments.devices)
    record = {"machine": machine(devices), "commit": commit(), "torch": torch.__version__}
    record |= {"transformers": transformers.__version__, "checks": {}}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "large":
            for tied in (False, True):
                small(Path(folder), devices, record, tied=tied)
        if arguments.only != "small":
            large(Path(folder), devices, record, arguments)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    sys.exit(not all(record["checks"].values()))


def machine(devices: tuple[torch.device, ...]) -> list[str]:
    cuda = devices[0].type == "cuda"
    return [torch.cuda.get_device_name(one) if cuda else str(one) for one in devices]


def check(record: dict, name: str, passed: bool, figure: object = "") -> None:
    record["checks"][name] = bool(passed)
    print("OK    " if passed else "FAILED", name, figure, flush=True)


def difference(ours: dict, theirs: dict) -> float:
    """The largest difference of tensors of the same names, by the largest number of each."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, one in ours.items():
        other = theirs[name].cpu().double()
        scale = max(float(other.abs().max()), 1e-30)
        worst = max(worst, float((one.cpu().double() - other).abs().max()) / scale)
    return worst


def write_model(folder: Path, config: LlamaConfig, device: torch.device) -> None:
    """A model of random weights in bfloat16 or float32, with the built-in tokenizer."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=config.dtype)
    model.save_pretrained(folder, max_shard_size="2GB")
    load_tokenizer().save_pretrained(folder)


def small(folder: Path, devices: tuple[torch.device, ...], record: dict, *, tied: bool) -> None:
    """One device against all, step by step and by `lmscout.prune`."""
    name = "tied" if tied else "untied"
    source = folder / name
    config = LlamaConfig(
        vocab_size=len(load_tokenizer()),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        dtype="float32",
    )
    write_model(source, config, devices[0])
    windows = load_tokenizer()(corpus_text("train")[:400_000], return_tensors="pt")["input_ids"][0]
    windows = windows[: len(windows) // 64 * 64].view(-1, 64)
    plans = [
        Plan(tuple(4 - (block + one) % 5 for block in range(6)), (352 - 40 * one,) * 6)
        for one in range(6)
    ]
    plans.append(Plan((4, 4, 4, 0, 0, 0), (352, 352, 352, 0, 0, 0)))  # nothing on the last device
    plans.append(Plan((0, 0, 0, 4, 4, 4), (0, 0, 0, 352, 352, 352)))  # nothing on the first
    found = []
    for several, in_host in ((False, False), (True, False), (True, True)):
        loaded = lmscout.load_model(str(source), device=str(devices[0]))
        model, family = loaded.model, family_of(loaded.model.config)
        if several:
            place(model, family, spread(model, family, devices))
            where = Counter(map(str, block_devices(model, family)))
            print(f"{name}: {dict(where)}, in_host {in_host}", flush=True)
        calibrated = calibrate(model, windows, SMALL, in_host=in_host)
        measured = calibrated.evaluator(calibrated.measured).measure(plans)
        trajectories = [one.trajectory for one in measured]
        refit = calibrated.subnetwork(plans[1], "refit")
        held_out = calibrated.measured_held_out(refit).loss_increase
        states = [{k: v.cpu() for k, v in one.state_dict().items()} for one in (model, refit)]
        found.append((states, trajectories, held_out))
    (dense, cut), trajectories, held_out = found[0]
    for label, (other_states, other_trajectories, other_held_out) in zip(
        ("two devices", "two devices, factors in the host's memory"), found[1:], strict=True
    ):
        moved = difference(dense, other_states[0])
        check(record, f"{name}, {label}: order of the units", moved == 0, f"({moved:.3g})")
        gaps = [
            abs(one[-1][1] - other[-1][1])
            for one, other in zip(trajectories, other_trajectories, strict=True)
        ]
        check(record, f"{name}, {label}: pairs", max(gaps) <= TOLERANCE, f"({max(gaps):.3g})")
        gap = difference(cut, other_states[1])
        check(record, f"{name}, {label}: refit weights", gap <= TOLERANCE, f"({gap:.3g})")
        gap = abs(held_out - other_held_out)
        check(record, f"{name}, {label}: refit model's loss", gap <= TOLERANCE, f"({gap:.3g})")
    if not tied:
        by_the_command(folder, source, devices, record)


def by_the_command(
    folder: Path, source: Path, devices: tuple[torch.device, ...], record: dict
) -> None:
    """`lmscout.prune` on one device and on all."""
    text = folder / "text.txt"
    text.write_text(corpus_text("train")[:400_000], "utf-8")
    report = folder / "report.txt"
    report.write_text(corpus_text("test")[:30_000], "utf-8")
    results = []
    for device in (str(devices[0]), "+".join(map(str, devices))):
        results.append(
            lmscout.prune(
                str(source),
                keep=0.7,
                calibration=str(text),
                report=str(report),
                out=folder / f"small-{len(results)}",
                config=PruneConfig(pairs=20, calibration=SMALL),
                device=device,
                progress=False,
            )
        )
    (one,), (other,) = (result.sizes for result in results)
    check(record, "lmscout.prune: plan", one.plan == other.plan)
    gap = difference(*(load_file(size.folder / "model.safetensors") for size in (one, other)))
    check(record, "lmscout.prune: saved weights", gap <= TOLERANCE, f"({gap:.3g})")
    perplexities = [[row.perplexity.value for row in size.models] for size in (one, other)]
    gap = max(abs(a / b - 1) for a, b in zip(*perplexities, strict=True))
    check(record, "lmscout.prune: perplexities of the report", gap <= TOLERANCE, f"({gap:.3g})")


def large(
    folder: Path,
    devices: tuple[torch.device, ...],
    record: dict,
    arguments: argparse.Namespace,
) -> None:
    """A model larger than a device, by `lmscout.prune` with both devices."""
    cuda = devices[0].type == "cuda"
    width = arguments.width
    config = LlamaConfig(
        vocab_size=len(load_tokenizer()),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=max(4, width // 64),
        num_key_value_heads=max(2, width // 256),
        max_position_embeddings=256,
        dtype="bfloat16",
    )
    source = folder / "large"
    seconds = {}
    timed(seconds, "random model written", lambda: write_model(source, config, devices[0]))
    gc.collect()
    if cuda:
        for one in devices:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(one).total_memory
            torch.cuda.set_per_process_memory_fraction(arguments.cap * GIB / total, one)
            torch.cuda.reset_peak_memory_stats(one)
    request = PruneConfig(
        keep=(KEEP,),
        pairs=arguments.pairs,
        devices=devices[1:],
        split=not cuda,
        calibration=dataclasses.replace(SMALL, window=128, moment_tokens=16_384),
    )
    dense = load_config(str(source))
    predicted = estimate(dense, request, dtype=torch.bfloat16, device=devices[0])
    weights = predicted.parameters * 2
    print(f"weights {weights / GIB:.2f} GiB, cap {arguments.cap:g} GiB; predicted:", flush=True)
    print(json.dumps(predicted.to_json()), flush=True)
    text = folder / "text.txt"
    text.write_text(corpus_text("train")[:400_000], "utf-8")
    peaks: dict[str, list[float]] = {}
    begun: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        """Seconds since the stage's first report, and the peak so far."""
        begun.setdefault(stage, time.perf_counter())
        seconds[stage] = time.perf_counter() - begun[stage]
        if cuda:
            peaks[stage] = [torch.cuda.max_memory_allocated(one) / GIB for one in devices]
        if done == total:
            print(f"{stage}: {seconds[stage]:.1f} s, peaks so far {peaks.get(stage)}", flush=True)

    result = timed(
        seconds,
        "lmscout.prune",
        lambda: lmscout.prune(
            str(source),
            calibration=str(text),
            out=folder / "smaller",
            config=request,
            device=("," if cuda else "+").join(map(str, devices)),
            progress=progress,
        ),
    )
    (size,) = result.sizes
    check(record, "large: saved", (size.folder / "config.json").is_file())
    check(record, "large: pairs measured", result.pairs >= arguments.pairs, f"({result.pairs})")
    check(record, "large: refit", all(one.refit is not None for one in size.finalists[:1]))
    check(record, "large: spread", len(predicted.parts) == len(devices), predicted.in_host)
    if cuda:
        allocated = [torch.cuda.max_memory_allocated(one) / GIB for one in devices]
        reserved = [torch.cuda.max_memory_reserved(one) / GIB for one in devices]
        larger = weights > arguments.cap * GIB
        check(record, "large: weights exceed one device", larger, f"({weights / GIB:.2f} GiB)")
        check(record, "large: within the cap", max(reserved) <= arguments.cap, reserved)
        record["peak_allocated_gib"], record["peak_reserved_gib"] = allocated, reserved
    record |= {"cap_gib": arguments.cap, "weights_gib": weights / GIB, "seconds": seconds}
    record |= {"predicted": predicted.to_json(), "plan": size.plan.as_dict()}
    record |= {"loss_increase_refit": size.finalists[0].refit, "peaks_by_stage_gib": peaks}


def timed(seconds: dict[str, float], name: str, work: Callable):
    started = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - started
    print(f"{name}: {seconds[name]:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
