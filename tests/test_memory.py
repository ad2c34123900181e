import pytest

from lmscout.errors import LmscoutError
from lmscout.memory import available_memory, require_memory, total_memory


def test_what_cannot_fit_is_refused_and_what_can_is_not():
    assert 2**26 < available_memory() <= total_memory()
    require_memory("this", available_memory() // 2, "wait")
    with pytest.raises(LmscoutError, match=r"this needs too much memory .*GiB.*; wait"):
        require_memory("this", 2 * total_memory(), "wait")
