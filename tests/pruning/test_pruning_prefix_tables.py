"""Scores of plans by look-up, against `statistics.score` on the tensors that a plan keeps."""

import numpy as np
import pytest
import torch
from tiny_language_models import random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.proxies import Reading, resolve
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import dense_row
from lmscout.pruning.prefix_tables import visit_tensors
from lmscout.pruning.proxy_objective import compute_objectives, parse_proxy, size_agreement
from lmscout.statistics import score

STACKS = ("linear", "act", "hidden", "head", "softmax")
INPUTS = ("act", "jacob", "grad", "head", "weight", "softmax")

PROXIES = (
    "mean(abs(weight) * abs(act))",
    "sum(std(grad) + sqrt(head))",
    "max(minmax(softmax) - frobenius(weight))",
    "min(logsoftmax(head))",
    "sum(softmax(weight) @ square(jacob))",
    "sum(square(softmax(head)) + l1(act))",  # no sum over units gives this one
    "sum(log(total(abs(mul(weight, grad)))))",
    "sum(total(frobenius(mlp_grad))) / params",
    "mean(average(std(mixer_weight)) * average(mul(act, act_grad))) * depth",
    "sum(average(normalize(abs(weight)))) - sum(average(square(minmax(grad))))",
    "snip",
    "grad-norm",
    "fisher",
    "head-importance",
    "synaptic-diversity",
    "activation-distance",
    "attention-confidence",
    "softmax-confidence",
    "lpzero-gpt2",
)


@pytest.fixture(scope="module", params=["llama-bias", "gpt2"])
def read(request):
    model = random_model(request.param)
    family = family_of(model.config)
    shape = shape_of([family.parts(block) for block in family.blocks(model)])
    places = []

    def visit(place):
        places.append((place, {name: one.clone() for name, one in place.tensors.items()}))

    visit_tensors(model, family, random_windows(), visit)
    return model, family, shape, places


def objectives(read, *texts):
    model, family, shape, _ = read
    return compute_objectives(
        [parse_proxy(text) for text in texts], model, family, shape, random_windows()
    )


class Spec:
    """The attributes of an architecture that leaves use."""

    def __init__(self, depth, width, params):
        self.depth, self.width, self._params = depth, width, params

    def parameters(self):
        return self._params


def restricted(read, row):
    """The statistics of one plan by definition: every tensor cut to its first units."""
    model, _, shape, places = read
    depth = shape.depth
    kept = [block for block in range(depth) if row[block] or row[depth + block]]
    tensors = {name: [[] for _ in kept] for name in (*INPUTS, "act_grad")}
    mixing = [[] for _ in kept]
    for place, own in places:
        if place.block not in kept:
            continue
        where = kept.index(place.block)
        units = {"attention": row[place.block], "mlp": row[depth + place.block], "block": 1}
        count = units[place.kind]
        if not count:
            continue
        for name, one in own.items():
            size = one.shape[place.axis] // place.units * count
            tensors[name][where].append(
                one if place.kind == "block" else one.narrow(place.axis, 0, size)
            )
        if "weight" in own:
            mixing[where].append(place.kind == "attention")
    frozen = {name: tuple(map(tuple, blocks)) for name, blocks in tensors.items()}
    gone = (dense_row(shape) - row) @ np.array(shape.group_parameters + shape.channel_parameters)
    spec = Spec(len(kept), 32, sum(one.numel() for one in model.parameters()) - int(gone))
    return Reading(
        model=model,
        tokens=random_windows(),
        inputs={name: frozen[name] for name in INPUTS},
        act_grad=frozen["act_grad"],
        linears=tuple(() for _ in kept),
        mixing=tuple(map(tuple, mixing)),
        parameters=spec.parameters(),
    ), spec


def plans(shape):
    rng = np.random.default_rng(0)
    rows = rng.integers(1, dense_row(shape) + 1, (4, 2 * shape.depth))
    rows[1, 0] = 0  # no attention in the first block
    rows[2, shape.depth + 1] = 0  # no MLP in the second
    rows[3, [1, shape.depth + 1]] = 0  # no second block
    return np.concatenate([dense_row(shape)[None], rows])


@pytest.mark.parametrize("text", PROXIES)
def test_a_look_up_is_the_proxy_of_the_kept_tensors(read, text):
    rows = plans(read[2])
    (objective,) = objectives(read, f"proxy:+{text}")
    wanted = []
    for row in rows:
        reading, spec = restricted(read, row)
        wanted.append(score(resolve(text), reading, spec))
    np.testing.assert_allclose(objective.scores(rows), wanted, rtol=2e-4)


def test_a_score_does_not_depend_on_the_other_plans(read):
    rows = plans(read[2])
    (objective,) = objectives(read, "proxy:+sum(square(softmax(head)) + l1(act))")
    assert [objective.scores(row[None])[0] for row in rows] == objective.scores(rows).tolist()


def test_the_sign_makes_scores_increase_with_the_kept_share(read):
    shape = read[2]
    up, down, asked = objectives(
        read,
        "proxy:snip",
        "proxy:negate(sum(total(abs(mul(weight, grad)))))",
        "proxy:-snip",
    )
    assert (up.sign, down.sign, asked.sign) == (1, -1, -1)
    rows = plans(shape)
    for objective in (up, down):
        scores = objective.scores(rows)
        assert scores.argmax() == 0
        assert objective.loss_increases(rows).argmin() == 0
        assert size_agreement(shape, objective.scores) > 0.9
    assert asked.scores(rows).argmin() == 0
    assert "lower" in asked.report.words


@pytest.mark.parametrize("sign", "+-")
def test_a_plan_without_a_score_is_last(read, sign):
    # of what is left of the smaller plans this is finite, of the dense model it overflows
    (objective,) = objectives(read, f"proxy:{sign}sum(exp(total(abs(weight))))")
    shape = read[2]
    rows = np.stack([dense_row(shape), np.ones(2 * shape.depth, np.int64), dense_row(shape) // 4])
    scores, loss_increases = objective.scores(rows), objective.loss_increases(rows)
    assert np.isnan(scores).tolist() == [True, False, False]
    assert np.isfinite(loss_increases).all()
    assert loss_increases[0] > loss_increases[1:].max()
    assert np.array_equal(loss_increases[1:], -scores[1:])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("snip", "write proxy:"),
        ("proxy:snipp", "did you mean 'snip'"),
        ("proxy:synflow", "runs the model again"),
        ("proxy:jacobian-covariance", "first block"),
        ("proxy:sum(abs(weihgt))", "did you mean 'weight'"),
        ("proxy:", "unknown proxy"),
    ],
)
def test_an_invalid_objective_is_one_line(text, says):
    with pytest.raises(LmscoutError, match=says) as error:
        parse_proxy(text)
    assert "\n" not in str(error.value)


def test_a_proxy_that_does_not_follow_size_needs_its_sign(read):
    with pytest.raises(LmscoutError, match="better side is unknown"):
        objectives(read, "proxy:sum(normalize(jacob) + normalize(weight))")
    (objective,) = objectives(read, "proxy:+sum(normalize(jacob) + normalize(weight))")
    assert objective.sign == 1


def test_the_model_is_unchanged(read):
    model = read[0]
    before = {name: one.clone() for name, one in model.state_dict().items()}
    objectives(read, "proxy:snip", "proxy:fisher")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
