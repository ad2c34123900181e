"""What commands show of tiny models: windows that fit, both shares, losses, and verdicts."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

SIZES = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
PRUNABLE = 3 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
STORY = "The quick brown fox of paragraph {} jumps over the lazy dog, and then again.\n"
BY_PROXY = ("--objective", "proxy:snip", "--seed", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models that read 64 positions, slide over 40, and read 256; and two texts."""
    base = tmp_path_factory.mktemp("models")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<s>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    logging.disable_progress_bar()
    for name, kind, config in (
        ("short", LlamaForCausalLM, LlamaConfig(**SIZES, max_position_embeddings=64)),
        ("long", LlamaForCausalLM, LlamaConfig(**SIZES, max_position_embeddings=256)),
        (
            "sliding",
            MistralForCausalLM,
            MistralConfig(**SIZES, max_position_embeddings=256, sliding_window=40),
        ),
    ):
        torch.manual_seed(0)
        kind(config).save_pretrained(base / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(
            base / name
        )
    logging.enable_progress_bar()
    (base / "text.txt").write_text("".join(STORY.format(index) for index in range(300)))
    rows = [json.dumps({"title": "t", "story": STORY.format(f"{i} again")}) for i in range(100)]
    (base / "rows.jsonl").write_text("\n".join(rows))
    return base


def pruned(lmscout, folders, model, *options, out="smaller"):
    code, shown, err = lmscout(
        *("prune", folders / model, "--calibration", folders / "text.txt", "--out", out),
        *(*BY_PROXY, *options, "--json", "result.json"),
    )
    assert (code, err) == (0, ""), err
    return shown


def test_a_short_model_is_pruned_and_what_is_shown_is_what_was_measured(lmscout, folders, tmp_path):
    shown = pruned(
        *(lmscout, folders, "short", "--report", f"{folders / 'rows.jsonl'}#story"),
        *("--protocol", "sliding", "--report-tokens", 500),
    )
    result = json.loads((tmp_path / "result.json").read_text())
    (size,) = result["sizes"]
    rows = {one["name"]: one for one in size["models"]}
    dense, found = result["dense"], rows["found"]
    assert dense["loss_increase"] == pytest.approx(0, abs=1e-5)
    assert found["kept"] == pytest.approx(0.8, abs=0.02)
    gone = dense["params"] - found["params"]
    assert found["kept"] == pytest.approx(1 - gone / PRUNABLE, abs=1e-9)
    assert found["kept_of_all"] == pytest.approx(found["params"] / dense["params"], abs=1e-12)
    assert found["kept_of_all"] > found["kept"]
    assert found["measurement"]["limit_tokens"] == 500
    for row in (dense, found):
        assert f"{row['kept']:.1%}" in shown
        assert f"{row['kept_of_all']:.1%}" in shown
        assert f"{row['loss_increase']:+.4f}" in shown
    for heading in ("of all", "prunable", "increase"):
        assert heading in shown
    assert result["held_out_tokens"] % 63 == 0
    # Every baseline that is better is named, by every measure, and no other is.
    worse = {(one["baseline"], one["measure"]) for one in size["comparisons"] if one["worse"]}
    for baseline in rows.keys() & {"uniform", "uniform_compensated", "uniform_protected"}:
        for measure in ("loss_increase", "perplexity"):
            behind = found[measure] > rows[baseline][measure] + 1e-3
            assert ((baseline, measure) in worse) == behind, (baseline, measure)
    said = " ".join(shown.split())
    assert len(size["verdict"]) >= 1
    for sentence in size["verdict"]:
        assert sentence in said


def test_a_loss_increase_is_that_of_the_saved_model_on_the_held_out_windows(
    lmscout, folders, tmp_path
):
    shown = pruned(lmscout, folders, "sliding", "--window", 32, "--calibration-windows", 90)
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {one["name"]: one for one in result["sizes"][0]["models"]}
    assert rows["found"]["perplexity"] is None
    assert result["held_out_tokens"] == 31 * round(90 * 15 / 74)
    assert f"on {result['held_out_tokens']:,} held-out tokens of" in " ".join(shown.split())
    increases = {
        name: rows[name]["loss_increase"]
        for name in ("uniform", "uniform_compensated", "found", "found_compensated")
    }
    assert len(set(increases.values())) == 4
    below = "This is adaptation to the text" in " ".join(shown.split())
    assert below == (min(increases.values()) < 0)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("short", ("--window", 65), "the model reads 64: give a window of 64 or less"),
        ("sliding", ("--window", 41), "attention slides over 40: give a window of 40 or less"),
        ("sliding", ("--window", 41, "--dry-run"), "attention slides over 40"),
        ("long", ("--report-tokens", 500), "--report-tokens has nothing to apply to"),
        (
            "long",
            ("--calibration-tokens", 5000, "--calibration-windows", 50),
            "--calibration-windows and --calibration-tokens: give one of them",
        ),
        (
            "long",
            ("--report", "ROWS#story", "--report-tokens", 100),
            "100 tokens are fewer than one window of 128; raise the limit to 128 or more",
        ),
        ("long", ("--report", "ROWS"), "fields of text are title, story: name one"),
        ("long", ("--report", "ROWS#absent"), "has no text in field 'absent'"),
    ],
)
def test_what_does_not_fit_is_one_line(lmscout, folders, tmp_path, model, options, said):
    given = [str(one).replace("ROWS", str(folders / "rows.jsonl")) for one in options]
    code, out, err = lmscout(
        *("prune", folders / model, "--calibration", folders / "text.txt", "--out", "smaller"),
        *(*BY_PROXY, *given),
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_uses_the_window_and_the_tokens_that_a_run_would(lmscout, folders):
    sizes = []
    for options in ((), ("--calibration-tokens", 740_000), ("--seqlen", 32)):
        code, out, err = lmscout(
            *("prune", folders / "short", "--calibration", folders / "text.txt"),
            *("--out", "smaller", "--dry-run", "--json", "-", *options),
        )
        assert (code, err) == (0, "")
        sizes.append(json.loads(out)["calibrating"])
    assert sizes[1] - sizes[0] == 450_000 * 16 * 4
    assert sizes[2] == sizes[0]


def test_speed_fits_the_model_and_rows_are_read_from_parquet(lmscout, folders, tmp_path):
    import pyarrow as pa

    rows = [json.loads(line) for line in (folders / "rows.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    measured = []
    for source in (folders / "rows.jsonl", tmp_path / "rows.parquet"):
        code, out, err = lmscout(
            *("eval", folders / "short", "--perplexity", f"{source}#story", "--speed"),
            *("--protocol", "sliding", "--limit-tokens", 400, "--json", "-"),
        )
        assert (code, err) == (0, "")
        result = json.loads(out)
        assert (result["speed"]["batch"], result["speed"]["length"]) == (8, 64)
        measured.append(result["perplexities"][0]["perplexity"])
    assert measured[0] == measured[1]


def commands():
    return [
        *(("demo",), ("discover",), ("rank",), ("explain",), ("design",), ("prune",), ("eval",)),
        *(("bench",), ("bench", "build"), ("bench", "check"), ()),
    ]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_is_short_of_its_own_command_and_whole_at_80_columns(lmscout, command):
    code, out, err = lmscout(*command, "-h", COLUMNS="80")
    assert (code, err) == (0, "")
    assert (0, out, "") == lmscout(*command, "--help", COLUMNS="80")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    if command[:1] in (("rank",), ("explain",)):
        for other in ("discover", "ledger", "design", "prune"):
            assert other not in out


def test_a_shell_completes_commands_and_options(lmscout):
    for words, expected in (("lmscout ex", "explain"), ("lmscout prune --win", "--window")):
        code, out, _ = lmscout(
            _LMSCOUT_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split()) - 1),
        )
        assert code == 0
        assert expected in out.split()
