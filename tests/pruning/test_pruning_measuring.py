import copy
import dataclasses
from threading import Thread, current_thread

import numpy as np
import pytest
import torch
from tiny_language_models import CONFIGS, random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.pruning import evaluator
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.devices import ParallelEvaluator, replica
from lmscout.pruning.evaluator import SubnetworkEvaluator
from lmscout.pruning.families import ATTENTION, KINDS, MLP, BlockParts, Family, family_of
from lmscout.pruning.importance import (
    FROM_MOMENTS,
    METHODS,
    OBS,
    UnitOrder,
    gradients_by_block,
    importance,
    importance_from_moments,
    loss_metrics,
    sort_sublayer,
)
from lmscout.pruning.moments import moments_by_block
from lmscout.pruning.plan import Plan
from lmscout.pruning.removal import removal_order


@pytest.fixture(params=CONFIGS)
def model(request):
    return random_model(request.param)


@pytest.fixture
def family(model):
    return family_of(model.config)


def all_parts(model, family):
    return list(family.all_sublayers(model).items())


def sorted_by(model, family, scores):
    """Sort every sublayer, and give the orders of what enters the output projections."""
    return {
        place: sort_sublayer(part, UnitOrder.falling(scores[place]).order)
        for place, part in all_parts(model, family)
    }


def unit_gradients(part):
    return part.changed(lambda tensor: tensor.grad).views()


def outputs(model, family):
    return {place: part.output for place, part in all_parts(model, family)}


