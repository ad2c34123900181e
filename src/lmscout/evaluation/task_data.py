"""Questions in files on this machine, as tasks of lm-eval.

Prompts, choices and metrics are those of lm-eval's own tasks, whose definitions these include;
only where the questions come from is another.  Two forms are read: MMLU as JSON lines (subject,
split, question, A to D, answer), and PIQA, ARC-Easy, WinoGrande and BoolQ in the form of
LLM-Adapters (arXiv 2304.01933: instruction, answer), from whose instructions the questions are
taken back.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        stem: how the file's name begins.
        definition: lm-eval's own, in its folder of tasks.
        question: makes one of lm-eval's questions of a row; raises ValueError, KeyError or
            IndexError where the row is of another form.
        changes: to the definition.
        note: what a reader of the result should know.
    """

    name: str
    stem: str
    definition: str
    question: Callable[[Row], Row]
    changes: tuple[tuple[str, str], ...] = ()
    note: str = ""


def find_files(data: Path) -> dict[str, Path]:
    """Task to file, of those that a folder or its folders hold.

    Raises:
        LmscoutError: it is no folder, or holds none.
    """
    if not data.is_dir():
        raise LmscoutError(f"--task-data {data}: is no folder")
    files = sorted(one for one in (*data.glob("*"), *data.glob("*/*")) if _is_jsonl(one))
    found = {
        task.name: file
        for task in LOCAL_TASKS.values()
        for file in files
        if file.name.lower().startswith(task.stem)
    }
    if not found:
        stems = ", ".join(f"{task.stem}*.jsonl.gz" for task in LOCAL_TASKS.values())
        raise LmscoutError(f"--task-data {data}: holds no file of questions; expected {stems}")
    return found


def write_tasks(file: Path, task: LocalTask, definitions: Path, folder: Path) -> None:
    """Write a task for lm-eval: its questions as JSON lines, and its definition as YAML.

    Args:
        file: of questions, plain or gzip.
        task: what they are.
        definitions: lm-eval's own folder of tasks.
        folder: to write into; lm-eval finds it there as `include_path`.

    Raises:
        LmscoutError: the file cannot be read, or a row of it is of another form.
    """
    if task.name == "mmlu":
        _write_mmlu(file, task, definitions, folder)
        return
    questions = folder / f"{task.name}.jsonl"
    _write_rows(questions, (question for _, question in read_questions(file, task)))
    changes = {
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        **dict(task.changes),
    }
    _write_definition(
        folder, task.name, definitions / task.definition, {"test": questions}, changes
    )


def _write_mmlu(file: Path, task: LocalTask, definitions: Path, folder: Path) -> None:
    """A task a subject, and the groups in which lm-eval averages them."""
    by_subject: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row, question in read_questions(file, task):
        by_subject[row["subject"]][row["split"]].append(question)
    own = definitions / Path(task.definition).parent
    for subject, splits in by_subject.items():
        definition = own / f"mmlu_{subject}.yaml"
        if not definition.is_file():
            raise LmscoutError(f"{file}: lm-eval knows no subject {subject!r} of MMLU")
        if set(splits) != {"dev", "test"}:
            raise LmscoutError(f"{file}: {subject} has no dev questions, or no test questions")
        files = {split: folder / f"mmlu_{subject}_{split}.jsonl" for split in splits}
        for split, rows in splits.items():
            _write_rows(files[split], rows)
        _write_definition(folder, f"mmlu_{subject}", definition, files, dict(task.changes))
    _write_groups(own, by_subject, folder)


def _write_groups(own: Path, subjects: Iterable[str], folder: Path) -> None:
    """The groups that lm-eval averages, without those of which no subject is there."""
    there = {
        yaml.safe_load((own / f"mmlu_{one}.yaml").read_text("utf-8"))["tag"] for one in subjects
    }
    groups = {one.name: yaml.safe_load(one.read_text("utf-8")) for one in own.glob("_mmlu?*.yaml")}
    groups = {name: one for name, one in groups.items() if {*one["task"]} <= there}
    whole = yaml.safe_load((own / "_mmlu.yaml").read_text("utf-8"))
    whole["task"] = [one["group"] for one in groups.values()]
    for name, group in {**groups, "_mmlu.yaml": whole}.items():
        (folder / name).write_text(yaml.safe_dump(group, sort_keys=False), "utf-8")


def _write_definition(
    folder: Path,
    name: str,
    definition: Path,
    files: Mapping[str, Path],
    changes: Mapping[str, object],
) -> None:
    own = {
        "include": str(definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(file) for split, file in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own, sort_keys=False), "utf-8")


def _write_rows(file: Path, rows: Iterator[Row] | list[Row]) -> None:
    with file.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row) + "\n")


def read_questions(file: Path, task: LocalTask) -> Iterator[tuple[Row, Row]]:
    """Every row of a file, with lm-eval's form of it."""
    number = 0
    text = decoded(read_bytes(file, MOST_STRUCTURED, compressed=True), str(file))
    try:
        for number, row in parse_json_lines(text, str(file)):  # noqa: B007 - an error tells it
            yield row, task.question(row)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LmscoutError(
            f"{file}, line {number}: is no question of {task.name} ({error}); see "
            "docs/evaluation.md for the form"
        ) from error
    if not number:
        raise LmscoutError(f"{file}: holds no questions")


def _mmlu(row: Row) -> Row:
    missing = [field for field in _MMLU_FIELDS if not isinstance(row[field], str)]
    if missing:
        raise ValueError(f"{missing[0]} is no text")
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
    """What of an instruction is between its start and the marks, and after the last of them."""
    text = row["instruction"]
    if not text.startswith(start):
        raise ValueError("its instruction is of another form")
    parts = _cut(text[len(start) :], marks, "its instruction is of another form")
    if not marks[-1].endswith(" ") and parts[-1]:
        raise ValueError("its instruction goes on after its end")
    return parts


def _cut(text: str, marks: Sequence[str], complaint: str) -> list[str]:
    """A text cut at the first place of each mark in turn, in time that is linear in its length."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError(complaint)
        parts.append(part.rstrip())
    return [*parts, text]


def _is_jsonl(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


_BOOLQ_CHANGES = (
    ("doc_to_text", "Question: {{question}}?\nAnswer:"),
    ("doc_to_decontamination_query", "question"),
)

LOCAL_TASKS: Mapping[str, LocalTask] = MappingProxyType(
    {
        one.name: one
        for one in (
            LocalTask("mmlu", "mmlu", "mmlu/default/_mmlu.yaml", _mmlu),
            LocalTask("piqa", "piqa", "piqa/piqa.yaml", _piqa),
            LocalTask("arc_easy", "arc-easy", "arc/arc_easy.yaml", _arc),
            LocalTask("winogrande", "winogrande", "winogrande/default.yaml", _winogrande),
            LocalTask(
                "boolq",
                "boolq",
                "super_glue/boolq/default.yaml",
                _boolq,
                _BOOLQ_CHANGES,
                "without passages",
            ),
        )
    }
)
"""What `--task-data` can read, by lm-eval's name.  LLM-Adapters' file of BoolQ leaves the passages
out, so that its task asks the bare question: another task than lm-eval's."""
