"""The smallest size whose loss increase meets a bound, the front, and what is refused."""

import csv
import json
import math
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from builtin_model import CONFIG, TINY, pruned, trials_of, two_texts
from scipy.stats import norm, t

import lmscout
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, tokenize_windows
from lmscout.pruning import CalibrationConfig, PairStudy, Pruning
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.config import PruneConfig, check_request
from lmscout.pruning.finalists import FRONT, Contest, smallest, upper_limit
from lmscout.pruning.measuring import Fitted
from lmscout.pruning.space import PlanSpace

LIMIT = 0.05
LITTLE = CalibrationConfig(
    measured_tokens=500, final_tokens=1200, moment_tokens=1500, gradient_windows=4
)
BOUND = replace(
    CONFIG, keep=(), max_increase=LIMIT, pairs=0, refit="none", calibration=LITTLE, front=True
)


PAIRS = replace(BOUND, front=False, pairs=60)


def trajectory_of(windows, chunks, tokens=127):
    """As a measured plan has it, from the loss increases of windows of so many tokens."""
    parts = np.array_split(windows, chunks)
    counts = np.cumsum([len(one) for one in parts])
    return [(int(count) * tokens, float(windows[:count].mean())) for count in counts]


@pytest.mark.parametrize("chunks", [4, 10])
@pytest.mark.parametrize("name", ["normal", "skewed", "heavy tails"])
def test_a_limit_covers_the_mean_of_as_much_other_text_as_often_as_it_says(name, chunks):
    rng, count, draws = np.random.default_rng(0), 117, 800

    def drawn():
        if name == "normal":
            return rng.normal(0.05, 0.04, count)
        if name == "skewed":
            return 0.05 * rng.lognormal(0.0, 0.5, count)  # skewness 1.75
        return 0.05 + 0.02 * rng.standard_t(3, count)

    covered = same = 0
    for _ in range(draws):
        limit = upper_limit(trajectory_of(drawn(), chunks))
        covered += drawn().mean() <= limit
        same += np.mean([drawn().mean() for _ in range(4)]) <= limit
    error = norm.ppf(0.999) * math.sqrt(0.9 * 0.1 / draws)
    assert covered / draws >= 0.9 - error
    assert same > covered  # of a text four times as long
    if name == "normal":
        assert covered / draws <= 0.9 + error


def test_a_limit_of_equal_chunks_is_the_prediction_interval_of_textbooks():
    values = np.array([0.1, 0.3, 0.2, 0.5])
    running = [((n + 1) * 100, float(values[: n + 1].mean())) for n in range(4)]
    margin = t.ppf(0.9, 3) * values.std(ddof=1) * math.sqrt(1 / 4 + 1 / 4)
    assert upper_limit(running) == pytest.approx(values.mean() + margin)
    assert upper_limit(running[:1]) == math.inf
    assert upper_limit([(100, 0.1), (200, math.inf)]) == math.inf


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run by quality, with the front."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return pruned(out, BOUND), out


def test_the_size_found_meets_the_bound_and_the_next_smaller_one_does_not(run):
    result, _ = run
    (size,), bound = result.sizes, result.bound
    assert bound.limit == LIMIT
    assert size.keep == bound.keep
    by_keep = {one.keep: one for one in bound.tested}
    assert len(by_keep) == len(bound.tested) < 15
    assert all(one.meets == (one.upper <= LIMIT) for one in bound.tested)
    assert by_keep[size.keep].meets
    failed = max(one.keep for one in bound.tested if one.keep < size.keep)
    assert not by_keep[failed].meets
    assert failed >= 0.97 * size.keep
    first = size.finalists[0]
    assert by_keep[size.keep].loss_increase == first.loss_increase <= by_keep[size.keep].upper
    found = next(one for one in size.models if one.name == "found")
    assert found.loss_increase == pytest.approx(first.loss_increase, abs=1e-6)
    assert found.kept == pytest.approx(size.keep, abs=0.002)
    assert f"keep {size.keep:g} is the smallest size" in result.summary()


def test_the_front_is_in_the_result_and_in_two_files(run):
    result, out = run
    assert [one.keep for one in result.front] == list(FRONT)
    increases = [one.loss_increase for one in result.front]
    assert increases[0] < LIMIT < increases[-1]
    assert all(one.upper > one.loss_increase for one in result.front)
    with (out / "front.csv").open() as file:
        rows = [{name: float(one) for name, one in row.items()} for row in csv.DictReader(file)]
    assert rows == [one.row() for one in result.front]
    listed = json.loads((out / "front.json").read_text())["front"]
    assert listed[3]["plan"] == result.front[3].plan.as_dict()
    assert "front: best plan" in result.summary()


def test_a_run_by_quality_is_loaded_again_and_its_record_holds_the_bound(run):
    result, out = run
    assert Pruning.load(out / "result.json") == result == pruned(out, BOUND)
    settings = json.loads((out / "lmscout.json").read_text())["settings"]
    assert (settings["keep"], settings["max_increase"]) == (result.bound.keep, LIMIT)
    with pytest.raises(LmscoutError, match=r"max_increase 0\.05, not 0\.06"):
        pruned(out, replace(BOUND, max_increase=0.06))


