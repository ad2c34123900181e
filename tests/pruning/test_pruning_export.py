"""Cutting against a masked model, and saved folders against the model in memory."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from lmscout.errors import LmscoutError
from lmscout.pruning.cutting import cut, is_uniform
from lmscout.pruning.evaluator import SubnetworkEvaluator
from lmscout.pruning.export import save
from lmscout.pruning.families import Affine, family_of
from lmscout.pruning.plan import Plan
from lmscout.testing import masked_model, random_model

MODELS = Path(
    os.environ.get("LMSCOUT_MODELS", Path(__file__).resolve().parents[3] / "shared" / "models")
)
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKEN_NUMBERS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2 |= {"n_inner": 24, "bos_token_id": 1, "eos_token_id": 2}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
DENSE = {
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "gpt2": GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
}
DENSE = {name: random_model(config) for name, config in DENSE.items()}
TOKENS = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))
# Attention gone from the first block, MLP from the last.
HALVES = Plan((0, 2, 1), (24, 7, 0))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(input_ids=tokens).logits


def generate(model, **how):
    model.generation_config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    prompts = TOKENS[:, :4].to(model.device)
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max()))


@given(data=st.data(), name=st.sampled_from(sorted(DENSE)))
@settings(max_examples=60, deadline=None)
def test_any_plan_cut_masked_and_seen_through_views_is_the_same(data, name):
    model = DENSE[name]
    family = family_of(model.config)
    groups = 4 if name == "gpt2" else 2
    kept = [
        st.lists(st.integers(0, most), min_size=3, max_size=3).map(tuple) for most in (groups, 24)
    ]
    plan = data.draw(st.builds(Plan, *kept).filter(lambda plan: len(plan.dropped) < 3))
    expected = logits(masked_model(family, model, plan))
    pruned = cut(model, plan)
    assert_close(logits(pruned), expected)
    assert_close(SubnetworkEvaluator(model, family, TOKENS).logits(plan, TOKENS), expected)
    assert pruned.config.block_numbers == [block for block in range(3) if block not in plan.dropped]


@pytest.mark.parametrize("name", sorted(DENSE))
@pytest.mark.parametrize("attention", [(0, 2, 1), (0, 0, 1), (2, 0, 0), (0, 0, 0)])
def test_generation_is_that_of_the_masked_model(name, attention):
    model = DENSE[name]
    plan = Plan(attention, (24, 20, 7))
    pruned, masked = cut(model, plan), masked_model(family_of(model.config), model, plan)
    expected = generate(masked, use_cache=False)
    assert torch.equal(generate(pruned), expected)
    pruned.set_attn_implementation("eager")
    assert torch.equal(generate(pruned), expected)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_other_caches_and_beams_too(how):
    model = DENSE["llama"]
    masked = masked_model(family_of(model.config), model, HALVES)
    assert torch.equal(generate(cut(model, HALVES), **how), generate(masked, **how))


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, layer_types=ALTERNATING),
        Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=4, layer_types=ALTERNATING),
        MistralConfig(**SMALL, sliding_window=4),
        Gemma2Config(**SMALL, **TOKEN_NUMBERS, **GEMMA, layer_types=ALTERNATING),
        Gemma3TextConfig(**SMALL, **TOKEN_NUMBERS, **GEMMA, layer_types=ALTERNATING),
        SmolLM3Config(
            **SMALL,
            **TOKEN_NUMBERS,
            use_sliding_window=True,
            sliding_window=4,
            no_rope_layers=[0, 1, 0],
        ),
        Phi3Config(**SMALL, **TOKEN_NUMBERS, sliding_window=4),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("attention", [(0, 2, 1), (2, 0, 1), (0, 0, 1), (1, 2, 0), (0, 1, 0)])
def test_sliding_windows_stay_with_their_blocks(config, attention):
    model = random_model(config)
    plan = Plan(attention, (24, 20, 7))
    masked = masked_model(family_of(config), model, plan)
    pruned = cut(model, plan)
    assert_close(logits(pruned), logits(masked))
    assert torch.equal(generate(pruned), generate(masked, use_cache=False))
    whole = cut(model, Plan((2, 0, 2), (24, 0, 24)), shape="uniform")
    assert_close(logits(whole), logits(cut(model, Plan((2, 0, 2), (24, 0, 24)))))


def test_a_cut_model_shares_nothing_and_leaves_the_dense_one_alone():
    model = copy.deepcopy(DENSE["llama"])
    before = copy.deepcopy(model.state_dict())
    pruned = cut(model, HALVES)
    for weight in pruned.parameters():
        weight.data.zero_()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not pruned.training


def test_refitted_output_projections_take_the_place_of_the_cut_ones():
    model = DENSE["gpt2"]
    plan = Plan((4, 3, 2), (24, 5, 0))
    new = torch.randn(32, 24, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(32, generator=torch.Generator().manual_seed(3))
    pruned = cut(model, plan, {(1, "attention"): Affine(new, bias)})
    dense = copy.deepcopy(model)
    output = family_of(model.config).parts(dense.transformer.h[1]).attention.output
    output.weight[:, :24], output.bias[:] = new, bias
    assert_close(logits(pruned), logits(masked_model(family_of(model.config), dense, plan)))


@pytest.mark.parametrize(
    ("config", "attention", "mlp", "uniform"),
    [
        (LlamaConfig(**SMALL), (1, 1, 1), (7, 7, 7), True),
        (LlamaConfig(**SMALL), (1, 0, 1), (7, 0, 7), True),
        (LlamaConfig(**SMALL), (1, 1, 1), (7, 7, 8), False),
        (LlamaConfig(**SMALL), (1, 0, 1), (7, 7, 7), False),
        (LlamaConfig(**SMALL), (0, 0, 0), (7, 7, 7), False),
        (LlamaConfig(**SMALL), (0, 0, 0), (0, 0, 0), False),
        # transformers wants LLaMA's width to be a multiple of its heads
        (LlamaConfig(**SMALL | {"num_key_value_heads": 4}), (3, 3, 3), (7, 7, 7), False),
        (Qwen3Config(**SMALL | {"num_key_value_heads": 4}), (3, 3, 3), (7, 7, 7), True),
        (GPT2Config(**GPT2), (4, 4, 4), (7, 7, 7), True),
        (GPT2Config(**GPT2), (4, 0, 4), (7, 0, 7), True),
        (GPT2Config(**GPT2), (3, 3, 3), (7, 7, 7), False),
        (DENSE["gpt2"].config, (4, 4, 4), (7, 7, 7), True),
        (DENSE["gpt2"].config, (4, 0, 4), (7, 0, 7), False),  # attention scaled by block number
    ],
)
def test_what_is_uniform_cuts_to_a_plain_model_and_what_is_not_is_refused(
    config, attention, mlp, uniform
):
    plan = Plan(attention, mlp)
    model = random_model(config)
    assert is_uniform(plan, config) == uniform
    if uniform:
        plain = cut(model, plan, shape="uniform")
        assert type(plain) is type(model)
        masked = masked_model(family_of(config), model, plan)
        assert_close(logits(plain), logits(masked))
    else:
        with pytest.raises(LmscoutError, match=r"^[^\n]*$"):
            cut(model, plan, shape="uniform")


def test_plans_that_do_not_fit_are_refused():
    with pytest.raises(LmscoutError, match="block 1 keeps 3 units of attention; it has 2"):
        cut(DENSE["llama"], Plan((2, 3, 2), (24, 24, 24)))
    with pytest.raises(LmscoutError, match="keeps no block at all"):
        cut(DENSE["llama"], Plan((0, 0, 0), (0, 0, 0)))


# Saving. A fresh process takes seconds, so the folders are saved once.


@pytest.fixture(scope="module")
def tokenizer():
    words = {f"w{number}": number for number in range(60)}
    words |= {"[unk]": 60, "<s>": 61, "</s>": 62}
    backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[unk]", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A bfloat16 model of shape any, and a plain one in float32."""
    root = tmp_path_factory.mktemp("saved")
    sublayer = copy.deepcopy(DENSE["llama"]).to(torch.bfloat16)
    settings = GenerationConfig(do_sample=True, temperature=0.7, max_new_tokens=5)
    sublayer.generation_config = settings
    save(
        sublayer,
        HALVES,
        root / "any",
        shape="any",
        tokenizer=tokenizer,
        settings={"perplexity": 20.5},
    )
    plan = Plan((1, 0, 1), (7, 0, 7))
    save(DENSE["llama"], plan, root / "plain", shape="uniform", tokenizer=tokenizer)
    return root


