import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from plain_definitions import TENSORS, check_means, normal

from lmscout.proxies.primitives import UNARY_OPERATION, reduce
from lmscout.statistics import OPERATIONS, chain_means, reductions, unary_means


def check(tensor):
    check_means(tensor, unary_means(tensor))


@pytest.fixture
def cut(monkeypatch):
    """Make the pieces of a walk small, and its buffers to match."""

    def set_piece(size):
        monkeypatch.setattr(reductions, "_PIECE", size)

    return set_piece


@pytest.mark.parametrize("name", TENSORS)
def test_means_are_the_plain_definitions(name):
    check(TENSORS[name])


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_means_do_not_depend_on_how_the_walk_is_cut(cut, size):
    cut(size)
    for tensor in TENSORS.values():
        if tensor.numel() / size <= 400:
            check(tensor)


def test_tensors_larger_than_a_piece_and_rows_longer_than_one():
    piece = reductions._PIECE
    check(normal(300, 1000, scale=0.02))
    check(normal(3, piece + 5))
    check(normal(2 * piece + 1) + 3)
    check(normal(1, 2 * piece + 7))
    check(normal(3, 2, 300, 120).softmax(-1))
    wide = normal(700, 300) * 60
    assert wide.numel() > piece
    check(wide)


def test_pieces_of_every_kind_in_one_tensor(cut):
    cut(16)
    magnitudes = torch.tensor([1e-30, 1e-12, 0.0, 0.02, 1.0, 70.0, 150.0, 1e9, 1e20])
    check(normal(9, 16) * magnitudes[:, None])
    check(normal(9, 16) * magnitudes[:7, None].repeat(2, 1)[:9])
    check(normal(9, 16).abs() * magnitudes[:4].repeat(3)[:9, None])


@settings(max_examples=100, deadline=None)
@given(
    values=arrays(
        np.float32,
        array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=6),
        elements=st.one_of(
            st.floats(-300, 300, width=32),
            st.floats(-1, 1, width=32),
            st.sampled_from([0.0, -0.0, 1.0, -1e-9, 1e-12, -1e-12]).map(np.float32),
        ),
    ),
    piece=st.sampled_from([1, 2, 3, 5, 8, 1 << 10]),
)
@example(values=np.array([88.7, 88.8, 0.0], np.float32), piece=2)
@example(values=np.array([[-1e-9, -1e-9]], np.float32), piece=1)
@example(values=np.array(-89, np.float32), piece=1)
def test_any_finite_tensor(values, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reductions, "_PIECE", piece)
        check(torch.from_numpy(np.array(values)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 50, 99])
@pytest.mark.parametrize("piece", [7, 1 << 17])
def test_a_tensor_that_is_not_finite_has_no_means(cut, bad, place, piece):
    cut(piece)
    tensor = normal(10, 10)
    tensor.view(-1)[place] = bad
    means = unary_means(tensor)
    assert means.shape == (20,)
    assert np.isnan(means).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_an_empty_tensor_has_no_means(shape):
    assert np.isnan(unary_means(torch.empty(shape))).all()


def test_what_is_equal_by_definition_is_equal_to_the_bit(cut):
    cut(64)

    def of(tensor):
        return dict(zip(OPERATIONS, unary_means(tensor), strict=True))

    for tensor in (TENSORS["weights"], TENSORS["causal probabilities"], TENSORS["mean >> std"]):
        got = of(tensor)
        assert got["mean"] == got["meansum"] == got["identity"] == -got["negate"]
        assert got["abs"] == got["l1"]
    for name in ("probabilities", "causal probabilities", "positive and zero", "mean >> std"):
        got = of(TENSORS[name])
        assert got["relu"] == got["abs"] == got["identity"]
        assert got["log"] == got["abslog"]
    for name in ("negative", "negative and zero"):
        got = of(TENSORS[name])
        assert got["relu"] == got["log"] == got["sqrt"] == 0.0
        assert got["abs"] == got["negate"]


def test_constants_are_exact():
    for tensor in (torch.full((300, 700), 0.1), torch.full((5, 3), -1e6), torch.tensor(0.3)):
        got = dict(zip(OPERATIONS, unary_means(tensor), strict=True))
        assert got["std"] == got["minmax"] == 0.0
        assert got["mean"] == tensor.flatten()[0].item()
    # One row is its own softmax over the first axis, so that a scalar's logarithm of it is 0
    # and no rounding noise can be ranked.
    for tensor in (torch.tensor(0.3), torch.tensor(777.7), normal(1, 20)):
        got = dict(zip(OPERATIONS, unary_means(tensor), strict=True))
        assert (got["softmax"], got["logsoftmax"]) == (1.0, 0.0)


def test_the_first_axis_is_the_one_softmax_normalises():
    tensor = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    got = dict(zip(OPERATIONS, unary_means(tensor), strict=True))
    assert got["softmax"] == 0.5
    assert got["logsoftmax"] == pytest.approx(
        (2 * math.log(1 / 2) + math.log(1 / 4) + math.log(3 / 4)) / 4
    )


def test_the_tensor_is_left_alone():
    for name in ("weights", "causal probabilities", "up to 300", "squares beyond float32"):
        tensor = TENSORS[name].clone().requires_grad_()
        unary_means(tensor)
        chain_means(tensor, [("invert", "log"), ("relu", "exp")])
        assert torch.equal(tensor, TENSORS[name])
        assert tensor.grad is None


CANCELLING = {"logsoftmax", "minmax", "mean", "meansum", "identity", "negate"}
CHAINS = tuple(itertools.product(OPERATIONS, repeat=2))


@pytest.mark.parametrize(
    "name",
    ["weights", "4-D", "zeros among normals", "causal probabilities", "up to 300", "one column"],
)
def test_chains_of_two_are_those_of_the_language(name):
    tensor = TENSORS[name][:12]
    got = chain_means(tensor, CHAINS)
    finite = 0
    for (first, second), value in zip(CHAINS, got, strict=True):
        inner = UNARY_OPERATION[first].apply(tensor)
        scale = UNARY_OPERATION[second].apply(inner).double().abs().mean().item()
        expected = reduce((first, second), tensor)
        if not math.isfinite(expected):
            assert value == pytest.approx(expected, nan_ok=True), (first, second)
            continue
        finite += 1
        # A difference rounds in proportion to its terms, whatever it cancels to.
        size = inner.double().abs().max().item() if second in CANCELLING else 0.0
        tolerance = 1e-5 * scale + 1e-6 * size
        assert value == pytest.approx(expected, abs=tolerance, rel=0), (first, second)
    assert finite >= 340


def test_chains_of_one_and_three_and_chains_twice():
    tensor = TENSORS["weights"]
    chains = [("abs",), ("square", "exp", "log"), ("abs",), ("square", "exp", "std"), ("std",)]
    got = chain_means(tensor, chains)
    assert got == pytest.approx([reduce(chain, tensor) for chain in chains], rel=1e-5)
    singles = chain_means(tensor, [(name,) for name in OPERATIONS])
    assert singles.tolist() == unary_means(tensor).tolist()
