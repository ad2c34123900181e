"""What a proxy that the language cannot say is given: the full tensors of one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


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
        inputs: Input name to blocks to tensors, the six inputs of `operators.INPUTS`.
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
