from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_specs import EVERY_KIND, gpt2
from torch import nn

from lmscout.errors import LmscoutError
from lmscout.models.flexibert import MIXERS, Transform
from lmscout.statistics import INPUT_NAMES, Batch, read_model, unary_means
from lmscout.statistics.single_pass import run_pass

BATCH = Batch(size=3, length=7)
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)


def built(kind, seed=0):
    spec = EVERY_KIND[kind]
    return spec.build(seed), BATCH.tokens(spec)


def plain_reading(model, tokens):
    """The six inputs by an ordinary pass that trains everything: name, block -> tensors.

    What is read where follows from the types and the names of the modules.
    """
    kept, entering, handles = {}, {}, []

    def keep(name, number, change=lambda tensor: tensor):
        def hook(_, __, output):
            kept.setdefault((name, number), []).append(change(output))

        return hook

    for number, block in enumerate(model.blocks):

        def enter(_, arguments, number=number):
            entering[number] = arguments[0]

        handles.append(block.register_forward_pre_hook(enter))
        for path, module in block.named_modules():
            if isinstance(module, nn.GELU | nn.SiLU | nn.ReLU):
                handles.append(module.register_forward_hook(keep("act", number)))
            if path.split(".")[-1] in ("query", "key", "value", "mixing"):
                handles.append(module.register_forward_hook(keep("head", number)))
            if isinstance(module, nn.Softmax):
                handles.append(module.register_forward_hook(keep("softmax", number)))
            if isinstance(module, Transform):
                change = keep("softmax", number, lambda tensor: tensor.softmax(-1))
                handles.append(module.spectrum.register_forward_hook(change))
    loss = model.loss(tokens)
    for handle in handles:
        handle.remove()
    for number, block in enumerate(model.blocks):
        weights = [one.weight for one in block.modules() if isinstance(one, nn.Linear)]
        kept["weight", number] = weights
        *gradients, hidden = torch.autograd.grad(
            loss, [*weights, entering[number]], retain_graph=True
        )
        kept["grad", number] = gradients
        kept["jacob", number] = [hidden]
    return kept


def numbers(tensor):
    """A few plain numbers that together notice a tensor of another value, size or shape."""
    x = tensor.detach().double()
    return np.array(
        [x.mean(), x.square().mean(), x.amin(), x.amax(), x.numel(), x.shape[0], x.shape[-1]]
    )


@every_kind
def test_every_input_of_every_block_is_that_of_an_ordinary_pass(kind):
    model, tokens = built(kind)
    expected = plain_reading(model, tokens)
    got = read_model(model, tokens, numbers, 7)
    assert got.shape == (6, 7, len(model.blocks))
    for row, name in enumerate(INPUT_NAMES):
        for block in range(len(model.blocks)):
            tensors = expected.get((name, block))
            plain = np.mean([numbers(one) for one in tensors], axis=0) if tensors else np.zeros(7)
            np.testing.assert_allclose(got[row, :, block], plain, rtol=1e-5, atol=1e-9)
    absent = 6 * len(model.blocks) - len(expected)
    # Where a block lacks attention, head and softmax; where it lacks the MLP, act.
    assert absent == 3 * kind.endswith("halves")


@every_kind
def test_tensors_are_shown_whole_and_in_the_order_of_the_probe_points(kind):
    model, tokens = built(kind)
    expected = plain_reading(model, tokens)
    seen = {}

    def see(name, block, place, tensor):
        assert not tensor.requires_grad
        assert (name, block, place) not in seen
        seen[name, block, place] = tensor.clone()

    run_pass(model, tokens, see)
    flat = {
        (*key, place): tensor
        for key, tensors in expected.items()
        for place, tensor in enumerate(tensors)
    }
    assert seen.keys() == flat.keys()
    for key, tensor in flat.items():
        torch.testing.assert_close(seen[key], tensor.detach(), rtol=1e-5, atol=1e-7)


def test_stacked_activations_and_attention_are_counted():
    model, tokens = built("stacked")
    counts = {}

    def see(name, block, place, tensor):
        counts[name, block] = max(counts.get((name, block), 0), place + 1)

    run_pass(model, tokens, see)
    # WMA: query, key, value, the matrix between, the output, and three stacked layers and one.
    assert {name: counts[name, 0] for name in INPUT_NAMES} == {
        "act": 3, "jacob": 1, "grad": 9, "head": 3, "weight": 9, "softmax": 1,
    }  # fmt: skip
    # DCT: the mixing layer alone, then the MLP.
    assert (counts["head", 1], counts["weight", 1], counts["act", 1]) == (1, 5, 3)


