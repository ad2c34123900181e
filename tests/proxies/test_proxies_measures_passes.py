import copy
import math

import numpy as np
import pytest
import torch
from tiny_transformer import TinyTransformer, batch, read
from torch import nn

from lmscout.proxies import CATALOG, Reading, measures

FUNCTIONS = {entry.name: entry.function for entry in CATALOG if entry.function}


def block_weights(model):
    return [one.weight for block in model.blocks for one in block.linears()]


def gradients_at(model, tokens, shifts):
    """Gradients of the loss of a copy of the model with its block weights shifted."""
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        for weight, shift in zip(block_weights(shifted), shifts, strict=True):
            weight.add_(shift)
    return torch.autograd.grad(shifted.loss(tokens), block_weights(shifted))


@pytest.mark.parametrize("fused", [False, True])
def test_grasp_is_minus_weights_times_hessian_times_gradient(fused):
    model, tokens = TinyTransformer(fused=fused).double(), batch()
    zeros = [torch.zeros_like(one) for one in block_weights(model)]
    gradient = gradients_at(model, tokens, zeros)
    step = 1e-5
    ahead = gradients_at(model, tokens, [step * g for g in gradient])
    behind = gradients_at(model, tokens, [-step * g for g in gradient])
    want = -sum(
        float((weight.detach() * (a - b)).sum()) / (2 * step)
        for weight, a, b in zip(block_weights(model), ahead, behind, strict=True)
    )
    assert abs(want) > 1e-3
    assert measures.grasp(read(model, tokens)) == pytest.approx(want, rel=1e-6)


