"""`lmscout prune` as installed: one line and exit code 2 for what a user can mend."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

SHARED = Path(__file__).resolve().parents[3] / "shared"
STORIES = Path(os.environ.get("LMSCOUT_MODELS") or SHARED / "models") / "stories260K"
STORY = "Once upon a time, there was a little girl named Lily. She saw bird number {}.\n"

pytestmark = pytest.mark.skipif(
    not STORIES.is_dir(), reason="needs the model stories260K; see LMSCOUT_MODELS"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "stories.txt"
    file.write_text("".join(STORY.format(index) for index in range(400)))
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders that cannot be pruned, by what is wrong with them."""
    base = tmp_path_factory.mktemp("models")
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    sizes = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=24))
    weightless = base / "weightless"
    llama.config.save_pretrained(weightless)
    tokenizer.save_pretrained(weightless)
    pickled = base / "pickled"
    llama.config.save_pretrained(pickled)
    tokenizer.save_pretrained(pickled)
    torch.save(llama.state_dict(), pickled / "pytorch_model.bin")
    encoder = base / "encoder"
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=24)).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    broken = base / "broken"
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    llama.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    logging.enable_progress_bar()
    return base


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("weightless", [], "model.safetensors"),
        ("pickled", [], "is pickled"),
        ("encoder", [], "not a causal language model"),
        ("broken", [], "is nan"),
        ("absent", [], "absent"),
        (STORIES, ["--keep", "0"], "keep of 0 is not a share"),
        (STORIES, ["--keep", "1.2"], "keep of 1.2 is not a share"),
        (STORIES, ["--keep", "most"], "--keep most: no share"),
        (STORIES, ["--worse-by", "5"], "--worse-by 5: no percentage above 0"),
        (STORIES, ["--worse-by", "-1%"], "--worse-by -1%: no percentage above 0"),
        (STORIES, ["--worse-by", "5%", "--max-increase", "1"], "give one of them"),
        (STORIES, ["--worse-by", "5%", "--keep", "0.8"], "keep and max_increase: give one"),
        (STORIES, ["--keep", "0.01"], "nearest that can be met"),
        (STORIES, ["--report", "TEXT"], "are the same"),
        (STORIES, ["--calibration", "SHORT"], "fewer than one window of 128"),
        (STORIES, ["--out", "FULL"], "is not empty"),
        (STORIES, ["--compensation", "some"], "--compensation"),
        (STORIES, ["--dtype", "int8"], "--dtype"),
        (STORIES, ["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        ("absent", ["--dry-run"], "no config.json"),
        (STORIES, ["--pairs", "3"], "pairs"),
        (STORIES, ["--seed", "-1"], "seed"),
        (STORIES, ["--seed", str(2**63)], "expected 0 to 9223372036854775807"),
        (STORIES, ["--report", "OTHER", "--protocol", "sliding-1024"], "the model reads 512"),
        (
            STORIES,
            ["--report", "OTHER", "--protocol", "sliding-1024", "--dry-run"],
            "the model reads 512",
        ),
        (STORIES, ["--report", "SHORT"], "short.txt: 6 tokens are fewer than one window of 128"),
        (STORIES, ["--storage", "mystery://x"], "mystery"),
        (STORIES, ["--storage", "mystery://me:pw@x/y"], "study at mystery://me:***@x/y: "),
        (STORIES, ["--storage", "no/folder/x.db"], "no/folder does not exist; create it first"),
        (STORIES, ["--json", "nowhere/result.json"], "its folder does not exist"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    lmscout, folders, text, tmp_path, model, options, said
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "short.txt").write_text("Once upon a time.")
    names = {"TEXT": text, "SHORT": tmp_path / "short.txt", "FULL": tmp_path / "full"}
    names["OTHER"] = tmp_path / "other.txt"
    names["OTHER"].write_text("".join(STORY.format(f"{index} again") for index in range(100)))
    before = sorted(tmp_path.rglob("*"))
    given = [names.get(one, one) for one in options]
    code, out, err = lmscout(
        *("prune", folders / model, "--calibration", text, "--out", "run", "--pairs", 20), *given
    )
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("lmscout: ")
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_needs_no_weights_and_writes_nothing(lmscout, folders, text, tmp_path):
    asked = ("prune", folders / "weightless", "--calibration", text, "--out", "run", "--dry-run")
    code, out, err = lmscout(*asked, "--keep", "0.8,0.5")
    assert (code, err) == (0, "")
    for words in ("weights", "a pair at keep 0.5", "200 pairs", "at most", "Nothing was pruned."):
        assert words in out
    assert "recovering" not in out
    code, out, err = lmscout(*asked, "--worse-by", "5%", "--front", "--pairs", "0")
    assert (code, err) == (0, "")
    assert "refitting about 19 plans" in out
    recovered = ("--recover", "distill", "--elastic", "--recover-steps", "5", "--keep", "0.8,0.5")
    code, out, _ = lmscout(*asked, *recovered)
    assert code == 0
    for words in ("recovering all plans, 5 steps", "recovering 2 winner(s), 5 steps"):
        assert words in out
    code, out, _ = lmscout(*asked, "--device", "cpu:0+cpu:1")
    assert code == 0
    assert "cpu:1: 1 of 2 blocks, " in out
    assert "on cpu:0, cpu:1; peak" in out
    code, out, _ = lmscout(*asked, "--json", "-")
    result = json.loads(out)
    assert code == 0
    assert result["parameters"] == 2 * 512 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert list(tmp_path.rglob("*")) == []


def test_a_dry_run_does_not_mind_what_is_in_the_folder(lmscout, folders, text, tmp_path):
    (tmp_path / "mine").write_text("mine")
    asked = ("prune", folders / "weightless", "--calibration", text, "--out", ".", "--dry-run")
    code, out, err = lmscout(*asked)
    assert (code, err) == (0, "")
    assert "Nothing was pruned." in out
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_help_cuts_no_word_at_80_columns(lmscout):
    code, out, _ = lmscout("prune", "--help", COLUMNS="80")
    assert code == 0
    assert "hub:NAME/CONFIG" in out
    assert "…" not in out


def test_a_table_a_model_and_its_json(lmscout, text, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("".join(STORY.format(f"{index} again") for index in range(100)))
    command = ("prune", STORIES, "--calibration", text, "--report", report, "--pairs", 20)
    command += ("--calibration-windows", 60, "--out", "smaller")
    code, out, err = lmscout(*command, "--json", "result.json")
    assert (code, err) == (0, "")
    table = out
    for words in ("dense", "uniform, compensated", "found", "predictor:", "saved model: smaller"):
        assert words in out
    result = json.loads((tmp_path / "result.json").read_text())
    (found,) = (one for one in result["sizes"][0]["models"] if one["name"] == "found")
    assert found["kept"] == pytest.approx(0.8, abs=0.002)
    code, out, _ = lmscout("eval", "smaller", "--perplexity", report, "--json", "-")
    assert code == 0
    (measured,) = json.loads(out)["perplexities"]
    assert measured["perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
    _finished_it_is_told_again(lmscout, command, table, result, tmp_path)


def _finished_it_is_told_again(lmscout, command, table, result, tmp_path):
    folder, draft = tmp_path / "smaller", tmp_path / ".smaller-1234abcd.lmscout-draft"
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["command"], settings["pairs"], settings["keep"]) == ("prune", 20, [0.8])
    assert set(settings["environment"]) >= {"torch", "transformers", "lmscout", "threads"}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    draft.mkdir()  # of a process that was killed while it saved
    (draft / "model.safetensors").write_text("half")
    code, out, err = lmscout(*command, "--json", "again.json")
    assert (code, out) == (0, table)
    assert "run folder smaller: holds a finished run" in err
    assert json.loads((tmp_path / "again.json").read_text()) == result
    assert not draft.exists()
    code, out, err = lmscout(*command, "--json", "/dev/full")
    assert (code, err.count("\n")) == (2, 2)  # a finished run's, and the error
    assert "No space left on device" in err
    assert "the result is in smaller/result.json" in err
    for option, value, said in (
        ("--pairs", 21, "pairs 20, not 21"),
        ("--quality", "nll", "quality kl, not nll"),
        ("--report", tmp_path / "other.txt", "another report"),
    ):
        (tmp_path / "other.txt").write_text(STORY.format("other") * 40)
        code, out, err = lmscout(*command, option, value)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"run folder smaller holds a run with {said}: name another" in err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.slow
def test_killed_in_a_recovery_a_run_of_two_sizes_ends_as_one_that_was_not(text, tmp_path):
    def command(out):
        return [
            *(str(Path(sys.executable).with_name("lmscout")), "prune", str(STORIES)),
            *("--calibration", str(text), "--pairs", "20", "--keep", "0.8,0.6"),
            *("--recover", "distill", "--recover-steps", "10", "--out", str(out)),
            *("--json", f"{out}.json"),
        ]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, out = tmp_path / "whole", tmp_path / "run"
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    with subprocess.Popen(
        command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        until = time.monotonic() + 300
        while not (out / "recovery" / "keep-0.8.safetensors").exists():  # the first winner's
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not list(out.rglob("model.safetensors"))
    subprocess.run(command(out), check=True, capture_output=True, env=environment)
    for keep in ("keep-0.8", "keep-0.6"):
        weights = [(run / keep / "model.safetensors").read_bytes() for run in (whole, out)]
        assert weights[0] == weights[1]
    sizes = [json.loads(Path(f"{run}.json").read_text())["sizes"] for run in (whole, out)]
    for size in (*sizes[0], *sizes[1]):
        del size["out"], size["recovery"]["seconds"]
    assert sizes[0] == sizes[1]
    assert {file.suffix for file in (out / "recovery").iterdir()} == {".jsonl"}
