"""Task scores by log-likelihood, computed by lm-eval on a loaded model.

Tasks, prompts and metrics are lm-eval's (github.com/EleutherAI/lm-evaluation-harness); a task
gives here what its own command gives for the same model, shots and batch.

Questions may come from local files, which are written as tasks of lm-eval that include its own
definitions.  Two forms of files are read: MMLU as JSON lines (subject, split, question, A to D,
answer), and PIQA, ARC-Easy, WinoGrande and BoolQ in the form of LLM-Adapters (arXiv 2304.01933:
instruction, answer), whose instructions are parsed back into questions.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, partialmethod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from lmscout.errors import LmscoutError, first_line
from lmscout.evaluation.loading import LoadedModel
from lmscout.evaluation.quiet import quiet
from lmscout.progress import StageProgress
from lmscout.reading import MOST_STRUCTURED, decoded, parse_json_lines, read_bytes

Row = dict[str, Any]

USUAL_SHOTS: Mapping[str, int] = MappingProxyType({"mmlu": 5})
"""Default number of examples before each question, 0 for other tasks: MMLU's paper (arXiv
2009.03300) gives five; pruning papers give none for the commonsense tasks (arXiv 2305.11627)."""
_LETTERS = "ABCDEFGH"
_MMLU_FIELDS = ("subject", "split", "question", "A", "B", "C", "D", "answer")


@dataclass(frozen=True)
class TaskScore:
    """Score of a model on a task."""

    task: str  # its name
    metric: str  # "acc", or "acc_norm", where likelihoods are divided by the answer's length
    value: float  # from 0 to 1
    error: float | None  # standard error of the value, as lm-eval computes it; None if it has none
    shots: int  # examples before each question
    questions: int  # number of questions
    note: str = ""  # difference to lm-eval's own task, or ""

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
    """Score a model on tasks or groups of lm-eval that `check_tasks` has checked.

    lm-eval seeds the generators of random, NumPy and PyTorch.

    Args:
        loaded: the model and its tokenizer.
        tasks: lm-eval's names.
        shots: examples before each question; None for `USUAL_SHOTS`.
        limit: questions of each task, the first ones; of a group, of each of its parts.
        batch: prompts per forward pass.
        data: a folder with files of questions; None for lm-eval's own from the Hub.
        progress: called with the number of log-likelihoods computed, and of all.

    Returns:
        A score for each metric of each task, in the order of `tasks`.

    Raises:
        LmscoutError: a task gives no likelihoods, or the questions cannot be read.
    """
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
            few = "there are " + (str(len(known)) if data is None else ", ".join(sorted(known)))
            listed = f"nearest are {', '.join(near)}" if near else few
            raise LmscoutError(f"unknown task {name!r}: {listed}")


@cache
def _own_tasks() -> Any:
    """lm-eval's tasks, which it collects from 14,000 files in six seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _likelihood_model(loaded: LoadedModel, batch: int, progress: StageProgress | None) -> Any:
    """lm-eval's own model class around a loaded model, with progress.

    Prompts are encoded on all cores, and one that several answers share once.
    """
    from lm_eval.models.huggingface import HFLM

    class LikelihoodModel(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.set_cache_hook(_ProgressHook(len(requests), progress))
            pairs = list(dict.fromkeys(one.args for one in requests if one.args[0]))
            with ThreadPoolExecutor() as pool:
                encode = super()._encode_pair
                encoded = pool.map(lambda pair: encode(*pair), pairs)
                self._encoded = dict(zip(pairs, encoded, strict=True))
            return super().loglikelihood(requests, disable_tqdm=True)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            found: tuple[list[int], list[int]] = self._encoded[context, continuation]
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            raise NotImplementedError("it asks for generated text, and this is by log-likelihood")

    model = LikelihoodModel(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch,
        device=str(loaded.model.device),
    )
    model.tok_encode = lru_cache(256)(model.tok_encode)
    return model


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
    """Keep lm-eval, which has no switch for its bars and its calls of git, from stderr.

    Its templates are compiled once for all documents, which it does for each: nearly all of the
    time in which it prepares the prompts of MMLU.
    """
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
            (lm_eval.utils.env, "from_string", cache(lm_eval.utils.env.from_string)),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@dataclass(frozen=True)
class LocalTask:
    """A task whose questions can come from a file."""

    name: str  # as lm-eval calls it
    stem: str  # start of the file's name
    definition: str  # lm-eval's own, in its folder of tasks
    # makes one of lm-eval's questions from a row; raises ValueError, KeyError or IndexError for a
    # row of another form
    question: Callable[[Row], Row]
    changes: Mapping[str, str] = field(default_factory=dict)  # to the definition
    note: str = ""  # shown with the result


def find_files(data: Path) -> dict[str, Path]:
    """Task to file, of those in a folder and its folders.

    Raises:
        LmscoutError: it is no folder, or holds none.
    """
    if not data.is_dir():
        raise LmscoutError(f"task data {data}: is no folder")
    files = sorted(
        one
        for one in (*data.glob("*"), *data.glob("*/*"))
        if one.name.endswith((".jsonl", ".jsonl.gz"))
    )
    found = {
        task.name: file
        for task in LOCAL_TASKS.values()
        for file in files
        if file.name.lower().startswith(task.stem)
    }
    if not found:
        stems = ", ".join(f"{task.stem}*.jsonl.gz" for task in LOCAL_TASKS.values())
        raise LmscoutError(f"task data {data}: holds no file of questions; expected {stems}")
    return found


def questions_sha256(data: Path, tasks: Iterable[str]) -> list[str]:
    """Digests of the files of some tasks.

    Raises:
        LmscoutError: as `find_files`, or a file cannot be read.
    """
    files = find_files(data)
    contents = (read_bytes(files[name], MOST_STRUCTURED) for name in tasks)
    return [hashlib.sha256(content).hexdigest() for content in contents]


def write_tasks(file: Path, task: LocalTask, definitions: Path, folder: Path) -> None:
    """Write a task into a folder, lm-eval's `include_path`: questions as JSON lines, and its YAML.

    Lm-eval's own folder of tasks has the definition that the YAML includes.

    Raises:
        LmscoutError: the file of questions cannot be read, or a row of it is of another form.
    """
    own = definitions / task.definition
    if task.name == "mmlu":
        _write_mmlu(file, task, own.parent, folder)
        return
    questions = [question for _, question in read_questions(file, task)]
    splits = {"training_split": None, "validation_split": None, "test_split": "test"}
    _write_task(folder, task.name, own, {"test": questions}, {**splits, **task.changes})


def _write_mmlu(file: Path, task: LocalTask, own: Path, folder: Path) -> None:
    """Write one task per subject, and the groups in which lm-eval averages them."""
    by_subject: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row, question in read_questions(file, task):
        by_subject[row["subject"]][row["split"]].append(question)
    tags = set()
    for subject, splits in by_subject.items():
        definition = own / f"mmlu_{subject}.yaml"
        if not definition.is_file():
            raise LmscoutError(f"{file}: lm-eval knows no subject {subject!r} of MMLU")
        if set(splits) != {"dev", "test"}:
            raise LmscoutError(f"{file}: {subject} has no dev questions, or no test questions")
        _write_task(folder, f"mmlu_{subject}", definition, splits, task.changes)
        tags.add(yaml.safe_load(definition.read_text("utf-8"))["tag"])
    groups = {one.name: yaml.safe_load(one.read_text("utf-8")) for one in own.glob("_mmlu?*.yaml")}
    groups = {name: one for name, one in groups.items() if {*one["task"]} <= tags}
    whole = yaml.safe_load((own / "_mmlu.yaml").read_text("utf-8"))
    whole["task"] = [one["group"] for one in groups.values()]
    for name, group in {**groups, "_mmlu.yaml": whole}.items():
        (folder / name).write_text(yaml.safe_dump(group, sort_keys=False), "utf-8")


def _write_task(
    folder: Path,
    name: str,
    definition: Path,
    splits: Mapping[str, list[Row]],
    changes: Mapping[str, object],
) -> None:
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{name}_{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    own = {
        "include": str(definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own, sort_keys=False), "utf-8")


def read_questions(file: Path, task: LocalTask) -> Iterator[tuple[Row, Row]]:
    """Yield every row of a file with lm-eval's form of it.

    Raises:
        LmscoutError: the file cannot be read, is empty, or a row is of another form.
    """
    number = 0
    text = decoded(read_bytes(file, MOST_STRUCTURED, compressed=True), str(file))
    try:
        for number, row in parse_json_lines(text, str(file)):  # noqa: B007 - for the message
            yield row, task.question(row)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LmscoutError(
            f"{file}, line {number}: is no question of {task.name} ({error}); see "
            "docs/evaluation.md for the form"
        ) from error
    if not number:
        raise LmscoutError(f"{file}: holds no questions")


def _mmlu(row: Row) -> Row:
    for name in _MMLU_FIELDS:
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is no text")
    return {
        "question": row["question"],
        "subject": row["subject"],
        "choices": [row[letter] for letter in "ABCD"],
        "answer": "ABCD".index(row["answer"]),
    }


def _piqa(row: Row) -> Row:
    goal, first, second, _ = _parts(
        row,
        "Please choose the correct solution to the question: ",
        "\n\nSolution1: ",
        "\n\nSolution2: ",
        "\n\nAnswer format: solution1/solution2",
    )
    answer = ("solution1", "solution2").index(row["answer"])
    return {"goal": goal, "sol1": first, "sol2": second, "label": answer}


def _arc(row: Row) -> Row:
    question, listed, names = _parts(
        row,
        "Please choose the correct answer to the question: ",
        "\n\nAnswer1: ",
        "\n\nAnswer format: ",
    )
    answers = names.split("/")
    if len(answers) > len(_LETTERS) or answers[0] != "answer1":
        raise ValueError("the answers are not those of its format")
    marks = [f"{name.capitalize()}: " for name in answers[1:]]
    choices = _cut(listed, marks, "the answers are not those of its format")
    labels = list(_LETTERS[: len(answers)])
    return {
        "question": question,
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[answers.index(row["answer"])],
    }


def _winogrande(row: Row) -> Row:
    sentence, first, second, _ = _parts(
        row,
        "Please choose the correct answer to fill in the blank to complete the given sentence: ",
        "\n\nOption1: ",
        "Option2: ",
        "Answer format: option1/option2",
    )
    if "_" not in sentence:
        raise ValueError("the sentence has no blank")
    answer = ("option1", "option2").index(row["answer"]) + 1
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(answer)}


def _boolq(row: Row) -> Row:
    question, _ = _parts(
        row,
        "Please answer the following question with true or false, question: ",
        "\n\nAnswer format: true/false",
    )
    answer = ("false", "true").index(row["answer"])
    return {"question": question.removesuffix("?"), "label": answer}


def _parts(row: Row, start: str, *marks: str) -> list[str]:
    """The parts of an instruction between its start, the marks, and its end."""
    text = row["instruction"]
    if not text.startswith(start):
        raise ValueError("its instruction is of another form")
    parts = _cut(text[len(start) :], marks, "its instruction is of another form")
    if not marks[-1].endswith(" ") and parts[-1]:
        raise ValueError("its instruction goes on after its end")
    return parts


def _cut(text: str, marks: Sequence[str], complaint: str) -> list[str]:
    """Cut a text at the first place of each mark in turn, in time linear in its length."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError(complaint)
        parts.append(part.rstrip())
    return [*parts, text]


_BARE_QUESTION = {
    "doc_to_text": "Question: {{question}}?\nAnswer:",
    "doc_to_decontamination_query": "question",
}
_TASKS = (
    LocalTask("mmlu", "mmlu", "mmlu/default/_mmlu.yaml", _mmlu),
    LocalTask("piqa", "piqa", "piqa/piqa.yaml", _piqa),
    LocalTask("arc_easy", "arc-easy", "arc/arc_easy.yaml", _arc),
    LocalTask("winogrande", "winogrande", "winogrande/default.yaml", _winogrande),
    LocalTask(
        *("boolq", "boolq", "super_glue/boolq/default.yaml"),
        *(_boolq, _BARE_QUESTION, "without passages"),
    ),
)
LOCAL_TASKS: Mapping[str, LocalTask] = MappingProxyType({one.name: one for one in _TASKS})
"""The tasks of `--task-data` by lm-eval's name.  LLM-Adapters' BoolQ has no passages, so its task
asks the bare question, which is another task than lm-eval's."""
