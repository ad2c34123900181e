"""The public functions that load: a benchmark, a model, a result."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscout.arguments import Path_
from lmscout.errors import LmscoutError
from lmscout.reading import read_json
from lmscout.results import Result, has_fields_of, saved_values
from lmscout.runs import RESULT

if TYPE_CHECKING:
    from lmscout.benchmarks import Benchmark
    from lmscout.evaluation import LoadedModel

RESULTS = {
    "benchmarks.build.Built": "bench build",
    "benchmarks.check.Check": "bench check",
    "discovery.design.Design": "design",
    "discovery.discover.Discovery": "discover",
    "discovery.explain.Explanation": "explain",
    "discovery.explain.Forms": "explain",
    "discovery.rank.RankResult": "rank",
    "discovery.selection.Selection": "design",
    "discovery.symbolic_search.DeepDiscovery": "discover",
    "evaluation.Evaluation": "eval",
    "integrations.GgufFile": "export",
    "pruning.results.Pruning": "prune",
}
"""Classes of results, no two with the same fields, and the command of each."""


def load_benchmark(name: str) -> Benchmark:
    """Load a benchmark: architectures whose trained quality is known.

    Args:
        name: ``pico``, ``iso``, ``flexibert``, ``lts:random_GPT2_wt103``, or ``bench:DIR`` (or
            ``DIR``), ``flexibert:PATH``, ``lts:PATH`` for files of your own.

    Returns:
        Specs and their quality; higher is better.

    Raises:
        LmscoutError: the name is unknown, or the benchmark cannot be found or read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico")
        >>> bench
        Benchmark('pico', 240 architectures, 'negated validation loss after 4,500,000 tokens')
        >>> bench.subset(range(20)).metric
        'negated validation loss after 4,500,000 tokens'
    """
    from lmscout.benchmarks import load

    return load(name)


def load_result(path: Path_) -> Any:
    """Load a result that its `save(path)` wrote, or the one of a run folder.

    Args:
        path: the file, or the run folder.

    Returns:
        The result, equal to the one that was saved.

    Raises:
        LmscoutError: the file cannot be read, or holds no result.

    Example:
        >>> import lmscout
        >>> checked = lmscout.check_benchmark("pico")
        >>> checked.save("checked.json")
        >>> lmscout.load_result("checked.json") == checked
        True
    """
    file = Path(path, RESULT) if Path(path).is_dir() else Path(path)
    values = saved_values(read_json(file, surrogates=True))
    for one in RESULTS:
        module, name = one.rsplit(".", 1)
        kind: type[Result] = getattr(import_module(f"lmscout.{module}"), name)
        if isinstance(values, dict) and has_fields_of(kind, set(values) - {"schema"}):
            return kind.load(file)
    raise LmscoutError(f"{file}: holds no result; name a file that save() wrote, or a run folder")


def command_of(result: object) -> str:
    """The command that gives such a result, such as "bench check"; "" for another object."""
    name = type(result).__name__
    return next((each for kind, each in RESULTS.items() if kind.endswith(f".{name}")), "")


def load_model(source: str, *, dtype: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load a causal language model with its tokenizer: any, or one that lmscout saved.

    No code of the model's folder is run.

    Args:
        source: folder or Hub name.
        dtype: of the weights in memory; None for float32 on a CPU, and as saved elsewhere.
        device: as PyTorch names it.

    Returns:
        ``model`` in eval mode, and ``tokenizer``.

    Raises:
        LmscoutError: there is no such model, or it is no causal language model.

    Example:
        >>> import lmscout
        >>> loaded = lmscout.load_model("MODEL")
        >>> loaded.model.training
        False
    """
    import torch

    from lmscout.evaluation import load_model as load

    return load(source, None if dtype is None else getattr(torch, dtype), device)


def register() -> None:
    """Register pruned and designed models with transformers' Auto classes in this process.

    Afterwards ``AutoModelForCausalLM.from_pretrained(FOLDER)`` loads a saved model with blocks
    of different sizes without ``trust_remote_code``.

    Example:
        >>> import lmscout
        >>> lmscout.register()
    """
    for name in ("evaluation.modeling_lmscout", "models.pretrained"):
        import_module(f"lmscout.{name}")  # registers when imported
