import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscout.proxies.primitives import (
    AGGREGATION,
    AGGREGATIONS,
    BINARY,
    INPUT,
    INPUTS,
    UNARY,
    UNARY_OPERATION,
    reduce,
)

# The twenty of LPZero in its order, with our names.
EXPECTED = (
    ("element_wise_log", "log"),
    ("element_wise_abslog", "abslog"),
    ("element_wise_abs", "abs"),
    ("element_wise_pow", "square"),
    ("element_wise_exp", "exp"),
    ("normalize", "normalize"),
    ("element_wise_relu", "relu"),
    ("element_wise_invert", "invert"),
    ("frobenius_norm", "frobenius"),
    ("element_wise_normalized_sum", "meansum"),
    ("l1_norm", "l1"),
    ("softmax", "softmax"),
    ("sigmoid", "sigmoid"),
    ("logsoftmax", "logsoftmax"),
    ("element_wise_sqrt", "sqrt"),
    ("element_wise_revert", "negate"),
    ("min_max_normalize", "minmax"),
    ("to_mean_scalar", "mean"),
    ("to_std_scalar", "std"),
    ("no_op", "identity"),
)
SCALAR = {"frobenius", "meansum", "l1", "mean", "std"}
NAMES = [ours for _, ours in EXPECTED]


# The plain definitions: lists of Python floats in, a list or a float out.
def plain_std(xs):
    if len(xs) == 1:
        return 0.0
    centre = math.fsum(xs) / len(xs)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in xs) / (len(xs) - 1))


def plain_normalize(xs):
    centre, spread = math.fsum(xs) / len(xs), plain_std(xs)
    return [(x - centre) / (spread + 1e-9) for x in xs]


def plain_invert(xs):
    return [0.0 if x + 1e-9 == 0 else 1 / (x + 1e-9) for x in xs]


def plain_minmax(xs):
    return [(x - min(xs)) / (max(xs) - min(xs) + 1e-9) for x in xs]


def plain_softmax_of_column(xs):
    top = max(xs)
    powers = [math.exp(x - top) for x in xs]
    return [power / math.fsum(powers) for power in powers]


def plain_logsoftmax_of_column(xs):
    top = max(xs)
    return [x - top - math.log(math.fsum(math.exp(y - top) for y in xs)) for x in xs]


PLAIN = {
    "log": lambda xs: [math.log(x) if x > 0 else 0.0 for x in xs],
    "abslog": lambda xs: [math.log(abs(x)) if x != 0 else 0.0 for x in xs],
    "abs": lambda xs: [abs(x) for x in xs],
    "square": lambda xs: [x * x for x in xs],
    "exp": lambda xs: [math.exp(x) for x in xs],
    "normalize": plain_normalize,
    "relu": lambda xs: [max(x, 0.0) for x in xs],
    "invert": plain_invert,
    "frobenius": lambda xs: math.sqrt(math.fsum(x * x for x in xs)),
    "meansum": lambda xs: math.fsum(xs) / len(xs),
    "l1": lambda xs: math.fsum(abs(x) for x in xs) / len(xs),
    "sigmoid": lambda xs: [1 / (1 + math.exp(-x)) for x in xs],
    "sqrt": lambda xs: [math.sqrt(x) if x > 0 else 0.0 for x in xs],
    "negate": lambda xs: [-x for x in xs],
    "minmax": plain_minmax,
    "mean": lambda xs: math.fsum(xs) / len(xs),
    "std": plain_std,
    "identity": list,
}


def plain(name, array):
    """The plain definition of an operation on a NumPy array of any shape."""
    if name in ("softmax", "logsoftmax"):
        of_column = plain_softmax_of_column if name == "softmax" else plain_logsoftmax_of_column
        columns = np.atleast_1d(array).reshape(array.shape[0] if array.ndim else 1, -1).T
        return np.array([of_column(list(column)) for column in columns]).T.reshape(array.shape)
    result = PLAIN[name]([float(x) for x in array.ravel()])
    return np.array(result) if name in SCALAR else np.array(result).reshape(array.shape)


