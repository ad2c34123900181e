from importlib import import_module

import numpy as np
import pytest
import scipy.stats

from lmscout.discovery.explain import Cut, DeadBranches, cuts, measured_cuts, shortenings
from lmscout.proxies import format_expression, parse, walk

DEPTH = np.arange(1.0, 41.0)
WIDTH = np.random.default_rng(0).permutation(DEPTH)
PARAMS = 1e9 + WIDTH  # hardly varies


def scored(trees):
    """Scores of trees that read the configuration alone, in plain arithmetic."""

    def value(node):
        below = [value(one) for one in node.operands]
        return {
            "depth": lambda: DEPTH,
            "width": lambda: WIDTH,
            "params": lambda: PARAMS,
            "+": lambda: below[0] + below[1],
            "-": lambda: below[0] - below[1],
            "*": lambda: below[0] * below[1],
            "/": lambda: below[0] / below[1],
            "square": lambda: below[0] ** 2,
            "negate": lambda: -below[0],
            "log": lambda: np.log(below[0]),
        }[node.name]()

    return {tree: value(tree) for tree in trees}


def left_of(text):
    return {(cut.removed, format_expression(cut.shorter)) for cut in cuts(parse(text))}


def test_every_part_is_taken_out_that_can_be():
    assert left_of("sum(total(abs(mul(weight, grad))) * average(act)) / params") == {
        ("sum(total(abs(mul(weight, grad))) * average(act))", "params"),
        ("params", "sum(total(abs(mul(weight, grad))) * average(act))"),
        ("total(abs(mul(weight, grad)))", "sum(average(act)) / params"),
        ("average(act)", "sum(total(abs(mul(weight, grad)))) / params"),
        ("abs(…)", "sum(total(mul(weight, grad)) * average(act)) / params"),
        ("weight", "sum(total(abs(grad)) * average(act)) / params"),
        ("grad", "sum(total(abs(weight)) * average(act)) / params"),
    }


def test_what_changes_the_type_is_not_taken_out():
    assert left_of("sum(total(weight))") == set()
    assert left_of("params") == set()
    assert left_of("abs(sum(total(weight)))") == {("abs(…)", "sum(total(weight))")}


def test_two_cuts_that_leave_the_same_are_one():
    (cut,) = cuts(parse("depth + depth"))
    assert (cut.removed, cut.shorter) == ("depth", parse("depth"))


def test_a_cut_is_measured_by_the_order_that_is_left():
    node = parse("depth + width")
    measured = {cut.removed: cut.spearman for cut in measured_cuts(node, scored)}
    both = DEPTH + WIDTH
    assert measured["width"] == pytest.approx(scipy.stats.spearmanr(DEPTH, both).statistic)
    assert measured["depth"] == pytest.approx(scipy.stats.spearmanr(WIDTH, both).statistic)
    other = {cut.removed: cut.spearman for cut in measured_cuts(node, scored, DEPTH)}
    assert other["width"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("depth * params", {"params"}),  # times a constant, nearly
        ("depth / params", {"params"}),
        ("negate(depth) * width", {"negate(…)"}),  # the other way round, all of it
        ("depth + width", set()),
        ("log(depth)", {"log(…)"}),
        ("square(depth) - width", set()),
        ("params", set()),
    ],
)
def test_what_is_dead(text, dead):
    assert {cut.removed for cut in measured_cuts(parse(text), scored) if cut.dead} == dead


def test_what_is_dead_is_taken_out_one_after_the_other():
    left = shortenings(parse("log(square(depth) * params) / params"), scored)
    assert format_expression(left[0]) == "log(square(depth) * params) / params"
    assert left[-1] == parse("depth")
    sizes = [one.size for one in left]
    assert sizes == sorted(set(sizes), reverse=True)


def test_what_is_left_is_compared_with_the_whole_and_not_with_the_step_before(monkeypatch):
    # Depth with a little of the width, and less: every step is near the one before it.
    node = parse("(depth + width / params * params / params) + width / params")
    monkeypatch.setattr(import_module("lmscout.discovery.explain"), "DEAD", 0.95)

    def drifting(trees):
        angle = {one: 0.25 * (node.size - one.size) / 2 for one in trees}
        return {one: np.cos(angle[one]) * DEPTH + np.sin(angle[one]) * WIDTH for one in trees}

    own = drifting([node])[node]
    left = shortenings(node, drifting)
    for one in left:
        assert abs(scipy.stats.spearmanr(drifting([one])[one], own).statistic) >= 0.95
    assert len(left) > 1
    further = drifting([cut.shorter for cut in cuts(left[-1])]).values()
    assert all(abs(scipy.stats.spearmanr(one, own).statistic) < 0.95 for one in further)


def test_nothing_dead_leaves_the_tree():
    node = parse("depth + width")
    assert shortenings(node, scored) == (node,)


def test_no_order_is_not_dead():
    assert not Cut("x", parse("depth"), float("nan")).dead
    assert not Cut("x", parse("depth")).dead


def test_json_has_no_nan():
    node = parse("depth * params")
    found = DeadBranches(
        "sketches",
        tuple(cut for cut in measured_cuts(node, scored) if cut.dead),
        parse("depth"),
        float("nan"),
    )
    assert found.to_json() == {
        "measured_on": "sketches",
        "dead": [{"removed": "params", "left": "depth", "spearman": 1.0}],
        "shortest": {"proxy": "depth", "size": 1, "spearman": None},
    }
    assert len(list(walk(node))) == 3
