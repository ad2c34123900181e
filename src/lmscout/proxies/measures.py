"""Measures of the literature that no expression states, as functions of a `Reading`.

The published form reduces every tensor to a number before anything is joined, so it has no product
of a weight with its own gradient, no maximum along one axis, no eigenvalue, and averages over a
block's tensors where these sum over them.  Everything here sums over blocks in float64, and a NaN
in what it reads makes the score NaN.

GraSP, SynFlow and logSynFlow run the model once more; each leaves it as it found it: weights,
gradients, hooks and flags, to the last bit.  The others only look at the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

COVARIANCE_OFFSET = 1e-5
"""What Mellor et al. add to an eigenvalue before its logarithm and its inverse."""
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_SOFTMAX = (torch.softmax, torch.special.softmax, Tensor.softmax, functional.softmax)


class Model(Protocol):
    """What the functions need of a language model (which is also an `nn.Module`).

    Attributes:
        blocks: The transformer layers, in order.
    """

    blocks: nn.ModuleList

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] to the hidden state [B, T, width] that enters block 0."""

    def encode(self, hidden: Tensor) -> Tensor:
        """Hidden state [B, T, width] through the blocks to the last one."""

    def loss(self, tokens: Tensor) -> Tensor:
        """The scalar whose gradient the proxies read."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Full tensors that one forward and one backward left behind.

    Attributes:
        model: The model, in eval mode.
        tokens: The batch [B, T].
        inputs: Input name to blocks to tensors, the six inputs of `primitives.INPUTS`.
        act_grad: Gradients of the loss with respect to the act tensors, aligned with
            inputs["act"].
        linears: The linear layers of each block, aligned with inputs["weight"] and
            inputs["grad"].
        mixing: For each of these layers: does it belong to the mixer (the attention), rather
            than to the MLP?
        parameters: Number of parameters of the whole model.
        gates: Modules whose output multiplies another path: the activations of gated MLPs.
    """

    model: Model
    tokens: Tensor
    inputs: Mapping[str, tuple[tuple[Tensor, ...], ...]]
    act_grad: tuple[tuple[Tensor, ...], ...]
    linears: tuple[tuple[nn.Linear, ...], ...]
    mixing: tuple[tuple[bool, ...], ...]
    parameters: int
    gates: tuple[nn.Module, ...] = ()


def parameters(reading: Reading) -> float:
    """Number of parameters of the model: the baseline of baselines."""
    return float(reading.parameters)


def grad_norm(reading: Reading) -> float:
    """Sum of the Frobenius norms of the gradients of all linear layers.

    Abdelfattah et al., arXiv 2101.08134.  (The expression `sum(frobenius(grad))` takes the
    mean over a block's layers instead of the sum, so blocks of many layers weigh less.)
    """
    return _total(gradient.double().norm() for _, gradient, _ in _layers(reading))


def snip(reading: Reading) -> float:
    """Sum of |w * dL/dw| over all linear layers: connection sensitivity.

    Lee et al., arXiv 1810.02340.
    """
    return _total(_saliency(weight, gradient) for weight, gradient, _ in _layers(reading))


def synaptic_saliency(reading: Reading) -> float:
    """Sum of |w * dL/dw| over the linear layers of the MLPs.

    Zhou et al. (DSS), arXiv 2203.12217.
    """
    return _total(
        _saliency(weight, gradient) for weight, gradient, mixes in _layers(reading) if not mixes
    )


def head_importance(reading: Reading) -> float:
    """Sum of |w * dL/dw| over the linear layers of the mixers.

    Michel et al., arXiv 1905.10650, in the form of Serianni and Kalita, arXiv 2305.18915.
    """
    return _total(
        _saliency(weight, gradient) for weight, gradient, mixes in _layers(reading) if mixes
    )


def synaptic_diversity(reading: Reading) -> float:
    """Sum of the nuclear norm of w times that of dL/dw over the linear layers of the mixers.

    Zhou et al. (DSS), arXiv 2203.12217.
    """
    return _total(
        _nuclear_norm(weight) * _nuclear_norm(gradient)
        for weight, gradient, mixes in _layers(reading)
        if mixes
    )


