import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import tiny_checkpoints
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmscout.builtin import tiny_folder
from lmscout.errors import LmscoutError, first_line, out_of_memory
from lmscout.evaluation import devices_of, load_config, load_model

TOKENS = torch.arange(20)[None]


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.fixture
def folder(llama_folder, tmp_path):
    """A copy of a folder that is in order."""
    return shutil.copytree(llama_folder, tmp_path / "model")


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(source, **options):
    with pytest.raises(LmscoutError) as error:
        load_model(str(source), **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_checkpoints.llama, {}),
        (tiny_checkpoints.gpt2, {}),
        (tiny_checkpoints.causal_bert, {}),
        (lambda: tiny_checkpoints.llama(tie_word_embeddings=True), {}),
        (tiny_checkpoints.llama, {"max_shard_size": "20KB"}),
    ],
)
def test_a_saved_model_comes_back_as_it_was(tmp_path, make, options):
    model = make()
    source = str(tiny_checkpoints.save(tmp_path, model, **options))
    loaded = load_model(source)
    assert loaded.source == source
    assert not loaded.model.training
    assert type(loaded.model) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)
    assert loaded.tokenizer("fox")["input_ids"][0] == 0
    assert loaded.tokenizer.decode(loaded.tokenizer("fox")["input_ids"][1:]) == "fox"


def test_weights_are_in_the_type_asked_for(tmp_path):
    tiny_checkpoints.save(tmp_path, tiny_checkpoints.llama().half())
    assert load_model(str(tmp_path)).model.dtype == torch.float32
    assert load_model(str(tmp_path), torch.bfloat16).model.dtype == torch.bfloat16


def test_loading_is_silent_and_leaves_the_logging_as_it_was(tmp_path, capfd):
    # The pooler is left over, and a causal class without is_decoder is warned of.
    model = transformers.BertForMaskedLM(transformers.BertConfig(**tiny_checkpoints.SMALL_ENCODER))
    tiny_checkpoints.save(tmp_path, model)
    configure(tmp_path, architectures=["BertLMHeadModel"])
    transformers.utils.logging.set_verbosity_info()
    capfd.readouterr()
    try:
        refusal(tmp_path)
        assert capfd.readouterr() == ("", "")
        assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.INFO
        assert transformers.utils.logging.is_progress_bar_enabled()
    finally:
        transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize("name", tiny_checkpoints.ENCODERS)
def test_what_is_no_causal_language_model_is_refused(tmp_path, name):
    tiny_checkpoints.save(tmp_path, tiny_checkpoints.encoder(name))
    message = refusal(tmp_path)
    assert name in message
    assert "causal language model" in message


def test_an_encoder_is_known_by_what_it_does_not_by_its_name(tmp_path):
    tiny_checkpoints.save(tmp_path, tiny_checkpoints.encoder("BertForMaskedLM"))
    configure(tmp_path, architectures=None)
    assert "come later" in refusal(tmp_path)


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    config = transformers.BartConfig(
        vocab_size=tiny_checkpoints.VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    tiny_checkpoints.save(tmp_path, transformers.BartForConditionalGeneration(config))
    assert "BartForConditionalGeneration" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "model.pth"])
def test_a_pickled_checkpoint_is_refused_unread(folder, tmp_path, name):
    trap = tmp_path / "sprung"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    for source in (folder, folder / name):
        message = refusal(source)
        assert name in message
        assert "save_pretrained" in message
    assert not trap.exists()


