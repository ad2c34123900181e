"""Kill commands at random moments, continue each, and compare with an undisturbed run.

    python bench/kills.py --kills 60 --seed 0

Every command works on small inputs that are made here.  A kill is SIGKILL, SIGTERM or SIGINT, to
the main process alone or to its whole group.  Checked: the command ends within five seconds of a
signal that it can handle, with the right exit code and one line; ten seconds later none of its
processes is left; the same command then ends well, with the same result; the study holds every
pair once; and no draft is left.  Needs Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

MARKER = "LMSCOUT_KILLS"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PROGRESS = re.compile(r"[a-z ]+: (\d+/\d+|\d+ s)(, .*)?")  # a line of a stage
GRACE = 5.0  # seconds in which a stopped command ends
ORPHANS = 10.0  # seconds in which all of its processes do
CHANGING = ("second", "time", "peak", "speed", "version")  # parts of fields that differ by run
SPACE = {
    "depths": [1, 2],
    "widths": [8, 16],
    "head_sizes": [8],
    "expansions": [1.0, 2.0],
    "vocabulary": 4096,
    "max_length": 8,
}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind.

    Attributes:
        result: what it found, comparable between runs.
        pairs: of its study, in the order of their trials.
        drafts: files and folders that it should have removed.
    """

    result: dict[str, Any]
    pairs: tuple[str, ...]
    drafts: tuple[str, ...]


def commands(inputs: Path) -> dict[str, list[str]]:
    """The arguments of every command by name; they write to `out` and `result.json` here."""
    mine, model = f"bench:{inputs / 'mine'}", str(inputs / "model")
    text, other = str(inputs / "text.txt"), str(inputs / "other.txt")
    run, result = ["--out", "out"], ["--json", "result.json"]
    two = ["--workers", "2"]
    deep = ["--space", "deep", "--search", "8", "--evaluations", "300", "--searches", "1"]
    prune = ["prune", model, "--calibration", text, "--report", other, *run, *result]
    found = {
        "discover published": ["discover", mine, "--search", "8", *two, *run, *result],
        "discover deep": ["discover", mine, *deep, *two, *run, *result],
        "rank": ["rank", mine, "--proxy", "snip", "--proxy", "synflow", *two, *run, *result],
        "explain": ["explain", "snip", mine, *two, *result],
        "design": [
            *("design", str(inputs / "small.json"), "--proxy", "snip", "--max-params", "100k"),
            *("--evaluations", "100", *two, "--out", "spec.json", *result),
        ],
        "prune": [*prune, "--keep", "0.8", "--pairs", "24"],
        "prune sizes": [*prune, "--keep", "0.9,0.7", "--pairs", "24"],
        "prune uniform": [*prune, "--keep", "0.8", "--shape", "uniform", "--pairs", "24"],
        "prune proxy": [*prune, "--keep", "0.8", "--objective", "proxy:snip"],
        "bench build": [
            *("bench", "build", str(inputs / "small.json"), "--n", "8", "--tokens", "2560"),
            *("--text", text, "--seeds", "1", "--device", "cpu", *two, *run),
        ],
        "eval": ["eval", model, "--perplexity", other, *result],
    }
    if importlib.util.find_spec("peft"):
        recover = ["--recover", "distill", "--recover-steps", "8", "--recover-batch", "256"]
        found["prune recover"] = [*prune, "--keep", "0.8", "--pairs", "24", *recover]
    return found


