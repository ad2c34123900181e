"""What is read off a study before it is opened; looking makes no file."""

import pytest

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.study import Pair, PairStudy
from lmscout.pruning.study_record import recorded_chunks


def test_portions_are_those_of_a_whole_pair(tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    for storage in (tmp_path, url):
        assert recorded_chunks(storage) is None
    assert list(tmp_path.iterdir()) == []
    with PairStudy(url, Shape((2,), (4,), (1,), (1,)), {}) as pair_study:
        assert recorded_chunks(url) is None
        pair_study.add(Pair(Plan((1,), (1,)), 2.0, 10, partial=True, trajectory=((10, 2.0),)))
        pair_study.add(
            Pair(Plan((1,), (2,)), 1.0, 30, trajectory=((10, 2.0), (20, 1.5), (30, 1.0)))
        )
    assert recorded_chunks(url) == 3
    assert recorded_chunks(url, "another") is None


def test_what_is_no_storage_is_told(tmp_path):
    (tmp_path / "ledger.db").write_text("no database")
    for url, message in (
        (tmp_path, "is no SQLite database"),
        ("mystery://x", "study at mystery://x: Can't load plugin"),
        ("sqlite://", "is in memory"),
        ("://", "study at ://: Could not parse"),
    ):
        with pytest.raises(LmscoutError, match=message):
            recorded_chunks(url)
