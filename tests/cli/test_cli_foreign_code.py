"""A model whose every file names code of its own: no command runs it, no saved folder names it."""

import json
import os
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

import lmscout

SPRUNG = """
import pathlib
(pathlib.Path({folder!r}) / {name!r}).touch()
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(PreTrainedTokenizerFast): pass
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
def generate(model, *_, **__): pass
"""
AUTOS = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
FILES = {
    "config.json": {
        "custom_pipelines": {"text-generation": {"impl": "MODULE.C", "pt": ["AutoModel"]}},
        "custom_generate": "MODULE.generate",
        "attn_implementation": "evil/attention-kernel",
        "experts_implementation": "evil/expert-kernel",
        "_auto_class": "AutoConfig",
        "tokenizer_class": "MODULE.C",
        "quantizer": "MODULE.C",
    },
    "tokenizer_config.json": {
        "processor_class": "MODULE.C",
        "slow_tokenizer_class": "MODULE.C",
        "name_or_path": "/home/evil/model",
        "tokenizer_file": "/home/evil/tokenizer.json",
        "vocab_file": "/home/evil/vocabulary",
        "trust_remote_code": True,
        "note": "MODULE.C",
    },
    "generation_config.json": {
        "custom_generate": "MODULE.generate",
        "trust_remote_code": True,
    },
    "processor_config.json": {"processor_class": "MODULE.C"},
    "preprocessor_config.json": {"image_processor_type": "MODULE.C"},
    "video_preprocessor_config.json": {"video_processor_type": "MODULE.C"},
    "special_tokens_map.json": {},
    "custom_generate/generate.py": None,
    "modeling_lmscout.py": None,
    "modeling_llama.py": None,
}
PRUNE = ("prune", "hostile", "--calibration", "text.txt", "--keep", "0.7")
BY_PROXY = ("--objective", "proxy:snip")
BRIEF = ("--recover-steps", "2", "--recover-rank", "2")
COMMANDS = {
    "eval": (["eval", "hostile", "--perplexity", "text.txt", "--limit-tokens", "600"], None),
    "prune": ([*PRUNE, "--pairs", "20", "--out", "pairs"], "pairs"),
    "uniform": ([*PRUNE, *BY_PROXY, "--shape", "uniform", "--out", "uniform"], "uniform"),
    "recover": (
        [*PRUNE, *BY_PROXY, "--recover", "lora", "--elastic", *BRIEF, "--out", "recovered"],
        "recovered",
    ),
    "dry-run": ([*PRUNE, "--dry-run", "--out", "none"], None),
    "study": (["discover", "study:pairs", "--search", "10", "--out", "found"], None),
}
TEMPLATE = "{% for one in messages %}{{ one.content }}{% endfor %}"


def make_model(folder):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=128))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    logging.enable_progress_bar()


def make_hostile(folder, traps):
    """Every file names a module of its own, which leaves a file in `traps` when it is run."""
    for number, (name, entries) in enumerate(FILES.items()):
        file = folder / name
        trap = SPRUNG.format(folder=str(traps), name=name.replace("/", "-"))
        if entries is None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(trap)
            continue
        module = f"evil_{number}"
        (folder / f"{module}.py").write_text(trap)
        content = json.loads(file.read_text()) if file.exists() else {}
        content |= json.loads(json.dumps(entries).replace("MODULE", module))
        # in this folder, and in one of another name, which is how the Hub names another repository
        reference = dict.fromkeys(AUTOS, f"hostile--{module}.C")
        reference["AutoTokenizer"] = [f"hostile--{module}.C", f"{module}.C"]
        file.write_text(json.dumps({**content, "auto_map": reference}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    (place / "traps").mkdir()
    make_model(place / "hostile")
    make_hostile(place / "hostile", place / "traps")
    words = "".join(f"The {n} quick brown foxes of {n * n} jump.\n" for n in range(500))
    (place / "text.txt").write_text(words)
    return place


@pytest.fixture(scope="module")
def ran(place, server, cache):
    """Run a command once: what it said, the traps that it sprang, the folder that it saved."""
    known = {}

    def run(name):
        if name not in known:
            arguments, out = COMMANDS[name]
            environment = os.environ | {"LMSCOUT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
            environment["HF_MODULES_CACHE"] = str(place / "modules")
            said = place / f"{name}.out", place / f"{name}.err"
            code = server.run(arguments, place, environment, *said, seconds=300)
            assert code == 0, said[1].read_text()
            known[name] = {path.name for path in (place / "traps").iterdir()}, out
            for path in (place / "traps").iterdir():
                path.unlink()
        return known[name]

    return run


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_code_that_a_file_names_is_run_or_named_by_what_is_saved(ran, place, command, file):
    if command == "study":
        ran("prune")
    sprung, out = ran(command)
    assert file.replace("/", "-") not in sprung
    if out is None:
        return
    saved = place / out / file
    if file == "modeling_lmscout.py":
        assert saved.exists() == (command != "uniform")
        assert not saved.exists() or "PerBlockSizes" in saved.read_text()
    elif file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        content = saved.read_text()
        assert "evil" not in content
        assert "hostile" not in content
        own = json.loads(content).get("auto_map", {})
        assert all(one.startswith("modeling_lmscout.Lmscout") for one in own.values())
        assert bool(own) == (file == "config.json" and command != "uniform")
    else:
        assert not saved.exists()


@pytest.mark.parametrize("command", [name for name, (_, out) in COMMANDS.items() if out])
def test_a_saved_folder_holds_no_path_of_this_machine_and_its_template_stays(ran, place, command):
    _, out = ran(command)
    for path in (place / out).rglob("*"):
        if path.name in ("settings.json", "result.json"):
            continue  # of the run, which says what it was given; nothing loads a model by them
        if path.suffix in (".json", ".md", ".jinja", ".py"):
            assert str(place) not in path.read_text(), path
            assert "evil" not in path.read_text(), path
    assert (place / out / "chat_template.jinja").read_text() == TEMPLATE
    entries = json.loads((place / out / "tokenizer_config.json").read_text())
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"  # known to transformers 4
    assert AutoTokenizer.from_pretrained(place / out, trust_remote_code=False)("fox").input_ids


def test_lmscout_loads_its_own_folder_without_the_code_in_it(ran, place):
    _, out = ran("recover")
    folder = place / "changed" / "recovered"
    shutil.copytree(place / out, folder)
    trap = place / "changed" / "sprung"
    file = folder / "modeling_lmscout.py"
    file.write_text(f"open({str(trap)!r}, 'w')\n{file.read_text()}")
    lmscout.register()  # as a user would, which makes its classes known
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__ == "lmscout.evaluation.modeling_lmscout"
    assert not trap.exists()
