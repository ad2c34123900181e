"""Give hostile variants of valid inputs to every reader.

No exception but LmscoutError may come out, no input may take more than five seconds, and memory
may grow by at most a gigabyte.

    python bench/fuzz.py --seconds 600              # every reader, ten minutes each
    python bench/fuzz.py --seconds 60 spaces lts    # two of them

Each reader runs in a process of its own, so that a crash of the interpreter is found as well.
Inputs that fail are kept in the folder that `--keep` names.  Hypothesis draws the variants,
from `--seed`; what is done to an example is in hostile_inputs.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from hostile_inputs import (
    Mutate,
    mutate_bytes,
    mutate_json,
    mutate_safetensors,
    mutate_words,
    mutate_yaml,
)
from lmscout.errors import LmscoutError

SLOW = 5.0  # seconds of computing that an input may take
HUNG = 60.0  # seconds by the clock
MOST_MEMORY = 2**30  # bytes beyond those held at the start
_GRACE = 600  # seconds for the start and the end of a process


@dataclass(frozen=True)
class Example:
    """A valid input.

    Attributes:
        files: of which one is changed, below the reader's folder; none for text.
        run: reads them from the folder.
    """

    files: dict[str, tuple[bytes, Mutate]]
    run: Callable[[Path], object]


@dataclass
class Found:
    """What a reader came to.

    Attributes:
        tried: inputs.
        accepted: of them, that were read.
        slowest: seconds of computing that an input took.
        failures: by kind and place, with the folder that holds the first such input.
    """

    tried: int = 0
    accepted: int = 0
    slowest: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


class TooSlowError(BaseException):
    """An input took more than its time."""


class _TimeIsUp(KeyboardInterrupt):
    pass


def fuzz(reader: str, seconds: float, seed: int, keep: Path | None = None) -> Found:
    """Run a reader on hostile inputs for so many seconds.

    Args:
        reader: one of `READERS`.
        seconds: of all inputs together.
        seed: of what is drawn.
        keep: folder for inputs that fail; None to keep none.

    Returns:
        What it came to.
    """
    import hypothesis
    from hypothesis import strategies

    found = Found()
    with tempfile.TemporaryDirectory(prefix="lmscout-fuzz-") as scratch:
        home = Path(scratch)
        examples = READERS[reader](home)
        for number, example in enumerate(examples):  # each valid example is read
            example.run(_written(home / f"valid-{number}", {}, example))
        with _bounded_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ends = time.monotonic() + seconds

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=10**9,
                deadline=None,
                database=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(strategies.integers(0, 2**64 - 1))
            def attempt(drawn: int) -> None:
                if time.monotonic() > ends:
                    raise _TimeIsUp
                _attempt(Random(drawn), examples, home / "input", found, keep)

            with suppress(_TimeIsUp):
                attempt()
    return found


def _attempt(
    rng: Random, examples: list[Example], folder: Path, found: Found, keep: Path | None
) -> None:
    example = rng.choice(examples)
    name = rng.choice(sorted(example.files))
    content, mutate = example.files[name]
    changed = mutate(content, rng)
    _written(folder, {name: changed}, example)
    if keep is not None:
        (keep / "last").write_bytes(f"{name}\0".encode() + changed)
    found.tried += 1
    started = time.process_time()
    try:
        with _time_limit():
            example.run(folder)
        found.accepted += 1
    except LmscoutError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            _note(found, keep, f"message of {len(str(error))} characters or several lines: "
                  f"{str(error)[:150]!r}", name, changed)  # fmt: skip
    except (Exception, TooSlowError) as error:
        _note(found, keep, _place(error), name, changed)
    found.slowest = max(found.slowest, time.process_time() - started)


def _note(found: Found, keep: Path | None, what: str, name: str, changed: bytes) -> None:
    if what in found.failures:
        return
    found.failures[what] = ""
    if keep is not None:
        path = keep / f"{len(found.failures):03}-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}"
        path.write_bytes(changed)
        found.failures[what] = str(path)


def _place(error: BaseException) -> str:
    """The kind of an exception and the last line of lmscout that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if f"{os.sep}lmscout{os.sep}" in one.filename] or frames
    return (
        f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}: "
        f"{' '.join(str(error).split())[:150]}"
    )


