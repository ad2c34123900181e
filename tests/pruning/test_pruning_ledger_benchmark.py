"""Pairs of a run as a benchmark: lmscout-tiny, and a quality that a proxy is known to give."""

import json

import numpy as np
import pytest

from lmscout.builtin import corpus_text, tiny_folder
from lmscout.cli import main as cli
from lmscout.discovery.discover import discover
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, read_text, tokenize_windows
from lmscout.proxies import published
from lmscout.pruning.calibration import CalibrationSettings, calibrate
from lmscout.pruning.judging.judge import asked_proxy, read_judges
from lmscout.pruning.judging.ledger_benchmark import SubnetworkSpec, ledger_benchmark
from lmscout.pruning.ledger import Ledger, Pair
from lmscout.pruning.recorded import read_recorded, record_origin
from lmscout.pruning.saving.cutting import cut
from lmscout.pruning.subnetworks.plan_arrays import as_plans, dense_row

TRUTH = "sum(std(weight) * square(act))"
SETTINGS = CalibrationSettings(
    window=32,
    measured_tokens=640,
    final_tokens=640,
    moment_tokens=640,
    gradient_windows=4,
    importance="magnitude",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(corpus_text("validation")[:12_000])
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    """A ledger of 41 plans whose quality is what a proxy of the published space says."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    loaded = load_model(str(tiny_folder()))
    windows = tokenize_windows(loaded.tokenizer, read_text(str(text)), SETTINGS.window)
    calibrated = calibrate(loaded.model, windows, SETTINGS)
    shape = calibrated.shape
    rng = np.random.default_rng(0)
    rows = rng.integers(1, dense_row(shape) + 1, (41, 2 * shape.depth))
    rows[0, [1, shape.depth + 1]] = 0  # the second block dropped
    (judge,) = read_judges(
        [asked_proxy(f"proxy:+{TRUTH}")],
        calibrated.model,
        calibrated.family,
        shape,
        calibrated.measured,
    )
    with Ledger(folder, shape, calibrated.ledger_settings) as ledger:
        record_origin(ledger, str(tiny_folder()), str(text), SETTINGS)
        for index, (plan, score) in enumerate(zip(as_plans(rows), judge.scores(rows), strict=True)):
            ledger.add(Pair(plan, -float(score), 600, partial=index == 40))
    return folder, rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_the_ledger_says_what_it_is_of(run, text):
    recorded = read_recorded(run[0])
    assert recorded.model == str(tiny_folder().resolve())
    assert recorded.text == str(text.resolve())
    assert recorded.calibration == SETTINGS


def test_architectures_are_the_plans_of_whole_pairs(run, tmp_path):
    folder, rows = run
    benchmark = ledger_benchmark(str(folder), tmp_path).benchmark
    assert len(benchmark) == 40
    plans = as_plans(rows[:40])
    assert [(one.attention, one.mlp) for one in benchmark.specs] == [
        (plan.attention, plan.mlp) for plan in plans
    ]
    first, second = benchmark.specs[:2]
    dense = load_model(str(tiny_folder())).model
    assert first.depth == second.depth - 1
    assert second.parameters() == sum(one.numel() for one in cut(dense, plans[1]).parameters())
    assert second.parameters() - second.body_parameters() == first.rest
    values = second.to_dict()
    assert values.pop("kind") == "subnetwork"
    assert SubnetworkSpec.from_dict(values) == second
    with pytest.raises(LmscoutError, match="cannot be built"):
        second.build(0)


def test_discovery_finds_what_orders_the_pairs_and_reads_them_once(run, cache):
    folder, _ = run
    ledger = ledger_benchmark(str(folder), cache / "statistics")
    space = published(("sum",))
    found = discover(ledger.benchmark, space, search=20, seed=0, cache=cache, read=ledger.read)
    assert found.test.agreement.spearman.value == pytest.approx(1.0)
    assert abs(found.search[0]) == pytest.approx(1.0)
    assert found.sign == 1
    statistics = ledger.read(space.chains)
    assert statistics.values.shape == (40, 6, 20, ledger.shape.depth)
    assert statistics.depth[0] == ledger.shape.depth - 1
    assert np.isnan(statistics.values[0, :, :, -1]).all()
    assert np.isfinite(statistics.values[1:]).all()
    # From the file: the text is not looked at again.
    again = ledger_benchmark(str(folder), cache / "statistics", calibration="nowhere.txt")
    assert np.array_equal(again.read(space.chains).values, statistics.values, equal_nan=True)


def test_another_text_or_model_is_told(run, tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[3_000:])
    ledger = ledger_benchmark(str(run[0]), tmp_path, calibration=str(other))
    with pytest.raises(LmscoutError, match="not the text on which"):
        ledger.read((("abs",),))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["discover", "ledger:{empty}"], "holds no ledger"),
        (["discover", "ledger:{run}", "--space", "deep"], "published and two-op"),
        (["discover", "pico", "--model", "here"], "are for ledger:RUN"),
        (["discover", "ledger:{run}", "--search", "39"], "at most 35"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / "cache"))
    told = [one.format(run=run[0], empty=tmp_path) for one in arguments]
    monkeypatch.setattr("sys.argv", ["lmscout", *told])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert says in " ".join(said.split())
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_command_prints_what_it_found(run, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMSCOUT_CACHE", str(cache))
    told = ["discover", f"ledger:{run[0]}", "--search", "20", "--aggregations", "sum"]
    monkeypatch.setattr(
        "sys.argv", ["lmscout", *told, "--out", str(tmp_path / "out"), "--json", "-"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_architectures"] == 40
    assert result["best"]["test"]["spearman"]["value"] == pytest.approx(1.0)
