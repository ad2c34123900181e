"""Task scores by log-likelihood, computed by lm-eval on a loaded model.

Tasks, prompts and metrics are lm-eval's (github.com/EleutherAI/lm-evaluation-harness); a task
gives here what its own command gives for the same model, shots and batch.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partialmethod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from lmscout.errors import LmscoutError, first_line
from lmscout.evaluation.loading import LoadedModel
from lmscout.evaluation.quiet import quiet
from lmscout.evaluation.task_data import LOCAL_TASKS, find_files, write_tasks
from lmscout.progress import StageProgress

USUAL_SHOTS: Mapping[str, int] = MappingProxyType({"mmlu": 5})
"""Default number of examples before each question, 0 for other tasks: MMLU's paper (arXiv
2009.03300) gives five; pruning papers give none for the commonsense tasks (arXiv 2305.11627)."""


@dataclass(frozen=True)
class TaskScore:
    """Score of a model on a task.

    Attributes:
        task: its name.
        metric: "acc", or "acc_norm", where likelihoods are divided by the answer's length.
        value: from 0 to 1.
        error: standard error of the value, as lm-eval computes it; None if it has none.
        shots: examples before each question.
        questions: number of questions.
        note: difference to lm-eval's own task, or "".
    """

    task: str
    metric: str
    value: float
    error: float | None
    shots: int
    questions: int
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """The score as the command line prints it."""
        values = asdict(self)
        values["standard_error"] = values.pop("error")
        return values


def score_tasks(
    loaded: LoadedModel,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 8,
    data: Path | None = None,
    progress: StageProgress | None = None,
) -> tuple[TaskScore, ...]:
    """Score a model on some tasks.

    lm-eval seeds the generators of random, NumPy and PyTorch.

    Args:
        loaded: the model and its tokenizer.
        tasks: lm-eval's names of tasks or groups.
        shots: examples before each question; None for `USUAL_SHOTS`.
        limit: questions of each task, the first ones; of a group, of each of its parts.
        batch: prompts per forward pass.
        data: a folder with files of questions; None for lm-eval's own from the Hub.
        progress: called with the number of log-likelihoods computed, and of all.

    Returns:
        A score for each metric of each task, in the order of `tasks`.

    Raises:
        LmscoutError: lm-eval is not installed, a task is unknown or gives no likelihoods, or the
            questions cannot be read.
    """
    check_tasks(tasks, data)
    tasks = list(dict.fromkeys(tasks))
    import lm_eval.tasks
    from lm_eval.evaluator import simple_evaluate

    with _quiet_lm_eval(), tempfile.TemporaryDirectory(prefix="lmscout-tasks-") as folder:
        if data is None:
            manager = _own_tasks()
        else:
            files, definitions = find_files(data), Path(lm_eval.tasks.__file__).parent
            for name in tasks:
                write_tasks(files[name], LOCAL_TASKS[name], definitions, Path(folder))
            manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)
        by_shots: dict[int, list[str]] = defaultdict(list)
        for name in tasks:
            by_shots[USUAL_SHOTS.get(name, 0) if shots is None else shots].append(name)
        model = _likelihood_model(loaded, batch, progress)
        scores: dict[str, list[TaskScore]] = {}
        for count, names in by_shots.items():
            try:
                found = simple_evaluate(
                    model=model,
                    tasks=names,
                    num_fewshot=count,
                    limit=limit,
                    task_manager=manager,
                    log_samples=False,
                )
            except (NotImplementedError, ValueError, KeyError, OSError, ConnectionError) as error:
                raise LmscoutError(
                    f"lm-eval cannot run {', '.join(names)}: {first_line(error)}"
                    + ("" if data else "; without a network, task data are read from files")
                ) from error
            for name in names:
                note = LOCAL_TASKS[name].note if data is not None else ""
                scores[name] = list(_scores(name, found, count, note))
    return tuple(one for name in scores for one in scores[name])


def check_tasks(tasks: Sequence[str], data: Path | None = None) -> None:
    """Check names of tasks before a model is loaded.

    Raises:
        LmscoutError: lm-eval is not installed, a task is unknown, or a folder holds no questions.
    """
    try:
        from lm_eval.models import huggingface  # noqa: F401 - it needs more than lm_eval does
    except ImportError as error:
        raise LmscoutError(f"tasks need lm-eval ({error}): pip install 'lmscout[eval]'") from error
    with _quiet_lm_eval():
        known = list(_own_tasks().all_tasks if data is None else find_files(data))
    for name in tasks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            listed = f"nearest are {', '.join(near)}" if near else f"there are {len(known)}"
            raise LmscoutError(f"unknown task {name!r}: {listed}")


@cache
def _own_tasks() -> Any:
    """lm-eval's tasks, which it collects from 14,000 files."""
    from lm_eval.tasks import TaskManager

    with names_alone():
        return TaskManager()