def plain_flow(model, length, remap):
    """A copy of the model, rebuilt as its linearised self and differentiated as it stands."""
    linear = copy.deepcopy(model).double()
    for module in list(linear.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            parameter.copy_(0 * parameter if name.endswith("bias") else parameter.abs())
    linear.zero_grad()
    linear.encode(torch.ones(1, length, 8, dtype=torch.float64)).sum().backward()
    return sum(float((one.detach() * remap(one.grad)).sum()) for one in block_weights(linear))


@pytest.mark.parametrize("fused", [False, True, "by name"])
def test_synflow_and_its_logarithm(fused):
    model = TinyTransformer(fused=fused)
    reading = read(model, batch())
    flow = plain_flow(model, 5, lambda gradient: gradient)
    log_flow = plain_flow(model, 5, lambda gradient: torch.log(gradient.abs() + 1))
    assert measures.synflow(reading) == pytest.approx(flow, rel=1e-12)
    assert measures.logsynflow(reading) == pytest.approx(log_flow, rel=1e-12)
    assert log_flow < flow


@pytest.mark.parametrize("fused", [False, True, "by name"])
@pytest.mark.parametrize("size", [30, 300])
def test_the_flow_is_not_swamped_by_rounding_in_the_attention(fused, size):
    model = TinyTransformer(fused=fused)
    with torch.no_grad():
        for weight in block_weights(model):
            weight.mul_(size)
    flow = measures.synflow(read(model, batch()))
    # At one position a softmax has one weight and its gradient is exactly nothing; where all
    # positions are alike each of them carries that same flow.
    alone = plain_flow(model, 1, lambda gradient: gradient)
    assert flow == pytest.approx(5 * alone, rel=1e-12)


class LinearStack(nn.Module):
    """Linear layers and norms only: every layer then carries the whole flow R."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.RMSNorm(4)) for _ in range(layers)
        )

    def embed(self, tokens):
        return self.embedding(tokens)

    def encode(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def loss(self, tokens):
        return self.encode(self.embed(tokens)).sum()


def stack_reading(model):
    return Reading(
        model=model,
        tokens=torch.zeros(2, 3, dtype=torch.long),
        inputs={},
        act_grad=(),
        linears=tuple((block[1],) for block in model.blocks),
        mixing=tuple((False,) for _ in model.blocks),
        parameters=0,
    )


def test_synflow_is_conserved_through_linear_layers():
    model = LinearStack(layers=5)
    hidden = np.ones((3, 4))
    for block in model.blocks:
        hidden = hidden @ np.abs(block[1].weight.detach().double().numpy()).T
    assert measures.synflow(stack_reading(model)) == pytest.approx(5 * hidden.sum(), rel=1e-12)


def test_synflow_does_not_overflow_where_single_precision_would():
    model = LinearStack(layers=20)
    with torch.no_grad():
        for block in model.blocks:
            block[1].weight.fill_(100.0)
    assert measures.synflow(stack_reading(model)) == pytest.approx(20 * 3 * 4 * 400.0**20)


def test_grasp_of_a_loss_that_is_linear_in_the_weights_is_zero():
    model = LinearStack(layers=1)
    model.blocks[0][0] = model.blocks[0][2] = nn.Identity()
    assert measures.grasp(stack_reading(model)) == 0.0


def snapshot(model):
    """Everything that a pass could leave behind, down to the identity of objects and bits."""

    def bits(tensor):
        return None if tensor is None else (id(tensor), tensor.dtype, tensor.numpy().tobytes())

    tensors = {
        name: (id(one), bits(one.detach())[1:], bits(one.grad), one.requires_grad, one.is_leaf)
        for name, one in model.named_parameters()
    }
    buffers = {name: bits(one) for name, one in model.named_buffers()}
    modules = {
        name: (
            id(one),
            one.training,
            {key: id(value) for key, value in vars(one).items()},
            list(one._forward_hooks),
            list(one._forward_pre_hooks),
            list(one._backward_hooks),
        )
        for name, one in model.named_modules()
    }
    return tensors, buffers, modules, torch.get_rng_state().numpy().tobytes()


def prepared():
    """A reading of a model with the traces of a caller on it: hooks, a frozen weight, a patch."""
    model = TinyTransformer()
    reading = read(model, batch())
    model.blocks[0].norm1.register_forward_hook(lambda *_: None)
    model.blocks[1].query.register_forward_pre_hook(lambda *_: None)
    model.blocks[0].query.weight.requires_grad_(False)
    norm = model.blocks[1].norm2
    original = norm.forward
    norm.forward = lambda hidden: 1.0 * original(hidden)
    return model, reading


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_leaves_the_model_as_it_found_it(name):
    model, reading = prepared()
    before = snapshot(model)
    assert math.isfinite(FUNCTIONS[name](reading))
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["grasp", "synflow", "logsynflow"])
def test_a_function_leaves_the_model_as_it_found_it_even_on_an_error(name):
    model, reading = prepared()
    before = snapshot(model)

    def broken(hidden):
        raise RuntimeError("in the middle of the pass")

    model.encode = broken
    with pytest.raises(RuntimeError, match="in the middle of the pass"):
        FUNCTIONS[name](reading)
    del model.encode
    assert snapshot(model) == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_works_and_agrees_with_itself_without_autograd(name):
    reading = read(TinyTransformer(), batch())
    want = FUNCTIONS[name](reading)
    with torch.no_grad():
        assert FUNCTIONS[name](reading) == want


class Gated(nn.Module):
    """A gated MLP on a residual stream: one path through an activation times another."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.activation = nn.SiLU()
        self.down = nn.Linear(6, 4, bias=False)

    def forward(self, hidden):
        return hidden + self.down(self.activation(self.gate(hidden)) * self.up(hidden))


class GatedStack(LinearStack):
    def __init__(self, layers):
        super().__init__(0)
        self.blocks = nn.ModuleList(Gated() for _ in range(layers))


def gated_reading(model, *, open_gates=True):
    return Reading(
        model=model,
        tokens=torch.zeros(2, 3, dtype=torch.long),
        inputs={},
        act_grad=(),
        linears=tuple((block.gate, block.up, block.down) for block in model.blocks),
        mixing=tuple((False, False, False) for _ in model.blocks),
        parameters=0,
        gates=tuple(block.activation for block in model.blocks) if open_gates else (),
    )


def test_the_flow_passes_an_open_gate_and_none_goes_through_it():
    model = GatedStack(3)
    weights = [
        (block.up.weight.detach().double().abs(), block.down.weight.detach().double().abs())
        for block in model.blocks
    ]
    for up, down in weights:
        up.requires_grad_()
        down.requires_grad_()
    hidden = torch.ones(1, 3, 4, dtype=torch.float64)
    for up, down in weights:
        hidden = hidden + hidden @ up.T @ down.T
    hidden.sum().backward()
    flow = sum(float((one.detach() * one.grad).sum()) for pair in weights for one in pair)
    assert measures.synflow(gated_reading(model)) == pytest.approx(flow, rel=1e-12)
    assert not any("forward" in vars(block.activation) for block in model.blocks)


def test_without_open_gates_the_flow_of_a_deep_model_is_beyond_float64():
    model = GatedStack(14)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    assert not math.isfinite(measures.synflow(gated_reading(model, open_gates=False)))
    assert math.isfinite(measures.synflow(gated_reading(model)))
    assert math.isfinite(measures.logsynflow(gated_reading(model)))
