"""Results: what every one of them offers, whatever was computed."""

import functools
import json
import math
import operator
import os
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmscout
from lmscout.arguments import RESULTS as CLASSES
from lmscout.builtin import load_tokenizer, tiny_folder
from lmscout.builtin.corpus import corpus_text
from lmscout.integrations import GgufFile
from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec, TransformerXlSpec

NAMES = (
    *("rank", "check", "forms", "explain", "design", "select", "discover", "deep", "build"),
    *("evaluate", "export", "prune"),
)


def few():
    """The twelve smallest architectures of pico."""
    bench = lmscout.load_benchmark("pico")
    by_size = sorted(range(len(bench)), key=lambda row: bench.specs[row].parameters())
    return bench.subset(by_size[:12])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of every class."""
    folder = tmp_path_factory.mktemp("results")
    texts = []
    for side in ("train", "test"):
        texts.append(str(folder / f"{side}.txt"))
        (folder / f"{side}.txt").write_text(corpus_text(side, 150)[:60_000])
    little = lmscout.CalibrationConfig(measured_tokens=640, final_tokens=640, moment_tokens=1_280)
    deep = lmscout.DeepSearchConfig(evaluations=2, searches=1, catalog=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSCOUT_CACHE", str(folder / "cache"))
        quiet = {"progress": False, "workers": 1}
        return {
            "rank": lmscout.rank(few(), ["parameters"], **quiet),
            "check": lmscout.check_benchmark("pico"),
            "forms": lmscout.explain("snip"),
            "explain": lmscout.explain("parameters", few(), **quiet),
            "design": lmscout.design(
                "nano", proxy="parameters", max_params=300_000, evaluations=4, **quiet
            ),
            "select": lmscout.design(
                few(), proxy="parameters", max_params=10**7, evaluations=5, **quiet
            ),
            "discover": lmscout.discover(few(), **quiet),
            "deep": lmscout.discover(few(), space="deep", config=deep, **quiet),
            "build": lmscout.build_benchmark(
                "nano", n=1, out=folder / "mine", tokens=10_240, text=texts[0], seeds=1, **quiet
            ),
            "evaluate": lmscout.evaluate(
                str(tiny_folder()), perplexity=texts[1], limit_tokens=2_000, progress=False
            ),
            "export": GgufFile(
                *("m", folder / "m.gguf", "llama", "f16", 100, 200, "tensors", float("nan"))
            ),
            "prune": lmscout.prune(
                str(tiny_folder()),
                calibration=texts[0],
                out=folder / "smaller",
                config=lmscout.PruneConfig(pairs=20, calibration=little),
                progress=False,
            ),
        }


def test_a_built_folder_is_a_benchmark(results):
    folder = results["build"].folder
    named, prefixed = map(lmscout.load_benchmark, (str(folder), f"bench:{folder}"))
    assert named.name == prefixed.name == f"bench:{folder}"
    assert named.specs == prefixed.specs
    assert repr(named).startswith(f"Benchmark('bench:{folder}', 1 architectures, ")
    with pytest.raises(lmscout.LmscoutError, match="unknown benchmark"):
        lmscout.load_benchmark(str(folder.parent))


def test_half_of_a_small_benchmark_is_search_data_by_default(results):
    for split in (results["discover"].split, results["deep"].findings[0].split):
        assert (len(split.search), len(split.test)) == (6, 6)
    assert "6 for search, 6 for test" in results["discover"].summary()


def test_there_is_one_of_every_class(results):
    found = {f"{type(one).__module__}.{type(one).__name__}" for one in results.values()}
    assert {one.rsplit(".", 1)[1] for one in found} == {one.rsplit(".", 1)[1] for one in CLASSES}


@pytest.mark.parametrize("name", NAMES)
def test_every_result_is_text_a_table_json_and_itself_again(results, tmp_path, name, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as the kernels of notebooks do
    found = results[name]
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) > 0
    assert type(found).__name__ in repr(found)
    assert "\n" not in repr(found)
    assert len(repr(found)) < 300
    assert "<table" in found._repr_html_()
    assert len(found.summary().splitlines()) >= (1 if name == "build" else 2)
    assert "\x1b" not in found.summary()
    found.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["schema"] == 1
    again = type(found).load(tmp_path / "result.json")
    assert again.to_dict() == found.to_dict()
    assert again.summary() == found.summary()
    assert again == found
    assert lmscout.load_result(tmp_path / "result.json") == found
    assert hash(again) == hash(found)
    assert found != "a result"
    assert all((found == other) == (found is other) for other in results.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "export"])
def test_every_result_has_a_figure_and_a_report(results, tmp_path, name):
    found = results[name]
    assert len(found.plot().data) > 0
    assert "lmscout-figure" in found._repr_html_()
    found.save_report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('<section id="') == text.count("</section>") >= 1
    assert text.count("<figure>") >= 1


def leaves(values, path=()):
    """Paths of the numbers, truth values and texts in JSON data."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return [leaf for key, one in pairs for leaf in leaves(one, (*path, key))]
    return [] if values is None or path == ("schema",) else [path]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25)