@contextmanager
def names_alone() -> Iterator[None]:
    """Let lm-eval parse only those keys of a file that name tasks, when it collects tasks.

    It parses a task's file again, whole, when it builds the task.  Of all its files, the names take
    1.3 s of CPU time, the whole 6 s.  An lm-eval that collects tasks otherwise is left as it is.
    """
    from lm_eval import tasks

    index: Any = getattr(tasks, "_index", None)
    whole = getattr(index, "load_yaml", None)
    if whole is None:
        yield
        return

    def load(path: Path, **options: bool) -> dict[str, Any]:
        try:
            found = _names(str(path), set())
        except (OSError, yaml.YAMLError):
            found = {}
        return found or dict(whole(path, **options))

    index.load_yaml = load
    try:
        yield
    finally:
        index.load_yaml = whole
        _excerpt.cache_clear()


_KEYS = re.compile(
    rb"""^["']?(?:task|group|tag|class|include)\b["']?[ \t]*:.*\n(?:(?:[ \t\r#-].*)?\n)*""", re.M
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads names of functions as text."""


_Loader.add_constructor("!function", lambda _, node: node.value)


def _names(path: str, seen: set[str]) -> dict[str, Any]:
    """Those of the keys that name a task, in a file and in those that it includes.

    Raises:
        ValueError: a file is included twice, which lm-eval refuses.
    """
    if path in seen:
        raise ValueError(f"{path} is included twice")
    seen.add(path)
    own = dict(_excerpt(path))
    included = own.pop("include", ())
    names: dict[str, Any] = {}
    for one in [included] if isinstance(included, str) else included:
        names |= _names(os.path.normpath(os.path.join(os.path.dirname(path), one)), seen)
    return names | own


@cache
def _excerpt(path: str) -> dict[str, Any]:
    """The keys of a file by which lm-eval finds a task, without the rest of the file."""
    blocks = _KEYS.findall(Path(path).read_bytes() + b"\n")
    return yaml.load(b"".join(blocks), _Loader) if blocks else {}


def _likelihood_model(loaded: LoadedModel, batch: int, progress: StageProgress | None) -> Any:
    """lm-eval's own model class around a loaded model, with progress."""
    from lm_eval.models.huggingface import HFLM

    class LikelihoodModel(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.set_cache_hook(_ProgressHook(len(requests), progress))
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            raise NotImplementedError("it asks for generated text, and this is by log-likelihood")

    return LikelihoodModel(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch,
        device=str(loaded.model.device),
    )


class _ProgressHook:
    """Progress in place of lm-eval's cache, which is called with each answer."""

    def __init__(self, total: int, progress: StageProgress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add_partial(self, *_: object) -> None:
        self._done += 1
        if self._progress:
            self._progress(min(self._done, self._total), self._total)


def _scores(name: str, found: Any, shots: int, note: str) -> Iterable[TaskScore]:
    """The metrics of a task or a group among all that lm-eval reports."""
    rows = {**found["results"], **found.get("groups", {})}
    if name not in rows:
        raise LmscoutError(f"{name} is a list of tasks without a score of its own: name its tasks")
    row = rows[name]
    questions = _questions(name, found)
    for key, value in row.items():
        metric, comma, _ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, float):
            continue
        error = row.get(key.replace(metric, f"{metric}_stderr", 1))
        error = float(error) if isinstance(error, float) else None
        yield TaskScore(name, metric, float(value), error, shots, questions, note)


def _questions(name: str, found: Any) -> int:
    """Number of questions of a task, or of all tasks of a group."""
    parts = found.get("group_subtasks", {}).get(name)
    if parts:
        return sum(_questions(one, found) for one in parts)
    return int(found["n-samples"][name]["effective"])


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval, which has no switch for its bars and its calls of git, from stderr."""
    import datasets
    import lm_eval.evaluator
    from tqdm import tqdm

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    with ExitStack() as stack:
        stack.enter_context(quiet())
        for name in ("lm_eval", "datasets"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if bars:
            stack.callback(datasets.enable_progress_bars)
        for owner, name, value in (
            (tqdm, "__init__", partialmethod(tqdm.__init__, disable=True)),
            (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
            (lm_eval.evaluator, "add_env_info", lambda _: None),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
