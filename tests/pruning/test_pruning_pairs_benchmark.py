"""Pairs of a run as a benchmark: lmscout-tiny, and a quality that a proxy is known to give."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmscout.builtin import corpus_text, tiny_folder
from lmscout.cli import main as cli
from lmscout.discovery.discover import discover
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, read_text, tokenize_windows
from lmscout.proxies import Branch, published, simplified
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import CalibrationConfig, calibrate, model_digest
from lmscout.pruning.cutting import cut
from lmscout.pruning.pairs_benchmark import SubnetworkSpec, study_benchmark
from lmscout.pruning.plan import as_plans, dense_row
from lmscout.pruning.prefix_tables import tabulate
from lmscout.pruning.proxy_objective import compute_objectives, parse_proxy
from lmscout.pruning.recovery.elastic import recover_all_plans
from lmscout.pruning.recovery.run import ELASTIC, recovery_file
from lmscout.pruning.recovery.training import RecoverySettings, read_state, write_state
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy
from lmscout.pruning.study_record import read_recorded, record_origin
from lmscout.statistics import INPUT_NAMES

TRUTH = "sum(std(weight) * square(act))"
SETTINGS = CalibrationConfig(
    window=32,
    measured_tokens=640,
    final_tokens=640,
    moment_tokens=640,
    gradient_windows=4,
    importance="magnitude",
    quality="nll",
    seed=0,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(corpus_text("validation")[:12_000])
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    """A study of 41 plans whose quality is what a proxy of the published space says."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    loaded = load_model(str(tiny_folder()))
    windows = tokenize_windows(loaded.tokenizer, read_text(str(text)), SETTINGS.window)
    calibrated = calibrate(loaded.model, windows, SETTINGS)
    shape = calibrated.shape
    rng = np.random.default_rng(0)
    rows = rng.integers(1, dense_row(shape) + 1, (41, 2 * shape.depth))
    rows[0, [1, shape.depth + 1]] = 0  # the second block dropped
    (objective,) = compute_objectives(
        [parse_proxy(f"proxy:+{TRUTH}")],
        calibrated.model,
        calibrated.family,
        shape,
        calibrated.measured,
    )
    with PairStudy(folder, shape, calibrated.study_settings) as pair_study:
        record_origin(pair_study, str(tiny_folder()), str(text), SETTINGS, torch.float32)
        for index, (plan, score) in enumerate(
            zip(as_plans(rows), objective.scores(rows), strict=True)
        ):
            pair_study.add(Pair(plan, -float(score), 600, partial=index == 40))
    return folder, rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_the_study_records_its_model_and_text(run, text):
    recorded = read_recorded(run[0])
    assert recorded.model == str(tiny_folder().resolve())
    assert recorded.text == str(text.resolve())
    assert recorded.calibration == SETTINGS
    assert recorded.dtype == torch.float32


def test_architectures_are_the_plans_of_whole_pairs(run, tmp_path):
    folder, rows = run
    benchmark = study_benchmark(str(folder), tmp_path).benchmark
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


def test_discovery_finds_the_proxy_of_the_quality_and_caches_statistics(run, cache):
    folder, _ = run
    pair_study = study_benchmark(str(folder), cache / "statistics")
    space = published(("sum",))
    known = pair_study.benchmark, pair_study.read
    found = discover("study", space, search=20, seed=0, cache=cache, source=lambda: known)
    assert found.test.agreement.spearman.value == pytest.approx(1.0)
    assert abs(found.search[0]) == pytest.approx(1.0)
    assert found.sign == 1
    statistics = pair_study.read(space.chains)
    assert statistics.values.shape == (40, 6, 20, pair_study.shape.depth)
    assert statistics.depth[0] == pair_study.shape.depth - 1
    assert np.isnan(statistics.values[0, :, :, -1]).all()
    assert np.isfinite(statistics.values[1:]).all()
    # From the file: the text is not looked at again.
    again = study_benchmark(str(folder), cache / "statistics", calibration="nowhere.txt")
    assert np.array_equal(again.read(space.chains).values, statistics.values, equal_nan=True)


def test_another_text_is_refused(run, tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[3_000:])
    pair_study = study_benchmark(str(run[0]), tmp_path, calibration=str(other))
    with pytest.raises(LmscoutError, match="not the text on which"):
        pair_study.read((("abs",),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])  # saved in float16
