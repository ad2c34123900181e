import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.discovery import split_benchmark
from lmscout.discovery.scorer import search_size
from lmscout.errors import LmscoutError


@given(
    n=st.integers(12, 60),
    repeats=st.integers(0, 4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_a_split_is_a_partition_that_keeps_equal_architectures_together(n, repeats, seed, data):
    architectures = [*range(n), *range(repeats)]
    search = data.draw(st.integers(5, n + repeats - 5))
    split = split_benchmark(architectures, search=search, seed=seed)
    assert len(split.search) == search
    rows = np.concatenate([split.search, split.test])
    assert sorted(rows) == list(range(len(architectures)))
    sides = [{architectures[row] for row in side} for side in (split.search, split.test)]
    assert not sides[0] & sides[1]


def test_the_seed_decides():
    architectures = list(range(50))
    one, same, other = (split_benchmark(architectures, search=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.search, same.search)
    assert not np.array_equal(one.search, other.search)


@pytest.mark.parametrize(
    ("search", "message"),
    [(96, "does not fit a benchmark of 100"), (1000, "at most 95"), (2, "too small: at least 5")],
)
def test_sizes_that_cannot_be_met_are_refused(search, message):
    with pytest.raises(LmscoutError, match=message):
        split_benchmark(list(range(100)), search=search, seed=0)


def test_equal_architectures_that_would_have_to_be_parted_are_told():
    with pytest.raises(LmscoutError, match="without parting equal architectures"):
        split_benchmark(["a"] * 10 + ["b"] * 10, search=7, seed=0)


@pytest.mark.parametrize(
    ("architectures", "size"), [(240, 100), (200, 100), (61, 30), (12, 6), (10, 5)]
)
def test_by_default_half_of_the_architectures_are_search_data_at_most_100(architectures, size):
    assert search_size(None, architectures) == size
    assert search_size(7, architectures) == 7
    split = split_benchmark(range(architectures), search=size, seed=0)
    assert len(split.search) == size
