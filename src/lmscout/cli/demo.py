"""`lmscout demo`: both halves on the built-in benchmark and model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.rule import Rule

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.discover import show as show_discovery
from lmscout.cli.options import OUTPUT, WorkersOption, option
from lmscout.cli.prune import show as show_pruning
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from lmscout.evaluation import Text
    from lmscout.pruning import CalibrationConfig

SEARCH = 40  # search architectures
SEQUENCES = 16  # per architecture: half of discover's default, in half the time
PAIRS = 110
KEEP = 0.8
LINE = "    def __repr__(self):\n        return"
# Proxies of the literature that need one pass per architecture.
COMPARED = (
    *("snip", "grad-norm", "synaptic-saliency", "head-importance", "attention-confidence"),
    "lpzero-flexibert",
)

NEXT = """
Now yours:
  lmscout prune MODEL --keep 0.8 --calibration YOUR_TEXT --report OTHER_TEXT --out smaller
  lmscout eval smaller --perplexity OTHER_TEXT
  lmscout discover flexibert --aggregations mean,sum
  lmscout bench build pico --n 240 --out mine
MODEL is a folder that save_pretrained wrote, or a name on the Hugging Face Hub."""


def demo(
    out: Annotated[
        Path | None,
        option(OUTPUT, "Keep the pruned model here; by default it is deleted.", metavar="FOLDER"),
    ] = None,
    workers: WorkersOption = -1,
) -> None:
    """Discover proxies and prune a model, with nothing to download.

    The benchmark and the small model are built in.  About three minutes on two cores; the
    statistics of the architectures, half of that, are cached.
    """
    started = time.perf_counter()
    screen = console.table_console()
    screen.print(Rule("1. Discover: which formula predicts a trained model's quality?"))
    _discover(workers)
    screen.print(Rule("2. Prune: which fifth of a trained model to remove?"))
    with tempfile.TemporaryDirectory(prefix="lmscout-") as folder:
        _prune(out or Path(folder) / "smaller")
    print(NEXT)
    console.say(f"{time.perf_counter() - started:.0f} s in all")


def _discover(workers: int) -> None:
    load_modules("lmscout.discovery")
    from lmscout import proxies
    from lmscout.benchmarks import load
    from lmscout.benchmarks.loading import cache_directory
    from lmscout.discovery import discover, rank_proxies
    from lmscout.statistics import Batch, Workers
    from lmscout.statistics.workers import worker_processes

    benchmark = load("pico")
    with worker_processes(), shown_progress() as progress:
        common = {
            "seed": 0,
            "cache": cache_directory() / "statistics",
            "batch": Batch(size=SEQUENCES),
            "workers": Workers(workers),
            "progress": progress,
        }
        space = proxies.published(("mean", "sum"))
        found = discover(benchmark, space, search=SEARCH, **common)  # type: ignore[arg-type]
        test = benchmark.subset(found.split.test)
        others = rank_proxies(test, COMPARED, **common)  # type: ignore[arg-type]
    show_discovery(found, others.proxies)


def _prune(out: Path) -> None:
    load_modules("lmscout.pruning.workflow")
    from lmscout.builtin import tiny_folder
    from lmscout.evaluation import load_model
    from lmscout.pruning import PruneConfig, prune

    request = PruneConfig(keep=(KEEP,), pairs=PAIRS, calibration=calibration_settings())
    with shown_progress() as progress:
        result = prune(
            load_model(str(tiny_folder())),
            calibration_text(),
            request,
            out,
            report_on=builtin_text("test", every=2),
            progress=progress,
        )
    show_pruning(result)
    print("\nThe saved model, loaded again, continues a line of Python:")
    loaded = load_model(str(out))
    tokens = loaded.tokenizer(LINE, return_tensors="pt")
    made = loaded.model.generate(**tokens, max_new_tokens=48, do_sample=False)  # type: ignore[operator]
    print(loaded.tokenizer.decode(made[0], skip_special_tokens=True))


def calibration_settings() -> CalibrationConfig:
    """Less text than by default, since the model is small."""
    from lmscout.pruning import CalibrationConfig

    return CalibrationConfig(measured_tokens=4_500, final_tokens=4_500, moment_tokens=20_000)


def calibration_text() -> Text:
    """A part of the train side that suffices; all of it takes ten seconds to tokenize."""
    return builtin_text("train", every=15)


def builtin_text(side: str, *, every: int) -> Text:
    """One document in `every` of a side of the built-in text, as one text."""
    from lmscout.builtin.corpus import corpus_digest, corpus_text
    from lmscout.evaluation import Text

    name = f"built-in text, {side} side, one document in {every}"
    return Text(name, corpus_text(side, every), corpus_digest(side, every))
