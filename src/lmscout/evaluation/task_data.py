"""Questions from local files, written as tasks of lm-eval.

Prompts, choices and metrics are lm-eval's own: the written definitions include its own ones.  Two
forms of files are read: MMLU as JSON lines (subject, split, question, A to D, answer), and PIQA,
ARC-Easy, WinoGrande and BoolQ in the form of LLM-Adapters (arXiv 2304.01933: instruction,
answer), whose instructions are parsed back into questions.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from lmscout.errors import LmscoutError
from lmscout.reading import MOST_STRUCTURED, decoded, parse_json_lines, read_bytes

Row = dict[str, Any]

_LETTERS = "ABCDEFGH"
_MMLU_FIELDS = ("subject", "split", "question", "A", "B", "C", "D", "answer")


@dataclass(frozen=True)
class LocalTask:
    """A task whose questions can come from a file.

    Attributes:
        name: as lm-eval calls it.
        stem: start of the file's name.
        definition: lm-eval's own, in its folder of tasks.
        question: makes one of lm-eval's questions from a row; raises ValueError, KeyError or
            IndexError for a row of another form.
        changes: to the definition.
        note: shown with the result.
    """

    name: str
    stem: str
    definition: str
    question: Callable[[Row], Row]
    changes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


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
    """Write a task for lm-eval: its questions as JSON lines, and its definition as YAML.

    Args:
        file: of questions, plain or gzip.
        task: its task.
        definitions: lm-eval's own folder of tasks.
        folder: to write into; lm-eval finds it there as `include_path`.

    Raises:
        LmscoutError: the file cannot be read, or a row of it is of another form.
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