def fisher(reading: Reading) -> float:
    """Sum over samples and channels of (sum over positions of a * dL/da)^2, for every act a.

    Theis et al., arXiv 1801.05787, as a proxy in Abdelfattah et al., arXiv 2101.08134; their
    constant 1 / (2 B) is left out.  The last axis holds the channels, the first the samples.
    """

    def of_one(activation: Tensor, gradient: Tensor) -> Tensor:
        product = activation.double() * gradient.double()
        return product.flatten(1, -2).sum(dim=1).square().sum()

    return _total(
        of_one(activation, gradient)
        for activations, gradients in zip(reading.inputs["act"], reading.act_grad, strict=True)
        for activation, gradient in zip(activations, gradients, strict=True)
    )


def jacobian_covariance(reading: Reading) -> float:
    """-sum(ln(v + k) + 1 / (v + k)), v the eigenvalues of the samples' Jacobian correlations.

    The rows that are correlated are the gradients with respect to the hidden state that
    enters block 0, one flattened row a sample; k is 1e-5.  Mellor et al., arXiv 2006.04647v1;
    on transformers Serianni and Kalita, arXiv 2305.18915.
    """
    rows = reading.inputs["jacob"][0][0].flatten(1).double().cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant row correlates as NaN
        correlations = np.atleast_2d(np.corrcoef(rows))
    if not np.isfinite(correlations).all():
        return math.nan
    values = np.linalg.eigvalsh(correlations) + COVARIANCE_OFFSET
    return -float(np.sum(np.log(values) + 1.0 / values))


def activation_distance(reading: Reading) -> float:
    """Sum over pairs of positions of the number of units on which their binary codes agree.

    The code of a position is which units of an act tensor are positive there; ordered pairs,
    a position with itself included: the sum of x x^T + (1 - x)(1 - x)^T.  The first sample of
    the batch alone, as in Serianni and Kalita, arXiv 2305.18915; the codes are Mellor et
    al.'s, arXiv 2006.04647.
    """

    def of_one(activation: Tensor) -> Tensor:
        # A unit that is on at p of n positions agrees on p^2 + (n - p)^2 pairs.
        first = activation[0].flatten(0, -2)
        if not bool(torch.isfinite(first).all()):
            return torch.tensor(math.nan)
        on = (first > 0).sum(dim=0).double()
        return (on.square() + (first.shape[0] - on).square()).sum()

    return _total(of_one(one) for block in reading.inputs["act"] for one in block)


def attention_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean of the head tensors' maxima over positions.

    A head tensor is [B, T, width]: the maximum is over T, then the mean over the rest and
    over the block's tensors; a block without any adds nothing.  Serianni and Kalita, arXiv
    2305.18915.
    """
    return _confidence(reading, "head", lambda tensor: tensor.amax(dim=1))


def softmax_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean, over queries and heads, of the largest attention weight.

    Voita et al., arXiv 1905.09418: the maximum is over the keys, the last axis.  (The code
    beside arXiv 2305.18915 takes the second axis, which is that of the heads.)
    """
    return _confidence(reading, "softmax", lambda tensor: tensor.amax(dim=-1))


