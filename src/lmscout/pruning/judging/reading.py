"""One forward and one backward through a trained model, shown tensor by tensor.

What a proxy reads of an untrained architecture, here of the model whose units are sorted: each
tensor comes with the axis along which it follows units, so that a prefix of it is what a plan
keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import (
    ATTENTION,
    MLP,
    Affine,
    AttentionParts,
    Family,
    MlpParts,
)
from lmscout.pruning.subnetworks.loss_scale import loss_scale
from lmscout.statistics.single_pass import only_these_learn

BLOCK = "block"  # of a tensor that follows no units: it stays while anything of its block does


@dataclass(frozen=True)
class Place:
    """Tensors of one shape that stand in one place of a block.

    Attributes:
        block: which block.
        kind: "attention", "mlp", or "block" where the tensors follow no units.
        stack: of `proxies.primitives.STACKS`: "linear", "act", "hidden", "head" or "softmax".
        tensors: by leaf: "weight" and "grad", "act" and "act_grad", "jacob", "head", "softmax";
            in the model's dtype, but gradients of a float16 model, which are float32.
        axis: along which they follow units.
        units: how many there are; 1 where they follow none.
    """

    block: int
    kind: str
    stack: str
    tensors: Mapping[str, Tensor]
    axis: int
    units: int

    def first(self, count: int) -> dict[str, Tensor]:
        """What stays of the tensors where the first units are kept, as views."""
        if self.kind == BLOCK:
            return dict(self.tensors)
        return {
            name: one.narrow(self.axis, 0, one.shape[self.axis] // self.units * count)
            for name, one in self.tensors.items()
        }


See = Callable[[Place], None]


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32 or wider, as formulas want them: in float16 their guard of 1e-9 is 0."""
    return {
        name: one.to(torch.promote_types(one.dtype, torch.float32)) for name, one in tensors.items()
    }


class _Gradients:
    """Gradients of the loss, from those of a multiple of it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._finite: list[Tensor] = []

    def of_loss(self, gradient: Tensor) -> Tensor:
        """One of them; what overflowed is told by `finite`, so that no GPU is waited for here."""
        if self.scale == 1:
            return gradient
        self._finite.append(torch.isfinite(gradient).all())
        return gradient.float() / self.scale

    @property
    def finite(self) -> bool:
        """Whether none has overflowed so far."""
        return all(map(bool, self._finite))


def read_trained(model: PreTrainedModel, family: Family, tokens: Tensor, see: See) -> None:
    """Run one forward and one backward and show every tensor that a proxy may read.

    The loss is the mean next-token cross-entropy.  Weights are the model's own, seen through
    the family's views; a gradient is let go of as soon as it was shown, and so is all else
    that `see` does not keep.

    Args:
        model: its units in final order; left as it was found, without gradients.
        family: its family.
        tokens: [B, T] int64, on any device.
        see: called once a place.

    Raises:
        LmscoutError: the loss is not finite, or a gradient is not in float16.
    """
    tokens = tokens.to(model.device)
    gradients = _Gradients(loss_scale(model.dtype, tokens[:, 1:].numel()))
    with only_these_learn(model, ()), torch.enable_grad():
        hidden = family.embed(model, tokens).detach().requires_grad_()
        context = family.context(model, hidden)
        for index, block in enumerate(family.blocks(model)):
            parts = family.parts(block)
            _watch(hidden, partial(_see_hidden, see, gradients, index))
            attention = parts.attention.with_maps(
                _learning_maps(see, gradients, index, ATTENTION, parts.attention)
            )
            normed = family.attention_norm(block, hidden)
            inner = family.attend(block, attention, normed, context)
            hidden = hidden + attention.output.apply(inner)
            with torch.no_grad():
                for one in parts.attention.inputs:
                    head = {"head": one.apply(normed)}
                    see(Place(index, ATTENTION, "head", head, 2, parts.attention.units))
                attended = family.probabilities(block, parts.attention, normed, context)
                softmax = {"softmax": attended}
                see(Place(index, ATTENTION, "softmax", softmax, 1, parts.attention.units))
            mlp = parts.mlp.with_maps(_learning_maps(see, gradients, index, MLP, parts.mlp))
            act, inner = family.activated(block, mlp, family.mlp_norm(block, hidden))
            _watch(act, partial(_see_activation, see, gradients, index, act.detach()))
            hidden = hidden + mlp.output.apply(inner)
        logits = family.logits(model, hidden)[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise LmscoutError(
                f"the model's loss on calibration text is {loss.item()}: is the model sound?"
            )
        torch.autograd.backward(loss * gradients.scale)
    if not gradients.finite:
        raise LmscoutError(
            "the model's gradients overflow in float16: read it in bfloat16 or float32 (--dtype)"
        )


def _watch(tensor: Tensor, see: Callable[[Tensor], None]) -> None:
    """Show a tensor's gradient when it arrives."""
    tensor.register_hook(see)  # type: ignore[no-untyped-call]


def _see_hidden(see: See, gradients: _Gradients, block: int, gradient: Tensor) -> None:
    see(Place(block, BLOCK, "hidden", {"jacob": gradients.of_loss(gradient.detach())}, 0, 1))


def _see_activation(
    see: See, gradients: _Gradients, block: int, act: Tensor, gradient: Tensor
) -> None:
    tensors = {"act": act, "act_grad": gradients.of_loss(gradient.detach())}
    see(Place(block, MLP, "act", tensors, 2, act.shape[2]))


def _learning_maps(
    see: See, gradients: _Gradients, block: int, kind: str, part: AttentionParts | MlpParts
) -> list[Affine]:
    """The maps of attention or MLP, in the order of `unit_maps`."""
    rows = partial(_learning, see, gradients, block, kind, 0, part.units)
    columns = partial(_learning, see, gradients, block, kind, 1, part.units)
    return [*map(rows, part.inputs), columns(part.output)]


def _learning(
    see: See,
    gradients: _Gradients,
    block: int,
    kind: str,
    axis: int,
    units: int,
    affine: Affine,
) -> Affine:
    """The same map, its weight a leaf of the graph whose gradient is shown and dropped."""

    def arrived(weight: Tensor) -> None:
        if weight.grad is not None:
            tensors = {"weight": weight.detach(), "grad": gradients.of_loss(weight.grad)}
            see(Place(block, kind, "linear", tensors, axis, units))
            weight.grad = None

    leaf = affine.weight.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
    return Affine(leaf, affine.bias)