def test_a_size_of_the_front_is_looked_up_in_the_study(run, tmp_path):
    result, out = run
    before = len(trials_of(result.study, "lmscout-finalists"))
    sized = replace(BOUND, max_increase=None, keep=(0.6,), front=False, storage=str(out))
    found = pruned(tmp_path / "sized", sized)
    (point,) = (one for one in result.front if one.keep == 0.6)
    assert (found.plan, found.pairs) == (point.plan, 0)
    assert found.sizes[0].finalists[0].loss_increase == point.loss_increase
    assert len(trials_of(result.study, "lmscout-finalists")) == before


@pytest.mark.slow
def test_pairs_are_spread_over_sizes_and_then_near_the_bound_and_serve_any_size(tmp_path):
    result = pruned(tmp_path / "run", PAIRS)
    assert (result.pairs, result.predictor.pairs) == (60, 60)
    kept = [trial.user_attrs["kept"] for trial in trials_of(result.study)]
    assert min(kept[:40]) < 0.4
    assert max(kept[:40]) > 0.9
    assert max(kept[40:]) - min(kept[40:]) < 0.1
    assert min(kept[40:]) - 0.01 < result.bound.keep < max(kept[40:]) + 0.01
    sized = replace(PAIRS, max_increase=None, keep=(0.5,), storage=str(tmp_path / "run"))
    assert pruned(tmp_path / "sized", sized).pairs == 60


@pytest.mark.slow
def test_a_run_on_the_study_of_a_finished_one_measures_nothing_to_the_same_end(tmp_path):
    result = pruned(tmp_path / "run", PAIRS)
    again = pruned(tmp_path / "again", replace(PAIRS, storage=str(tmp_path / "run")))
    assert (again.plan, again.bound, again.pairs) == (result.plan, result.bound, 60)


@pytest.fixture
def contest(tmp_path):
    """Plans of the built-in model as they are cut, without pairs."""
    loaded = load_model(str(TINY))
    windows = tokenize_windows(loaded.tokenizer, two_texts()[0], 128)
    settings = replace(LITTLE, importance="magnitude", compensate=False)
    calibrated = calibrate(loaded.model, windows, settings)
    shape = calibrated.shape
    with ExitStack() as stack:
        studies = [
            stack.enter_context(PairStudy(tmp_path, shape, {}, study=name))
            for name in ("pairs", "finals", "refits")
        ]
        yield Contest(
            *(calibrated, *studies, Fitted(None, (), ()), PlanSpace(shape)),
            lambda keep: keep_budget(shape, keep),
            refit=False,
            seed=0,
        )


def test_a_bound_that_no_plan_meets_names_the_nearest_and_one_that_all_meet_is_the_smallest(
    contest,
):
    with pytest.raises(LmscoutError, match="the nearest that can be had is") as refused:
        smallest(contest, 1e-6)
    words = str(refused.value)
    assert "\n" not in words
    nearest = float(words.partition("can be had is ")[2].split()[0])
    _, bound = smallest(contest, nearest)
    assert bound.keep > 0.9
    assert f"keep {bound.keep:g}" in bound.words
    _, bound = smallest(contest, 99.0)
    assert all(one.meets for one in bound.tested)
    assert bound.keep == min(one.keep for one in bound.tested) < 0.2
    assert "no smaller size can be had" in bound.words
    coarse = smallest(contest, 0.2, tolerance=0.2)[1].tested
    assert len(coarse) <= len(smallest(contest, 0.2)[1].tested)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_increase": -0.1}, "max_increase: no loss increase to bound .got -0.1, expected"),
        ({"max_increase": math.nan}, "max_increase: no loss increase to bound .got nan"),
        ({"max_increase": 0.1, "objective": "proxy:snip"}, "measures no plan"),
        ({"front": True, "objective": "proxy:snip"}, "front: a proxy as objective"),
        (
            {"max_increase": 0.1, "calibration": CalibrationConfig(quality="kl")},
            "needs loss increases .got quality kl.: use nll",
        ),
    ],
)
def test_what_cannot_be_bounded_is_one_line(more, said):
    with pytest.raises(LmscoutError, match=said) as refused:
        check_request(PruneConfig(**more), None, None, None)
    assert "\n" not in str(refused.value)


def test_a_run_by_size_measures_the_divergence_and_one_with_a_bound_or_a_front_the_loss():
    assert PruneConfig(keep=(0.7,)).calibration.quality == "kl"
    assert PruneConfig(max_increase=0.1).calibration.quality == "nll"
    assert PruneConfig(front=True).calibration.quality == "nll"
    given = CalibrationConfig(quality="nll")
    assert PruneConfig(calibration=given).calibration is given


def test_a_size_and_a_quality_exclude_each_other():
    with pytest.raises(LmscoutError, match="give one of them, a size or a quality"):
        PruneConfig(keep=(0.8,), max_increase=0.1)
    assert PruneConfig().keep == (0.8,)
    config = PruneConfig(max_increase=0.1)
    assert config.keep == ()
    for keep, said in ((0.7, "give one of them"), ((), "give one or several shares")):
        with pytest.raises(LmscoutError, match=said):
            lmscout.prune("absent", calibration="none", out="none", keep=keep, config=config)
