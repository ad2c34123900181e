"""Means of all prefixes at once, against each prefix reduced by the definition."""

import numpy as np
import pytest
import torch

from lmscout.proxies.primitives import UNARY, reduce
from lmscout.pruning.prefix_tables import prefix_means

NAMES = [entry.name for entry in UNARY]
# shape, axis that follows units, units: of two entries each, of one, and of a stack of them
PLACES = [
    ((8, 5), 0, 4),
    ((5, 8), 1, 4),
    ((6, 3), 0, 6),
    ((3, 4, 6), 2, 3),
    ((2, 4, 3, 3), 1, 2),
    ((1, 4), 1, 4),
    ((3, 4, 5), 0, 1),
]


@pytest.mark.parametrize(("shape", "axis", "units"), PLACES)
@pytest.mark.parametrize("shift", [0.0, 3.0, -2.0])
def test_every_prefix_of_every_operation_is_as_defined(shape, axis, units, shift):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + shift
    table = prefix_means(tensor, axis, units, NAMES)
    assert (table[:, 0] == 0).all()
    each = shape[axis] // units
    for kept in range(1, units + 1):
        first = tensor.narrow(axis, 0, kept * each)
        wanted = [reduce((name,), first) for name in NAMES]
        np.testing.assert_allclose(table[:, kept], wanted, rtol=2e-5, atol=2e-6)


def test_zeros_and_equal_elements_have_the_values_that_guards_give():
    tensor = torch.zeros(4, 3)
    tensor[2:] = 1.0
    table = prefix_means(tensor, 0, 4, NAMES)
    for kept in range(1, 5):
        wanted = [reduce((name,), tensor[:kept]) for name in NAMES]
        np.testing.assert_allclose(table[:, kept], wanted, rtol=1e-6, atol=1e-7)
