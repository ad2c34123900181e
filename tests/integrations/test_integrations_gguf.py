"""GGUF files: every export here is run by the real llama.cpp before it is reported."""

import copy
import json
import math
import sys

import gguf
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lmscout
from lmscout.builtin import load_tokenizer, tiny_folder
from lmscout.builtin.corpus import corpus_text
from lmscout.evaluation import LoadedModel
from lmscout.integrations import llamacpp
from lmscout.pruning.cutting import cut
from lmscout.pruning.export import write
from lmscout.pruning.plan import Plan

COMMON = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "linear": {"factor": 2.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}
PLAINS = {
    "mistral": ("llama", transformers.MistralConfig(**COMMON, head_dim=16, sliding_window=32)),
    "qwen2": ("qwen2", transformers.Qwen2Config(**COMMON)),
    "qwen3": ("qwen3", transformers.Qwen3Config(**COMMON, head_dim=32)),
    "biases": (
        "llama",
        transformers.LlamaConfig(
            **COMMON, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
        ),
    ),
    "gpt2": (
        "gpt2",
        transformers.GPT2Config(
            vocab_size=4096,
            n_positions=64,
            n_embd=64,
            n_layer=3,
            n_head=4,
            n_inner=96,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        ),
    ),
    **{
        kind: (
            "llama",
            transformers.LlamaConfig(
                **COMMON, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **more}
            ),
        )
        for kind, more in SCALINGS.items()
    },
}
UNEVEN = Plan((1, 0, 2), (96, 50, 0))


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.endswith("bias"):
                one.normal_(0, 0.1)
            elif name.endswith("norm.weight"):
                one.uniform_(0.5, 1.5)
    return model


def exported(model, out, tokenizer=None, **options):
    loaded = LoadedModel(model, tokenizer or load_tokenizer(), "model")
    return lmscout.export(loaded, out=out, progress=False, **options)


def values(file):
    """The metadata of a file, by key."""
    return {name: one.contents() for name, one in gguf.GGUFReader(file).fields.items()}


@pytest.fixture(scope="module")
def tiny():
    return lmscout.load_model(str(tiny_folder()))


def test_a_file_generates_what_the_folder_does_and_has_the_chat_template(tmp_path, tiny):
    folder = tmp_path / "model"
    folder.mkdir()
    for one in tiny_folder().iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    template = "{% for one in messages %}{{ one['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    found = lmscout.export(str(folder), out=tmp_path / "model.gguf", progress=False)
    assert (found.architecture, found.type, found.checked) == ("llama", "f16", "llama.cpp")
    assert found.difference < 0.02
    assert values(found.file)["tokenizer.chat_template"] == template
    prompt = tiny.tokenizer("The history of the town")["input_ids"]
    server = llamacpp.serve(str(found.file), 64, 1)
    assert llamacpp.tokenize(server, "The history of the town") == prompt
    request = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    text = server.handle_completions(request)["choices"][0]["text"]
    del server
    tokens = tiny.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert text == tiny.tokenizer.decode(tokens[0, len(prompt) :])
    found.save(tmp_path / "found.json")
    assert lmscout.load_result(tmp_path / "found.json") == found
    assert "llama.cpp and transformers differ by" in found.summary()


@pytest.mark.parametrize("name", PLAINS)
def test_plain_models_keep_their_architecture(name, tmp_path):
    architecture, config = PLAINS[name]
    found = exported(random_model(config), tmp_path / "file", quantize="f32")
    assert found.architecture == architecture
    assert found.difference < 0.02
    length = values(found.file)[f"{architecture}.context_length"]
    assert length == (32 if name == "mistral" else 64)  # llama.cpp has no sliding window here


