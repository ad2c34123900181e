"""`lmscout demo`, as installed, in an empty folder, with nothing but what it brings along."""

import re

import pytest


@pytest.mark.slow
def test_both_halves_run_on_what_is_brought_along(lmscout, tmp_path):
    code, out, err = lmscout(
        "demo", LMSCOUT_CACHE=str(tmp_path / "cache"), LMSCOUT_DATA=str(tmp_path / "none")
    )
    assert (code, err) == (0, "")
    for words in (
        "pico",
        "best proxy",
        "snip",
        "depth²×width",
        "uniform",
        "found",
        "def __repr__(self):",
    ):
        assert words in out
    values = {
        name.strip(): float(value)
        for name, value in re.findall(
            r"^(.+?) +[\d,]+(?: +[\d.]+%){2} +\S+ +([\d.]+) +\S+%", out, re.MULTILINE
        )
    }
    assert values["dense"] < values["found"] < values["uniform, compensated"] < values["uniform"]
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_its_help_does_not_run_it(lmscout):
    code, out, _ = lmscout("demo", "--help")
    assert code == 0
    assert "three minutes" in out
