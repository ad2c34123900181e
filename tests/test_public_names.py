"""The public interface: lazily imported names, and no effect on `import transformers`."""

import doctest
import inspect
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy
import pandas
import pytest
import torch

import lmscout
from lmscout.builtin import tiny_folder
from lmscout.builtin.corpus import corpus_text

LIGHT = """
import sys
import lmscout
import lmscout.cli.main  # what the shell waits for at every command and --help
heavy = {"torch", "transformers", "numpy", "pandas", "optuna", "plotly", "sklearn"}
heavy &= set(sys.modules)
assert not heavy, f"importing lmscout and its command imports {sorted(heavy)}"
assert "lmscout.api" not in sys.modules
assert set(lmscout.__all__) <= set(dir(lmscout))
"""
UNCHANGED = """
import sys
import lmscout
import transformers
finders = [type(one).__module__ for one in sys.meta_path]
assert not [name for name in finders if name.startswith("lmscout")], finders
assert not [name for name in sys.modules if name.startswith("lmscout.evaluation")]
assert "transformers.models.llama.modeling_llama" not in sys.modules
"""
REGISTERED = """
import lmscout
lmscout.register()
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.for_model("lmscout_llama", vocab_size=8, hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=8, attention_groups=[0, 1], mlp_channels=[3, 0],
    block_numbers=[0, 3])
print(type(AutoModel.from_config(config)).__module__)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""


def run(script):
    command = [sys.executable, "-W", "error", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not process.returncode, process.stderr
    return process.stdout.split()


def test_importing_lmscout_and_its_command_imports_no_heavy_package():
    run(LIGHT)


def test_importing_transformers_afterwards_is_as_it_was():
    run(UNCHANGED)


def test_register_makes_the_auto_classes_know_pruned_models():
    assert run(REGISTERED) == ["lmscout.evaluation.modeling_lmscout", "LmscoutLlamaForCausalLM"]


def test_every_public_name_can_be_imported_and_unknown_ones_are_refused():
    for name in lmscout.__all__:
        assert getattr(lmscout, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lmscout.nothing  # noqa: B018


NAMES = {name: getattr(lmscout, name) for name in lmscout.__all__}
DOCUMENTED = [
    name for name, one in NAMES.items() if inspect.isfunction(one) or name.endswith("Config")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the examples name: MODEL, train.txt and test.txt."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "MODEL").symlink_to(tiny_folder())
    for side in ("train", "test"):
        (folder / f"{side}.txt").write_text(corpus_text(side, 150)[:60_000])
    return folder


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_every_public_function_and_config_runs(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LMSCOUT_CACHE", str(folder / "cache"))
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(lmscout, name), name)
    assert example.examples, f"{name} has no example"
    assert not any(doctest.SKIP in one.options for one in example.examples)
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert runner.failures == 0, capsys.readouterr().out


def test_paths_are_taken_where_strings_are(folder, tmp_path):
    model, train, test = (folder / name for name in ("MODEL", "train.txt", "test.txt"))
    quiet = {"progress": False}
    assert lmscout.load_model(model).source == str(model)
    few = lmscout.CalibrationConfig(measured_tokens=640, final_tokens=640, moment_tokens=1_280)
    config = lmscout.PruneConfig(pairs=20, calibration=few, storage=tmp_path / "study.db")
    given = {"calibration": train, "report": test, "config": config, **quiet}
    pruned = lmscout.prune(model, out=tmp_path / "pruned", **given)
    assert pruned.study == f"sqlite:///{tmp_path / 'study.db'}"
    scores = [
        lmscout.evaluate(tmp_path / "pruned", perplexity=one, limit_tokens=640, **quiet)
        for one in (test, [test], str(test))
    ]
    assert len({one.perplexities for one in scores}) == 1
    assert lmscout.export(tmp_path / "pruned", out=tmp_path / "file", **quiet).type == "f16"
    moved = {"model": model, "calibration": train}
    study = lmscout.discover(f"study:{tmp_path / 'study.db'}", n_search=10, **moved, **quiet)
    assert study.n_architectures == 20
    built = {"n": 12, "tokens": 20_000, "seeds": 1, "workers": 1, **quiet}
    lmscout.build_benchmark("nano", text=train, out=tmp_path / "built", **built)
    own = tmp_path / "built"
    assert lmscout.load_benchmark(own).name == lmscout.load_benchmark(str(own)).name
    some = {"workers": 1, **quiet}
    assert lmscout.rank(own, "depth", **some).n_architectures == 12
    assert lmscout.explain("depth", own, **some).n_architectures == 12
    assert lmscout.design(own, proxy="depth", max_params=10**9, **some).choices
    assert lmscout.discover([own], n_search=6, **some).n_architectures == 12
    with pytest.raises(lmscout.LmscoutError, match="no architecture was trained with several"):
        lmscout.check_benchmark(own)


def test_types_of_pytorch_are_taken_where_their_names_are(folder):
    model, text = str(folder / "MODEL"), str(folder / "test.txt")
    given = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    loaded = lmscout.load_model(model, **given)
    assert loaded.model.dtype == torch.bfloat16
    assert repr(loaded) == f"LoadedModel(LlamaForCausalLM, 3,083,392 parameters, {model!r})"
    named, meant = (
        lmscout.evaluate(model, perplexity=text, limit_tokens=640, progress=False, **one)
        for one in ({"dtype": "bfloat16"}, given)
    )
    assert named.perplexities == meant.perplexities


def test_arguments_of_other_types_are_refused_in_one_line(folder, tmp_path):
    model, text = str(folder / "MODEL"), str(folder / "test.txt")
    bench = lmscout.load_benchmark("pico").subset(range(12))
    pruned = partial(lmscout.prune, model, calibration=text, out=tmp_path / "out")
    evaluated = partial(lmscout.evaluate, model, perplexity=text)
    plain = lmscout.load_model(model).model
    made = lmscout.design("nano", proxy="depth", max_params=10**6, evaluations=2, progress=False)
    for call, message in (
        (partial(pruned, keep="0.8"), r"prune: keep is of type str .got '0.8', expected float"),
        (partial(pruned, keep=[0.8, None]), r"keep is of type list .*, expected float . Sequence"),
        (partial(pruned, keep=True), "keep is of type bool"),
        (partial(pruned, config={"pairs": 20}), "config is of type dict .*expected PruneConfig"),
        (partial(pruned, compute_dtype="int8"), "unknown dtype 'int8': expected one of float32"),
        (partial(pruned, calibration=None), "calibration is of type NoneType"),
        (partial(pruned, calibration="some text " * 99), "is no path: a name in it is too long"),
        (partial(lmscout.prune, plain, calibration=text, out=tmp_path), "is of type LlamaForCaus"),
        (partial(lmscout.evaluate, plain, perplexity=text), "expected str . path . LoadedModel"),
        (partial(evaluated, dtype="float8"), "unknown dtype 'float8'"),
        (partial(evaluated, limit_tokens=-5), "limit_tokens of -5 is too small"),
        (partial(evaluated, batch_tokens=0), "batch_tokens of 0 is too small"),
        (partial(evaluated, limit="9"), "evaluate: limit is of type str"),
        (partial(lmscout.load_model, 5), "source is of type int"),
        (partial(lmscout.load_benchmark, None), "name is of type NoneType"),
        (partial(lmscout.rank, bench, ["snip", 5]), "rank: proxy is of type list"),
        (partial(lmscout.rank, bench, "snip", workers="2"), "workers is of type str"),
        (partial(lmscout.rank, bench, "snip", seed=-1), "seed of -1 is too small"),
        (partial(lmscout.discover, [bench, None]), "benchmark is of type list"),
        (partial(lmscout.discover, bench, n_search="6"), "n_search is of type str"),
        (partial(lmscout.design, "nano", proxy="depth", max_params="1M"), "max_params is of type"),
        (partial(lmscout.build_benchmark, "nano", n=1, seeds=0, out=tmp_path), "seeds of 0 is too"),
        (partial(lmscout.PruneConfig, pairs="20"), "PruneConfig: pairs is of type str"),
        (partial(lmscout.PruneConfig, keep="0.5"), "keep is of type str"),
        (partial(lmscout.PruneConfig, features="snip"), r"features is of .*expected tuple.str"),
        (partial(lmscout.CalibrationConfig, windows="8"), "CalibrationConfig: windows is of type"),
        (partial(lmscout.DeepSearchConfig, race=1), "DeepSearchConfig: race is of type int"),
        (partial(lmscout.export, model, out=tmp_path / "file", quantize=8), "quantize is of type"),
        (partial(lmscout.export, model, out=tmp_path / ("a" * 300)), "a name in it is too long"),
        (partial(lmscout.load_result, tmp_path), "is no run folder; name the --out of a command"),
        (partial(lmscout.discover, [], space="deep"), "benchmark: none is given"),
        (partial(lmscout.rank, bench, "snip", seed=2**64), "seed of 18446744073709551616 is too l"),
        (partial(lmscout.check_benchmark, "pico", seed=-1), "seed of -1 is too small"),
        (partial(lmscout.build_benchmark, "nano", n=1, seed=2**63, out=tmp_path), "is too large"),
        (partial(lmscout.check_benchmark, "pico", out="a\0b"), "a path holds a null character"),
        (partial(evaluated, out=""), "evaluate: out is empty; give a name or a path"),
        (partial(made.to_model, "1"), "to_model: seed is of type str"),
        (partial(made.to_model, 2**64), "seed of 18446744073709551616 is too large"),
        (partial(made.save_pretrained, None), "save_pretrained: folder is of type NoneType"),
        (partial(made.save_pretrained, "/dev/null/model"), "folder /dev/null/model cannot be writ"),
        (partial(made.save, 5), "save: path is of type int .got 5, expected str . path"),
        (partial(made.save, "a\0b"), "a path holds a null character"),
        (partial(type(made).load, None), "load: path is of type NoneType"),
        (partial(made.save_report, tmp_path / ("a" * 300)), "is no path: a name in it is too long"),
    ):
        with pytest.raises(lmscout.LmscoutError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_in_training_mode_is_refused(folder, tmp_path):
    loaded, text = lmscout.load_model(folder / "MODEL"), folder / "test.txt"
    loaded.model.train()
    for call in (
        partial(lmscout.evaluate, loaded, perplexity=text),
        partial(lmscout.prune, loaded, calibration=text, out=tmp_path / "out"),
        partial(lmscout.export, loaded, out=tmp_path / "out"),
    ):
        with pytest.raises(lmscout.LmscoutError, match=r"in training mode; call its eval"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_share_alone_is_taken_for_shares():
    assert lmscout.PruneConfig(keep=0.5) == lmscout.PruneConfig(keep=(0.5,))


def test_numbers_of_other_libraries_and_lists_are_taken(folder, monkeypatch):
    monkeypatch.setenv("LMSCOUT_CACHE", str(folder / "numbers"))
    bench = lmscout.load_benchmark("pico").subset(range(6))
    given = {"seed": numpy.int64(1), "workers": numpy.int8(1), "progress": numpy.bool_(0)}
    expected = lmscout.rank(bench, ["depth", "width"], seed=1, workers=1, progress=False).proxies
    for proxies in (numpy.array(["depth", "width"]), pandas.Series(["depth", "width"])):
        assert lmscout.rank(bench, proxies, **given).proxies == expected
    shares = lmscout.PruneConfig(keep=(0.5, 0.75), pairs=30)
    for keep in ([0.5, 0.75], numpy.array([0.5, 0.75]), torch.tensor([0.5, 0.75])):
        assert lmscout.PruneConfig(keep=keep, pairs=numpy.int64(30)) == shares
    assert lmscout.PruneConfig(keep=numpy.float32(0.5)) == lmscout.PruneConfig(keep=0.5)


def test_threads_load_models_and_write_summaries_at_once():
    filters, stdout = list(warnings.filters), sys.stdout
    forms = [lmscout.explain(name) for name in ("snip", "fisher")]
    summaries = [one.summary() for one in forms]
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lmscout.load_model, [tiny_folder()] * 4))
        found = list(pool.map(lambda row: forms[row % 2].summary(), range(40)))
    for one in loaded:
        assert one.model.lm_head.weight is one.model.model.embed_tokens.weight
    assert found == summaries * 20
    assert sys.stdout is stdout
    assert warnings.filters == filters


def test_a_field_of_the_config_as_an_argument_is_named(tmp_path):
    given = {"calibration": "train.txt", "out": tmp_path / "run"}
    for name, field in (("pairs", "pairs"), ("worse_by", "max_increase")):
        with pytest.raises(lmscout.LmscoutError, match=rf"prune: {name} .*PruneConfig\({field}="):
            lmscout.prune("MODEL", **given, **{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        lmscout.prune("MODEL", **given, other=1)


def test_progress_is_shown_by_default_and_can_be_turned_off(folder, monkeypatch, capsys):
    monkeypatch.setenv("LMSCOUT_CACHE", str(folder / "progress"))
    bench = lmscout.load_benchmark("pico").subset(range(6))
    lmscout.rank(bench, "snip", workers=1)
    assert "0/6" in capsys.readouterr().err
    lmscout.rank(bench, "snip", workers=1, seed=1, progress=False)
    assert capsys.readouterr().err == ""
    calls = []
    lmscout.rank(bench, "snip", workers=1, seed=2, progress=lambda *call: calls.append(call))
    assert calls[-1][1:] == (6, 6)
    assert capsys.readouterr().err == ""
