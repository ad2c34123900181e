"""Files of a model's folder that lead out of it, and what its digest depends on."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, model_fingerprint


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=6000,  # several times what a sample of a file would see
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/x.jinja"])
def test_a_link_out_of_the_folder_is_refused_before_it_is_read(folder, tmp_path, name):
    load_model(str(folder))
    (tmp_path / "secret").write_text("private")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(LmscoutError, match=r"jinja: is a link to a file outside its folder"):
        load_model(str(folder))


def test_a_link_that_leads_nowhere_is_one_line(folder):
    (folder / "chat_template.jinja").symlink_to(folder / "chat_template.jinja")
    with pytest.raises(LmscoutError, match=r"jinja: is a link that leads nowhere"):
        load_model(str(folder))


def test_any_changed_byte_of_what_is_read_is_another_model(folder):
    first = model_fingerprint(str(folder))
    of_runs = ("settings.json", "result.json", "report.html", "front.csv", "front.json")
    for name in (*of_runs, "README.md"):
        (folder / name).write_text("{}")
    assert model_fingerprint(str(folder)) == first
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][7, 3000] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = model_fingerprint(str(folder))
    assert second != first
    (folder / "vocab.json").write_text("{}")
    assert model_fingerprint(str(folder)) != second
