"""Importing lmscout costs next to nothing, and makes the Auto classes know pruned models."""

import subprocess
import sys

import pytest

LIGHT = """
import sys
import lmscout
assert not {"torch", "transformers"} & set(sys.modules), "importing lmscout imports too much"
import importlib.util
importlib.util.find_spec("transformers")  # looking for it is not importing it
assert "torch" not in sys.modules
"""
LATER = (
    LIGHT
    + """
from transformers import LlamaForCausalLM  # from the middle of whose import Auto classes come
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.for_model("lmscout_llama", vocab_size=8, hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=8, attention_groups=[0, 1], mlp_channels=[3, 0],
    block_numbers=[0, 3])
print(type(AutoModel.from_config(config)).__module__)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""
)
AT_ONCE = """
import transformers
import lmscout
from transformers import AutoConfig
print(type(AutoConfig.for_model("lmscout_gpt2")).__name__)
"""


def run(script):
    command = [sys.executable, "-W", "error", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not process.returncode, process.stderr
    return process.stdout.split()


def test_lmscout_is_light_until_transformers_is_imported_and_then_registers():
    assert run(LATER) == ["lmscout.pruning.saving.modeling_lmscout", "LmscoutLlamaForCausalLM"]


@pytest.mark.slow
def test_lmscout_registers_at_once_where_transformers_is_imported():
    assert run(AT_ONCE) == ["LmscoutGpt2Config"]
