"""Three seconds of hostile input for each reader; bench/fuzz.py runs them for longer."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from fuzz import READERS, fuzz  # noqa: E402


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded through /proc")
@pytest.mark.parametrize("reader", READERS)
def test_hostile_input_is_one_line(reader, tmp_path):
    found = fuzz(reader, seconds=3, seed=0, keep=tmp_path)
    assert not found.failures
    assert found.tried > 0
