"""Measures of the literature as functions of a `Reading`; `literature` has their papers.

The published form reduces every tensor to a number before anything is joined, so it has no product
of a weight with its own gradient, no maximum along one axis, no eigenvalue, and averages over a
block's tensors where these sum over them.  Everything here sums over blocks in float64, and a NaN
in a tensor makes the score NaN.

GraSP, SynFlow and logSynFlow run a copy of the model.  The others only read tensors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Measure = Callable[["Reading"], float]

COVARIANCE_OFFSET = 1e-5
"""Added to an eigenvalue before its logarithm and its inverse (Mellor et al.)."""
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_SOFTMAX = (torch.softmax, torch.special.softmax, Tensor.softmax, functional.softmax)


@dataclass(frozen=True, eq=False)
class Reading:
    """Full tensors of one forward and one backward pass.

    The model is a `lmscout.models.LanguageModel` in eval mode, or another module with its `blocks`,
    `embed`, `encode` and `loss`.
    """

    model: Any
    tokens: Tensor  # the batch [B, T]
    inputs: Mapping[str, tuple[tuple[Tensor, ...], ...]]  # the six -> blocks -> tensors
    act_grad: tuple[tuple[Tensor, ...], ...]  # gradients of the loss, aligned with inputs["act"]
    linears: tuple[tuple[nn.Linear, ...], ...]  # aligned with inputs["weight"] and inputs["grad"]
    mixing: tuple[tuple[bool, ...], ...]  # which of these belong to the mixer, not to the MLP
    parameters: int  # of the whole model
    gates: tuple[nn.Module, ...] = ()  # their output multiplies another path, as in gated MLPs


def parameters(reading: Reading) -> float:
    """Number of parameters of the model."""
    return float(reading.parameters)


def _over_layers(term: Callable[[Tensor, Tensor], Tensor], mixing: bool | None = None) -> Measure:
    """The sum of a term of weight and gradient over the mixers' layers, the MLPs', or all."""

    def measure(reading: Reading) -> float:
        blocks = zip(reading.inputs["weight"], reading.inputs["grad"], reading.mixing, strict=True)
        return _total(
            term(weight, gradient)
            for block in blocks
            for weight, gradient, mixes in zip(*block, strict=True)
            if mixing in (None, mixes)
        )

    return measure


def _saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.double() * gradient.double()).abs().sum()


def _nuclear_norm(matrix: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):  # a decomposition of it would not converge
        return torch.tensor(math.nan, dtype=torch.float64)
    values: Tensor = torch.linalg.svdvals(matrix.detach())
    return values.double().sum()


# The expression `sum(frobenius(grad))` averages over a block's layers; this sums over them.
grad_norm = _over_layers(lambda _, gradient: gradient.double().norm())
snip = _over_layers(_saliency)
synaptic_saliency = _over_layers(_saliency, mixing=False)
head_importance = _over_layers(_saliency, mixing=True)
synaptic_diversity = _over_layers(
    lambda weight, gradient: _nuclear_norm(weight) * _nuclear_norm(gradient), mixing=True
)


def fisher(reading: Reading) -> float:
    """Sum over samples and channels of (sum over positions of a * dL/da)^2, for every act a.

    The constant 1 / (2 B) is left out.  The last axis holds the channels, the first the samples.
    """

    def term(activation: Tensor, gradient: Tensor) -> Tensor:
        product = activation.double() * gradient.double()
        return product.flatten(1, -2).sum(dim=1).square().sum()

    return _total(
        term(activation, gradient)
        for activations, gradients in zip(reading.inputs["act"], reading.act_grad, strict=True)
        for activation, gradient in zip(activations, gradients, strict=True)
    )


def jacobian_covariance(reading: Reading) -> float:
    """-sum(ln(v + k) + 1 / (v + k)), v the eigenvalues of the samples' Jacobian correlations.

    The rows that are correlated are the gradients with respect to the hidden state that
    enters block 0, one flattened row a sample; k is 1e-5.
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

    The code of a position x is which units of an act tensor are positive there; the pairs are
    ordered, and include a position with itself: the sum of x x^T + (1 - x)(1 - x)^T.  Only the
    first sample of the batch is used.
    """

    def term(activation: Tensor) -> Tensor:
        # A unit that is on at p of n positions agrees on p^2 + (n - p)^2 pairs.
        first = activation[0].flatten(0, -2)
        if not bool(torch.isfinite(first).all()):
            return torch.tensor(math.nan)
        on = (first > 0).sum(dim=0).double()
        return (on.square() + (first.shape[0] - on).square()).sum()

    return _total(term(one) for block in reading.inputs["act"] for one in block)


def attention_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean of the head tensors' maxima over positions.

    A head tensor is [B, T, width]: the maximum is over T, then the mean over the rest and
    over the block's tensors; a block without any adds nothing.
    """
    return _confidence(reading, "head", axis=1)


def softmax_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean, over queries and heads, of the largest attention weight.

    The maximum is over the keys, the last axis.  (The code of arXiv 2305.18915 takes the second
    axis, which is that of the heads.)
    """
    return _confidence(reading, "softmax", axis=-1)


def _confidence(reading: Reading, name: str, axis: int) -> float:
    return math.fsum(
        _total(one.amax(dim=axis).double().mean() for one in block) / len(block)
        for block in reading.inputs[name]
        if block
    )


def _total(terms: Iterator[Tensor]) -> float:
    with torch.no_grad():
        return math.fsum(float(term) for term in terms)


def grasp(reading: Reading) -> float:
    """-sum w * (H g) over all linear layers, H the Hessian of the loss and g its gradient.

    The product H g is that of a second backward pass through the first, for the weights of
    the blocks' linear layers.
    """
    model, linears = copy.deepcopy((reading.model, reading.linears))
    weights = [one.weight.requires_grad_() for block in linears for one in block]
    # Fused attention has no second derivative; the plain one has.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = model.loss(reading.tokens)
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
    block 0, all in float64.

    Nonlinear functions stay, but a softmax is a constant weighting: all positions are equal, so
    its arguments have no gradient but rounding errors, which queries and keys that grow from
    block to block would make the whole score.  Likewise a gate is 1: the product of two paths
    would square the hidden state in every block, beyond float64 after a few of them.
    """
    return _flow(reading, lambda gradient: gradient)


def logsynflow(reading: Reading) -> float:
    """Sum of |w| * ln(|dR/d|w|| + 1): synaptic flow with its gradients' range compressed.

    The published formula has no absolute value of the gradient; a Fourier mixer or a GELU makes
    some gradients negative.
    """
    return _flow(reading, lambda gradient: gradient.abs().log1p())


def _flow(reading: Reading, remap: Callable[[Tensor], Tensor]) -> float:
    with torch.no_grad():
        ones = torch.ones_like(reading.model.embed(reading.tokens[:1]), dtype=torch.float64)
        model, linears, gates = copy.deepcopy((reading.model, reading.linears, reading.gates))
        model.double().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.abs_()
            if name.endswith("bias"):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, _NORMS):
                vars(module)["forward"] = lambda hidden: hidden
        for gate in gates:
            vars(gate)["forward"] = torch.ones_like
    weights = [one.weight.requires_grad_() for block in linears for one in block]
    # Math attention, since the fused backward pass recomputes the softmax inexactly.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _ConstantSoftmax():
        flow = model.encode(ones).sum()
        gradients = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        return math.fsum(
            float((weight * remap(gradient)).sum())
            for weight, gradient in zip(weights, gradients, strict=True)
        )


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
