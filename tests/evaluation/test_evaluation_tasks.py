"""Scores on tasks, beside lm-eval's own evaluation of the same model and tasks."""

import json
import warnings
from pathlib import Path

import lm_eval
import lm_eval.tasks
import pytest

from lmscout.builtin import tiny_folder
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model
from lmscout.evaluation.tasks import (
    LOCAL_TASKS,
    check_tasks,
    find_files,
    score_tasks,
    write_tasks,
)

COLOURS = ("red", "green", "blue", "grey")


def mmlu(subject, split, number):
    choices = dict(zip("ABCD", COLOURS[number % 4 :] + COLOURS[: number % 4], strict=True))
    row = {"subject": subject, "split": split, "question": f"What colour is sky {number}?"}
    return {**row, **choices, "answer": "ABCD"[number % 4]}


def piqa(number):
    one, other = f"use tool {number}", f"call {COLOURS[number % 4]} things"
    return {
        "instruction": f"Please choose the correct solution to the question: To do job {number},"
        f"\n\nSolution1: {one}\n\nSolution2: {other}\n\nAnswer format: solution1/solution2",
        "answer": f"solution{number % 2 + 1}",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of questions: two subjects of two groups of MMLU, and PIQA."""
    folder = tmp_path_factory.mktemp("questions")
    rows = {
        "mmlu.jsonl": [
            mmlu(subject, split, number)
            for subject, count in (("virology", 7), ("astronomy", 4))
            for split, n in (("dev", 5), ("test", count))
            for number in range(n)
        ],
        "piqa.test.jsonl": [piqa(number) for number in range(12)],
    }
    for name, some in rows.items():
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in some))
    return folder


@pytest.fixture(scope="module")
def tiny():
    return load_model(str(tiny_folder()))


def test_scores_are_those_of_lm_evals_own_evaluation(tiny, data, tmp_path):
    ours = score_tasks(tiny, ["piqa", "mmlu"], shots=2, data=data)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, file in find_files(data).items():
        write_tasks(file, LOCAL_TASKS[name], Path(lm_eval.tasks.__file__).parent, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lm_eval.simple_evaluate(  # all that its command does between reading and writing
            model="hf",
            model_args=f"pretrained={tiny_folder()},dtype=float32",
            tasks=["piqa", "mmlu"],
            num_fewshot=2,
            batch_size=8,
            device="cpu",
            task_manager=lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False),
        )["results"]
    assert [(one.task, one.metric) for one in ours] == [
        ("piqa", "acc"),
        ("piqa", "acc_norm"),
        ("mmlu", "acc"),
    ]
    for one in ours:
        assert one.value == theirs[one.task][f"{one.metric},none"]
        assert one.error == theirs[one.task][f"{one.metric}_stderr,none"]
    assert [one.questions for one in ours] == [12, 12, 11]
    assert {one.shots for one in ours} == {2}


def test_shots_are_the_usual_ones_and_progress_is_told(tiny, data):
    steps = []
    scores = score_tasks(
        tiny, ["mmlu", "piqa"], data=data, limit=3, progress=lambda *one: steps.append(one)
    )
    assert [(one.task, one.shots, one.questions) for one in scores] == [
        ("mmlu", 5, 6),
        ("piqa", 0, 3),
        ("piqa", 0, 3),
    ]
    assert (6 * 4, 6 * 4) in steps
    assert steps[-1] == (6, 6)


@pytest.mark.parametrize(
    ("task", "local", "said"),
    [
        ("piqq", False, r"unknown task 'piqq': nearest are piqa"),
        ("boolq", True, r"unknown task 'boolq': there are mmlu, piqa"),
        ("mnlu", True, r"unknown task 'mnlu': nearest are mmlu"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(monkeypatch, data, task, local, said):
    own = Path(lm_eval.tasks.__file__).parent / "piqa"  # of 14,000 files
    found = lm_eval.tasks.TaskManager(include_path=own, include_defaults=False)
    monkeypatch.setattr("lmscout.evaluation.tasks._own_tasks", lambda: found)
    with pytest.raises(LmscoutError, match=said):
        check_tasks([task], data if local else None)


def test_without_lm_eval_the_extra_is_named(lmscout_without):
    code, err = lmscout_without("lm_eval", "eval", "nowhere", "--tasks", "piqa")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'lmscout[eval]'" in err
