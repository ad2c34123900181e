"""Verdicts of a run: worse than a uniform cut, no better than the mean, below the dense model."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lmscout.cli.prune import table
from lmscout.evaluation import Perplexity, protocol_of
from lmscout.pruning import Plan
from lmscout.pruning.predictor import Agreement, PredictorReport
from lmscout.pruning.results import LABELS, Finalist, Pruning, Reported, Size

PLAN = Plan((1,), (8,))


def row(name, increase, perplexity=None):
    measured = None
    if perplexity is not None:
        protocol = protocol_of("llm-pruner")
        measured = Perplexity(perplexity, 1.0, 100, 1, protocol, (), "text", "0", "tokenizer")
    return Reported(name, PLAN, 10, 0.8, 0.8, measured, kept_of_all=0.9, loss_increase=increase)


def size(*rows):
    return Size(0.8, rows, (Finalist(PLAN, None, None, None, ()),), Path("out"))


def pruning(*rows, **more):
    dense = row("dense", 0.0, 10.0)
    return Pruning("parameters", dense, (size(*rows),), None, (), 0, "study", {}, **more)


def test_a_found_model_that_is_worse_is_said_to_be_worse_and_by_how_much():
    one = size(
        row("uniform", 0.9, 200.0),
        row("uniform_compensated", 0.50, 153.50),
        row("uniform_protected", 0.6, 163.85),
        row("found", 0.55, 163.85),
        row("found_plain", 2.0, 900.0),
    )
    (sentence,) = one.verdict
    assert sentence == (
        "keep 0.8: found is worse than uniform, compensated: loss increase +0.5500 against +0.5000 "
        "nats/token (+0.0500); perplexity 163.85 against 153.50 (+6.7%)"
    )
    assert [(two.baseline, two.measure) for two in one.comparisons if two.worse] == [
        ("uniform_compensated", "loss_increase"),
        ("uniform_compensated", "perplexity"),
    ]


def test_the_margin_of_the_selected_plan_is_over_a_finalist_with_weights_of_its_kind():
    chunks = (0.4, 0.5, 0.6)
    first, second = (
        Finalist(PLAN, 0.5, 0.5, 0.6, tuple(one + more for one in chunks), refit)
        for more, refit in ((0.0, 0.5), (0.02, 0.52))
    )
    plain = Finalist(PLAN, 0.5, 0.5, 0.7, (0.6, 0.7, 0.8))
    one = replace(size(), finalists=(first, second, plain))
    start = "keep 0.8: selected plan, loss increase on held-out text +0.5000 nats/token"
    assert one.words == f"{start}, the next of 2 refit finalists 0.0200 ± 0.0000 more"
    one = replace(size(), finalists=(first, plain))
    assert one.words == f"{start}; no other finalist was refit"
    start = "keep 0.8: selected plan, divergence from the dense model on held-out text 0.5000 "
    assert replace(one, quality="kl").words.startswith(start)


def test_the_repr_has_the_saved_model():
    rows = row("uniform", 0.9), row("found", 0.25), row("found_compensated", 0.5)
    start = "Pruning(of parameters, 0 pairs; keep 0.8: loss_increase"
    assert repr(pruning(*rows)) == f"{start} 0.25)"
    assert repr(pruning(*rows, row("found_recovered", 0.125))) == f"{start} 0.125)"


def test_by_one_measure_alone_it_is_worse_as_well():
    one = size(row("uniform", 0.9, 200.0), row("found", 0.5, 201.0))
    assert one.verdict == (
        "keep 0.8: found is worse than uniform: perplexity 201.00 against 200.00 (+0.5%)",
    )


def test_a_better_one_is_said_to_be_better_than_the_closest():
    one = size(row("uniform", 0.9), row("uniform_compensated", 0.7), row("found", 0.5))
    assert one.verdict == (
        "keep 0.8: found is better than every uniform cut, closest uniform, compensated: loss "
        "increase +0.5000 against +0.7000 nats/token (-0.2000)",
    )
    assert not any(two.worse for two in one.comparisons)


def test_an_equal_one_is_neither_and_a_recovered_one_is_compared_too():
    one = size(
        row("uniform", 0.9), row("found", 0.9 + 1e-9), row("found_recovered", 1.0), row("x", 0.0)
    )
    first, second = one.verdict
    assert first.startswith("keep 0.8: found is as good as uniform")
    assert second.startswith("keep 0.8: found, recovered is worse than uniform")


def test_a_loss_that_is_not_finite_is_worse_and_null_in_json():
    found = pruning(row("uniform", 0.9), row("found", float("inf")))
    (one,) = found.sizes
    assert one.verdict == (
        "keep 0.8: found is worse than uniform: no finite loss, against a loss increase of "
        "+0.9000 nats/token",
    )
    (values,) = found.to_json()["sizes"]
    assert values["models"][1]["loss_increase"] is None
    assert values["comparisons"][0]["value"] is None
    assert values["comparisons"][0]["worse"] is True


def test_what_recovery_was_trained_on_is_compared_by_perplexity_alone():
    one = size(row("uniform", 0.9, 20.0), row("found_recovered", None, 30.0))
    (sentence,) = one.verdict
    assert "perplexity 30.00 against 20.00" in sentence
    assert "nats" not in sentence


@pytest.mark.parametrize(
    ("increase", "perplexity", "said"),
    [(-0.1, 12.0, True), (0.1, 9.0, True), (0.1, 11.0, False), (None, None, False)],
)
def test_below_the_dense_model_is_adaptation(increase, perplexity, said):
    found = pruning(row("uniform", 0.3, 20.0), row("found", increase, perplexity))
    if said:
        assert found.below_dense.startswith("below the dense model's loss: found. This is adapt")
    else:
        assert found.below_dense is None


@pytest.mark.parametrize(
    ("kendall", "r2", "beats"),
    [
        (0.5, 0.3, True),
        (0.5, 0.0, False),
        (0.5, -2.0, False),
        (0.05, 0.2, False),
        (-0.3, 0.1, False),
        (float("nan"), 0.1, False),
    ],
)
def test_a_predictor_no_better_than_the_mean_is_said_to_be_so(kendall, r2, beats):
    report = PredictorReport(Agreement("ridge", "log", kendall, kendall, r2, 0.1), (), 40, 0.0, 0.0)
    assert report.beats_mean is beats
    assert ("no better than predicting the mean" in report.words) is not beats
    values = replace(pruning(row("found", 0.1)), predictor=report).to_json()
    assert values["predictor"]["beats_mean"] is beats


def test_the_table_of_a_large_model_is_whole_at_80_columns():
    names = ("uniform", "uniform_compensated", "uniform_protected", "found", "found_recovered")
    rows = [replace(row(name, 0.123, 1234.5), params=6_738_415_616) for name in names]
    found = pruning(*rows, dense_elastic=replace(row("dense_elastic", 0.1, 10.0)))
    screen = Console(width=80, file=io.StringIO())
    screen.print(table(found))
    shown = screen.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for word in (*(LABELS[name] for name in names), "6,738,415,616", "90.0%", "80.0%", "+0.1230"):
        assert word in shown
