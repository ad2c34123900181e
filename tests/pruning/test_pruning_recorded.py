"""What is read off a ledger before it is opened; looking makes no file."""

import pytest

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.study import Ledger, Pair
from lmscout.pruning.study_record import begun_portions


def test_portions_are_those_of_a_whole_pair(tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    for storage in (tmp_path, url):
        assert begun_portions(storage) is None
    assert list(tmp_path.iterdir()) == []
    with Ledger(url, Shape((2,), (4,), (1,), (1,)), {}) as ledger:
        assert begun_portions(url) is None
        ledger.add(Pair(Plan((1,), (1,)), 2.0, 10, partial=True, course=((10, 2.0),)))
        ledger.add(Pair(Plan((1,), (2,)), 1.0, 30, course=((10, 2.0), (20, 1.5), (30, 1.0))))
    assert begun_portions(url) == 3
    assert begun_portions(url, "another") is None


def test_what_is_no_storage_is_told(tmp_path):
    (tmp_path / "ledger.db").write_text("no database")
    for url, message in (
        (tmp_path, "is no SQLite database"),
        ("mystery://x", "study at mystery://x: Can't load plugin"),
        ("sqlite://", "is in memory"),
        ("://", "study at ://: Could not parse"),
    ):
        with pytest.raises(LmscoutError, match=message):
            begun_portions(url)