@pytest.mark.parametrize(
    "first",
    [
        ((3, 100), (0, 200), (5, 0), (0, 0), (8, 384)),
        ((0, 96), (8, 0), (0, 384)),
        ((8, 384),) * 11 + ((8, 0),),
    ],
    ids=["mixed", "no attention first", "no MLP last"],
)
def test_blocks_of_different_sizes_are_deci(first, tmp_path, tiny):
    rest = 12 - len(first)
    heads, channels = zip(*first, *((8, 384),) * rest, strict=True)
    model = cut(tiny.model, Plan(heads, channels))
    folder = tmp_path / "pruned"
    folder.mkdir()
    write(model, folder, tiny.tokenizer)
    found = lmscout.export(str(folder), out=tmp_path / "file", progress=False)
    assert found.architecture == "deci"
    assert found.checked == "llama.cpp"
    kept = [one for one in zip(heads, channels, strict=True) if any(one)]
    written = values(found.file)
    # A head or an MLP of zeros, where llama.cpp needs one.
    expected = [(one or (not block), width or 32) for block, (one, width) in enumerate(kept)]
    assert written["deci.attention.head_count"] == [one for one, _ in expected]
    assert written["deci.feed_forward_length"] == [width for _, width in expected]


def test_equal_blocks_of_the_decilm_family_are_a_llama(tmp_path):
    model = random_model(transformers.LlamaConfig(**COMMON | {"intermediate_size": 512}))
    folder = tmp_path / "pruned"
    folder.mkdir()
    write(cut(model, Plan((2,) * 3, (256,) * 3), shape="deci"), folder, load_tokenizer())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "nemotron-nas"
    found = lmscout.export(str(folder), out=tmp_path / "file", progress=False)
    assert (found.architecture, found.checked) == ("llama", "llama.cpp")


def test_equal_blocks_are_no_deci_although_some_were_dropped(tmp_path, tiny):
    found = exported(cut(tiny.model, Plan((0,) + (8,) * 11, (0,) + (384,) * 11)), tmp_path / "file")
    assert found.architecture == "llama"


@pytest.mark.parametrize("name", ["qwen2", "biases"])
def test_deci_holds_biases(name, tmp_path):
    found = exported(cut(random_model(PLAINS[name][1]), UNEVEN), tmp_path / "file", quantize="f32")
    assert found.architecture == "deci"


def test_quantized_types(tmp_path):
    wide = {"hidden_size": 256, "intermediate_size": 288, "initializer_range": 0.1}
    config = transformers.LlamaConfig(**{**COMMON, **wide})
    model = random_model(config)
    sizes, kinds = {}, {}
    for kind in ("f16", "q8_0", "q6_k", "q4_k_m"):
        found = exported(model, tmp_path / kind, quantize=kind)
        sizes[kind] = found.bytes
        assert math.isfinite(found.difference)
        tensors = {one.name: one.tensor_type.name for one in gguf.GGUFReader(found.file).tensors}
        kinds[kind] = tensors["blk.1.attn_q.weight"], tensors["blk.2.ffn_down.weight"]
        assert tensors["blk.0.attn_norm.weight"] == "F32"
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert kinds["q8_0"] == ("Q8_0", "Q8_0")
    assert kinds["q6_k"] == ("Q6_K", "Q8_0")  # 288 is no multiple of 256
    assert kinds["q4_k_m"] == ("Q4_K", "Q8_0")


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (
            [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
            "smollm",
        ),
        (r"\p{N}{1,3}", "llama-bpe"),
        (r"\p{N}", "qwen2"),
    ],
    ids=["smollm", "llama-bpe", "qwen2"],
)
def test_what_splits_text_is_written_by_llamacpps_name(steps, name, tmp_path):
    parts = json.loads(load_tokenizer().backend_tokenizer.to_str())
    if isinstance(steps, str):
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + steps +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )  # fmt: skip
        split = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        steps = [split, {**parts["pre_tokenizer"], "use_regex": False}]
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))
    found = exported(random_model(PLAINS["qwen2"][1]), tmp_path / "file", tokenizer)
    assert values(found.file)["tokenizer.ggml.pre"] == name