@torch.no_grad()
def masked(model, family, plan):
    """The plain reference: output columns of what is cut are zero; nothing else changes."""
    for sublayer, units in zip(family.all_sublayers(model).values(), plan.steps, strict=True):
        weight = sublayer.output.weight
        weight[:, weight.shape[1] // sublayer.units * units :] = 0
    return model


def test_the_evaluators_dense_logits_are_the_models(model, family):
    windows = random_windows()
    evaluator = SubnetworkEvaluator(model, family, windows)
    with torch.no_grad():
        expected = model(windows).logits
    torch.testing.assert_close(
        evaluator.logits(evaluator.shape.dense, windows), expected, atol=1e-4, rtol=1e-4
    )
    with torch.no_grad():
        loss = model(windows, labels=windows).loss.item()
    assert evaluator.dense_nll == pytest.approx(loss, rel=1e-5)


def test_a_plan_computes_what_the_masked_model_computes(model, family):
    windows = random_windows()
    evaluator = SubnetworkEvaluator(model, family, windows)
    groups = evaluator.shape.groups[0]
    plan = Plan((1, groups, groups - 1), (10, 48, 1))
    got = evaluator.logits(plan, windows)
    (measured,) = evaluator.measure([plan])
    dense = evaluator.dense_nll
    with torch.no_grad():
        reference = masked(model, family, plan)(windows, labels=windows)
    torch.testing.assert_close(got, reference.logits, atol=1e-4, rtol=1e-4)
    assert measured.loss_increase == pytest.approx(reference.loss.item() - dense, abs=1e-5)
    assert measured.complete
    assert measured.tokens == windows[:, 1:].numel()


def test_nothing_kept_is_nothing_added(model, family):
    windows = random_windows()
    evaluator = SubnetworkEvaluator(model, family, windows)
    empty = Plan((0, 0, 0), (0, 0, 0))
    with torch.no_grad():
        expected = family.logits(model, family.embed(model, windows))
    torch.testing.assert_close(evaluator.logits(empty, windows), expected)


def test_shared_prefixes_change_no_result_and_save_steps(model, family, monkeypatch):
    rng = np.random.default_rng(0)
    evaluator = SubnetworkEvaluator(model, family, random_windows())
    groups = evaluator.shape.groups[0]
    plans = [
        Plan(tuple(rng.integers(0, groups + 1, 3).tolist()), tuple(rng.integers(0, 49, 3).tolist()))
        for _ in range(12)
    ]
    plans += [Plan(one.attention, (*one.mlp[:2], 5)) for one in plans[:6]]
    alone = [
        next(SubnetworkEvaluator(model, family, random_windows()).measure([one])).loss_increase
        for one in plans
    ]
    order = sorted(
        range(len(plans)),
        key=lambda index: [*zip(plans[index].attention, plans[index].mlp, strict=True)],
    )
    steps = []
    added = SubnetworkEvaluator._after
    monkeypatch.setattr(
        SubnetworkEvaluator,
        "_after",
        lambda self, step, *rest: (steps.append(step), added(self, step, *rest))[1],
    )
    shared = list(evaluator.measure([plans[index] for index in order]))
    assert [one.loss_increase for one in shared] == [alone[index] for index in order]
    assert len(steps) < 0.95 * 4 * 6 * len(plans)


def test_a_plan_that_is_far_behind_is_dropped_early(model, family):
    windows = random_windows(8)
    evaluator = SubnetworkEvaluator(model, family, windows, chunks=4)
    shape = evaluator.shape
    bad = Plan((0, 0, 0), (1, 1, 1))
    on_the_first = next(SubnetworkEvaluator(model, family, windows[:2]).measure([bad]))
    (dropped,) = evaluator.measure([bad], [(on_the_first.loss_increase - 1e-3,)])
    assert not dropped.complete
    assert dropped.tokens == windows[:2, 1:].numel()
    assert dropped.loss_increase == pytest.approx(on_the_first.loss_increase, abs=1e-5)
    first, second = evaluator.measure([bad, bad], [(10.0, dropped.loss_increase - 1), (10.0, 10.0)])
    assert (len(first.trajectory), len(second.trajectory)) == (2, 4)
    assert first.trajectory == second.trajectory[:2]
    alone = [
        next(SubnetworkEvaluator(model, family, windows[start:stop]).measure([bad])).loss_increase
        for start, stop in ((0, 2), (2, 4))
    ]
    assert first.loss_increase == pytest.approx(sum(alone) / 2, abs=1e-5)
    (kept,) = evaluator.measure([shape.dense], [(1e-3,) * 3])
    assert kept.complete
    assert [tokens for tokens, _ in kept.trajectory] == [30, 60, 90, 120]
    assert kept.loss_increase == pytest.approx(0.0, abs=1e-6)


def test_divergence_is_that_of_the_full_distributions_where_the_top_is_everything(model, family):
    windows = random_windows()
    model_vocabulary = 64
    evaluator = SubnetworkEvaluator(model, family, windows, quality="kl")
    plan = Plan(evaluator.shape.groups, (20, 20, 20))
    dense = evaluator.logits(evaluator.shape.dense, windows)[:, :-1].double().log_softmax(-1)
    cut = evaluator.logits(plan, windows)[:, :-1].double().log_softmax(-1)
    top = dense.topk(model_vocabulary // 2, dim=-1).indices  # 32 of 64, and the rest as one
    listed = (dense.exp() * (dense - cut)).gather(-1, top).sum(-1)
    rest_dense = 1 - dense.exp().gather(-1, top).sum(-1)
    rest_cut = 1 - cut.exp().gather(-1, top).sum(-1)
    expected = (listed + rest_dense * (rest_dense / rest_cut).log()).mean().item()
    assert next(evaluator.measure([plan])).loss_increase == pytest.approx(expected, rel=1e-4)
    assert next(evaluator.measure([evaluator.shape.dense])).loss_increase == pytest.approx(
        0, abs=1e-6
    )


def test_a_plan_that_does_not_fit_is_refused(model, family):
    evaluator = SubnetworkEvaluator(model, family, random_windows())
    with pytest.raises(LmscoutError, match="block 1 keeps 999 units of mlp"):
        list(evaluator.measure([Plan((1, 1, 1), (1, 999, 1))]))


def test_units_carry_all_parameters_but_norms_embeddings_and_output_biases(model, family):
    shape = SubnetworkEvaluator(model, family, random_windows()).shape
    blocks = sum(p.numel() for block in family.blocks(model) for p in block.parameters())
    norms = sum(
        p.numel()
        for block in family.blocks(model)
        for name, p in block.named_parameters()
        if "norm" in name or "ln_" in name
    )
    biases = sum(
        part.output.bias.numel()
        for _, part in all_parts(model, family)
        if part.output.bias is not None
    )
    assert shape.parameters == blocks - norms - biases


@pytest.mark.parametrize("method", METHODS)
def test_sorting_by_any_importance_leaves_the_model_as_it_computes(model, family, method):
    windows = random_windows()
    with torch.no_grad():
        before = model(windows).logits
    flags = [p.requires_grad for p in model.parameters()]
    if method in FROM_MOMENTS:
        moments = dict(moments_by_block(model, family, windows, grams=False))
        scores = {
            place: importance_from_moments(method, place, part, moments[place])
            for place, part in all_parts(model, family)
        }
    elif method == OBS:
        metrics = loss_metrics(model, family, windows)
        moments = dict(moments_by_block(model, family, windows))
        orders = {
            place: removal_order(place, part, moments[place], metrics[place]).order
            for place, part in all_parts(model, family)
        }
        scores = {place: -order.argsort().double() for place, order in orders.items()}
    else:
        scores = importance(method, model, family, windows=windows, seed=3)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    sorted_by(model, family, scores)
    with torch.no_grad():
        after = model(windows).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_sorting_puts_the_most_important_first(model, family):
    """After sorting, magnitude (which needs no data) falls from unit to unit."""
    scores = importance("magnitude", model, family, windows=random_windows())
    sorted_by(model, family, scores)
    again = importance("magnitude", model, family, windows=random_windows())
    for place, values in again.items():
        assert (values[1:] <= values[:-1] + 1e-9).all(), place
        torch.testing.assert_close(values, scores[place].sort(descending=True).values)


def test_a_random_order_is_of_the_units_and_not_of_where_they_stand(model, family):
    windows = random_windows()
    scores = importance("random", model, family, windows=windows, seed=3)
    other = importance("random", model, family, windows=windows, seed=4)
    assert any(not torch.equal(one, scores[place]) for place, one in other.items())
    parts = dict(all_parts(model, family))
    for place, part in parts.items():
        assert len(set(scores[place].tolist())) == part.units
        assert ((scores[place] >= 0) & (scores[place] < 1)).all()
    every = torch.cat(list(scores.values()))
    assert every.mean() == pytest.approx(0.5, abs=5 * (12 * len(every)) ** -0.5)
    for place, part in parts.items():
        turned = torch.arange(part.units).roll(1).double()  # as a score: some order
        sort_sublayer(part, UnitOrder.falling(turned).order)
        order = turned.argsort(descending=True)
        again = importance("random", model, family, windows=windows, seed=3)[place]
        assert torch.equal(again, scores[place][order])


def test_gradients_do_not_depend_on_how_text_is_batched(model, family):
    windows = random_windows()
    whole = {one.index: one.parts for one in gradients_by_block(model, family, windows)}
    assert list(whole) == [2, 1, 0]
    for block in gradients_by_block(model, family, windows, batch_tokens=1):
        assert block.scale == 1
        for kind, part in block.parts.sublayers.items():
            both = unit_gradients(part), unit_gradients(whole[block.index].sublayers[kind])
            for one, other in zip(*both, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_taylor_is_the_sum_of_absolute_salience_over_a_units_parameters(model, family):
    windows = random_windows()
    got = importance("taylor", model, family, windows=windows)
    model.zero_grad()
    model(windows, labels=windows).loss.backward()
    named = dict(model.named_parameters())
    salience = {name: (p * p.grad).abs().detach() for name, p in named.items()}
    prefix = "transformer.h" if "gpt2" in model.config.model_type else "model.layers"
    for block in range(3):
        if prefix == "transformer.h":
            expand = salience[f"{prefix}.{block}.mlp.c_fc.weight"].sum(0)
            expand = expand + salience[f"{prefix}.{block}.mlp.c_fc.bias"]
            channel = expand + salience[f"{prefix}.{block}.mlp.c_proj.weight"].sum(1)
            fused = salience[f"{prefix}.{block}.attn.c_attn.weight"].sum(0)
            fused = fused + salience[f"{prefix}.{block}.attn.c_attn.bias"]
            out = salience[f"{prefix}.{block}.attn.c_proj.weight"].sum(1)
            group = (fused.view(3, -1).sum(0) + out).view(4, -1).sum(1)
        else:
            mlp = f"{prefix}.{block}.mlp"
            channel = salience[f"{mlp}.down_proj.weight"].sum(0)
            attention = f"{prefix}.{block}.self_attn"
            group = salience[f"{attention}.o_proj.weight"].sum(0).view(2, -1).sum(1)
            for layer, base, total in (
                ("gate_proj", mlp, "channel"),
                ("up_proj", mlp, "channel"),
                ("q_proj", attention, "group"),
                ("k_proj", attention, "group"),
                ("v_proj", attention, "group"),
            ):
                rows = salience[f"{base}.{layer}.weight"].sum(1)
                if f"{base}.{layer}.bias" in salience:
                    rows = rows + salience[f"{base}.{layer}.bias"]
                if total == "channel":
                    channel = channel + rows
                else:
                    group = group + rows.view(2, -1).sum(1)
        torch.testing.assert_close(got[block, MLP].float(), channel, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(got[block, ATTENTION].float(), group, rtol=1e-4, atol=1e-7)


def hooked_inputs(model, family, windows):
    """Plain reference: what enters each output projection, caught by hooks on the model."""
    caught, handles = {}, []
    for index, block in enumerate(family.blocks(model)):
        gpt2 = hasattr(block, "attn")
        layers = {
            ATTENTION: block.attn.c_proj if gpt2 else block.self_attn.o_proj,
            MLP: block.mlp.c_proj if gpt2 else block.mlp.down_proj,
        }
        for kind, layer in layers.items():

            def hook(_, arguments, place=(index, kind)):
                caught[place] = arguments[0].detach().flatten(0, 1).double()

            handles.append(layer.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(windows)
    for handle in handles:
        handle.remove()
    return caught


def of_unit(part, unit):
    """One unit's weights, by hand: output columns [out, n], and the rows of all else, [m]."""
    each = part.output.weight.shape[1] // part.units
    columns = part.output.weight[:, unit * each : (unit + 1) * each].detach().double()
    rest = []
    for affine in part.inputs:
        rows = len(affine.weight) // part.units
        rest.append(affine.weight[unit * rows : (unit + 1) * rows].flatten())
        if affine.bias is not None:
            rest.append(affine.bias[unit * rows : (unit + 1) * rows])
    return columns, torch.cat(rest).detach().double()


def test_magnitude_is_the_sum_of_squares_of_a_units_parameters(model, family):
    scores = importance("magnitude", model, family, windows=random_windows())
    for place, part in all_parts(model, family):
        for unit in range(part.units):
            columns, rest = of_unit(part, unit)
            wanted = sum(w * w for w in [*columns.flatten().tolist(), *rest.tolist()])
            assert scores[place][unit].item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("method", FROM_MOMENTS)
def test_importance_from_moments_is_summed_over_a_units_output_columns(model, family, method):
    windows = random_windows()
    moments = dict(moments_by_block(model, family, windows, grams=False))
    inputs = hooked_inputs(model, family, windows)
    for place, part in all_parts(model, family):
        scores = importance_from_moments(method, place, part, moments[place])
        for unit in range(part.units):
            columns, _ = of_unit(part, unit)
            each, wanted = columns.shape[1], 0.0
            for entry in range(each):
                x, column = inputs[place][:, unit * each + entry], columns[:, entry]
                if method == "activation":
                    wanted += sum(abs(w) for w in column.tolist()) * (x @ x / len(x)).sqrt()
                else:
                    wanted += sum(w * w for w in column.tolist()) * ((x - x.mean()) ** 2).mean()
            assert scores[unit].item() == pytest.approx(float(wanted), rel=1e-3)


def test_moments_are_those_of_what_enters_the_output_projections(model, family):
    windows = random_windows()
    progress = []
    moments = dict(
        moments_by_block(
            model, family, windows, batch_tokens=25, progress=lambda *one: progress.append(one)
        )
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]
    for place, x in hooked_inputs(model, family, windows).items():
        one = moments[place]
        torch.testing.assert_close(one.gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.total.double(), x.sum(0), rtol=1e-4, atol=1e-4)
        assert one.tokens == len(x)
        variance = x.var(0, correction=0)
        torch.testing.assert_close(one.variance.double(), variance, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(one.gram.diagonal(), one.squares, rtol=1e-5, atol=1e-6)
    for place, one in moments_by_block(model, family, windows, grams=False):
        assert one.gram is None
        torch.testing.assert_close(one.squares, moments[place].squares, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_moments_are_as_wide_as_the_model_and_float32_at_least(dtype):
    model, windows = random_model("qwen2").to(dtype), random_windows()
    family = family_of(model.config)
    moments = dict(moments_by_block(model, family, windows))
    for one in moments.values():
        wide = torch.promote_types(dtype, torch.float32)
        assert {one.total.dtype, one.squares.dtype, one.gram.dtype} == {wide}
    compensated = Compensation(outputs(model, family), moments.items())
    assert compensated.output(0, MLP, 7).weight.dtype == dtype


def test_compensation_is_the_least_squares_refit(model, family):
    windows = random_windows(40)  # more tokens than entries, so that the fit is unique
    scores = importance("magnitude", model, family, windows=windows)
    sorted_by(model, family, scores)
    moments = moments_by_block(model, family, windows)
    compensated = Compensation(outputs(model, family), moments, damping=1e-9)
    inputs = hooked_inputs(model, family, windows)
    for place, part in all_parts(model, family):
        x, weight = inputs[place], part.output.weight.double()
        for kept in (1, 5, weight.shape[1] - 1):
            solution = torch.linalg.lstsq(x[:, :kept], x @ weight.T, driver="gelsd").solution
            got = compensated.output(*place, kept)
            error = (x[:, :kept] @ got.weight.double().T - x @ weight.T).square().mean()
            best = (x[:, :kept] @ solution - x @ weight.T).square().mean()
            plain = (x[:, :kept] @ weight[:, :kept].T - x @ weight.T).square().mean()
            assert error <= best * (1 + 1e-3) + 1e-8
            assert error <= plain
            assert (got.bias is None) == (part.output.bias is None)
            assert got.bias is None or torch.equal(got.bias, part.output.bias)
        whole = compensated.output(*place, weight.shape[1]).weight
        assert whole.data_ptr() == part.output.weight.data_ptr()  # the dense view itself


def test_reordered_moments_are_those_of_the_sorted_model(model, family):
    windows = random_windows()
    moments = dict(moments_by_block(model, family, windows))
    orders = sorted_by(model, family, importance("random", model, family, windows=windows, seed=5))
    for place, one in moments_by_block(model, family, windows):
        reordered = moments[place].reordered(orders[place])
        torch.testing.assert_close(reordered.gram, one.gram, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(reordered.total, one.total, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(reordered.squares, one.squares, rtol=1e-4, atol=1e-3)


def test_units_sorted_during_the_pass_are_as_sorted_after_it(model, family):
    """What a pass has yielded is done with, as `calibrate` relies on."""
    windows = random_windows()
    other = copy.deepcopy(model)
    scores = importance("magnitude", model, family, windows=windows)
    sorted_by(other, family, scores)
    after = dict(moments_by_block(other, family, windows))
    for place, one in moments_by_block(model, family, windows):
        order = sort_sublayer(
            dict(all_parts(model, family))[place], UnitOrder.falling(scores[place]).order
        )
        got = one.reordered(order)
        torch.testing.assert_close(got.gram, after[place].gram, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(model(windows).logits, other(windows).logits)


def test_an_unknown_importance_and_a_broken_model_are_refused():
    model = random_model("llama")
    family = family_of(model.config)
    with pytest.raises(LmscoutError, match="unknown importance 'gradient'"):
        importance("gradient", model, family, windows=random_windows())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(LmscoutError, match="not finite"):
        importance("magnitude", model, family, windows=random_windows())
    with pytest.raises(LmscoutError, match="loss on calibration text is nan"):
        importance("taylor", model, family, windows=random_windows())
    with pytest.raises(LmscoutError, match="dense model's loss"):
        SubnetworkEvaluator(model, family, random_windows())


def test_what_follows_units_is_a_view_of_the_model(model, family):
    starts = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for _, part in all_parts(model, family):
        for view in part.views():
            assert len(view) == part.units
            assert view.untyped_storage().data_ptr() in starts
    assert {kind for (_, kind), _ in all_parts(model, family)} == set(KINDS)


class Crowded:
    """A family on a device that holds so many windows at once and no more."""

    all_parts, all_sublayers = Family.all_parts, Family.all_sublayers

    def __init__(self, family, most):
        self._family, self._most = family, most
        self.seen = []

    def __getattr__(self, name):
        return getattr(self._family, name)

    def parts(self, block):
        parts = self._family.parts(block)

        def activation(x):
            self.seen.append(len(x))
            if len(x) > self._most:
                raise torch.OutOfMemoryError(f"no room for {len(x)} windows")
            return parts.mlp.activation(x)

        return BlockParts(parts.attention, dataclasses.replace(parts.mlp, activation=activation))


@pytest.mark.parametrize("quality", ["nll", "kl"])
def test_out_of_memory_halves_the_batch_and_goes_on(model, family, quality):
    windows = random_windows(20)
    crowded = Crowded(family, 3)
    evaluator = SubnetworkEvaluator(model, crowded, windows, quality=quality, chunks=2)
    plain = SubnetworkEvaluator(model, family, windows, quality=quality, chunks=2)
    plans = [plain.shape.dense, Plan((2, 1, 2), (9, 20, 5)), Plan((2, 1, 2), (9, 20, 11))]
    expected = list(plain.measure(plans))
    for got, one in zip(evaluator.measure(plans), expected, strict=True):
        assert [tokens for tokens, _ in got.trajectory] == [tokens for tokens, _ in one.trajectory]
        loss_increases = [loss_increase for _, loss_increase in got.trajectory]
        assert loss_increases == pytest.approx(
            [loss_increase for _, loss_increase in one.trajectory], abs=2e-5
        )
    assert crowded.seen[:3] == [10, 5, 2]
    with pytest.raises(LmscoutError, match="out of memory with a single window"):
        SubnetworkEvaluator(model, Crowded(family, 0), windows)


def test_moments_and_gradients_are_taken_in_smaller_batches_where_memory_is_short(model, family):
    windows = random_windows(20)
    crowded = Crowded(family, 3)
    expected = dict(moments_by_block(model, family, windows))
    for place, one in moments_by_block(model, crowded, windows):
        torch.testing.assert_close(one.gram, expected[place].gram, rtol=1e-4, atol=1e-4)
        assert one.tokens == expected[place].tokens
    scores = importance("taylor", model, family, windows=windows)
    for place, one in importance("taylor", model, crowded, windows=windows).items():
        torch.testing.assert_close(one, scores[place], rtol=1e-4, atol=1e-9)
    with pytest.raises(LmscoutError, match="out of memory with a single window"):
        importance("taylor", model, Crowded(family, 0), windows=windows)


def test_keeping_fewer_hidden_states_changes_nothing(model, family, monkeypatch):
    windows = random_windows(8)
    plans = [
        Plan((2, 1, 2), (9, 20, 5)),
        Plan((2, 1, 2), (9, 20, 11)),
        Plan((2, 1, 1), (9, 20, 5)),
        Plan((1, 1, 1), (9, 20, 5)),
    ]
    expected = list(SubnetworkEvaluator(model, family, windows).measure(plans))
    for stride in (2, 4, 7):
        monkeypatch.setattr(evaluator, "_stride", lambda *_, stride=stride: stride)
        assert list(SubnetworkEvaluator(model, family, windows).measure(plans)) == expected


def test_several_devices_measure_the_same_in_the_same_order(model, family):
    windows = random_windows(12)
    rng = np.random.default_rng(0)
    plain = SubnetworkEvaluator(model, family, windows)
    shape = plain.shape
    rows = rng.integers(1, np.array(shape.groups + shape.channels) + 1, (13, 6))
    plans = [Plan(tuple(row[:3]), tuple(row[3:])) for row in rows.tolist()]
    limits = [(), *([(0.0,)] * 12)]
    expected = list(plain.measure(plans, limits))
    copies = [model, replica(model, torch.device("cpu")), replica(model, torch.device("cpu"))]
    assert copies[1].state_dict().keys() == model.state_dict().keys()
    assert not {p.data_ptr() for p in copies[1].parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    parallel = ParallelEvaluator([SubnetworkEvaluator(one, family, windows) for one in copies])
    assert list(parallel.measure(plans, limits)) == expected
    assert (parallel.shape, parallel.references) == (shape, plain.references)
    with pytest.raises(LmscoutError, match="it has"):
        list(parallel.measure([*plans, Plan((9, 9, 9), (1, 1, 1))]))


def test_plans_are_not_measured_after_the_generator_is_closed(model, family):
    crowded = [Crowded(family, 99), Crowded(family, 99)]
    windows = random_windows(4)
    parallel = ParallelEvaluator([SubnetworkEvaluator(model, one, windows) for one in crowded])
    plans = [Plan((2, 1, 2), (9, 20, kept)) for kept in range(1, 21)]
    next(parallel.measure(plans))  # the others are dropped with the generator
    after = sum(len(one.seen) for one in crowded)
    list(parallel.measure(plans))
    assert sum(len(one.seen) for one in crowded) > after


def test_each_device_keeps_its_thread_from_one_list_of_plans_to_the_next(model, family):
    copies = [replica(model, torch.device("cpu")) for _ in range(2)]
    evaluators = [SubnetworkEvaluator(one, family, random_windows(4)) for one in copies]
    threads: list[set[Thread]] = [set(), set()]
    for copied, seen in zip(copies, threads, strict=True):
        copied.lm_head.register_forward_hook(lambda *_, seen=seen: seen.add(current_thread()))
    parallel = ParallelEvaluator(evaluators)
    for groups in (1, 2):
        list(parallel.measure([Plan((groups, 1, 2), (9, 20, kept)) for kept in range(1, 9)]))
    # One may have been done with all plans before the other began.
    assert sorted(map(len, threads)) in ([0, 1], [1, 1])
    assert threads[0].isdisjoint(threads[1])
    del parallel
    for thread in threads[0] | threads[1]:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("count", [14, 60])  # as few as there may be, and more than are taken
def test_no_text_is_for_two_things(count):
    settings = CalibrationConfig(
        importance="taylor",
        window=12,
        measured_tokens=96,
        final_tokens=96,
        moment_tokens=120,
        gradient_windows=2,
    )
    windows = torch.arange(count * 12).view(count, 12) % 64
    windows[:, 0], windows[:, 1] = torch.arange(count) % 64, torch.arange(count) // 64
    calibrated = calibrate(random_model("llama"), windows, settings)
    texts = [calibrated.measured, calibrated.final, calibrated.moments]
    rows = [{tuple(row) for row in text.tolist()} for text in texts]
    assert all(rows)
    assert len(set().union(*rows)) == sum(map(len, texts))
    assert set().union(*rows) <= {tuple(row) for row in windows.tolist()}
    # the gradient that has ordered units is of text that moments are taken from
    falling = importance(
        "taylor", calibrated.model, calibrated.family, windows=calibrated.moments[:2]
    )
    for place, values in falling.items():
        assert (values[1:] <= values[:-1] * (1 + 1e-3)).all(), place


def test_copies_of_what_was_calibrated_measure_the_same(model):
    settings = CalibrationConfig(
        window=12, measured_tokens=48, final_tokens=48, moment_tokens=200, gradient_windows=4
    )
    calibrated = calibrate(model, random_windows(30), settings)
    shared = calibrated.copied_to([torch.device("cpu")])
    (copied, compensated), *_ = shared.copies
    assert copied is not model
    plans = [Plan((2, 1, 2), (9, 20, kept)) for kept in (5, 11, 20)]
    expected = list(calibrated.evaluator(calibrated.measured).measure(plans))
    seen = []
    copied.lm_head.register_forward_hook(lambda *_: seen.append(copied))
    evaluator = shared.evaluator(shared.measured)
    assert not seen, "the copy uses the dense model's loss"
    assert list(evaluator.measure(plans)) == expected
    for place, sublayer in all_parts(copied, calibrated.family):
        entries = sublayer.output.weight.shape[1] - 1
        ours = calibrated.compensation.output(*place, entries).weight
        theirs = compensated.output(*place, entries).weight
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