def _written(folder: Path, changed: dict[str, bytes], example: Example) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, (content, _) in example.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed.get(name, content))
    return folder


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {SLOW} seconds")

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, SLOW),
        (signal.SIGALRM, signal.ITIMER_REAL, HUNG),
    )
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let the address space grow by a gigabyte: what needs more raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# The readers, each with examples that it accepts.


def _text(folder: Path) -> str:
    return (folder / "text").read_bytes().decode("utf-8", "replace").replace("\r", " ")


def _read_expression(folder: Path) -> None:
    from lmscout.discovery import signed_proxy
    from lmscout.proxies import (
        Entry,
        as_expression,
        format_expression,
        parse,
        resolve,
        to_latex,
        to_torch,
    )

    text = _text(folder)
    signed = signed_proxy(text)
    if signed_proxy(str(signed)) != signed:
        raise AssertionError(f"{signed} is read as another proxy")
    proxy = resolve(signed.name)
    if not isinstance(proxy, Entry) and parse(format_expression(proxy)) != proxy:
        raise AssertionError(f"{format_expression(proxy)} is read as another proxy")
    expression = as_expression(proxy)
    if expression is not None:
        to_latex(expression)
        to_torch(expression)


def _expressions(texts: tuple[str, ...], words: tuple[str, ...]) -> list[Example]:
    mutate = partial(mutate_words, words=words)
    return [Example({"text": (text.encode(), mutate)}, _read_expression) for text in texts]


def expressions(home: Path) -> list[Example]:
    """Proxies of the published form."""
    from lmscout.proxies.primitives import AGGREGATION, INPUT, UNARY_OPERATION

    words = (*AGGREGATION, *INPUT, *UNARY_OPERATION, *"()+-*@", "-", "²", "1", "é")
    texts = ("sum(abslog(head) - sqrt(weight))", "mean(abs(grad))", "-snip", "max(std(exp(act)))")
    return _expressions(texts, words)


def deep_expressions(home: Path) -> list[Example]:
    """Proxies of the deep space."""
    from lmscout.proxies.primitives import PRIMITIVES

    words = (*(word.name for word in PRIMITIVES), *"()+-*/,", "0.5", "3", "9" * 400, "1.", "²")
    texts = (
        "sum(total(abs(mul(weight, grad)))) / params",
        "-(sum(total(abs(mul(weight, grad)))) - 0.5 * depth)",
        "params / depth",
    )
    return _expressions(texts, words)


def _spec_examples() -> list[dict[str, Any]]:
    from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec

    blocks = tuple(
        FlexibertBlock(mixer=mixer, heads=2, feed_forward=16, stack=2)
        for mixer in ("SDP", "WMA", "DFT", "DCT", "DSC5")
    )
    return [
        one.to_dict()
        for one in (
            FlexibertSpec(width=8, blocks=blocks, embedding_width=4, vocabulary=64, max_length=16),
            Gpt2Spec(
                width=16,
                heads=(2, 0),
                inner=(0, 32),
                embedding_width=16,
                divisor=2,
                cutoffs=(20, 30),
                tied=(True, False, True),
                vocabulary=64,
                max_length=16,
            ),
            LlamaSpec(
                width=16,
                heads=(4, 2),
                key_value_heads=(2, 1),
                inner=(24, 8),
                vocabulary=64,
                max_length=16,
            ),
        )
    ]


def _read_spec(folder: Path) -> None:
    from lmscout.models import spec_from_dict
    from lmscout.reading import read_json
    from lmscout.statistics import Batch
    from lmscout.statistics.single_pass import Batch as OneBatch

    spec = spec_from_dict(read_json(folder / "spec.json"))
    spec.require_memory()
    hash(spec)
    if spec_from_dict(spec.to_dict()) != spec:
        raise AssertionError("a spec is read back as another")
    if spec.pass_bytes() < 2**24:
        batch: OneBatch = Batch(2, 4)
        spec.build(0).loss(batch.tokens(spec)).backward()


def specs(home: Path) -> list[Example]:
    """Architecture specs as JSON."""
    return [
        Example({"spec.json": (json.dumps(one).encode(), mutate_json)}, _read_spec)
        for one in _spec_examples()
    ]


def _read_space(folder: Path) -> None:
    import numpy as np

    from lmscout.benchmarks.limits import limited, limits_of
    from lmscout.benchmarks.space import load_space, sample

    space = load_space(str(folder / "space.json"))
    sample(space, 3, 0)
    within = limited(space, limits_of(10**6))
    within.mutate(within.draw(np.random.default_rng(0)), np.random.default_rng(0))