def _layers(reading: Reading) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Weight, gradient and whether it mixes, of every linear layer of every block."""
    for weights, gradients, mixing in zip(
        reading.inputs["weight"], reading.inputs["grad"], reading.mixing, strict=True
    ):
        yield from zip(weights, gradients, mixing, strict=True)


def _saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.double() * gradient.double()).abs().sum()


def _nuclear_norm(matrix: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):  # a decomposition of it would not converge
        return torch.tensor(math.nan, dtype=torch.float64)
    values: Tensor = torch.linalg.svdvals(matrix.detach())
    return values.double().sum()


def _confidence(reading: Reading, name: str, maxima: Callable[[Tensor], Tensor]) -> float:
    blocks = reading.inputs[name]
    return math.fsum(
        _total(maxima(one).double().mean() for one in block) / len(block)
        for block in blocks
        if block
    )


def _total(terms: Iterator[Tensor]) -> float:
    with torch.no_grad():
        return math.fsum(float(term) for term in terms)


def grasp(reading: Reading) -> float:
    """-sum w * (H g) over all linear layers, H the Hessian of the loss and g its gradient.

    The product H g is that of a second backward pass through the first, for the weights of
    the blocks' linear layers.  Wang et al., arXiv 2002.07376.
    """
    weights = [cast(nn.Parameter, one.weight) for block in reading.linears for one in block]
    # Fused attention has no second derivative; the plain one has.
    with torch.enable_grad(), _requiring_grad(weights), sdpa_kernel(SDPBackend.MATH):
        loss = reading.model.loss(reading.tokens)
        gradients = torch.autograd.grad(
            loss, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        inner = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
        if not inner.requires_grad:  # a loss that is linear in every weight
            return 0.0
        products = torch.autograd.grad(inner, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        return -math.fsum(
            float((weight.double() * product.double()).sum())
            for weight, product in zip(weights, products, strict=True)
        )


def synflow(reading: Reading) -> float:
    """Sum of |w| * dR/d|w| over the blocks' linear layers: synaptic flow.

    R is the sum of the last hidden state when every parameter is replaced by its absolute
    value, every bias by zero, every norm by the identity, and a hidden state of ones enters
    block 0, all in float64.  Tanaka et al., arXiv 2006.05467.

    What is not linear stays, but a softmax counts as a constant weighting: where all positions
    are alike nothing flows through its arguments, and what rounding leaves of that nothing,
    times queries and keys that grow from block to block, would be the whole score.  Likewise a
    gate counts as open: where one path multiplies another, nothing flows through the gate and
    the other path passes unchanged.  The product would square the hidden state in every block,
    which float64 cannot hold beyond a few of them.
    """
    return _flow(reading, lambda gradient: gradient)


def logsynflow(reading: Reading) -> float:
    """Sum of |w| * ln(|dR/d|w|| + 1): synaptic flow with its gradients' range compressed.

    Cavagnero et al. (FreeREA), arXiv 2207.05135.  Theirs has no absolute value, and needs
    none where no path is negative; a Fourier mixer or a GELU makes some.
    """
    return _flow(reading, lambda gradient: gradient.abs().log1p())


def _flow(reading: Reading, remap: Callable[[Tensor], Tensor]) -> float:
    encoder = _Encoder(reading.model)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    # New tensors stand in for the parameters during one call, so that the model's own are
    # never written to and there is nothing to restore but the norms.
    values = {name: _linearized(name, one) for name, one in encoder.named_parameters()}
    buffers = {name: _doubled(one) for name, one in encoder.named_buffers()}
    weights = [values[names[id(one.weight)]] for block in reading.linears for one in block]
    with torch.no_grad():
        ones = torch.ones_like(reading.model.embed(reading.tokens[:1]), dtype=torch.float64)
    # Fused attention's backward pass recomputes its softmax, and scores this large from their
    # logarithms alone: plain attention keeps it.
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with (
        torch.enable_grad(),
        plain_attention,
        _norms_as_identity(encoder),
        _gates_open(reading.gates),
        _ConstantSoftmax(),
    ):
        for weight in weights:
            weight.requires_grad_()
        flow = functional_call(encoder, {**values, **buffers}, (ones,)).sum()
        gradients = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        return math.fsum(
            float((weight * remap(gradient)).sum())
            for weight, gradient in zip(weights, gradients, strict=True)
        )


class _Encoder(nn.Module):
    """A model whose call is its `encode`, which is what `functional_call` can replay."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = cast(nn.Module, model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden state [B, T, width] to the last one."""
        return cast(Model, self.model).encode(hidden)


class _ConstantSoftmax(TorchFunctionMode):
    """No gradient flows into the arguments of a softmax, fused attention's included."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            query, key, *rest = (
                *args,
                *(named.pop(name) for name in ("query", "key")[len(args) :]),
            )
            return func(query.detach(), key.detach(), *rest, **named)
        result = func(*args, **named)
        return result.detach() if func in _SOFTMAX else result


def _linearized(name: str, parameter: Tensor) -> Tensor:
    value = parameter.detach().double()
    return torch.zeros_like(value) if name.endswith("bias") else value.abs()


def _doubled(buffer: Tensor) -> Tensor:
    return buffer.double() if buffer.is_floating_point() else buffer


@contextmanager
def _requiring_grad(parameters: list[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


@contextmanager
def _norms_as_identity(module: nn.Module) -> Iterator[None]:
    """Every norm passes its input through; what a caller had put in its place comes back."""
    norms = [one for one in module.modules() if isinstance(one, _NORMS)]
    with _replacing(norms, _unchanged):
        yield


@contextmanager
def _gates_open(gates: Sequence[nn.Module]) -> Iterator[None]:
    """Every gate is 1, whatever enters it."""
    with _replacing(gates, torch.ones_like):
        yield


@contextmanager
def _replacing(
    modules: Sequence[nn.Module], replacement: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            vars(module)["forward"] = replacement
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden
