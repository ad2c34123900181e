import json
from dataclasses import asdict

import numpy as np
import pytest
from built_files import spec_of, write_built
from scipy import stats
from sklearn.linear_model import LinearRegression

from lmscout.benchmarks import check as module
from lmscout.benchmarks.built import built_folder
from lmscout.benchmarks.check import Check, check, noise_of, real_differences, simulate
from lmscout.benchmarks.space import load_space
from lmscout.cli.bench import show
from lmscout.errors import LmscoutError


def made(folder, n=60, noise=0.02, spread=0.3, replicated=20, seed=0):
    """A benchmark whose truth is known: (folder, truth, single-seed quality)."""
    rng = np.random.default_rng(seed)
    truth = 4 + spread * rng.standard_normal(n)
    losses = {
        number: (truth[number] + noise * rng.standard_normal(3 if number < replicated else 1))
        for number in range(n)
    }
    write_built(folder, {number: values.tolist() for number, values in losses.items()})
    return truth


def test_the_noise_is_found_again(tmp_path):
    made(tmp_path, n=150, replicated=150, noise=0.05)
    found = check(tmp_path)
    assert found.noise == pytest.approx(0.05, rel=0.1)
    assert found.spread == pytest.approx(0.3, rel=0.15)
    assert (found.n_architectures, found.n_left_out, found.n_replicated) == (150, 0, 150)


def test_the_noise_is_pooled_over_all_that_were_trained_more_than_once(tmp_path):
    losses = [np.array([1.0, 1.2]), np.array([5.0]), np.array([2.0, 2.1, 2.3])]
    within = [np.var([1.0, 1.2], ddof=1), np.var([2.0, 2.1, 2.3], ddof=1)]
    expected = np.sqrt((1 * within[0] + 2 * within[1]) / 3)
    assert noise_of(losses, tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize("noise", [0.03, 0.2])
def test_the_ceiling_is_what_the_truth_reaches(noise, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 60)
    monkeypatch.setattr(module, "REPEATS", 20)
    rng = np.random.default_rng(1)
    reached, again, ceilings, repeats = [], [], [], []
    for seed in range(30):
        truth = 0.3 * rng.standard_normal(50)
        quality, other = (truth + noise * rng.standard_normal(50) for _ in range(2))
        reached.append(stats.kendalltau(truth, quality).statistic)
        again.append(stats.kendalltau(other, quality).statistic)
        ceiling, repeat = simulate(quality, np.full(50, noise), seed)
        ceilings.append(ceiling.kendall.value)
        repeats.append(repeat.kendall.value)
        assert ceiling.kendall.low < ceiling.kendall.value < ceiling.kendall.high < 1
        assert ceiling.spearman.value > ceiling.kendall.value > repeat.kendall.value
    assert np.mean(ceilings) == pytest.approx(np.mean(reached), abs=0.02)
    assert np.mean(repeats) == pytest.approx(np.mean(again), abs=0.02)


def test_without_noise_the_ceiling_is_1_and_with_noise_alone_there_is_none():
    quality = np.arange(30) / 30
    sure, _ = simulate(quality, np.zeros(30), 0)
    assert sure.kendall.value == sure.spearman.value == 1
    nothing, repeat = simulate(quality, np.full(30, 5.0), 0)
    assert np.isnan(nothing.kendall.value) or abs(nothing.kendall.value) < 0.1
    assert abs(repeat.kendall.value) < 0.1


def test_a_difference_is_real_beyond_two_standard_errors():
    quality = np.array([0.0, 0.27, 0.29, 1.0])
    errors = np.array([0.1, 0.1, 0.1, 0.6])
    # 1.96 times 0.1 √2 is 0.277; 1.96 times the root of 0.01 + 0.36 is 1.19.
    assert real_differences(quality, errors).tolist() == [False, True, False, False, False, False]


def test_shares_of_distinguishable_pairs_and_the_spread_within_cells(tmp_path):
    # Architectures 0, 6, 12, ... have one depth and one width.
    losses = {n: [3.0 + n] for n in (0, 1, 2)}
    losses |= {6: [3.001], 12: [3.5], 18: [2.999, 3.001]}
    write_built(tmp_path, losses)
    found = check(tmp_path)
    noise = np.sqrt(2e-6)
    assert found.noise == pytest.approx(noise)
    values = {number: np.mean(several) for number, several in losses.items()}
    errors = {number: noise / np.sqrt(len(several)) for number, several in losses.items()}
    pairs = [(a, b) for a in losses for b in losses if a < b]
    real = {
        (a, b): abs(values[a] - values[b]) > 1.96 * np.hypot(errors[a], errors[b]) for a, b in pairs
    }
    assert found.distinguishable == pytest.approx(np.mean(list(real.values())))
    inside = [real[a, b] for a, b in pairs if a % 6 == b % 6 == 0]
    assert found.distinguishable_in_cell == pytest.approx(np.mean(inside))
    assert 0 < np.mean(inside) < 1
    cell = [values[n] for n in (0, 6, 12, 18)]
    assert found.spread_in_cell == pytest.approx(np.std(cell, ddof=1))


def test_what_is_all_noise_does_not_tell_proxies_apart(tmp_path):
    made(tmp_path, noise=0.3, spread=0.1)
    found = check(tmp_path)
    assert found.ceiling.kendall.value < 0.9
    assert not found.distinguishes
    assert not found.conditions["ceiling"]


def test_what_the_size_says_already_leaves_nothing_to_tell(tmp_path):
    write_built(tmp_path, {n: [5 - 0.1 * (n % 2) - 0.01 * (n % 3) - 1e-4 * n] for n in range(36)})
    text = (tmp_path / "table.jsonl").read_text()
    again = json.loads(text.splitlines()[0])
    again["seed"], again["validation_loss"][-1] = 1, again["validation_loss"][-1] + 0.05
    (tmp_path / "table.jsonl").write_text(text + json.dumps(again) + "\n")
    found = check(tmp_path)
    assert found.best_baseline in found.baselines
    assert not found.conditions["baseline"]
    assert not found.distinguishes


def test_the_result_is_json_and_repeats(tmp_path):
    made(tmp_path)
    first, again = check(tmp_path).to_json(), check(tmp_path).to_json()
    assert first == again
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    saved = json.loads(json.dumps(check(tmp_path).to_dict(), allow_nan=False))
    assert Check.from_dict(saved).to_json() == first
    other = check(tmp_path, seed=1)
    assert other.ceiling.kendall.value == pytest.approx(
        first["ceiling"]["kendall"]["value"], abs=0.01
    )


def test_what_nothing_can_be_said_of_is_refused(tmp_path):
    write_built(tmp_path, {n: [4.0 + n] for n in range(6)})
    with pytest.raises(LmscoutError, match="no architecture was trained with several seeds"):
        check(tmp_path)
    write_built(tmp_path, {0: [4.0, 4.1], 1: [None]})
    with pytest.raises(
        LmscoutError, match=r"too few architectures with a loss .got 1, expected at least 3"
    ):
        check(tmp_path)


def test_iso_is_of_equal_sizes_and_no_baseline_orders_it():
    found = check(built_folder("iso"))
    assert found.equal
    assert (found.n_architectures, found.n_replicated) == (200, 200)
    assert found.ceiling.kendall.low > 0.8
    assert max(abs(one.kendall.value) for one in found.baselines.values()) < 0.35
    assert max(map(abs, found.pairs.values())) < 0.35
    assert set(found.conditions) == {"ceiling", "baseline", "pairs"}
    assert found.distinguishes


def test_equal_architectures_leave_nothing_to_baselines(tmp_path, capsys):
    """All of one depth, width and size: no baseline varies, and the check says what it can."""
    write_built(
        tmp_path, {number: [4 + 0.1 * number, 4.01 + 0.1 * number] for number in (0, 6, 12)}
    )
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(
        json.dumps({**settings, "space": asdict(load_space("iso"))})
    )
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    for row in rows:
        row.update(spec=rows[0]["spec"], parameters=rows[0]["parameters"])
        row["spec"] = {**row["spec"], "norm_epsilon": 1e-5 * (1 + row["architecture"])}
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check(tmp_path)
    assert found.equal
    assert found.conditions == {"ceiling": True, "baseline": True, "pairs": True}
    show(found)
    assert "nan" not in capsys.readouterr().out.replace("nats", "")


@pytest.mark.parametrize("space", ["iso", [1], {"params": "2M"}, {"params": 0}])
def test_a_damaged_space_is_no_verdict(tmp_path, space):
    write_built(tmp_path, {number: [4 + 0.1 * number, 4.01 + 0.1 * number] for number in range(4)})
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "space": space}))
    with pytest.raises(LmscoutError, match=r"settings\.json: space"):
        check(tmp_path)


def test_two_baselines_are_fitted_together(tmp_path):
    """Of architectures whose loss is depth plus width, neither baseline alone has the order."""
    losses = {number: (spec_of(number).depth + spec_of(number).width / 8) for number in range(12)}
    write_built(tmp_path, {number: [loss, loss + 1e-9] for number, loss in losses.items()})
    found = check(tmp_path)
    assert not found.equal
    depth, width = ([getattr(spec_of(n), name) for n in losses] for name in ("depth", "width"))
    ranks = [stats.rankdata(values) for values in (depth, width, [-one for one in losses.values()])]
    fit = LinearRegression().fit(np.transpose(ranks[:2]), ranks[2])
    tau = stats.kendalltau(fit.predict(np.transpose(ranks[:2])), ranks[2]).statistic
    assert found.pairs["depth, width"] == pytest.approx(tau)
    assert tau > 0.9
    assert abs(found.baselines["depth"].kendall.value) < 0.9
    assert set(found.conditions) == {"ceiling", "baseline", "cells"}


def test_pico_tells_proxies_apart():
    found = check(built_folder("pico"))
    assert found.ceiling.kendall.low > 0.93
    assert found.repeat.kendall.low > 0.9
    assert found.n_replicated == 24
    assert found.distinguishes
