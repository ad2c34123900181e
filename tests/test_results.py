"""Results: what every one of them offers, whatever was computed."""

import json
from dataclasses import replace

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM

import lmscout
from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec


def few():
    """Twelve architectures of pico."""
    return lmscout.load_benchmark("pico").subset(range(12))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSCOUT_CACHE", str(tmp_path_factory.mktemp("cache")))
        quiet = {"progress": False, "workers": 1}
        return {
            "rank": lmscout.rank(few(), ["parameters"], **quiet),
            "check": lmscout.check_benchmark("pico"),
            "forms": lmscout.explain("snip"),
            "design": lmscout.design(
                "nano", proxy="parameters", max_params=300_000, n_evaluations=4, **quiet
            ),
            "select": lmscout.design(
                few(), proxy="parameters", max_params=10**7, n_evaluations=5, **quiet
            ),
        }


@pytest.mark.parametrize("name", ["rank", "check", "forms", "design", "select"])
def test_every_result_is_text_a_table_json_and_itself_again(results, tmp_path, name):
    found = results[name]
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) > 0
    assert type(found).__name__ in repr(found)
    assert "\n" not in repr(found)
    assert len(repr(found)) < 300
    assert "<table" in found._repr_html_()
    assert len(found.summary().splitlines()) >= 2
    assert "\x1b" not in found.summary()
    found.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["schema"] == 1
    again = type(found).load(tmp_path / "result.json")
    assert again.to_dict() == found.to_dict()
    assert again.summary() == found.summary()


def test_a_design_is_a_model_within_the_limit(results):
    model = results["design"].to_model(seed=1)
    assert sum(one.numel() for one in model.parameters()) <= 300_000


def specs():
    """A LLaMA with blocks of their own, one whose blocks are alike, and two GPT-2."""
    common = {"width": 32, "vocabulary": 50, "max_length": 16}
    llama = {"heads": (2, 4, 0), "key_value_heads": (1, 2, 0), "inner": (48, 0, 64)}
    alike = {"heads": (2, 2), "key_value_heads": (1, 1), "inner": (48, 48), "tied": False}
    gpt2 = {"heads": (2, 4), "inner": (48, 0), "embedding_width": 32, "tied": (True,)}
    clusters = {"divisor": 2, "cutoffs": (10, 20), "tied": (True, False, True)}
    return {
        "own blocks": LlamaSpec(**common, **llama),
        "alike": LlamaSpec(**common, **alike),
        "gpt2": Gpt2Spec(**common, **gpt2),
        "clusters": Gpt2Spec(**common, **gpt2 | clusters),
    }


@pytest.mark.parametrize("name", specs())
@pytest.mark.parametrize("registered", [True, False])
def test_an_untrained_architecture_is_loaded_by_transformers(results, tmp_path, name, registered):
    spec = specs()[name]
    replace(results["design"], spec=spec).save_pretrained(tmp_path, seed=3)
    if registered:
        lmscout.register()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=not registered)
    assert (type(loaded).__name__ == "LlamaForCausalLM") == (name == "alike")
    assert loaded.num_parameters() == spec.parameters()
    tokens = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        loss = loaded(input_ids=tokens, labels=tokens).loss.item()
        assert loss == pytest.approx(spec.build(3).loss(tokens).item(), rel=1e-5)
        assert loaded.generate(tokens[:, :4], max_new_tokens=3, do_sample=False).shape == (2, 7)


def test_an_encoder_has_no_class_of_transformers(results, tmp_path):
    block = FlexibertBlock(mixer="SDP", heads=2, feed_forward=64, stack=1)
    spec = FlexibertSpec(width=32, blocks=(block,))
    with pytest.raises(lmscout.LmscoutError, match="no transformers class for this architecture"):
        replace(results["design"], spec=spec).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_folder_keeps_the_result_of_a_call(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / "cache"))
    given = {"out": tmp_path / "run", "workers": 1, "progress": False}
    first = lmscout.rank(few(), "parameters", **given)
    again = lmscout.rank(few(), "parameters", **given)
    assert again.to_dict() == first.to_dict()
    with pytest.raises(lmscout.LmscoutError, match="holds a run with seed 0, not 1"):
        lmscout.rank(few(), "parameters", seed=1, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lmscout.rank("pico", "nothing"), "nothing"),
        (
            lambda: lmscout.discover("pico", space="nowhere"),
            "expected one of published, two-op, deep",
        ),
        (lambda: lmscout.discover(["pico", "pico"]), "several benchmarks"),
        (lambda: lmscout.discover("pico", n_search=[1, 2]), "n_search gives 2 numbers for 1"),
        (lambda: lmscout.discover("pico", config=lmscout.DeepSearchConfig()), "config is for"),
        (lambda: lmscout.load_benchmark("nowhere"), "unknown benchmark"),
        (lambda: lmscout.evaluate("nowhere"), "nothing to measure"),
    ],
)
def test_wrong_arguments_are_one_line(call, message):
    with pytest.raises(lmscout.LmscoutError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
