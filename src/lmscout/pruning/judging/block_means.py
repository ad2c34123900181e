"""The twenty unary means of the six inputs in every block of a trained model.

What proxies of the published space read of an untrained architecture, here of a transformers
model of any size, in its own dtype and on its own device: every tensor is reduced when it
arrives and let go of, nothing but a gradient in float16 is copied to another dtype whole, and a
GPU is waited for once, at the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.families import Family
from lmscout.pruning.judging.reading import Place, read_trained
from lmscout.statistics.reductions import tensor_totals
from lmscout.statistics.single_pass import INPUT_NAMES
from lmscout.statistics.totals import OPERATIONS, means_of_totals


def read_block_means(
    model: PreTrainedModel, family: Family, windows: Tensor
) -> npt.NDArray[np.float64]:
    """Run one forward and one backward and reduce the six inputs of every block.

    Args:
        model: any dtype and device; left as it was found, without gradients.
        family: its family.
        windows: [B, T] int64 on any device, read at once.

    Returns:
        [inputs, 20, blocks] float64 in the order of `INPUT_NAMES` and `OPERATIONS`, a row of
        `statistics.Statistics` with chains of one: for each input the mean of the means of the
        block's tensors; NaN where one of them holds a NaN or an infinity.

    Raises:
        LmscoutError: the loss is not finite.
    """
    found: list[tuple[int, int]] = []
    totals: list[Tensor] = []

    def see(place: Place) -> None:
        read = {name: one for name, one in place.tensors.items() if name in INPUT_NAMES}
        found.extend((INPUT_NAMES.index(name), place.block) for name in read)
        totals.append(tensor_totals(list(read.values())))

    read_trained(model, family, windows, see)
    means = means_of_totals(torch.cat(totals).cpu().numpy())
    table = np.zeros((len(INPUT_NAMES), len(family.blocks(model)), len(OPERATIONS)))
    count = np.zeros((*table.shape[:2], 1))
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and meant
        for place, row in zip(found, means, strict=True):
            table[place] += row
            count[place] += 1
    return np.swapaxes(table / np.maximum(count, 1), 1, 2)