def test_no_file_of_the_folder_leads_to_a_pickle(folder, tmp_path):
    trap = tmp_path / "sprung"
    (folder / "weights.bin").write_bytes(pickle.dumps(Trap(trap)))
    weights = (folder / "model.safetensors").rename(tmp_path / "aside")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "weights.bin"}}))
    assert "pickled" in refusal(folder)
    index.unlink()
    weights.rename(folder / "model.safetensors")
    configure(folder, transformers_weights="weights.bin")
    assert "pickled" in refusal(folder)
    assert not trap.exists()


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    trap = tmp_path / "sprung"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: ...\n")
    configure(
        folder,
        model_type="of-its-own",
        auto_map={"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"},
    )
    assert "code" in refusal(folder)
    assert not trap.exists()


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGES = {
    "no config": (remove("config.json"), "no config.json"),
    "no JSON": (
        write("config.json", '{"model_type": "lla'),
        "line 1, column 16: not JSON",
    ),
    "a list": (write("config.json", "[]"), "expected an object"),
    "unknown type": (lambda f: configure(f, model_type="llamma"), "llamma"),
    "wrong value": (lambda f: configure(f, num_hidden_layers="two"), "num_hidden_layers"),
    "wrong heads": (lambda f: configure(f, num_attention_heads=5), "attention heads"),
    "wider": (lambda f: configure(f, hidden_size=64), r"\[257, 32\].*\[257, 64\]"),
    "deeper": (lambda f: configure(f, num_hidden_layers=3), "lacks 9 of the weights"),
    "no head": (drop_weight, "lacks 1 of the weights.*lm_head"),
    "no weights": (remove("model.safetensors"), "no weights"),
    "cut weights": (cut_weights, "damaged or incomplete"),
    "no safetensors": (write("model.safetensors", "text"), "damaged or incomplete"),
    "adapter": (write("adapter_config.json", "{}"), "merge_and_unload"),
    "no tokenizer": (without_tokenizer, "tokenizer"),
    "broken tokenizer": (write("tokenizer.json", "{"), "tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_is_not_in_order_is_one_line(folder, name):
    damage, hint = DAMAGES[name]
    damage(folder)
    message = refusal(folder)
    assert message.startswith(str(folder))
    assert re.search(hint, message), message


def test_missing_shards_are_named(tmp_path):
    tiny_checkpoints.save(tmp_path, tiny_checkpoints.llama(), max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    assert f"1 of {len(shards)} files" in refusal(tmp_path)
    assert shards[1].name in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "names no weights" in refusal(tmp_path)


def test_a_path_that_is_not_there_and_a_file(tmp_path, llama_folder):
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "no such folder" in refusal("./absent")
    assert "give the folder" in refusal(llama_folder / "model.safetensors")
    assert "neither a folder here nor a model of the Hub" in refusal("a--b..c/d")


def test_a_device_that_is_not_there(llama_folder):
    assert "'cpuu'" in refusal(llama_folder, device="cpuu")
    assert "cannot be used" in refusal(llama_folder, device="cuda:99")


def test_errors_of_libraries_become_one_line():
    assert first_line(ValueError("\n  wrong  \nmore")) == "wrong"
    assert first_line(ValueError("In field:\n  wrong")) == "In field: wrong"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 500))) == 200


def test_several_devices_are_named_once_each():
    assert devices_of("cpu") == (torch.device("cpu"),)
    with pytest.raises(LmscoutError, match="names a device twice"):
        devices_of("cpu, cpu")
    with pytest.raises(LmscoutError, match=r"'cuda:99' cannot be used .*: there is cpu"):
        devices_of("cpu,cuda:99")


def test_a_configuration_needs_no_weights_but_has_to_be_of_a_causal_model(tmp_path):
    config = tiny_checkpoints.llama().config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "bare")
    assert load_config(str(tmp_path / "bare")).hidden_size == config.hidden_size
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "encoder")
    with pytest.raises(LmscoutError, match="not a causal language model"):
        load_config(str(tmp_path / "encoder"))
    with pytest.raises(LmscoutError, match=r"no config\.json"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"compile_config": 7}', r"generation_config\.json: compile_config: .*got 7"),
        ('{"max_length": 20, "watermarking_config": 7}', "json: watermarking_config: "),
        ('{"num_beams": ', "generation_config.json, line 1.*not JSON"),
        ('{"temperature": 0.5, "compile_config": null}', None),
    ],
)
def test_a_bad_generation_config_is_named_with_its_field(folder, content, said):
    write("generation_config.json", content)(folder)
    if said is None:
        load_model(str(folder))
    else:
        assert re.search(said, refusal(folder))