def test_results_are_equal_if_all_that_is_saved_is(results, name, data):
    found = results[name]
    values = found.to_dict()
    assert type(found).from_dict(values) == found
    path = data.draw(st.sampled_from(leaves(values)))
    parent = functools.reduce(operator.getitem, path[:-1], values)
    before = parent[path[-1]]
    doubled = before * 2 if before else type(before)(1)
    parent[path[-1]] = not before if isinstance(before, bool) else doubled
    try:
        other = type(found).from_dict(values)
    except lmscout.LmscoutError:  # no such name or number
        return
    assert other != found
    assert not other == found  # noqa: SIM201 - as a user writes it


def test_an_export_has_no_report(results, tmp_path):
    with pytest.raises(lmscout.LmscoutError, match="a GgufFile holds nothing that can be shown"):
        results["export"].save_report(tmp_path / "report.html")


def test_a_run_may_be_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lmscout.check_benchmark("pico", out=".")
    assert sorted(os.listdir()) == ["result.json", "settings.json"]
    assert Path.cwd() == tmp_path


def test_results_with_the_same_undefined_numbers_are_equal(results):
    found = results["rank"]
    ahead = replace(found.proxies[0], recall_top_tenth=math.nan)
    one, same = (replace(found, proxies=(ahead,)) for _ in range(2))
    assert one == same
    assert one != found


def test_a_result_is_loaded_from_its_run_folder_or_refused(results, tmp_path):
    bench = lmscout.load_benchmark("pico")
    lmscout.check_benchmark(bench, out=tmp_path / "run")
    with pytest.raises(lmscout.LmscoutError, match=r"pico: the object is not what .* give the f"):
        lmscout.check_benchmark(bench.subset(range(20)))
    assert lmscout.load_result(tmp_path / "run") == results["check"]
    for name, content in (("other.json", "{}"), ("list.json", "[1]"), ("none.json", "{")):
        (tmp_path / name).write_text(content)
        with pytest.raises(lmscout.LmscoutError, match=name):
            lmscout.load_result(tmp_path / name)
    with pytest.raises(lmscout.LmscoutError, match="cannot be read"):
        lmscout.load_result(tmp_path / "gone.json")


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_at_most_80_columns_and_prose_is_not_wrapped(results, name):
    lines = results[name].summary().splitlines()
    drawn = [number for number, line in enumerate(lines) if set(line) == {"─"}]
    assert all(len(lines[number]) <= 80 for number in drawn)
    frame = results[name].to_frame()
    with pandas.option_context("display.width", 80, "display.max_columns", 0):
        head = repr(frame).splitlines()[0].split()
    assert head[0] == frame.columns[0]


def test_a_design_is_a_causal_language_model_within_the_limit(results, tmp_path):
    model = results["design"].to_model(seed=1)
    assert sum(one.numel() for one in model.parameters()) <= 300_000
    assert not model.training
    results["design"].save_pretrained(tmp_path, seed=1)
    lmscout.register()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is type(saved)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        found, again = (one(input_ids=tokens, labels=tokens) for one in (model, saved))
    assert found.logits.shape == (2, 12, 4096)
    assert torch.equal(found.logits, again.logits)
    assert torch.equal(found.loss, again.loss)
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert spec == results["design"].spec.to_dict()


def specs():
    """A LLaMA with blocks of their own, one whose blocks are alike, two GPT-2, a Transformer-XL."""
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
        "relative": TransformerXlSpec(**common, **gpt2 | clusters),
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


@pytest.mark.parametrize("name", ["own blocks", "clusters"])
def test_an_untrained_architecture_is_evaluated_and_not_pruned(results, tmp_path, name):
    spec = replace(specs()[name], vocabulary=4096, max_length=128)
    tokenizer = load_tokenizer()
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    replace(results["design"], spec=spec).save_pretrained(folder, seed=3)
    assert AutoTokenizer.from_pretrained(folder).vocab_size == 4096
    text.write_text(corpus_text("test")[:2000])
    found = lmscout.evaluate(str(folder), perplexity=text, speed=True, progress=False)
    tokens = torch.tensor(tokenizer(text.read_text())["input_ids"])
    windows = tokens[: len(tokens) // 128 * 128].view(-1, 128)
    with torch.no_grad():
        loss = spec.build(3).loss(windows).item()
    assert found.perplexities[0].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.parameters == spec.parameters()
    timed = lmscout.evaluate(str(folder), speed=True, progress=False)
    assert timed.to_frame()["tokens_per_second"][0] == timed.speed.tokens_per_second > 0
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(lmscout.LmscoutError, match="has no tokenizer; save the one that makes"):
        lmscout.load_model(str(folder))
    tokenizer.save_pretrained(folder)
    with pytest.raises(lmscout.LmscoutError, match="'lmscout_design' cannot be pruned"):
        lmscout.prune(str(folder), calibration=text, out=tmp_path / "out", progress=False)
    with pytest.raises(lmscout.LmscoutError, match="no GGUF form of type 'design'"):
        lmscout.export(str(folder), out=tmp_path / "file", progress=False)


def test_an_encoder_has_no_class_of_transformers(results, tmp_path):
    block = FlexibertBlock(mixer="SDP", heads=2, feed_forward=64, stack=1)
    spec = FlexibertSpec(width=32, blocks=(block,))
    with pytest.raises(lmscout.LmscoutError, match="no transformers class for this architecture"):
        replace(results["design"], spec=spec).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hidden = replace(results["design"], spec=spec).to_model()(torch.zeros(1, 9, dtype=torch.long))
    assert hidden.shape == (1, 9, 32)


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