def test_a_saved_folder_holds_the_model_bit_by_bit_and_all_that_comes_with_it(folders, tokenizer):
    sublayer = copy.deepcopy(DENSE["llama"]).to(torch.bfloat16)
    pruned = cut(sublayer, HALVES)
    loaded = AutoModelForCausalLM.from_pretrained(folders / "any", dtype="auto")
    assert type(loaded) is type(pruned)
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, pruned.state_dict()[name])
    assert torch.equal(logits(loaded), logits(pruned))
    assert loaded.generation_config.temperature == 0.7
    again = AutoTokenizer.from_pretrained(folders / "any")
    assert again("w3 w5 nothing")["input_ids"] == tokenizer("w3 w5 nothing")["input_ids"]
    assert sorted(path.name for path in folders.iterdir()) == ["any", "plain"]


def test_the_card_and_the_record_say_what_was_kept(folders):
    record = json.loads((folders / "any" / "lmscout.json").read_text())
    assert Plan.from_dict(record["plan"]) == HALVES
    # Per group: 2 query heads, key, value and output columns of 8, with biases but the output's.
    group, channel = 32 * 8 * 6 + 8 * 4, 32 * 3 + 2
    kept, dense = 3 * group + 31 * channel, 6 * group + 72 * channel
    assert record["kept"] == pytest.approx(kept / dense)
    loaded = AutoModelForCausalLM.from_pretrained(folders / "any")
    assert record["parameters"] == sum(one.numel() for one in loaded.parameters())
    assert record["dense_parameters"] == sum(one.numel() for one in DENSE["llama"].parameters())
    assert record["settings"] == {"perplexity": 20.5}
    card = (folders / "any" / "README.md").read_text()
    assert "| 2 | 1 of 2 | 0 of 24 |" in card
    assert f"{kept / dense:.2%}" in card
    assert "trust_remote_code=True" in card
    assert '"perplexity": 20.5' in card
    plain = (folders / "plain" / "README.md").read_text()
    assert "trust_remote_code" not in plain