def make_inputs(folder: Path) -> None:
    """A small model, two texts, a space and a benchmark."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # as drawn, nothing that is cut would change anything
                weight.mul_(3)
    model.save_pretrained(folder / "model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder / "model")
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghij", k=drawn.randint(2, 7))) for _ in range(300)]
    for name, count in (("text.txt", 4000), ("other.txt", 400)):
        (folder / name).write_text(" ".join(drawn.choices(words, k=count)))
    (folder / "small.json").write_text(json.dumps(SPACE))
    build = ["bench", "build", str(folder / "small.json"), "--n", "16", "--tokens", "2560"]
    build += [
        "--text",
        str(folder / "text.txt"),
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--workers",
        "1",
        "--out",
        str(folder / "mine"),
    ]
    done = subprocess.run(
        lmscout(build), capture_output=True, text=True, check=False, env=environment(folder)
    )
    if done.returncode:
        raise SystemExit(f"the benchmark cannot be built: {done.stderr}")


def lmscout(arguments: list[str]) -> list[str]:
    """The command line of lmscout as imported here."""
    return [sys.executable, "-m", "lmscout", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """An environment with a cache, and a place for temporary files, in a folder."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "LMSCOUT_CACHE": str(folder / "cache"),
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def processes(token: str) -> list[int]:
    """The processes whose environment holds a marker."""
    wanted = f"{MARKER}={token}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                marked = wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0")
                ended = ") Z " in Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            if marked and not ended:
                found.append(int(entry))
    return found


