import pytest

from lmscout.cli.options import parameter_count
from lmscout.errors import LmscoutError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3M", 3_000_000),
        ("120k", 120_000),
        ("120 K", 120_000),
        ("1.5G", 1_500_000_000),
        ("7b", 7_000_000_000),
        ("0.3m", 300_000),
        ("1500000", 1_500_000),
        ("1,500,000", 1_500_000),
        ("1_500_000", 1_500_000),
        ("1.0005k", 1000),
    ],
)
def test_numbers_of_parameters_as_people_write_them(text, count):
    assert parameter_count(text, "--max-params") == count


@pytest.mark.parametrize("text", ["", "M", "3T", "-3M", "0", "0.1", "1e6", "3MM", "three", "nan"])
def test_what_is_no_number_of_parameters_is_refused(text):
    with pytest.raises(LmscoutError, match=r"^--max-params .*3M, 120k"):
        parameter_count(text, "--max-params")