def test_saving_writes_no_path_of_this_machine(folders):
    for path in folders.glob("*/*.json"):
        assert str(folders.parent.parent) not in path.read_text(), path


STRANGER = """
import json, sys
import torch

class NoLmscout:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "lmscout":
            raise ImportError("lmscout is not installed")

sys.meta_path.insert(0, NoLmscout())
torch.set_num_threads(1)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

pruned, plain, again = sys.argv[1:]
tokens = torch.tensor(json.loads(sys.stdin.read()))
mask = torch.ones_like(tokens)
how = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
answer = {}
first = AutoModelForCausalLM.from_pretrained(pruned, dtype="auto", trust_remote_code=True)
answer["dtype"] = str(first.dtype)
answer["sum"] = first(tokens).logits.double().sum().item()
answer["generated"] = first.generate(tokens, **how).tolist()
first.set_attn_implementation("eager")
answer["attention"] = len(first(tokens, output_attentions=True).attentions)
body = AutoModel.from_pretrained(pruned, dtype="auto", trust_remote_code=True)
answer["body"] = type(body).__name__
answer["tokens"] = AutoTokenizer.from_pretrained(pruned, trust_remote_code=False)("w3 w5").input_ids
first.save_pretrained(again)  # as after fine-tuning
second = AutoModelForCausalLM.from_pretrained(again, dtype="auto", trust_remote_code=True)
second.set_attn_implementation("eager")
answer["saved again"] = bool(torch.equal(first(tokens).logits, second(tokens).logits))
answer["plain"] = type(AutoModelForCausalLM.from_pretrained(plain)).__module__
print(json.dumps(answer))
"""


