"""Files of questions, taken back into lm-eval's forms."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from lmscout.errors import LmscoutError
from lmscout.evaluation.tasks import LOCAL_TASKS, find_files, questions_sha256, read_questions

FORMS = {
    "mmlu": (
        {
            "subject": "virology",
            "split": "test",
            "question": "Which?",
            **{"A": "one", "B": "two", "C": "three", "D": "four"},
            "answer": "C",
        },
        {
            "question": "Which?",
            "subject": "virology",
            "choices": ["one", "two", "three", "four"],
            "answer": 2,
        },
    ),
    "piqa": (
        {
            "instruction": "Please choose the correct solution to the question: To open a jar:\n\n"
            "Solution1: turn the lid. \n\nSolution2: turn: the table.\n\n"
            "Answer format: solution1/solution2",
            "answer": "solution2",
        },
        {
            "goal": "To open a jar:",
            "sol1": "turn the lid.",
            "sol2": "turn: the table.",
            "label": 1,
        },
    ),
    "arc_easy": (
        {
            "instruction": "Please choose the correct answer to the question: Why?\nSay.\n\n"
            "Answer1: a b Answer2: c: d Answer3: e\n\nAnswer format: answer1/answer2/answer3",
            "answer": "answer3",
        },
        {
            "question": "Why?\nSay.",
            "choices": {"text": ["a b", "c: d", "e"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
    ),
    "winogrande": (
        {
            "instruction": "Please choose the correct answer to fill in the blank to complete the "
            "given sentence: Ann met Bea, and _ smiled.\n\n"
            "Option1: Ann Option2: Bea Answer format: option1/option2",
            "answer": "option2",
        },
        {
            "sentence": "Ann met Bea, and _ smiled.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "2",
        },
    ),
    "boolq": (
        {
            "instruction": "Please answer the following question with true or false, question: "
            "is it so?\n\nAnswer format: true/false",
            "answer": "true",
        },
        {"question": "is it so", "label": 1},
    ),
}


def written(file, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)
    return file


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_question_becomes_that_of_lm_eval(tmp_path, name, suffix):
    row, expected = FORMS[name]
    file = written(tmp_path / f"x.{suffix}", [row, row])
    assert list(read_questions(file, LOCAL_TASKS[name])) == [(row, expected)] * 2


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("change", ["answer", "form", "missing", "no object", "no json"])
def test_a_row_of_another_form_is_named_by_its_line(tmp_path, name, change):
    row, _ = FORMS[name]
    text_field = "question" if name == "mmlu" else "instruction"
    bad = {
        "answer": row | {"answer": "Z"},
        "form": row | {text_field: 7},
        "missing": {key: row[key] for key in row if key != "answer"},
        "no object": 3,
        "no json": None,
    }[change]
    file = written(tmp_path / "x.jsonl", [row, bad])
    if change == "no json":
        file.write_text(json.dumps(row) + "\n{broken\n")
    said = "not JSON: " if change == "no json" else rf"is no question of {name} \("
    with pytest.raises(LmscoutError, match=rf"x.jsonl, line 2: {said}"):
        list(read_questions(file, LOCAL_TASKS[name]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no questions"),
        (b"\x1f\x8b\x08\x00broken", "is damaged gzip"),
        (b"\xff\xfe\n", "is UTF-16, not UTF-8"),
        (b"\xfb\xfe\n", "not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(tmp_path, content, said):
    file = tmp_path / ("x.jsonl.gz" if content.startswith(b"\x1f") else "x.jsonl")
    file.write_bytes(content)
    with pytest.raises(LmscoutError, match=said):
        list(read_questions(file, LOCAL_TASKS["piqa"]))


def test_files_are_found_in_a_folder_and_the_folders_in_it(tmp_path):
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "mmlu.jsonl.gz").touch()
    (tmp_path / "ARC-Easy.test.jsonl").touch()
    (tmp_path / "piqa.txt").touch()
    assert find_files(tmp_path) == {
        "mmlu": tmp_path / "mmlu" / "mmlu.jsonl.gz",
        "arc_easy": tmp_path / "ARC-Easy.test.jsonl",
    }


def test_a_folder_without_questions_is_said(tmp_path):
    with pytest.raises(LmscoutError, match=r"holds no file of questions; expected mmlu\*"):
        find_files(tmp_path)
    with pytest.raises(LmscoutError, match="is no folder"):
        find_files(tmp_path / "nowhere")


def test_changed_questions_have_another_digest(tmp_path):
    (row, _), (other, _) = FORMS["piqa"], FORMS["mmlu"]
    file = written(tmp_path / "piqa.jsonl", [row])
    written(tmp_path / "mmlu.jsonl", [other])
    before = questions_sha256(tmp_path, ["piqa", "mmlu"])
    written(file, [row, row])
    after = questions_sha256(tmp_path, ["piqa", "mmlu"])
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_every_question_at_hand_is_understood():
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "mmlu").is_dir():
        pytest.skip("no questions in ../shared/data")
    counts, splits = {}, Counter()
    for name, file in find_files(data).items():
        rows = list(read_questions(file, LOCAL_TASKS[name]))
        counts[name] = len(rows)
        splits.update(row["split"] for row, _ in rows if name == "mmlu")
    assert counts == {
        "mmlu": 14_327,
        "piqa": 1_838,
        "arc_easy": 2_376,
        "winogrande": 1_267,
        "boolq": 3_270,
    }
    assert splits == {"dev": 285, "test": 14_042}


@pytest.mark.parametrize("name", [name for name in FORMS if name != "mmlu"])
def test_a_hostile_instruction_is_refused_in_no_time(tmp_path, name):
    row, _ = FORMS[name]
    start = row["instruction"].split(": ")[0]
    for filling in ("\n" * 300_000, "\n\nAnswer1: Answer2: " * 20_000, "Option2: " * 50_000):
        bad = row | {"instruction": f"{start}: {filling}\n\nAnswer format: {'(a+)+/' * 20}$"}
        file = written(tmp_path / "x.jsonl", [bad])
        with pytest.raises(LmscoutError, match="line 1: is no question"):
            list(read_questions(file, LOCAL_TASKS[name]))
