"""Shape deci: its space, its folder as serving engines read it, and the models in it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language_models import CONFIGS, random_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

import lmscout
from lmscout.builtin import load_tokenizer
from lmscout.builtin.corpus import corpus_text
from lmscout.errors import LmscoutError
from lmscout.evaluation import Text
from lmscout.evaluation.modeling_lmscout import mlp_width
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.cutting import cut, deci_config
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import save
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.sampler import propose
from lmscout.pruning.search import search
from lmscout.pruning.space import space_of
from lmscout.pruning.study import Pair

CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=64,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.1,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
)
PLAN = Plan((2, 0, 2, 0), (512, 256, 0, 0))


def model_of(config=CONFIG):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the folder of PLAN of it, which a fresh process has loaded."""
    folder, model = tmp_path_factory.mktemp("deci") / "saved", model_of()
    save(model, PLAN, folder, shape="deci", tokenizer=load_tokenizer())
    return model, folder


def engine_width(ffn_mult, hidden):
    """As vLLM, SGLang, TensorRT-LLM and llama.cpp's converter compute it, in their words."""
    width = int(2 * ffn_mult * hidden / 3)
    return width if width % 256 == 0 else width + 256 - (width % 256)


@given(
    width=st.integers(1, 256).map(lambda one: 256 * one),
    hidden=st.integers(1, 256).map(lambda one: 64 * one),
    digits=st.sampled_from([4, 6, 17]),
)
def test_every_width_comes_out_of_the_multiplier_exactly_even_if_it_is_rounded(
    width, hidden, digits
):
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=width,
        vocab_size=8,
    )
    (block,) = deci_config(config, Plan((1,), (width,))).block_configs
    multiplier = json.loads(json.dumps(block.ffn.ffn_mult))
    assert isinstance(multiplier, float)  # llama.cpp's converter asserts it
    assert engine_width(round(multiplier, digits), hidden) == width
    assert mlp_width(multiplier, hidden) == width


def test_the_saved_config_is_what_serving_engines_read(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["model_type"] == "nemotron-nas"
    assert config["auto_map"] == {
        "AutoConfig": "modeling_lmscout.DeciLMConfig",
        "AutoModel": "modeling_lmscout.DeciLMModel",
        "AutoModelForCausalLM": "modeling_lmscout.DeciLMForCausalLM",
    }
    assert config["num_hidden_layers"] == len(config["block_configs"]) == 3
    for name in ("num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings"):
        assert config[name] == getattr(CONFIG, name)
    for name in ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "hidden_act", "dtype"):
        assert name in config
    halves = [(one["attention"], one["ffn"]) for one in config["block_configs"]]
    for attention, ffn in halves:
        # mlx-lm refuses unknown entries, and the others read these ones.
        assert set(attention) == {
            *("no_op", "replace_with_linear", "sparsify", "n_heads_in_group", "window_length"),
            *("num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink"),
        }
        assert set(ffn) == {"no_op", "replace_with_linear", "sparsify", "ffn_mult"}
        assert not attention["replace_with_linear"]
        assert not ffn["replace_with_linear"]
        # llama.cpp's converter knows an absent half by None.
        assert attention["no_op"] == (attention["n_heads_in_group"] is None)
        assert ffn["no_op"] == (ffn["ffn_mult"] is None)
    assert [not one["no_op"] for one, _ in halves] == [True, False, True]
    assert [one["n_heads_in_group"] for one, _ in halves] == [2, None, 2]
    assert [ffn["ffn_mult"] and engine_width(ffn["ffn_mult"], 64) for _, ffn in halves] == [
        512,
        256,
        None,
    ]
    assert not halves[0][0]["no_op"]  # vLLM and SGLang begin the residual stream there