def test_jacob_is_the_total_gradient_of_branch_and_residual():
    # Measured, not derived: what a nudge of the hidden state that enters a block does.
    model, tokens = built("GPT-2")
    model = model.double()
    gradients = {}

    def see(name, block, _, tensor):
        if name == "jacob":
            gradients[block] = tensor.clone()

    run_pass(model, tokens, see)
    assert set(gradients) == {0, 1}
    generator = torch.Generator().manual_seed(0)
    for number, gradient in gradients.items():
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

        def nudged(step, block=model.blocks[number], direction=direction):
            def nudge(_, arguments):
                return (arguments[0] + step * direction,)

            handle = block.register_forward_pre_hook(nudge)
            with torch.no_grad():
                loss = model.loss(tokens).item()
            handle.remove()
            return loss

        slope = (nudged(1e-6) - nudged(-1e-6)) / 2e-6
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


@every_kind
def test_only_what_is_read_is_differentiated_and_one_gradient_is_alive_at_a_time(kind):
    model, tokens = built(kind)
    linears = {
        name
        for name, parameter in model.named_parameters()
        if any(
            parameter is one.weight for one in model.blocks.modules() if isinstance(one, nn.Linear)
        )
    }
    alive = []

    def see(name, *_):
        learning = {name for name, one in model.named_parameters() if one.requires_grad}
        assert learning == linears
        alive.append((name, sum(one.grad is not None for one in model.parameters())))

    run_pass(model, tokens, see)
    assert {count for name, count in alive if name == "grad"} == {1}
    assert {count for name, count in alive if name != "grad"} == {0}


def state(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        model.training,
    )


def assert_as_before(model, before):
    weights, flags, training = before
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert {name: one.requires_grad for name, one in model.named_parameters()} == flags
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@every_kind
def test_the_model_is_left_as_it_was_found(kind):
    model, tokens = built(kind)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
    before = state(model)
    calls = []
    run_pass(model, tokens, lambda *seen: calls.append(seen[:3]), act_gradients=True)
    assert_as_before(model, before)

    # Nor does anything hang on its tensors: a later backward is seen by nobody and keeps
    # its gradients.
    seen = len(calls)
    model.requires_grad_(True)
    model.loss(tokens).backward()
    assert len(calls) == seen
    unread = {"token_types.weight"} & dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or name in unread, name


@pytest.mark.parametrize("name", [*INPUT_NAMES, "act_grad"])
def test_the_model_is_left_as_it_was_found_when_a_read_is_interrupted(name):
    model, tokens = built("GPT-2")
    before = state(model)

    def see(seen, block, place, _):
        if (seen, block) == (name, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pass(model, tokens, see, act_gradients=True)
    assert_as_before(model, before)


def test_a_batch_that_is_too_long_is_refused_and_the_model_is_left_as_it_was():
    spec = gpt2()
    model = spec.build(0)
    before = state(model)
    with pytest.raises(LmscoutError, match="too long"):
        read_model(model, torch.zeros(2, spec.max_length + 1, dtype=torch.int64), numbers, 7)
    assert_as_before(model, before)


def test_a_pass_is_repeatable_and_works_where_gradients_are_off():
    model, tokens = built("DSC5")
    first = read_model(model, tokens, unary_means, 20)
    with torch.no_grad():
        second = read_model(model, tokens, unary_means, 20)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


def test_an_input_that_a_block_does_not_have_is_0():
    model, tokens = built("GPT-2")
    whole = read_model(model, tokens, numbers, 7)
    first, second = model.probe_points()
    model.probe_points = lambda: (replace(first, softmax=()), second)
    got = read_model(model, tokens, numbers, 7)
    row = INPUT_NAMES.index("softmax")
    assert not got[row, :, 0].any()
    got[row, :, 0] = whole[row, :, 0]
    np.testing.assert_array_equal(got, whole)


def test_infinite_numbers_of_opposite_sign_make_nan_without_a_warning():
    model, tokens = built("GPT-2")
    signs = iter([np.inf, -np.inf] * 100)
    got = read_model(model, tokens, lambda _: np.array([next(signs)]), 1)
    assert np.isnan(got[INPUT_NAMES.index("weight")]).all()


def test_every_mixer_is_among_the_kinds():
    assert set(MIXERS) <= set(EVERY_KIND)
