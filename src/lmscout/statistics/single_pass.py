"""One forward and one backward pass on one batch; hooks show each tensor as soon as it exists.

Forward tensors belong to the pass, and a weight's gradient is dropped once it was shown: at most
one is alive.  Embeddings, norms and biases are not differentiated.
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
from torch.utils.hooks import RemovableHandle

from lmscout.errors import LmscoutError
from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.proxies.primitives import INPUTS

INPUT_NAMES = tuple(entry.name for entry in INPUTS)

Reduce = Callable[[Tensor], npt.NDArray[np.float64]]
Show = Callable[[Tensor], None]
See = Callable[[str, int, int, Tensor], None]


@dataclass(frozen=True)
class Batch:
    """Random tokens, uniform over the vocabulary; LmscoutError for fewer than 2 x 2."""

    size: int = 32  # sequences
    length: int = 32  # tokens per sequence; cut to the longest that an architecture accepts
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        if self.size < 2 or self.length < 2:
            raise LmscoutError(
                f"batch of {self.size} x {self.length} tokens is too small: a batch has at "
                "least 2 sequences of 2 tokens"
            )

    def other(self) -> Batch:
        """A batch of the same size with other tokens."""
        return replace(self, seed=self.seed + 1)

    def tokens(self, spec: ArchitectureSpec) -> Tensor:
        """Tokens for one architecture: [size, length] int64."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.size, min(self.length, spec.max_length))
        return torch.randint(spec.vocabulary, shape, generator=generator)


def read_model(
    model: LanguageModel, tokens: Tensor, reduce: Reduce, width: int
) -> npt.NDArray[np.float64]:
    """Run the pass over tokens [B, T] and reduce the six inputs of every block to [width] numbers.

    Returns:
        [inputs, width, blocks] float64 in the order of `INPUT_NAMES`: the mean of the reductions
        over the block's tensors of each input; 0 if a block has none.
    """
    depth = len(model.probe_points())
    total = np.zeros((len(INPUT_NAMES), width, depth))
    count = np.zeros((len(INPUT_NAMES), 1, depth))

    def add(name: str, block: int, _: int, tensor: Tensor) -> None:
        row = INPUT_NAMES.index(name)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN
            total[row, :, block] += reduce(tensor)
        count[row, :, block] += 1

    run_pass(model, tokens, add)
    return total / np.maximum(count, 1)


def run_pass(
    model: LanguageModel, tokens: Tensor, see: See, *, act_gradients: bool = False
) -> None:
    """Run one forward and one backward pass and show every tensor that a proxy may read.

    The model is unchanged afterwards, without gradients; the tokens are [B, T] int64.  `see` is
    called once per tensor with the input's name, the block, the tensor's place among those of the
    block (as in its `ProbePoints`), and the tensor, to be copied if kept; those of `act_gradients`
    are "act_grad".
    """
    with ExitStack() as stack:
        points = model.probe_points()
        weights = {layer.weight for point in points for layer in point.linear}
        stack.enter_context(train_only(model, weights))

        def watch(handle: RemovableHandle) -> None:
            stack.callback(handle.remove)

        for block, point in enumerate(points):
            outputs = {"act": point.act, "head": point.head, "softmax": point.softmax}
            for name, modules in outputs.items():
                for place, module in enumerate(modules):
                    show = partial(see, name, block, place)
                    watch(module.register_forward_hook(partial(_show_output, show)))
            for place, module in enumerate(point.spectrum, len(point.softmax)):
                show = partial(see, "softmax", block, place)
                watch(module.register_forward_hook(partial(_show_softmax, show)))
            show = partial(see, "jacob", block, 0)
            watch(point.block.register_forward_pre_hook(partial(_show_hidden_gradient, show)))
            for place, layer in enumerate(point.linear):
                see("weight", block, place, layer.weight.detach())
                watch(_show_weight_gradient(layer.weight, partial(see, "grad", block, place)))
            for place, module in enumerate(point.act if act_gradients else ()):
                show = partial(see, "act_grad", block, place)
                watch(module.register_forward_hook(partial(_show_output_gradient, show)))
        with torch.enable_grad():
            torch.autograd.backward(model.loss(tokens))


@contextmanager
def train_only(model: nn.Module, chosen: Collection[Tensor]) -> Iterator[None]:
    """Require gradients of chosen parameters alone; then the model is as before, without any."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


def _show_output(show: Show, _: nn.Module, __: object, output: Tensor) -> None:
    show(output.detach())


def _show_softmax(show: Show, _: nn.Module, __: object, output: Tensor) -> None:
    show(output.detach().softmax(-1))


def _show_output_gradient(show: Show, _: nn.Module, __: object, output: Tensor) -> None:
    output.register_hook(show)  # type: ignore[no-untyped-call]


def _show_hidden_gradient(
    show: Show, _: nn.Module, arguments: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    hidden = arguments[0]
    if not hidden.requires_grad:  # the first block: all before it is frozen
        hidden = hidden.detach().requires_grad_()
    hidden.register_hook(show)  # type: ignore[no-untyped-call]
    return (hidden, *arguments[1:])


def _show_weight_gradient(weight: Tensor, show: Show) -> RemovableHandle:
    def show_and_drop(weight: Tensor) -> None:
        if weight.grad is not None:
            show(weight.grad)
            weight.grad = None

    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(show_and_drop)  # type: ignore[no-untyped-call]
    return handle
