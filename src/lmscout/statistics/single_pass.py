"""One forward and one backward pass on one batch, reduced while it runs.

The one batch that every architecture of a benchmark reads.

One forward and one backward through a model, reduced while it runs.

Hooks see every tensor that a proxy may read at the moment it exists, and what is kept of it
is the caller's choice.  Forward tensors stay the pass's own; a weight's gradient is dropped
as soon as it was seen, so at most one is alive, where a plain backward ends with all of them.
Only what is read is differentiated: embeddings, norms and biases are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lmscout.errors import LmscoutError
from lmscout.models import ArchitectureSpec, LanguageModel, ProbePoints
from lmscout.proxies.primitives import INPUTS


@dataclass(frozen=True)
class Batch:
    """Random tokens, uniform over the vocabulary: a proxy of this kind needs no text.

    Attributes:
        size: sequences.
        length: tokens a sequence; cut to the longest that an architecture can read.
        seed: of the draw.
    """

    size: int = 32
    length: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2 or self.length < 2:
            raise LmscoutError(
                f"batch of {self.size} x {self.length} tokens is too small: a batch has at "
                "least 2 sequences of 2 tokens"
            )

    def other(self) -> Batch:
        """A batch of the same size and other tokens."""
        return replace(self, seed=self.seed + 1)

    def tokens(self, spec: ArchitectureSpec) -> Tensor:
        """Tokens for one architecture: [size, length] int64."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.size, min(self.length, spec.max_length))
        return torch.randint(spec.vocabulary, shape, generator=generator)


INPUT_NAMES = tuple(entry.name for entry in INPUTS)

Reduce = Callable[[Tensor], npt.NDArray[np.float64]]
See = Callable[[str, int, int, Tensor], None]


def read_model(
    model: LanguageModel, tokens: Tensor, reduce: Reduce, width: int
) -> npt.NDArray[np.float64]:
    """Run the pass and reduce the six inputs of every block.

    Args:
        model: as built by a spec; left as it was found, without gradients.
        tokens: [B, T] int64.
        reduce: maps a tensor to [width] numbers.
        width: how many numbers `reduce` returns.

    Returns:
        [inputs, width, blocks] float64 in the order of `INPUT_NAMES`: for each input the mean
        of the reductions over the block's tensors; 0, which adds nothing to a sum over blocks,
        where a block has no such tensor.
    """
    depth = len(model.probe_points())
    total = np.zeros((len(INPUT_NAMES), width, depth))
    count = np.zeros((len(INPUT_NAMES), 1, depth))

    def add(name: str, block: int, _: int, tensor: Tensor) -> None:
        row = INPUT_NAMES.index(name)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and meant
            total[row, :, block] += reduce(tensor)
        count[row, :, block] += 1

    run_pass(model, tokens, add)
    return total / np.maximum(count, 1)


def run_pass(
    model: LanguageModel, tokens: Tensor, see: See, *, act_gradients: bool = False
) -> None:
    """Run one forward and one backward and show every tensor that a proxy may read.

    Args:
        model: as built by a spec; left as it was found, without gradients.
        tokens: [B, T] int64.
        see: called once a tensor with the input's name, the block, the tensor's place among
            those of the block (as in its `ProbePoints`), and the tensor itself, which must
            be copied if it is kept.
        act_gradients: show the gradients of the activations too, as "act_grad".
    """
    with ExitStack() as stack:
        points = model.probe_points()
        weights = {layer.weight for point in points for layer in point.linear}
        stack.enter_context(train_only(model, weights))
        for block, point in enumerate(points):
            for name, modules in (("act", point.act), ("head", point.head)):
                for place, module in enumerate(modules):
                    _watch_output(stack, module, partial(see, name, block, place))
            _watch_probabilities(stack, point, partial(see, "softmax", block))
            _watch_hidden_gradient(stack, point.block, partial(see, "jacob", block, 0))
            for place, layer in enumerate(point.linear):
                see("weight", block, place, layer.weight.detach())
                _watch_weight_gradient(stack, layer, partial(see, "grad", block, place))
            if act_gradients:
                for place, module in enumerate(point.act):
                    _watch_output_gradient(stack, module, partial(see, "act_grad", block, place))
        with torch.enable_grad():
            torch.autograd.backward(model.loss(tokens))


@contextmanager
def train_only(model: nn.Module, chosen: Collection[Tensor]) -> Iterator[None]:
    """Let only chosen parameters of a model require gradients, for a while.

    Args:
        model: left as it was found, without gradients.
        chosen: its parameters.
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


def _watch_output(stack: ExitStack, module: nn.Module, see: Callable[[Tensor], None]) -> None:
    def after(_: nn.Module, __: object, output: Tensor) -> None:
        see(output.detach())

    stack.callback(module.register_forward_hook(after).remove)


def _watch_output_gradient(
    stack: ExitStack, module: nn.Module, see: Callable[[Tensor], None]
) -> None:
    def after(_: nn.Module, __: object, output: Tensor) -> None:
        output.register_hook(see)  # type: ignore[no-untyped-call]

    stack.callback(module.register_forward_hook(after).remove)


def _watch_probabilities(
    stack: ExitStack, point: ProbePoints, see: Callable[[int, Tensor], None]
) -> None:
    for place, module in enumerate(point.softmax):
        _watch_output(stack, module, partial(see, place))
    for place, module in enumerate(point.spectrum, start=len(point.softmax)):
        _watch_output(stack, module, partial(_see_softmax, partial(see, place)))


def _see_softmax(see: Callable[[Tensor], None], output: Tensor) -> None:
    see(output.softmax(-1))


def _watch_hidden_gradient(
    stack: ExitStack, block: nn.Module, see: Callable[[Tensor], None]
) -> None:
    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        if not hidden.requires_grad:  # the first block: nothing before it learns
            hidden = hidden.detach().requires_grad_()
        hidden.register_hook(see)  # type: ignore[no-untyped-call]
        return (hidden, *arguments[1:])

    stack.callback(block.register_forward_pre_hook(before).remove)


def _watch_weight_gradient(
    stack: ExitStack, layer: nn.Linear, see: Callable[[Tensor], None]
) -> None:
    def see_and_drop(weight: Tensor) -> None:
        if weight.grad is not None:
            see(weight.grad)
            weight.grad = None

    weight = layer.weight
    handle = weight.register_post_accumulate_grad_hook(see_and_drop)  # type: ignore[no-untyped-call]
    stack.callback(handle.remove)
