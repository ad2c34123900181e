"""What a saved folder's JSON files say: for every reader, and as the weights are."""

import copy
import json
import shutil

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from tiny_language_models import COMMON, CONFIGS, random_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lmscout.evaluation import load_model
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import cut, write
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan
from lmscout.pruning.reload_saved import weight_digests

THETA = {"rope_theta": 500000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
# By kind: as transformers 4 wrote it, beside rope_theta.
SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.0},
    "older linear": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn of a length": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
PLANS = {"any": Plan((2, 0, 1), (48, 20, 0)), "uniform": Plan((1, 0, 1), (16, 0, 16))}
GPT2_PLANS = {"any": Plan((4, 0, 1), (48, 20, 0)), "uniform": Plan((4, 0, 4), (16, 0, 16))}


def saved(folder, model, shape="any", plan=None):
    plans = GPT2_PLANS if model.config.model_type == "gpt2" else PLANS
    folder.mkdir()
    write(cut(model, plan or plans[shape], shape=shape), folder)
    return json.loads((folder / "config.json").read_text())


def digests_of(folder):
    """The weights as a user loads them; None if they do not load."""
    try:
        return weight_digests(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True))
    except (ValueError, RuntimeError, StrictDataclassError):
        return None


def with_older_rope(tmp_path, kind, rope):
    """A dense folder as transformers 4 wrote it, read by the installed transformers."""
    config = {**kind(**COMMON).to_dict(), **rope}
    del config["rope_parameters"]
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(tmp_path / "dense")
    return AutoModelForCausalLM.from_config(read, dtype=torch.float32).eval()


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_rotary_embeddings_are_saved_as_both_transformers_read_them(tmp_path, kind, name, shape):
    dense = with_older_rope(tmp_path, kind, {**THETA, "rope_scaling": SCALINGS[name]})
    config = saved(tmp_path / "out", dense, shape)
    assert config["rope_theta"] == 500000.0
    given = dict(SCALINGS[name] or {})
    given.setdefault("rope_type", given.get("type"))
    unreadable = shape == "any" and given["rope_type"] in ("llama3", "yarn")
    assert config.get("rope_scaling") == (given if SCALINGS[name] and not unreadable else None)
    again = AutoConfig.from_pretrained(tmp_path / "out")
    assert again.rope_parameters == dense.config.rope_parameters
    if shape == "any":  # as transformers does for a tokenizer alone
        PreTrainedConfig.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", PLANS)
def test_the_configuration_describes_the_stored_weights(tmp_path, name, shape):
    dense = random_model(name).bfloat16()
    config = saved(tmp_path / "out", dense, shape)
    plans = GPT2_PLANS if name == "gpt2" else PLANS
    weights = weight_digests(cut(dense, plans[shape], shape=shape))
    assert digests_of(tmp_path / "out") == weights
    embedding = "n_embd" if name == "gpt2" else "hidden_size"
    depth = "n_layer" if name == "gpt2" else "num_hidden_layers"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in stored)
    blocks = {key.partition("mlp.")[0] for key in stored if ".mlp." in key}
    assert config[depth] == len(config.get("mlp_channels", blocks)) >= len(blocks)
    changes = {"vocab_size": 63, embedding: 31, "dtype": "float32"}
    changes |= {depth: config[depth] + 1} if shape == "uniform" else {}
    if shape == "any":
        changes |= {"attention_groups": [1, 0, 1], "mlp_channels": [48, 20, 1]}
    elif name == "gpt2":
        changes |= {"n_inner": None}
    else:
        changes |= {"intermediate_size": 17, "num_key_value_heads": 2, "head_dim": 4}
    for entry, wrong in changes.items():
        shutil.rmtree(tmp_path / "wrong", ignore_errors=True)
        shutil.copytree(tmp_path / "out", tmp_path / "wrong")
        assert config[entry] != wrong
        (tmp_path / "wrong" / "config.json").write_text(json.dumps({**config, entry: wrong}))
        assert digests_of(tmp_path / "wrong") != weights


@pytest.mark.parametrize("shape", PLANS)
def test_entries_of_a_configuration_that_transformers_does_not_know_stay_behind(tmp_path, shape):
    model = random_model("llama")
    model.config.auto_map = {"AutoModelForCausalLM": "other.Model"}
    model.config.vision_tower = "/home/other/model"
    model.config.task_specific_params = {"text-generation": {"custom_generate": "other"}}
    model.config.rope_parameters["custom"] = "other"
    config = saved(tmp_path / "out", model, shape)
    assert "other" not in json.dumps(config)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert ("auto_map" in config) == (shape == "any")


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({"[unk]": 0}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[unk]")


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("shape", PLANS)
def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(
    tmp_path, tokenizer, name, shape
):
    config = copy.deepcopy(CONFIGS[name])
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    model = load_model(str(tmp_path / "dense")).model
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    tokens = torch.arange(12)[None]
    whole = cut(model, shape_of(family_of(model.config).all_parts(model)).dense)
    torch.testing.assert_close(whole(tokens).logits, stock(tokens).logits)
    saved_config = saved(tmp_path / "out", model, shape)
    assert saved_config["tie_word_embeddings"] is False
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, dense.lm_head.weight)
