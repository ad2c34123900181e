"""Run folders of evaluations: loaded again only for the same model and the same questions."""

import json

import pytest
import tiny_checkpoints

import lmscout

QUESTION = {
    "instruction": "Please choose the correct solution to the question: To open a jar:\n\n"
    "Solution1: turn the lid.\n\nSolution2: turn the table.\n\n"
    "Answer format: solution1/solution2",
    "answer": "solution1",
}


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(tiny_checkpoints.CONTENT)
    return str(tmp_path / "text.txt")


def test_a_finished_run_is_loaded_and_says_so(llama_folder, text, tmp_path, caplog):
    given = {"perplexity": text, "out": tmp_path / "run", "progress": False}
    first = lmscout.evaluate(str(llama_folder), **given)
    assert not caplog.messages
    assert lmscout.evaluate(str(llama_folder), **given).to_dict() == first.to_dict()
    (message,) = caplog.messages
    assert f"run folder {tmp_path / 'run'}: holds a finished run" in message
    assert "to run again, name another folder or remove" in message


def test_a_model_in_memory_is_never_taken_for_the_one_of_a_finished_run(
    llama_folder, text, tmp_path
):
    loaded = lmscout.load_model(str(llama_folder))
    for folder in ("run", "other"):
        lmscout.evaluate(loaded, perplexity=text, out=tmp_path / folder, progress=False)
    loaded.model.lm_head.weight.data.mul_(2)
    for model in (loaded, str(llama_folder)):
        with pytest.raises(lmscout.LmscoutError, match="holds a run with model_fingerprint in mem"):
            lmscout.evaluate(model, perplexity=text, out=tmp_path / "run", progress=False)


def test_other_questions_are_another_run(llama_folder, tmp_path):
    file = tmp_path / "questions" / "piqa.jsonl"
    file.parent.mkdir()
    file.write_text(f"{json.dumps(QUESTION)}\n" * 2)
    given = {"tasks": "piqa", "task_data": file.parent, "out": tmp_path / "run"}
    first = lmscout.evaluate(str(llama_folder), **given, progress=False)
    again = lmscout.evaluate(str(llama_folder), **given, progress=False)
    assert again.to_dict() == first.to_dict()
    file.write_text(json.dumps(QUESTION | {"answer": "solution2"}))
    with pytest.raises(lmscout.LmscoutError, match="holds a run with another task_data_sha256"):
        lmscout.evaluate(str(llama_folder), **given, progress=False)