def run(arguments: list[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Run a command to its end: its exit code and what it said on standard error."""
    done = subprocess.run(
        lmscout(arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=folder,
        env=environment(folder),
        timeout=seconds,
    )
    return done.returncode, done.stderr


def kill(
    arguments: list[str], folder: Path, number: signal.Signals, group: bool, moment: float
) -> list[str] | float:
    """Run a command and stop it after some seconds.

    Returns:
        What is wrong with its end; the seconds that it took where it ended before.
    """
    token = f"{os.getpid()}-{folder.name}"
    faults: list[str] = []
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            lmscout(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env={**environment(folder), MARKER: token},
            start_new_session=True,
        )
        started = time.monotonic()
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            (os.killpg if group else os.kill)(process.pid, number)
        else:
            return time.monotonic() - started
        started = time.monotonic()
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            code = 0
            faults.append("does not end within 60 s")
        took = time.monotonic() - started
        while (left := processes(token)) and time.monotonic() - started < ORPHANS + took:
            time.sleep(0.2)
        errors.seek(0)
        said = errors.read()
    if left:
        faults.append(f"{len(left)} processes are left")
        for one in left:
            os.kill(one, signal.SIGKILL)
    if number != signal.SIGKILL and code != 0:
        if code != 128 + number:
            faults.append(f"exit code {code}")
        if took > GRACE:
            faults.append(f"ends after {took:.1f} s")
        *progress, last = said.splitlines() or [""]
        shown = all(PROGRESS.fullmatch(line) for line in progress)
        if not shown or not last.startswith("lmscout: interrupted"):
            faults.append(f"says {said.strip()[-200:]!r}")
    elif "Traceback" in said:
        faults.append(f"says {said.strip()[-200:]!r}")
    return faults


def outcome(folder: Path) -> Outcome:
    """Read what a command has left in the folder that it ran in."""
    result: dict[str, Any] = {}
    for name in ("result.json", "spec.json"):
        if (folder / name).exists():
            text = (folder / name).read_text().replace(str(folder), "")  # each run has its own
            result[name] = _steady(json.loads(text))
    table = folder / "out" / "table.jsonl"
    if table.exists():
        result["table"] = [_steady(json.loads(line)) for line in table.read_text().splitlines()]
    for weights in sorted(folder.glob("out/**/*.safetensors")):
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        result[str(weights.relative_to(folder))] = digest
    drafts = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if "tmp" not in path.relative_to(folder).parts[:1]
        and (
            path.name.endswith((".part", ".tmp", ".lmscout-draft")) or path.name.startswith(".out")
        )
    ]
    return Outcome(result, _pairs(folder), tuple(drafts))


def _pairs(folder: Path) -> tuple[str, ...]:
    """Parameters and value of every trial, in order; one that is not finished says so."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pairs = []
    for path in sorted(folder.glob("out/**/*.db")):
        storage = f"sqlite:///{path}"
        for name in optuna.get_all_study_names(storage):
            for trial in optuna.load_study(study_name=name, storage=storage).trials:
                params = json.dumps(trial.params, sort_keys=True)
                state = "" if trial.state.is_finished() else f" {trial.state.name}"
                pairs.append(f"{name} {params}{state}")
    return tuple(pairs)


def _steady(value: Any) -> Any:
    """JSON without what differs between two runs of one command."""
    if isinstance(value, dict):
        return {
            key: _steady(one)
            for key, one in value.items()
            if not any(part in key.lower() for part in CHANGING)
        }
    return [_steady(one) for one in value] if isinstance(value, list) else value


def compare(found: Outcome, wanted: Outcome) -> list[str]:
    """What is wrong with a run that was killed and continued."""
    faults = []
    for name, value in wanted.result.items():
        if found.result.get(name) != value:
            faults.append(f"another {name}")
    if len(set(found.pairs)) < len(found.pairs):
        faults.append(f"{len(found.pairs) - len(set(found.pairs))} pairs twice")
    if lost := set(wanted.pairs) - set(found.pairs):
        faults.append(f"{len(lost)} pairs lost")
    if more := set(found.pairs) - set(wanted.pairs):
        faults.append(f"{len(more)} other pairs")
    if found.drafts:
        faults.append(f"left {', '.join(found.drafts[:3])}")
    return faults


def main() -> int:
    """Kill, continue, compare; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of commands, with commas between")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a command")
    arguments = parser.parse_args()
    drawn = random.Random(arguments.seed)
    base = Path(tempfile.mkdtemp(prefix="lmscout-kills-"))
    print(f"in {base}", flush=True)
    try:
        table, failed = _all(base, arguments, drawn)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    Console(width=160).print(table)
    print(f"{arguments.kills} kills, {failed} failed")
    return 1 if failed else 0


def _all(base: Path, arguments: argparse.Namespace, drawn: random.Random) -> tuple[Table, int]:
    inputs = base / "inputs"
    inputs.mkdir()
    make_inputs(inputs)
    known = commands(inputs)
    names = arguments.only.split(",") if arguments.only else list(known)
    order = [names[place % len(names)] for place in range(arguments.kills)]
    table = Table()
    for column in ("command", "signal", "to", "after", "of", "faults"):
        table.add_column(column, overflow="fold")
    wanted: dict[str, tuple[Outcome, float]] = {}
    failed = 0
    for place, name in enumerate(order):
        if name not in wanted:
            wanted[name] = _undisturbed(
                known[name], base / f"whole-{len(wanted)}", arguments.timeout
            )
        whole, duration = wanted[name]
        number, group = drawn.choice(SIGNALS), drawn.random() < 0.5
        folder = base / f"kill-{place}"
        while True:
            folder.mkdir()
            moment = drawn.uniform(0.05, duration)
            faults = kill(known[name], folder, number, group, moment)
            if isinstance(faults, list):
                break
            duration = faults  # the machine was busier in the undisturbed run
            shutil.rmtree(folder)
        try:
            code, said = run(known[name], folder, arguments.timeout)
            if code:
                faults.append(f"continued: exit code {code}: {said.strip()[-200:]}")
            else:
                faults += compare(outcome(folder), whole)
        except subprocess.TimeoutExpired:
            faults.append("continued: does not end")
        to = "group" if group else "main"
        row = (name, number.name, to, f"{moment:.1f} s", f"{duration:.1f} s", "; ".join(faults))
        print(*row, flush=True)
        table.add_row(*row)
        failed += bool(faults)
        shutil.rmtree(folder)
    return table, failed


def _undisturbed(arguments: list[str], folder: Path, seconds: float) -> tuple[Outcome, float]:
    folder.mkdir()
    started = time.monotonic()
    try:
        code, said = run(arguments, folder, seconds)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(arguments[:2])} takes more than {seconds:g} s") from None
    if code:
        raise SystemExit(f"{' '.join(arguments[:2])} fails undisturbed: {said.strip()}")
    return outcome(folder), time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
