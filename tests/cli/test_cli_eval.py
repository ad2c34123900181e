import json
import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from lmscout import evaluation
from lmscout.cli.main import main

CONTENT = "The quick brown fox jumps over the lazy dog, and over the cat as well.\n" * 10


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<s>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    logging.enable_progress_bar()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "fox.txt"
    file.write_text(CONTENT)
    return file


def test_eval_prints_exactly_one_json_object(lmscout, model_folder, text_file):
    code, out, err = lmscout(
        *("eval", model_folder, "--perplexity", text_file, "--protocol", "llm-pruner"),
        *("--protocol", "sliding", "--json", "-"),
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    loaded = evaluation.load_model(str(model_folder))
    assert (result["model"], result["dtype"]) == (str(model_folder), "float32")
    assert result["parameters"] == sum(one.numel() for one in loaded.model.parameters())
    assert result["seconds"] > 0
    assert [one["protocol"]["window"] for one in result["perplexities"]] == [128, 256]
    expected = evaluation.perplexity(
        loaded.model, loaded.tokenizer, evaluation.read_text(str(text_file)), "llm-pruner"
    )
    first = result["perplexities"][0]
    assert first["perplexity"] == pytest.approx(expected.value, rel=1e-6)
    assert first | {"perplexity": 0, "nll": 0} == expected.to_json() | {
        "perplexity": 0,
        "nll": 0,
        "special_tokens": ["<s>"],
    }


def test_eval_prints_a_table(lmscout, model_folder, text_file, tmp_path):
    code, out, err = lmscout(
        *("eval", model_folder, "--perplexity", text_file, "--perplexity", text_file),
        *("--limit-tokens", 400, "--json", "result.json"),
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["perplexities"]) == 2
    for words in (
        f"{result['parameters']:,} parameters",
        "fox.txt",
        "llm-pruner",
        f"{result['perplexities'][0]['perplexity']:.2f}",
        str(3 * 127),
    ):
        assert words in out


def test_help_names_the_options(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["lmscout", "eval", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    for words in ("MODEL", "--perplexity", "--protocol", "windows-512", "--limit-tokens", "hub:"):
        assert words in out


def check_refusal(code, out, err, hint):
    assert (code, out) == (2, ""), (out, err)
    assert err.count("\n") == 1, err
    assert err.startswith("lmscout: ")
    assert hint in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["MODEL"], "--perplexity"),
        (["MODEL", "--perplexity", "TEXT", "--protocol", "llm-prunner"], "llm-pruner"),
        (["MODEL", "--perplexity", "TEXT", "--protocol", "windows-512"], "256"),
        (["MODEL", "--perplexity", "TEXT", "--dtype", "int8"], "bfloat16"),
        (["MODEL", "--perplexity", "TEXT", "--device", "gpu"], "'gpu'"),
        (["MODEL", "--perplexity", "TEXT", "--limit-tokens", "0"], "--limit-tokens"),
        (["MODEL", "--perplexity", "TEXT", "--json", "nowhere/x.json"], "nowhere"),
        (["MODEL", "--perplexity", "short.txt"], "fewer than one window"),
        (["MODEL", "--perplexity", "absent.txt"], "no such file"),
        (["MODEL", "--perplexity", "TEXT", "--task-data", "."], "--task-data has nothing to apply"),
        (["MODEL", "--perplexity", "TEXT", "--shots", "0"], "--shots has nothing to apply to"),
        (["MODEL", "--perplexity", "TEXT", "--limit", "9"], "or for a text --limit-tokens"),
        (["MODEL", "--tasks", "piqa", "--protocol", "sliding"], "--protocol has nothing to apply"),
        (["MODEL", "--tasks", "piqa", "--limit-tokens", "9"], "or for tasks --limit"),
        (["./absent", "--perplexity", "TEXT"], "no such folder"),
        (["empty", "--perplexity", "TEXT"], "config.json"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments, hint, model_folder, text_file, tmp_path, monkeypatch, capsys
):
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = {"MODEL": str(model_folder), "TEXT": str(text_file)}
    given = [paths.get(one, one) for one in arguments]
    monkeypatch.setattr("sys.argv", ["lmscout", "eval", *given])
    with pytest.raises(SystemExit) as stop:  # in this process: PyTorch takes seconds to import
        main()
    check_refusal(stop.value.code, *capsys.readouterr(), hint)


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        (("--perplexity", "short.txt"), "fewer than one window"),
        (("--protocol", "llm-pruner", "--protocol", "windows-512"), "the model reads 256"),
    ],
)
def test_a_slip_in_the_last_text_or_protocol_is_told_before_the_first_is_measured(
    lmscout, model_folder, text_file, tmp_path, slip, said
):
    (tmp_path / "short.txt").write_text("short")
    damaged = tmp_path / "damaged"  # so that measuring anything would be told first
    loaded = evaluation.load_model(str(model_folder))
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(1e5)
    loaded.model.save_pretrained(damaged)
    loaded.tokenizer.save_pretrained(damaged)
    asked = ("eval", damaged, "--perplexity", text_file)
    check_refusal(*lmscout(*asked), "no finite perplexity")
    check_refusal(*lmscout(*asked, *slip), said)


