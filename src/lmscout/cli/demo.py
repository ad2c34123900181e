"""`lmscout demo`: both halves on what lmscout brings along, with nothing to download."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.rule import Rule

from lmscout.cli import console
from lmscout.cli.discover import show as show_discovery
from lmscout.cli.options import WorkersOption
from lmscout.cli.prune import show as show_pruning
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from lmscout.discovery import Discovery
    from lmscout.evaluation import Text
    from lmscout.pruning import CalibrationConfig

SEARCH = 40  # architectures that the choice may see
SEQUENCES = 16  # that every architecture reads: half of what discover takes, half the wait
PAIRS = 110
KEEP = 0.8
LINE = "    def __repr__(self):\n        return"
# Proxies of the literature that one pass over an architecture gives; the others take several.
DESIGNED = (
    "snip",
    "grad-norm",
    "synaptic-saliency",
    "head-importance",
    "attention-confidence",
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
        typer.Option(help="Keep the pruned model here; by default it goes again."),
    ] = None,
    workers: WorkersOption = -1,
) -> None:
    """Discover proxies and prune a model, with nothing to download.

    The benchmark and the small model are lmscout's own.
    Some three minutes on two cores, half of it reading architectures, which is kept.
    """
    started = time.perf_counter()
    screen = console.table_console()
    screen.print(Rule("1. Discover: which formula predicts a trained model's quality?"))
    _discover(workers)
    screen.print(Rule("2. Prune: the best fifth of a trained model to leave out"))
    with tempfile.TemporaryDirectory(prefix="lmscout-") as folder:
        _prune(out or Path(folder) / "smaller")
    print(NEXT)
    screen.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


def _discover(workers: int) -> None:
    from lmscout import proxies
    from lmscout.benchmarks import load
    from lmscout.benchmarks.download import cache_directory
    from lmscout.discovery import discover, rank_proxies
    from lmscout.statistics import Batch, Workers
    from lmscout.statistics.workers import worker_processes

    benchmark = load("pico")
    batch = Batch(size=SEQUENCES)
    cache = cache_directory() / "statistics"
    with worker_processes(), shown_progress() as progress:
        found: Discovery = discover(
            benchmark,
            proxies.published(("mean", "sum")),
            search=SEARCH,
            seed=0,
            cache=cache,
            batch=batch,
            workers=Workers(workers),
            progress=progress,
        )
        rivals = rank_proxies(
            benchmark.subset(found.split.test),
            DESIGNED,
            seed=0,
            cache=cache,
            batch=batch,
            workers=Workers(workers),
            progress=progress,
        )
    show_discovery(found, rivals.proxies)


def _prune(out: Path) -> None:
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
    print(_completed(out))


def calibration_settings() -> CalibrationConfig:
    """Less text than by default: the model is small, and so should be the wait."""
    from lmscout.pruning import CalibrationConfig

    return CalibrationConfig(measured_tokens=4_500, final_tokens=4_500, moment_tokens=20_000)


def calibration_text() -> Text:
    """Enough of the train side for these settings; all of it takes ten seconds to tokenize."""
    return builtin_text("train", every=15)


def builtin_text(side: str, *, every: int) -> Text:
    """Every so manieth document of a side of the built-in text, as one text."""
    from lmscout.builtin.corpus import corpus_digest, corpus_text
    from lmscout.evaluation import Text

    name = f"built-in text, {side} side, one document in {every}"
    return Text(name, corpus_text(side, every), corpus_digest(side, every))


def _completed(folder: Path) -> str:
    from lmscout.evaluation import load_model

    loaded = load_model(str(folder))
    tokens = loaded.tokenizer(LINE, return_tensors="pt")
    made = loaded.model.generate(**tokens, max_new_tokens=48, do_sample=False)  # type: ignore[operator]
    return str(loaded.tokenizer.decode(made[0], skip_special_tokens=True))
