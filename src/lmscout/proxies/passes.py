"""Human-designed proxies that run the model once more: GraSP, SynFlow and logSynFlow.

Each leaves the model as it found it: weights, gradients, hooks and flags, to the last bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lmscout.proxies.reading import Model, Reading

_NORMS = (nn.LayerNorm, nn.RMSNorm)
_SOFTMAX = (torch.softmax, torch.special.softmax, Tensor.softmax, functional.softmax)


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
    with _standing_in(norms, _unchanged):
        yield


@contextmanager
def _gates_open(gates: Sequence[nn.Module]) -> Iterator[None]:
    """Every gate is 1, whatever enters it."""
    with _standing_in(gates, torch.ones_like):
        yield


@contextmanager
def _standing_in(
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