def test_a_model_of_the_hub_is_told_at_once_to_be_out_of_reach(lmscout, text_file):
    arguments = ("eval", "lmscout-tests/absent", "--perplexity", text_file)
    check_refusal(*lmscout(*arguments, HF_HUB_OFFLINE="1"), "Hub cannot be reached")


def question(number):
    return {
        "instruction": f"Please choose the correct solution to the question: Do job {number}"
        "\n\nSolution1: wait\n\nSolution2: go on\n\nAnswer format: solution1/solution2",
        "answer": f"solution{number % 2 + 1}",
    }


def test_eval_asks_tasks_beside_perplexities(lmscout, model_folder, text_file, tmp_path):
    (tmp_path / "piqa.jsonl").write_text("".join(f"{json.dumps(question(n))}\n" for n in range(4)))
    ask = ("--tasks", "piqa", "--task-data", tmp_path, "--limit", 3, "--speed")
    command = ("eval", model_folder, "--perplexity", text_file, *ask, "--out", "kept")
    code, out, err = lmscout(*command, "--json", "-")
    assert (code, err) == (0, "")
    result = json.loads(out)
    kept = json.loads((tmp_path / "kept" / "result.json").read_text())
    assert result.items() <= kept.items()
    assert [one["perplexity"] > 0 for one in result["perplexities"]] == [True]
    assert [(one["metric"], one["questions"], one["shots"]) for one in result["tasks"]] == [
        ("acc", 3, 0),
        ("acc_norm", 3, 0),
    ]
    assert result["bytes"] == 4 * result["parameters"]
    assert result["multiply_adds"] > 0
    assert result["speed"]["tokens_per_second"] > 0
    code, out, err = lmscout(*command, "--json", "again.json")
    assert code == 0
    assert re.fullmatch(r"lmscout: run folder .*: holds a finished run .*\n", err)
    assert "acc_norm" in out
    assert "tokens/s" in out
    assert json.loads((tmp_path / "again.json").read_text()) == result  # seconds among it
    code, out, err = lmscout(*command, "--batch-tokens", 512)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "run folder kept holds a run with batch_tokens 4096, not 512" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to measure: give --perplexity TEXT, --tasks NAME,... or --speed"),
        (("--tasks", " ,"), "--tasks names none"),
        (("--tasks", "piqa", "--task-data", "nowhere"), "task data nowhere: is no folder"),
        (("--tasks", "piqa", "--task-data", "."), "holds no file of questions"),
    ],
)
def test_what_cannot_be_asked_is_one_line(lmscout, arguments, said):
    code, out, err = lmscout("eval", "no-model", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