def stored(folder, change):
    """Change the stored weights of a folder."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architectures": 7}, r"architectures: is no list of class names \(got 7"),
        ({"architectures": [7]}, "architectures: is no list"),
        ({"architectures": {"a": 1}}, "architectures: is no list"),
        ({"dtype": "nn"}, "config.json"),
        ({"dtype": "float99"}, "float99"),
        ({"dtype": 7}, "dtype"),
        ({"dtype": "int64"}, "dtype names no type of weights"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"auto_map": 7}, "config.json"),
        ({"quantization_config": "fp8"}, ""),
        ({"to_dict": "other"}, "config.json"),
    ],
)
def test_an_entry_of_another_kind_is_one_line(folder, entries, said):
    configure(folder, **entries)
    assert re.search(said, refusal(folder))


@pytest.mark.parametrize("entry", ["save_pretrained", "_auto_class", "attribute_map"])
def test_an_entry_does_not_take_the_place_of_a_part_of_transformers(folder, entry):
    configure(folder, **{entry: "other"})
    config = load_model(str(folder)).model.config
    assert entry not in vars(config)
    assert entry not in config.to_dict()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["evil/kernel", "flash_attention_2", "evil/kernel:f"])
def test_attention_is_never_a_kernel_that_the_configuration_names(folder, name, kernel):
    configure(folder, **{name: kernel})
    assert load_model(str(folder)).model.config._attn_implementation == "sdpa"
    configure(folder, **{name: "eager"})
    assert load_model(str(folder)).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
def test_weights_inside_a_wrapper_are_named_with_what_wraps_them(folder, prefix):
    stored(folder, lambda weights: {prefix + name: one for name, one in weights.items()})
    message = refusal(folder)
    assert f"begin with {prefix!r}" in message
    assert f"{prefix}lm_head.weight, {prefix}model.embed_tokens.weight" in message


def test_a_wrapped_model_whose_head_is_its_embedding_is_named_too(tmp_path):
    folder = tiny_checkpoints.save(tmp_path, tiny_checkpoints.llama(tie_word_embeddings=True))
    stored(folder, lambda weights: {f"module.{name}": one for name, one in weights.items()})
    assert "begin with 'module.'" in refusal(folder)


def test_adapters_that_are_not_merged_are_refused(folder):
    def adapted(weights):
        name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
        return weights | {name: torch.zeros(2, 32)}

    stored(folder, adapted)
    assert "merge_and_unload" in refusal(folder)


def test_the_dtype_is_that_of_the_files_if_the_configuration_names_none(folder):
    configure(folder, dtype=None)
    assert load_model(str(folder)).saved_dtype == torch.float32
    stored(folder, lambda weights: {name: one.bfloat16() for name, one in weights.items()})
    assert load_model(str(folder)).saved_dtype == torch.bfloat16
    assert load_config(str(folder)).dtype == torch.bfloat16
    # norms are often kept wider
    stored(folder, lambda w: {n: one.float() if one.ndim < 2 else one for n, one in w.items()})
    loaded = load_model(str(folder))
    assert loaded.saved_dtype == torch.bfloat16
    assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    configure(folder, dtype="float16")
    assert load_model(str(folder)).saved_dtype == torch.float16  # as stock transformers has it


def narrow(weights):
    """Projections in 8 bits with a scale each."""
    found = {}
    for name, one in weights.items():
        found[name] = one
        if "proj" in name:
            scale = one.float().abs().max() / 448
            found[name] = (one.float() / scale).to(torch.float8_e4m3fn)
            found[f"{name}_scale_inv"] = scale.view(1, 1)
    return found


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_weights_of_eight_bits_are_dequantized_to_the_dtype_asked_for(folder, dtype):
    stored(folder, narrow)
    configure(folder, quantization_config=FP8, dtype="bfloat16")
    loaded = load_model(str(folder), dtype)
    assert {one.dtype for one in loaded.model.parameters()} == {dtype or torch.float32}
    assert loaded.saved_dtype == torch.bfloat16
    assert not hasattr(loaded.model.config, "quantization_config")
    weights = load_file(folder / "model.safetensors")
    for name, found in loaded.model.named_parameters():
        scale = weights.get(f"{name}_scale_inv", torch.ones(1))
        expected = weights[name].float() * scale
        torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-6)


def test_weights_of_eight_bits_without_scales_are_read_or_refused_in_one_line(folder):
    def all_narrow(weights):
        return {
            n: one.to(torch.float8_e4m3fn) if "proj" in n else one for n, one in weights.items()
        }

    stored(folder, all_narrow)
    loaded = load_model(str(folder))
    assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    configure(folder, dtype="float8_e4m3fn")
    assert load_model(str(folder)).saved_dtype == torch.float32


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_the_configuration_says_tied_if_embedding_and_head_are(tmp_path, said, apart):
    folder = tiny_checkpoints.save(tmp_path, tiny_checkpoints.llama(tie_word_embeddings=not apart))
    if said or apart:
        configure(folder, tie_word_embeddings=said)
        model = load_model(str(folder)).model
        stock = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.tie_word_embeddings == (not apart)
        assert torch.equal(model.lm_head.weight, stock.lm_head.weight)
    else:  # transformers would draw a head at random
        configure(folder, tie_word_embeddings=False)
        assert "lm_head.weight" in refusal(folder)


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(1 << 45), lambda: bytearray(1 << 60), lambda: [0] * (1 << 60)]
)
def test_too_little_memory_is_known_on_a_cpu(ask):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        ask()
    assert out_of_memory(error.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


SHORT_OF_MEMORY = """
import resource, sys
import lmscout.evaluation, transformers.models.llama.modeling_llama
from lmscout.cli.main import main
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
# less than the model needs, and more than the tokenizer, which would abort
resource.setrlimit(resource.RLIMIT_AS, (now + (320 << 20),) * 2)
sys.argv = ["lmscout", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_runs_out_of_memory_on_a_cpu_says_so_in_one_line(tmp_path):
    (tmp_path / "text.txt").write_text("A line of text, and one more.\n" * 3000)
    asked = ["eval", str(tiny_folder()), "--perplexity", str(tmp_path / "text.txt")]
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, *asked, "--batch-tokens", "100000"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("lmscout: ")
    assert "memory" in done.stderr
    assert done.stderr.count("\n") == 1