def sentencepiece_like(scheme="first"):
    """A BPE over characters with bytes for others, trained on the spot."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(corpus_text("train")[:10_000].splitlines(), trainer)
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = parts["added_tokens"][:3]
    frame = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": frame,
        "pair": frame,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_a_tokenizer_like_sentencepieces(scheme, tmp_path):
    model = random_model(PLAINS["biases"][1])
    found = exported(model, tmp_path / "file", sentencepiece_like(scheme))
    written = values(found.file)
    assert written["tokenizer.ggml.model"] == "llama"
    assert written["tokenizer.ggml.add_bos_token"] is True
    assert written["tokenizer.ggml.add_eos_token"] is False
    assert written["tokenizer.ggml.add_space_prefix"] is (scheme == "first")


def test_without_xllamacpp_the_tensors_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    model = random_model(PLAINS["qwen2"][1])
    for kind in ("f32", "f16", "bf16", "q8_0"):
        found = exported(model, tmp_path / kind, quantize=kind)
        assert found.checked == "tensors"
        assert math.isnan(found.difference)
        assert "every tensor, read back" in found.summary()
    with pytest.raises(lmscout.LmscoutError, match=r"needs llama.cpp's quantizer .* f16, bf16"):
        exported(model, tmp_path / "file", quantize="q4_k_m")


def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    model = random_model(PLAINS["qwen2"][1])
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: 1.1 * output)
    with pytest.raises(lmscout.LmscoutError, match=r"computes another model .* not written"):
        exported(model, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_weights_that_are_not_finite_are_not_written(tmp_path, kind):
    model = random_model(PLAINS["qwen2"][1])
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(lmscout.LmscoutError, match="a weight is not finite: the model is damaged"):
        exported(model, tmp_path / "file", quantize=kind)
    assert not list(tmp_path.iterdir())


def refused_models():
    qwen3, gpt2 = (random_model(PLAINS[name][1]) for name in ("qwen3", "gpt2"))
    plan = Plan((2, 3, 4), (96, 50, 60))
    gelu = random_model(transformers.LlamaConfig(**COMMON, hidden_act="gelu"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    scaled = random_model(transformers.LlamaConfig(**COMMON, rope_parameters=dynamic))
    alike = {"n_layer": 1, "n_head": 2, "vocab_size": 4096}
    return {
        "no GGUF form of type 'bloom'": random_model(transformers.BloomConfig(**alike)),
        "norms of query and key; prune it with shape uniform": cut(qwen3, UNEVEN),
        "its gpt2 blocks have different sizes; prune it with shape uniform": cut(gpt2, plan),
        "its activation function is gelu; serve": gelu,
        "its rotary embeddings are scaled by dynamic; serve": scaled,
    }


def test_what_the_format_cannot_hold_is_refused_in_one_line(tmp_path):
    for reason, model in refused_models().items():
        with pytest.raises(lmscout.LmscoutError, match=reason) as caught:
            exported(model, tmp_path / "file")
        assert "\n" not in str(caught.value)
    model = random_model(PLAINS["qwen2"][1])
    unknown = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(lmscout.LmscoutError, match="its tokenizer is of type WordLevel"):
        exported(model, tmp_path / "file", PreTrainedTokenizerFast(tokenizer_object=unknown))
    parts = json.loads(load_tokenizer().backend_tokenizer.to_str())
    parts["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))
    with pytest.raises(lmscout.LmscoutError, match=r"splits text by .*WhitespaceSplit"):
        exported(model, tmp_path / "file", other)
    assert not list(tmp_path.iterdir())


def test_a_chat_template_that_llamacpp_cannot_use_is_named(tmp_path):
    tokenizer = copy.deepcopy(load_tokenizer())
    tokenizer.chat_template = "{% unknown %}"
    with pytest.raises(lmscout.LmscoutError, match=r"unknown.*correct the tokenizer's chat templ"):
        exported(random_model(PLAINS["qwen2"][1]), tmp_path / "file", tokenizer)
    assert not list(tmp_path.iterdir())


def test_wrong_targets_are_refused_before_the_model_is_loaded(tmp_path):
    for options, message in (
        ({"to": "onnx"}, "unknown format .expected gguf"),
        ({"quantize": "q3"}, "quantize q3: unknown type .expected f32, f16"),
        ({"out": tmp_path}, "exists; name another file"),
        ({"out": tmp_path / "no" / "file"}, "folder does not exist"),
    ):
        with pytest.raises(lmscout.LmscoutError, match=message):
            lmscout.export(
                str(tmp_path / "none"), **{"out": tmp_path / "file", "progress": False, **options}
            )