def test_pairs_of_16_bits_are_known_by_their_model_and_read_in_float32(run, text, tmp_path, dtype):
    folder = tmp_path / "run"
    loaded = load_model(str(tiny_folder()), dtype)
    calibrated = calibrate(
        loaded.model,
        tokenize_windows(loaded.tokenizer, read_text(str(text)), SETTINGS.window),
        SETTINGS,
    )
    plans = as_plans(run[1][:8])
    with PairStudy(folder, calibrated.shape, calibrated.study_settings) as pair_study:
        record_origin(pair_study, str(tiny_folder()), str(text), SETTINGS, dtype)
        for number, plan in enumerate(plans):
            pair_study.add(Pair(plan, float(number), 600))
    found = study_benchmark(str(folder), tmp_path / "cache")
    assert found.recorded.dtype == dtype
    assert found.loaded.model.dtype == torch.float32
    values = found.read((("abs",),)).values
    if dtype == torch.float16:  # as it is saved: nothing was rounded
        plain = study_benchmark(str(run[0]), tmp_path / "cache").read((("abs",),)).values
        assert np.array_equal(values, plain[:8], equal_nan=True)
    assert np.isfinite(values[1:]).all()


@pytest.fixture(scope="module")
def elastic(tmp_path_factory, text):
    """A study of two pairs measured after elastic recovery, and what they were measured by."""
    folder = tmp_path_factory.mktemp("runs") / "elastic"
    loaded = load_model(str(tiny_folder()))
    windows = tokenize_windows(loaded.tokenizer, read_text(str(text)), SETTINGS.window)
    calibrated = calibrate(loaded.model, windows, SETTINGS)
    recovered, _ = recover_all_plans(
        calibrated,
        windows,
        PlanSpace(calibrated.shape),
        {0.8: keep_budget(calibrated.shape, 0.8)},
        RecoverySettings(steps=4, learning_rate=1e-2, batch_tokens=64, rank=3, seed=3),
        recovery_file(folder, ELASTIC),
    )
    rows = np.array([dense_row(recovered.shape), dense_row(recovered.shape) - 1])
    with PairStudy(folder, recovered.shape, recovered.study_settings) as pair_study:
        record_origin(pair_study, str(tiny_folder()), str(text), SETTINGS, torch.float32)
        for plan in as_plans(rows):
            pair_study.add(Pair(plan, 1.0, 600))
    return folder, recovered, rows


def test_pairs_after_elastic_recovery_are_read_in_the_recovered_model(elastic, tmp_path):
    folder, recovered, rows = elastic
    found = study_benchmark(str(folder), tmp_path).read((("abs",),)).values
    nodes = [simplified(Branch(name, ("abs",)).expression()) for name in INPUT_NAMES]
    tables = tabulate(
        recovered.model,
        recovered.family,
        recovered.shape,
        recovered.measured[:16],
        dict.fromkeys(nodes),
    )
    expected = np.stack([tables[node].block_values(rows) for node in nodes], axis=1)
    np.testing.assert_allclose(found[:, :, 0], expected, rtol=1e-5)


def test_without_the_adapter_of_its_pairs_a_run_is_refused(elastic, tmp_path, text):
    folder, recovered, _ = elastic
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    adapter = recovery_file(run, ELASTIC)
    state = read_state(adapter)
    doubled = {name: one * 2 for name, one in state.weights.items()}
    write_state(adapter, replace(state, weights=doubled))
    with pytest.raises(LmscoutError, match="is not the adapter with which"):
        study_benchmark(str(run), tmp_path).read((("abs",),))
    adapter.unlink()
    with pytest.raises(LmscoutError, match=r"elastic\.safetensors is not there"):
        study_benchmark(str(run), tmp_path)
    half = tmp_path / "half"
    shutil.copytree(folder / "recovery", half / "recovery")
    digest = model_digest(load_model(str(tiny_folder()), torch.bfloat16).model)
    with PairStudy(
        half, recovered.shape, {**recovered.study_settings, "model": digest}
    ) as pair_study:
        record_origin(pair_study, str(tiny_folder()), str(text), SETTINGS, torch.bfloat16)
    with pytest.raises(LmscoutError, match="after elastic recovery in bfloat16"):
        study_benchmark(str(half), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["discover", "study:{empty}"], "holds no study"),
        (["discover", "study:{run}", "--space", "deep"], "published and two-op"),
        (["discover", "pico", "--model", "here"], "are for study:RUN"),
        (["discover", "study:{run}", "--search", "39"], "at most 35"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / "cache"))
    given = [one.format(run=run[0], empty=tmp_path) for one in arguments]
    monkeypatch.setattr("sys.argv", ["lmscout", *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert says in " ".join(said.split())
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_command_prints_what_it_found(run, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMSCOUT_CACHE", str(cache))
    command = ["discover", f"study:{run[0]}", "--search", "20", "--aggregations", "sum"]
    monkeypatch.setattr(
        "sys.argv", ["lmscout", *command, "--out", str(tmp_path / "out"), "--json", "-"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_architectures"] == 40
    assert result["best"]["test"]["spearman"]["value"] == pytest.approx(1.0)