ARRAYS = {
    "mixed": np.array([[-2.0, 0.0, 3.5], [1.0, -0.25, 7.0]]),
    "zeros": np.zeros((3, 2)),
    "negative": np.array([-1.0, -4.0, -1e-9, -9.0]),
    "one element": np.array([[2.5]]),
    "0-dim": np.array(-1.5),
    "0-dim zero": np.array(0.0),
    "3-D": np.random.default_rng(0).normal(size=(4, 3, 5)),
    "equal": np.full((2, 3), 4.25),
    "small and large": np.array([1e-12, 1e-6, 1.0, 30.0, -30.0]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ARRAYS)
def test_operation_is_its_plain_definition(name, case):
    array = ARRAYS[case]
    got = UNARY_OPERATION[name].apply(torch.tensor(array, dtype=torch.float64))
    want = plain(name, array)
    assert tuple(got.shape) == want.shape
    # Where x + 1e-9 nearly cancels, 1 / (x + 1e-9) magnifies the last bit.
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_operation_keeps_single_precision(name):
    array = ARRAYS["3-D"].astype(np.float32)
    got = UNARY_OPERATION[name].apply(torch.tensor(array))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), plain(name, array), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@given(
    values=st.lists(
        st.floats(-20, 20).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=12
    )
)
@settings(deadline=None, max_examples=30)
def test_operation_is_its_plain_definition_on_any_vector(name, values):
    array = np.array(values)
    got = UNARY_OPERATION[name].apply(torch.tensor(array))
    # The spread of nearly equal numbers, and what is divided by it, has few good digits.
    rtol, atol = (1e-4, 1e-5) if name in ("normalize", "minmax", "std") else (1e-10, 1e-10)
    np.testing.assert_allclose(got.numpy(), plain(name, array), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_not_finite_has_no_value(name):
    for bad, shape in product((math.nan, math.inf, -math.inf), ((), (3,), (2, 3), (2, 3, 2))):
        tensor = torch.ones(shape)
        tensor.view(-1)[0] = bad
        got = UNARY_OPERATION[name].apply(tensor)
        assert tuple(got.shape) == (() if name in SCALAR else shape)
        assert torch.isnan(got).all()
        assert math.isnan(reduce((name,), tensor))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_tensor_has_no_value(name):
    got = UNARY_OPERATION[name].apply(torch.empty(0, 3))
    assert tuple(got.shape) == (() if name in SCALAR else (0, 3))
    assert math.isnan(reduce((name,), torch.empty(0, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_operation_never_modifies_its_input(name):
    for array in ARRAYS.values():
        tensor = torch.tensor(array)
        before = tensor.clone()
        UNARY_OPERATION[name].apply(tensor)
        reduce((name, name), tensor)
        assert torch.equal(tensor, before)
        assert torch.equal(torch.signbit(tensor), torch.signbit(before))


def test_overflow_of_a_finite_tensor_is_infinity_and_then_no_value():
    tensor = torch.tensor([0.0, 100.0])
    assert reduce(("exp",), tensor) == math.inf
    assert reduce(("square",), torch.tensor([1e30])) == math.inf
    assert math.isnan(reduce(("exp", "log"), tensor))


def test_invert_at_its_pole_is_zero():
    assert UNARY_OPERATION["invert"].apply(torch.tensor([-1e-9, 0.0])).tolist() == [
        0.0,
        pytest.approx(1e9),
    ]


def test_softmax_runs_over_the_first_axis_and_a_scalar_has_only_itself():
    tensor = torch.tensor([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]])
    assert torch.allclose(UNARY_OPERATION["softmax"].apply(tensor), torch.full((3, 2), 1 / 3))
    assert reduce(("mean", "softmax"), tensor) == 1.0
    assert reduce(("mean", "logsoftmax"), tensor) == 0.0


def test_sums_accumulate_in_double_precision():
    tensor = torch.full((100_001,), 0.1)
    exact = float(torch.tensor(0.1).double())
    assert reduce(("meansum",), tensor) == pytest.approx(exact, rel=1e-7)
    assert reduce(("frobenius",), torch.full((2,), 1e25)) == pytest.approx(math.sqrt(2) * 1e25)


@given(
    chain=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    values=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=6),
)
@settings(deadline=None, max_examples=150)
def test_reduce_is_the_plain_chain_and_its_mean(chain, values):
    array = np.array(values)
    for name in chain:
        array = plain(name, array)
        # Beyond this the plain definition's math.exp overflows.
        if np.abs(array).max() > 500:
            return
    tensor = torch.tensor(values, dtype=torch.float64)
    assert reduce(tuple(chain), tensor) == pytest.approx(array.mean(), rel=1e-6, abs=1e-6)


def test_reduce_ignores_autograd_and_keeps_it():
    tensor = torch.ones(3, requires_grad=True)
    assert reduce(("square",), tensor) == 1.0
    assert tensor.grad is None
    assert tensor.requires_grad


def test_tables_are_the_published_ones_in_order():
    assert tuple((entry.upstream, entry.name) for entry in UNARY) == EXPECTED
    assert [entry.name for entry in INPUTS] == [
        "act",
        "jacob",
        "grad",
        "head",
        "weight",
        "softmax",
    ]
    assert [(entry.name, entry.symbol) for entry in BINARY] == [
        ("sum", "+"),
        ("difference", "-"),
        ("product", "*"),
        ("matrix_product", "@"),
    ]
    assert [entry.name for entry in AGGREGATIONS] == ["mean", "sum", "max", "min"]


def test_tables_by_name_hold_the_same_entries_and_cannot_change():
    for table, by_name in (
        (INPUTS, INPUT),
        (UNARY, UNARY_OPERATION),
        (AGGREGATIONS, AGGREGATION),
    ):
        assert tuple(by_name.values()) == table
        with pytest.raises(TypeError):
            by_name["other"] = table[0]


def test_every_entry_says_what_it_is():
    for entry in UNARY:
        assert entry.scalar == (entry.name in SCALAR)
        assert entry.definition
        assert entry.guard
        assert entry.latex.count("#1") == 1
        assert "2410.04808" in entry.source
    for entry in AGGREGATIONS:
        assert entry.latex.count("#1") == 1
