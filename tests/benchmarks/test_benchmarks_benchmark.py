import math

import numpy as np
import pytest

from lmscout.benchmarks import Benchmark
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec


def made(**changes):
    specs = tuple(Gpt2Spec(width=w, heads=(2,), inner=(5,), embedding_width=8) for w in (4, 6, 8))
    fields = {
        "name": "small",
        "specs": specs,
        "quality": np.array([1.0, 3.0, 2.0]),
        "metric": "score",
        "identifiers": ("a", "b", "c"),
        "source": "small.json",
    }
    return Benchmark(**{**fields, **changes})


def test_subset_takes_rows_in_the_order_given():
    whole = made()
    part = whole.subset(np.array([2, 0]))
    assert len(whole) == 3
    assert len(part) == 2
    assert [spec.width for spec in part.specs] == [8, 4]
    assert part.quality.tolist() == [2.0, 1.0]
    assert part.identifiers == ("c", "a")
    assert (part.name, part.metric, part.source) == (whole.name, whole.metric, whole.source)
    assert whole.subset([1]).identifiers == ("b",)
    with pytest.raises(LmscoutError, match="rows are 0 to"):
        whole.subset([3])
    for nothing in ([], [1.5], [True, False, True], np.array([True, False, True]), 2):
        with pytest.raises(LmscoutError, match="small: subset takes numbers of rows"):
            whole.subset(nothing)


def test_quality_is_float64_and_cannot_be_changed_from_either_side():
    given = np.array([1, 3, 2], dtype=np.int32)
    benchmark = made(quality=given)
    given[0] = 99
    assert benchmark.quality.dtype == np.float64
    assert benchmark.quality.tolist() == [1.0, 3.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        benchmark.quality[0] = 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quality": np.array([1.0, 2.0])}, "3 architectures, 2 qualities and 3 identifiers"),
        ({"quality": np.array([1.0, math.nan, 2.0])}, "small.json: b: quality is nan"),
        ({"identifiers": ("a", "b", "a")}, "small.json: two rows are called a"),
    ],
)
def test_rows_that_do_not_agree_are_refused(changes, said):
    with pytest.raises(LmscoutError, match=said):
        made(**changes)


def test_a_benchmark_too_large_to_compare_is_refused_at_once():
    n = 200_000
    spec = made().specs[0]
    with pytest.raises(LmscoutError, match=r"small.json: holds too many architectures \(got 200,0"):
        made(specs=(spec,) * n, quality=np.zeros(n), identifiers=tuple(map(str, range(n))))
    n, last = 20_000, 19_998
    names = (*map(str, range(n - 1)), str(last))
    with pytest.raises(LmscoutError, match=r"two rows are called 19998"):
        made(specs=(spec,) * n, quality=np.zeros(n), identifiers=names)
