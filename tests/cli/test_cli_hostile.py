"""Hostile and absurd input to the commands: one line and exit code 2, before memory is taken."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lmscout.builtin import tiny_folder

HUGE = 10**9
DIGITS = "9" * 5_000
DEEP = "[" * 100_000
RANK = ("--proxy", "sum(std(weight))", "--workers", "1", "--out", "o")
SPACE = {
    "depths": [1, 2],
    "widths": [16, 32],
    "head_sizes": [8],
    "expansions": [2],
    "vocabulary": 128,
    "max_length": 32,
}
DESIGN = ("--proxy", "snip", "--max-params", "1M", "--evaluations", "4", "--workers", "1")


@pytest.fixture
def refused(lmscout):
    def run(*arguments):
        code, out, err = lmscout(*arguments)
        assert code == 2, out + err
        assert err.startswith("lmscout: ")
        assert err.count("\n") == 1, err
        assert len(err) < 1100
        return err

    return run


@pytest.fixture
def model(tmp_path):
    """The built-in model in a folder of its own, and a text."""
    (tmp_path / "text").write_text("a text of some words. " * 2000)
    return shutil.copytree(tiny_folder(), tmp_path / "model")


def configure(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_yaml_of_brackets_ends_in_one_line(refused, tmp_path):
    folder = tmp_path / "x" / "config_0" / "j0"
    folder.mkdir(parents=True)
    (tmp_path / "x" / "ppl_summary.yaml").write_text("config_0_j0: 3.0\n")
    (folder / "model_config.yaml").write_text("x: " + DEEP)
    assert "nests too deep" in refused("rank", f"lts:{tmp_path}/x", *RANK)


@pytest.mark.parametrize(
    ("content", "said"), [(DEEP, "nests too deep"), (f'[{{"id": {DIGITS}}}]', "too many digits")]
)
def test_absurd_json_ends_in_one_line(refused, tmp_path, content, said):
    file, folder = tmp_path / "x.json", tmp_path / "b"
    file.write_text(content)
    folder.mkdir()
    (folder / "table.jsonl").write_text(f'{{"architecture": {content}}}')
    assert said in refused("rank", f"flexibert:{file}", *RANK)
    assert said in refused("design", file, *DESIGN)
    assert said in refused("rank", f"bench:{folder}", *RANK)


AT_MOST = "input should be less than or equal to"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": [HUGE]}, f"groups.0: {AT_MOST} 1048576, not 1000000000"),
        ({"depths": [HUGE]}, f"depths.0: {AT_MOST} 512, not 1000000000"),
        ({"widths": [HUGE * 8]}, f"widths.0: {AT_MOST} 65536, not 8000000000"),
        ({"vocabulary": HUGE}, f"vocabulary: {AT_MOST} 4194304, not 1000000000"),
        ({"max_length": HUGE}, f"max_length: {AT_MOST} 1048576, not 1000000000"),
        ({"expansions": [1e300]}, f"expansions.0: {AT_MOST} 1024, not 1e+300"),
        ({"head_sizes": list(range(2, 200, 2)), "groups": list(range(1, 99)),
          "depths": list(range(1, 99))}, "too many values together"),
        ({"widths": [-16]}, "widths.0: input should be greater than 0, not -16"),
        ({"widths": [True]}, "widths.0: input should be a valid integer, not True"),
    ],
)  # fmt: skip
def test_absurd_spaces_end_in_one_line(refused, tmp_path, changes, said):
    (tmp_path / "s.json").write_text(json.dumps({**SPACE, **changes}))
    assert said in refused("design", tmp_path / "s.json", *DESIGN)


@pytest.mark.parametrize("field", ["hidden_size", "feed_forward_dimension", "num_feed_forward"])
def test_absurd_encoders_end_in_one_line(refused, flexibert_file, tmp_path, field):
    rows = json.loads(flexibert_file.read_text())
    overrides = rows[0]["hparams"]["model_hparam_overrides"]
    part = overrides if field in overrides else overrides["nas_config"]["encoder_layers"][0]
    part[field] = HUGE
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert "is too large (got 1000000000" in refused("rank", f"flexibert:{tmp_path}/b.json", *RANK)


def test_an_architecture_beyond_memory_is_refused_before_the_first_is_read(
    refused, flexibert_file, tmp_path
):
    rows = json.loads(flexibert_file.read_text())
    rows[-1]["hparams"]["model_hparam_overrides"]["hidden_size"] = 2**16
    (tmp_path / "b.json").write_text(json.dumps(rows))
    for layer in rows[-1]["hparams"]["model_hparam_overrides"]["nas_config"]["encoder_layers"]:
        layer.update(feed_forward_dimension=2**20, num_feed_forward=64)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    message = refused("rank", f"flexibert:{tmp_path}/b.json", *RANK)
    assert "needs too much memory" in message
    assert "parameters" in message


def test_a_benchmark_with_a_byte_order_mark_or_as_json_lines_is_read(
    lmscout, flexibert_file, tmp_path
):
    rows = json.loads(flexibert_file.read_text())
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.json").write_bytes(mark + json.dumps(rows).encode())
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = []
    for name in ("a.json", "b.jsonl"):
        asked = ("--proxy", "sum(std(weight))", "--json", "-", "--workers", 1, "--out", name[0])
        code, out, err = lmscout("rank", f"flexibert:{name}", *asked)
        assert code == 0, err
        results.append(json.loads(out)["proxies"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": -16}, "hidden_size: is out of range (got -16"),
        ({"hidden_size": HUGE}, "hidden_size: is out of range"),
        ({"hidden_size": 64.0}, "hidden_size: must be a whole number above 0, not 64.0"),
        ({"hidden_size": True}, "hidden_size: must be a whole number"),
        ({"num_hidden_layers": HUGE}, "num_hidden_layers: is out of range"),
        ({"vocab_size": 0}, "vocab_size: is out of range"),
        ({"vocab_size": "many"}, "vocab_size: must be a whole number"),
        ({"architectures": 7}, "architectures: is no list of class names (got 7"),
        ({"architectures": [7]}, "architectures: is no list of class names"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: is no list of class names"),
        ({"model_type": 7}, "model_type: is no name (got 7)"),
    ],
)
def test_an_absurd_config_is_one_line_for_a_run_and_a_dry_run(refused, model, changes, said):
    configure(model, **changes)
    dry = ("--calibration", "text", "--dry-run", "--out", "o")
    assert said in refused("prune", model, *dry)
    assert said in refused("eval", model, "--perplexity", "text")


def test_a_config_of_more_weights_than_any_memory_is_refused_unfilled(refused, model):
    configure(model, hidden_size=2**19, intermediate_size=2**20, head_dim=64)
    assert "weights do not fit config.json" in refused("eval", model, "--perplexity", "text")
    dry = ("--calibration", "text", "--dry-run", "--out", "o")
    assert "needs too much memory" in refused("prune", model, *dry)


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/other.safetensors", 7])
def test_a_shard_outside_the_folder_is_refused(refused, model, name):
    (model / "model.safetensors").rename(model.parent / "other.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused("eval", model, "--perplexity", "text")
    assert "not in its folder" in message or "is no file name" in message


def test_weights_that_are_a_link_out_of_the_folder_are_refused(refused, model):
    (model / "model.safetensors").rename(model.parent / "other.safetensors")
    (model / "model.safetensors").symlink_to("../other.safetensors")
    assert "outside its folder" in refused("eval", model, "--perplexity", "text")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tokens: tokens - 300, "train holds an invalid token (got -300"),
        (lambda tokens: tokens.to(torch.complex64), "must be a vector of whole numbers (got C64"),
        (lambda tokens: tokens.float(), "must be a vector of whole numbers (got F32"),
        (lambda tokens: tokens.bool(), "must be a vector of whole numbers (got BOOL"),
        (lambda tokens: tokens[None], "must be a vector of whole numbers (got I64 [1, 36000]"),
        (lambda tokens: tokens + 5000, "the tokens go up to 5199"),
    ],
)
def test_a_corpus_of_what_are_no_tokens_is_refused(refused, tmp_path, change, said):
    tokens = torch.arange(36_000) % 200
    save_file({"train": change(tokens).clone(), "validation": tokens[:700]}, tmp_path / "c.st")
    build = ("--n", "2", "--tokens", "13000", "--workers", "1", "--out", "b")
    assert said in refused("bench", "build", "nano", "--corpus", tmp_path / "c.st", *build)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("rank", "pico", "--workers", HUGE),
        ("rank", "pico", "--workers", -HUGE),
        ("rank", "pico", "--workers", 0),
        ("rank", "pico", "--seed", 2**63),
        ("rank", "pico", "--seed", "9" * 4000),
        ("discover", "pico", "--search", HUGE),
        ("discover", "pico", "--search", "9" * 5000),
        ("discover", "pico", "--space", "deep", "--evaluations", 10**12),
        ("discover", "pico", "--space", "deep", "--searches", 10**12),
        ("design", "nano", "--proxy", "snip", "--max-params", "9" * 5000),
        ("design", "nano", "--proxy", "snip", "--max-params", "1" + "0" * 30 + "G"),
        ("design", "nano", "--proxy", "snip", "--max-params", "1M", "--weights", 10**12),
        ("bench", "build", "nano", "--n", HUGE, "--out", "b"),
        ("bench", "build", "nano", "--seeds", HUGE, "--out", "b"),
        ("bench", "build", "nano", "--tokens", 10**30, "--out", "b"),
        ("bench", "build", "nano", "--n", 2, "--tokens", 10**12, "--out", "b"),
        ("bench", "build", "nano", "--workers", HUGE, "--out", "b"),
        ("eval", "model", "--perplexity", "text", "--batch-tokens", 10**12),
        ("eval", "model", "--perplexity", "text", "--limit-tokens", 10**30),
        *(
            ("prune", "model", "--calibration", "text", "--out", "o", "--recover", "lora", *given)
            for given in (
                ("--pairs", 10**12),
                ("--channel-multiple", 10**12),
                ("--recover-steps", 10**30),
                ("--recover-steps", "9" * 4000),
                ("--recover-tokens", 10**400),
                ("--recover-rank", 10**12),
                ("--recover-batch", 10**12),
                ("--recover-minutes", "nan"),
                ("--recover-minutes", "inf"),
                ("--recover-rate", "1e300"),
                ("--keep", "nan"),
                ("--keep", "1e-400"),
            )
        ),
        ("rank", "pico", "--proxy", "sum(" * 20_000),
        ("explain", "abs(" * 20_000 + "weight" + ")" * 20_000, "pico"),
        ("rank", "bench:a\ud800b"),
        ("rank", "lts:~nobody-of-this-name/x"),
    ],
    ids=lambda arguments: " ".join(str(one)[:20] for one in arguments).encode("ascii", "replace"),
)  # fmt: skip
def test_absurd_options_are_one_line(refused, model, arguments):
    assert model.is_dir()
    refused(*arguments)
