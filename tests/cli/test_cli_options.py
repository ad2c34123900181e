from typing import get_args

import pytest
import typer

from lmscout import proxies
from lmscout.cli import options
from lmscout.cli.main import app
from lmscout.cli.options import parameter_count
from lmscout.discovery import engines
from lmscout.errors import LmscoutError
from lmscout.pruning import budgets, cutting, evaluator, importance
from lmscout.pruning.recovery import training as recovery


def test_choices_are_those_of_the_packages():
    for shown, known in (
        (options.SPACES, (*proxies.SPACES, "deep")),
        (options.ENGINES, engines.ENGINES),
        (options.FITNESS, engines.OBJECTIVES),
        (options.IMPORTANCES, importance.METHODS),
        (options.QUALITIES, evaluator.QUALITIES),
        (options.MEASURES, budgets.MEASURES),
        (options.SHAPES, get_args(cutting.ShapeName)),
        (options.RECOVERIES, recovery.METHODS),
    ):
        assert sorted(shown) == sorted(known)


def leaves(command):
    children = getattr(command, "commands", None)
    return [one for child in children.values() for one in leaves(child)] if children else [command]


@pytest.mark.parametrize("command", leaves(typer.main.get_command(app)), ids=lambda one: one.name)
def test_every_option_has_a_group_a_type_and_help(command):
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden and one.name != "help":
            assert one.rich_help_panel, one.name
            assert one.help, one.name
            assert one.is_flag or one.metavar, one.name


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
        ("1500000.0", 1_500_000),
        ("1,500,000", 1_500_000),
        ("1_500_000", 1_500_000),
        ("1.0005k", 1000),
    ],
)
def test_numbers_of_parameters_as_people_write_them(text, count):
    assert parameter_count(text, "--max-params") == count


@pytest.mark.parametrize(
    "text", ["", "M", "3T", "-3M", "0", "0.1", "3.5", "1e6", "3MM", "three", "nan"]
)
def test_what_is_no_number_of_parameters_is_refused(text):
    with pytest.raises(LmscoutError, match=r"^--max-params .*3M, 120k"):
        parameter_count(text, "--max-params")