def test_a_stranger_without_lmscout_loads_and_generates(folders, tmp_path):
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            STRANGER,
            str(folders / "any"),
            str(folders / "plain"),
            str(tmp_path / "again"),
        ],
        input=json.dumps(TOKENS.tolist()),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert not process.returncode, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    pruned = cut(copy.deepcopy(DENSE["llama"]).to(torch.bfloat16), HALVES)
    assert answer == {
        "dtype": "torch.bfloat16",
        "sum": logits(pruned).double().sum().item(),
        "generated": pruned.generate(
            TOKENS,
            attention_mask=torch.ones_like(TOKENS),
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
        ).tolist(),
        "attention": 2,  # blocks that have attention
        "body": "LmscoutLlamaModel",
        "tokens": [3, 5],
        "saved again": True,
        "plain": "transformers.models.llama.modeling_llama",
    }


def test_the_plain_folder_is_a_plain_model_of_its_family(folders):
    config = json.loads((folders / "plain" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 2
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert (config["head_dim"], config["intermediate_size"]) == (8, 7)
    assert not {"auto_map", "attention_groups"} & set(config)
    assert not list((folders / "plain").glob("*.py"))
    model = DENSE["llama"]
    masked = masked_model(family_of(model.config), model, Plan((1, 0, 1), (7, 0, 7)))
    assert_close(logits(LlamaForCausalLM.from_pretrained(folders / "plain")), logits(masked))


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(LmscoutError, match="is not empty"):
        save(DENSE["llama"], HALVES, tmp_path / "out", shape="any")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_model_that_does_not_compute_is_not_saved(tmp_path):
    model = copy.deepcopy(DENSE["llama"])
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(LmscoutError, match="logits are not finite"):
        save(model, HALVES, tmp_path / "out", shape="any")
    assert not list(tmp_path.iterdir())


def test_settings_that_transformers_refuses_are_one_line(tmp_path):
    model = copy.deepcopy(DENSE["llama"])
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.7)
    with pytest.raises(LmscoutError, match=r"^the model cannot be saved: [^\n]*$"):
        save(model, HALVES, tmp_path / "out", shape="any")
    assert not list(tmp_path.iterdir())


class ForgetfulTokenizer(PreTrainedTokenizerFast):
    """Splits text as nobody who loads it again will."""

    def __call__(self, text):
        return {"input_ids": [1, 2, 3]}


class UnreadableTokenizer(PreTrainedTokenizerFast):
    """Writes a file that cannot be read."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ForgetfulTokenizer, "the tokenizer splits text differently"),
        (UnreadableTokenizer, "the saved model cannot be loaded again: "),
    ],
)
def test_what_does_not_load_as_it_was_is_not_saved(tmp_path, tokenizer, kind, message):
    bad = kind(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[unk]")
    with pytest.raises(LmscoutError, match=message):
        save(DENSE["llama"], HALVES, tmp_path / "out", shape="any", tokenizer=bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DENSE))
def test_every_family_survives_a_fresh_process(tmp_path, name):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model = copy.deepcopy(DENSE[name]).to(dtype)
        out = tmp_path / str(dtype)
        save(model, HALVES, out, shape="any")
        assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == dtype


@pytest.mark.slow
@pytest.mark.skipif(not (MODELS / "stories260K").is_dir(), reason=f"no stories260K in {MODELS}")
def test_a_real_llama_prunes_saves_reloads_and_generates(tmp_path):
    source = MODELS / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    words = AutoTokenizer.from_pretrained(source)
    plan = Plan((4, 3, 4, 3, 4), (172, 150, 160, 0, 172))
    save(model, plan, tmp_path / "out", shape="any", tokenizer=words)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = again("Once upon a time", return_tensors="pt")
    text = loaded.generate(**prompt, max_new_tokens=12)
    assert torch.equal(text, loaded.generate(**prompt, max_new_tokens=12, use_cache=False))
    assert again.decode(text[0], skip_special_tokens=True).startswith("Once upon a time")