def spaces(home: Path) -> list[Example]:
    """Spaces that users write."""
    space = {
        "families": ["gpt2", "llama"],
        "depths": [1, 2, 3],
        "widths": [16, 32],
        "head_sizes": [4, 8],
        "expansions": [1, 2.0],
        "groups": [1, 2],
        "missing": [0.0, 0.3],
        "vocabulary": 128,
        "max_length": 32,
    }
    return [Example({"space.json": (json.dumps(space).encode(), mutate_json)}, _read_space)]


def _load(folder: Path, name: str) -> None:
    from lmscout.benchmarks.loading import load

    for spec in load(name.format(folder)).specs:
        spec.parameters()


def flexibert(home: Path) -> list[Example]:
    """Upstream's file of FlexiBERT encoders."""
    layer = {
        "operation_type": "SA",
        "operation_parameter": "WMA",
        "num_operation_heads": 4,
        "feed_forward_dimension": 1024,
        "num_feed_forward": 3,
    }
    other = {**layer, "operation_type": "DSC", "operation_parameter": 9}
    rows = [
        {
            "id": number,
            "scores": {"glue": 70.0 + number},
            "hparams": {
                "model_hparam_overrides": {
                    "hidden_size": 128,
                    "nas_config": {"encoder_layers": [layer, other]},
                }
            },
        }
        for number in range(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    read = partial(_load, name="flexibert:{}/b.json")
    return [
        Example({"b.json": (text.encode(), mutate_json)}, read)
        for text in (json.dumps(rows), lines)
    ]


def lts(home: Path) -> list[Example]:
    """A folder of LiteTransformerSearch."""
    import yaml

    config = {
        "adaptive": True,
        "cutoffs": [19997, 39997, 199997, 50264],
        "d_embed": 256,
        "d_head": -1,
        "d_inner": [1071, 640],
        "d_model": 128,
        "div_val": 4,
        "n_head": [2, 8],
        "n_layer": 2,
        "n_token": 50264,
        "tgt_len": 192,
        "tie_projs": [False, True, True, True],
    }
    names = ("config_0/j0", "config_0/j1")
    files = {
        f"{name}/model_config.yaml": (yaml.safe_dump(config).encode(), mutate_yaml)
        for name in names
    }
    summary = {name.replace("/", "_"): {"valid_ppl": 20.0} for name in names}
    files["ppl_summary.yaml"] = (yaml.safe_dump(summary).encode(), mutate_yaml)
    return [Example(files, partial(_load, name="lts:{}"))]


def _read_table(folder: Path) -> None:
    from lmscout.benchmarks.check import check

    _load(folder, "bench:{}")
    check(folder)


def tables(home: Path) -> list[Example]:
    """A benchmark that `lmscout bench build` wrote."""
    specs = [
        {**_spec_examples()[2], "heads": [2] * depth, "key_value_heads": [2] * depth,
         "inner": [inner] * depth}
        for depth in (1, 2) for inner in (4, 8, 12)
    ]  # fmt: skip
    rows = [
        {
            "architecture": number,
            "seed": seed,
            "spec": spec,
            "parameters": 100,
            "validation_loss": [6.0, 5.0 - 0.1 * number + 0.01 * seed],
            "seconds": 1.5,
            "device": "cpu",
        }
        for number, spec in enumerate(specs)
        for seed in range(2)
    ]
    files = {
        "settings.json": (json.dumps({"recipe": {"tokens": 1000}}).encode(), mutate_json),
        "table.jsonl": ("".join(json.dumps(one) + "\n" for one in rows).encode(), mutate_json),
    }
    return [Example(files, _read_table)]


def _read_checkpoint(folder: Path) -> None:
    from lmscout import evaluation

    loaded = evaluation.load_model(str(folder))
    text = evaluation.Text("text", "a text of some words. " * 40, "")
    protocol = evaluation.protocol_of("llm-pruner")
    evaluation.checked_tokens(loaded.model, loaded.tokenizer, text, protocol, None)
    evaluation.perplexity(loaded.model, loaded.tokenizer, text, protocol, batch_tokens=512)


def _llama(folder: Path, **options: Any) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lmscout.evaluation.quiet import quiet

    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder, **options)
    return folder


def checkpoints(home: Path) -> list[Example]:
    """A model's folder, in one file of weights and in several."""
    examples = []
    for name, options in (("whole", {}), ("shards", {"max_shard_size": "8KB"})):
        folder = _llama(home / name, **options)
        files: dict[str, tuple[bytes, Mutate]] = {}
        for file in folder.iterdir():
            mutate = mutate_json if file.suffix == ".json" else mutate_safetensors
            content = file.read_bytes()
            if file.name == "tokenizer.json":
                content = json.dumps(json.loads(content)).encode()
            files[file.name] = (content, mutate if file.suffix != ".jinja" else mutate_bytes)
        examples.append(Example(files, _read_checkpoint))
    return examples


def _mutate_study(content: bytes, rng: Random) -> bytes:
    """Change what a study says of itself or of a trial, or bytes of its file."""
    import sqlite3

    if rng.random() < 0.2:
        at = rng.randrange(len(content))
        return content[:at] + mutate_bytes(content[at : at + 4096], rng) + content[at + 4096 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        path.write_bytes(content)
        connection = sqlite3.connect(path)
        try:
            columns = (
                ("study_user_attributes", "value_json"),
                ("study_user_attributes", "key"),
                ("trial_user_attributes", "value_json"),
                ("trial_user_attributes", "key"),
                ("trial_params", "distribution_json"),
                ("trial_params", "param_value"),
                ("trial_values", "value"),
                ("trials", "state"),
                ("trials", "number"),
                ("studies", "study_name"),
            )
            table, column = rng.choice(columns)
            rows = connection.execute(f"select rowid, {column} from {table}").fetchall()
            if rows:
                row, value = rng.choice(rows)
                changed: Any = value
                if column.endswith("json"):
                    changed = mutate_json(str(value).encode(), rng).decode("utf-8", "replace")
                else:
                    changed = rng.choice((None, -1, 0, 1e308, 2**62, "x", float("inf"), b"\0"))
                connection.execute(
                    f"update or ignore {table} set {column} = ? where rowid = ?", (changed, row)
                )
            connection.commit()
        except sqlite3.Error:
            pass
        finally:
            connection.close()
        return path.read_bytes()


def _read_study(folder: Path) -> None:
    from lmscout.pruning.study import PairStudy
    from lmscout.pruning.study_record import read_recorded, recorded_chunks

    recorded = read_recorded(folder)
    recorded_chunks(folder)
    with PairStudy(folder, _shape(), recorded.settings) as pair_study:
        for pair in pair_study.pairs():
            pair_study.find(pair.plan)


def _shape() -> Any:
    from lmscout.pruning.plan import Shape

    return Shape((2, 2), (8, 8), (10, 10), (3, 3))


def studies(home: Path) -> list[Example]:
    """The study of a pruning run."""
    import torch

    from lmscout.pruning.calibration import CalibrationConfig
    from lmscout.pruning.plan import Plan
    from lmscout.pruning.study import Pair, PairStudy
    from lmscout.pruning.study_record import record_origin

    settings = {"model": "abc", "text": "def", "tokens": 100, "seed": 0, "compensate": True}
    with PairStudy(home / "study", _shape(), settings) as pair_study:
        record_origin(pair_study, "model", "text", CalibrationConfig(), torch.float32)
        for units in range(4):
            plan = Plan((1, 2), (units, 8))
            trajectory = ((50, 0.2), (100, 0.1 * units))
            pair_study.add(Pair(plan, 0.1 * units, 100, origin="drawn", trajectory=trajectory))
    (file,) = (home / "study").iterdir()
    return [Example({file.name: (file.read_bytes(), _mutate_study)}, _read_study)]


def _read_deep_run(folder: Path) -> None:
    from lmscout.discovery.symbolic_search import DeepSettings, begin_deep

    begin_deep(folder, [], DeepSettings(), search=[10], seed=0)


def _read_build(folder: Path) -> None:
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.built import read_rows
    from lmscout.runs import open_run

    run = open_run(folder, "bench build", {"n": 3, "recipe": {"tokens": 100}})
    if run.finished:
        run.load(Built)
    read_rows(folder)


def _read_saved(folder: Path) -> None:
    import torch

    from lmscout.pruning.export import check_plan, check_settings
    from lmscout.pruning.plan import Plan

    check_settings(folder, "any", {"keep": 0.8})
    check_plan(folder, Plan((1, 2), (3, 4)), torch.float32)


def _read_recovery(folder: Path) -> None:
    from lmscout.pruning.recovery.training import check_file, read_state

    file = folder / "state.safetensors"
    check_file(file, {"rank": 2})
    read_state(file)


def run_folders(home: Path) -> list[Example]:
    """Folders of runs that are continued: discover, bench build, prune, and its recovery."""
    import torch

    from lmscout.benchmarks.build import Built
    from lmscout.discovery.symbolic_search import DeepSettings, begin_deep
    from lmscout.pruning.export import CONFIG, RECORD
    from lmscout.pruning.plan import Plan
    from lmscout.pruning.recovery.training import State, write_state
    from lmscout.results import SCHEMA

    deep = begin_deep(home / "deep", [], DeepSettings(), search=[10], seed=0).folder
    row = tables(home)[0].files["table.jsonl"][0].splitlines()[0]
    state = home / "state.safetensors"
    tensors = {"a": torch.ones(2, 3)}, {"a/step": torch.ones(1)}
    write_state(state, State({"rank": 2}, (1.0,), 1.0, False, *tensors))
    record = {"shape": "any", "settings": {"keep": 0.8}, "plan": Plan((1, 2), (3, 4)).as_dict()}
    head = {"schema": SCHEMA, "command": "bench build"}
    settings = json.dumps(head | {"n": 3, "recipe": {"tokens": 100}}).encode()
    built = Built(home / "build", 3, 3, 0, (1.5, 2.5), 1.0)
    result = json.dumps(head | {"fields": built.to_dict()}).encode()
    return [
        Example(
            {"settings.json": ((deep / "settings.json").read_bytes(), mutate_json)}, _read_deep_run
        ),
        Example(
            {
                "settings.json": (settings, mutate_json),
                "result.json": (result, mutate_json),
                "rows/00000-0.json": (row, mutate_json),
            },
            _read_build,
        ),
        Example(
            {
                RECORD: (json.dumps(record).encode(), mutate_json),
                CONFIG: (b'{"dtype": "float32"}', mutate_json),
            },
            _read_saved,
        ),
        Example({state.name: (state.read_bytes(), mutate_safetensors)}, _read_recovery),
    ]


READERS: dict[str, Callable[[Path], list[Example]]] = {
    "expressions": expressions,
    "deep-expressions": deep_expressions,
    "specs": specs,
    "spaces": spaces,
    "flexibert": flexibert,
    "lts": lts,
    "tables": tables,
    "checkpoints": checkpoints,
    "studies": studies,
    "run-folders": run_folders,
}


def main() -> int:
    """Run readers, each in a process of its own, and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--here", action="store_true", help="run in this process")
    asked = parser.parse_args()
    unknown = [one for one in asked.readers if one not in READERS]
    if unknown:
        parser.error(f"unknown reader {unknown[0]}: there are {', '.join(READERS)}")
    failed = False
    for reader in asked.readers or READERS:
        keep = asked.keep / reader
        keep.mkdir(parents=True, exist_ok=True)
        if asked.here:
            found = fuzz(reader, asked.seconds, asked.seed, keep)
            print(f"{reader}: {found.tried:,} inputs, {found.accepted:,} of them read, slowest "
                  f"{found.slowest:.2f} s, {len(found.failures)} failures", flush=True)  # fmt: skip
            for what, path in found.failures.items():
                print(f"  {what} ({path})".encode("ascii", "backslashreplace").decode())
            failed |= bool(found.failures)
        else:
            failed |= _apart(reader, asked, keep)
    return int(failed)


def _apart(reader: str, asked: argparse.Namespace, keep: Path) -> bool:
    command = [sys.executable, __file__, reader, "--here", f"--seconds={asked.seconds}"]
    command += [f"--seed={asked.seed}", f"--keep={asked.keep}"]
    try:
        code = subprocess.run(command, check=False, timeout=asked.seconds + _GRACE).returncode
    except subprocess.TimeoutExpired:
        print(f"{reader}: no answer; the last input is {keep / 'last'}")
        return True
    if code not in (0, 1):
        print(f"{reader}: ended with code {code}; the last input is {keep / 'last'}")
    return code != 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
