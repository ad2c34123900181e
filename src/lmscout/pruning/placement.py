"""Where a model is: on one device, or its blocks in contiguous ranges on several.

Embeddings are with the first block, final norm and head with the last one; a head that is tied to
the embeddings is with these.  A hidden state moves where it enters a block of another device:
`Sublayer.step` moves it, and hooks do in the model's own forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmscout.pruning.families import Family


def block_devices(model: PreTrainedModel, family: Family) -> list[torch.device]:
    """The device of every block."""
    return [next(block.parameters()).device for block in family.blocks(model)]


def spread(
    model: PreTrainedModel, family: Family, devices: Sequence[torch.device]
) -> list[torch.device]:
    """A device for every block, so that each has about as many bytes of the model."""
    numbers = range(len(family.blocks(model)))
    sizes: Counter[int] = Counter()
    for one, number in homes(model, family, numbers):
        sizes[number] += one.nbytes
    before = list(accumulate((sizes[number] for number in numbers), initial=0))
    middles = [(one + after) / 2 / before[-1] for one, after in pairwise(before)]
    found = [devices[int(len(devices) * middle)] for middle in middles]
    return [devices[0], *found[1:-1], devices[-1]] if len(found) > 1 else found


def homes(model: Any, family: Family, blocks: Sequence[Any]) -> list[tuple[Tensor, Any]]:
    """Every parameter and buffer with the device where it goes, from those of the blocks."""
    found: dict[int, Any] = {}
    ends = (family.final_norm(model), blocks[-1]), (model.get_output_embeddings(), blocks[-1])
    parts = *ends, (model.get_input_embeddings(), blocks[0])  # a tied head is with these
    for part, home in (*parts, *zip(family.blocks(model), blocks, strict=True)):
        found |= {id(one): home for one in (*part.parameters(), *part.buffers())}
    tensors = *model.parameters(), *model.buffers()
    return [(one, found.get(id(one), blocks[0])) for one in tensors]


@torch.no_grad()
def place(
    model: PreTrainedModel, family: Family, blocks: Sequence[torch.device]
) -> PreTrainedModel:
    """Move a model, in place, so that its blocks are on these devices."""
    whole: Any = model
    if len(set(blocks)) == 1:
        return whole.to(blocks[0])  # type: ignore[no-any-return]
    for one, home in homes(model, family, blocks):
        one.data = one.data.to(home)
    ends = family.final_norm(model), whole.get_output_embeddings()
    for part in (*family.blocks(model), *ends):
        part.register_forward_pre_hook(_bring, with_kwargs=True)
    return model


def _bring(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Move the arguments of a module to its device."""
    device = next(module.parameters()).device
    return _moved(args, device), _moved(kwargs, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return value