LOADED = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
first = config.block_configs[0]
assert not first.attention.no_op and not hasattr(first.ffn, "hidden_act")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[2])
assert "lmscout" not in sys.modules
torch.save(model(torch.arange(12)[None]).logits.detach(), sys.argv[2] + "/logits")
"""


def test_the_folder_loads_with_transformers_alone_and_in_lmscout(saved, tmp_path):
    model, folder = saved
    loaded = lmscout.load_model(str(folder))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        found, expected = loaded.model(tokens).logits, cut(model, PLAN)(tokens).logits
    assert torch.allclose(found, expected, atol=1e-5)
    command = [sys.executable, "-c", LOADED, str(folder), str(tmp_path)]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert torch.allclose(torch.load(tmp_path / "logits"), expected, atol=1e-5)
    assert "block_configs" in json.loads((tmp_path / "config.json").read_text())


def test_the_weights_have_llamas_names_and_absent_halves_none(saved):
    model, folder = saved
    loaded = lmscout.load_model(str(folder)).model
    names = {name.split(".", 3)[-1] for name in loaded.state_dict() if ".layers.1." in name}
    assert names == {
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
        "post_attention_layernorm.weight",
    }
    assert {name for name in loaded.state_dict() if "layers" not in name} == {
        name for name in model.state_dict() if "layers" not in name
    }


def test_it_is_evaluated_and_exported(saved, tmp_path):
    _, folder = saved
    text = tmp_path / "text.txt"
    text.write_text(corpus_text("test")[:4_000])
    found = lmscout.evaluate(str(folder), perplexity=str(text), progress=False)
    assert found.perplexities[0].value > 1
    written = lmscout.export(str(folder), out=tmp_path / "file", progress=False)
    assert (written.architecture, written.checked) == ("deci", "llama.cpp")


def synthetic_space():
    model = model_of()
    units = shape_of(family_of(model.config).all_parts(model))
    return units, space_of("deci", units, model)


UNITS, SPACE = synthetic_space()


@settings(max_examples=12)
@given(keep=st.floats(0.3, 0.9), seed=st.integers(0, 99))
def test_plans_that_are_proposed_are_of_the_shape(keep, seed):
    budget = keep_budget(UNITS, keep)
    target = Target(budget, SPACE.ranges)
    found = propose(SPACE, [target], count=12, seed=seed, round_=0, pairs=[], predictor=None)
    assert found
    for one in found:
        deci_config(CONFIG, one.plan)  # refuses others
        assert UNITS.kept_share(one.plan) <= keep + 1e-4
    assert SPACE.meets(as_rows([one.plan for one in found]), budget).all()


def test_both_kinds_of_halves_are_left_out_somewhere():
    target = Target(keep_budget(UNITS, 0.5), SPACE.ranges)
    found = propose(SPACE, [target], count=40, seed=0, round_=0, pairs=[], predictor=None)
    rows = as_rows([one.plan for one in found])
    assert (rows[:, 1:4] == 0).any(axis=0).all()
    assert np.isin(rows[:, 4:], [0, 256, 512, 768]).all()
    assert (rows[:, 4:] == 0).any()


class Knowing:
    """Predicts a loss increase by what is left out; sees units, not steps."""

    def cautious(self, rows):
        removed = 1 - rows / np.array(UNITS.groups + UNITS.channels)
        return removed @ np.linspace(1.0, 2.0, 8)

    def spread(self, rows):
        return np.zeros(len(rows))

    def error_near(self, loss_increase):
        return 0.01


def test_later_rounds_and_the_search_stay_of_the_shape():
    target = Target(keep_budget(UNITS, 0.6), SPACE.ranges)
    first = propose(SPACE, [target], count=20, seed=0, round_=0, pairs=[], predictor=None)
    pairs = [
        Pair(one.plan, float(Knowing().cautious(as_rows([one.plan]))[0]), 100, round=0)
        for one in first
    ]
    later = propose(
        SPACE,
        [target],
        count=8,
        seed=0,
        round_=1,
        pairs=pairs,
        predictor=Knowing(),
        generations=4,
    )
    found = search(SPACE, Knowing().cautious, target, seed=0, count=3, generations=8, population=40)
    assert later
    assert found
    for one in (*later, *found):
        deci_config(CONFIG, one.plan)
    assert found[0].loss_increase <= min(pair.value for pair in pairs)


def test_a_run_saves_the_shape(tmp_path):
    model = lmscout.evaluation.LoadedModel(model_of(), load_tokenizer(), "model")
    text = tmp_path / "text.txt"
    text.write_text(corpus_text("train")[:20_000])
    little = lmscout.CalibrationConfig(
        measured_tokens=600, final_tokens=600, moment_tokens=1_500, window=32
    )
    config = lmscout.PruneConfig(shape="deci", pairs=0, calibration=little)
    pruned = lmscout.prune(
        model, keep=0.7, calibration=str(text), out=tmp_path / "out", config=config, progress=False
    )
    deci_config(CONFIG, pruned.plan)
    loaded = lmscout.load_model(str(tmp_path / "out"))
    assert loaded.model.config.model_type == "nemotron-nas"
    assert "vllm serve" in (tmp_path / "out" / "README.md").read_text()


def test_what_the_family_cannot_hold_is_refused_in_one_line():
    sliding = MistralConfig(**{**CONFIG.to_dict(), "sliding_window": 16})
    for config, reason in (
        (CONFIGS["qwen3"], "is qwen3, and the family holds llama and mistral"),
        (CONFIGS["llama-bias"], "has biases"),
        (sliding, "has a sliding window"),
        (LlamaConfig(**{**CONFIG.to_dict(), "head_dim": 32}), "has heads of another size"),
    ):
        with pytest.raises(LmscoutError, match=reason):
            deci_config(config, Plan((2,) * 4, (256,) * 4))
    for plan, reason in (
        (Plan((2, 1, 2, 2), (256,) * 4), "attention is whole .2 groups. or absent"),
        (Plan((2, 2, 2, 2), (256, 100, 256, 256)), "multiples of 256"),
        (Plan((0, 2, 2, 2), (256,) * 4), "the first block keeps its attention"),
    ):
        with pytest.raises(LmscoutError, match=reason):
            deci_config(CONFIG, plan)
    model = random_model("llama")
    units = shape_of(family_of(model.config).all_parts(model))
    with pytest.raises(LmscoutError, match="multiples of 256"):  # its MLP is 48 wide
        space_of("deci", units, model)
    config = lmscout.PruneConfig(shape="deci", channel_multiple=8)
    with pytest.raises(LmscoutError, match="not for shape deci"):
        lmscout.prune("model", calibration=Text("text", "some text", ""), out="out", config=config)


def test_damaged_block_configs_are_one_line(saved, tmp_path):
    _, folder = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for damage in (3, [{}], [{"attention": {"no_op": True}, "ffn": {}}] * 3):
        config = json.loads((folder / "config.json").read_text())
        config["block_configs"] = damage
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(LmscoutError, match=r"config\.json|its weights") as caught:
            lmscout.load_model(str(tmp_path))
        assert "\n" not in str(caught.value)
