"""Studies whose contents were edited: one line that names the place, whatever was written."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pruning_study import SETTINGS, SHAPE, pair, plans

from lmscout.errors import LmscoutError
from lmscout.pruning.measuring import Rounds
from lmscout.pruning.storage import FILE_NAME
from lmscout.pruning.study import SETTINGS as MEASURED
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_record import read_recorded, recorded_chunks

ORIGIN = {"model": "m", "text": "t", "final_tokens": 100, "dtype": "float32"}
KNOWN = {"window": 8, "importance": "taylor", "compensate": True, "quality": "nll"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A study of six pairs with notes."""
    folder = tmp_path_factory.mktemp("kept")
    with PairStudy(folder, SHAPE, SETTINGS | KNOWN) as pair_study:
        for plan in plans(6):
            pair_study.add(pair(plan))
        pair_study.note("origin", json.dumps(ORIGIN))
        pair_study.note("tail", "0.5")
    return folder / FILE_NAME


def edited(kept, folder, *statements):
    """A copy in a folder, after statements of SQL with their values."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(kept, folder / FILE_NAME)
    with closing(sqlite3.connect(folder / FILE_NAME)) as tables, tables:
        for statement, *values in statements:
            assert tables.execute(statement, values).rowcount
    return folder


def read(folder):
    """What `prune` and `discover` read of a study: pairs, notes and settings."""
    recorded_chunks(folder)
    with PairStudy(folder, SHAPE, SETTINGS | KNOWN) as pair_study:
        Rounds.of(pair_study, 0.0)
        return pair_study.pairs(), read_recorded(folder)


THIRD = "where trial_id = (select trial_id from trials where number = 3)"
ATTRIBUTE = f"update trial_user_attributes set value_json = ? {THIRD} and key = ?"
VALUE = f"update trial_values set value = ? {THIRD}"
MIDDLE = f"update trial_intermediate_values set intermediate_value = ? {THIRD}"
PARAM = f"update trial_params set param_value = ? {THIRD} and param_name = 'block01.mlp'"
NOTE = "update study_user_attributes set value_json = ? where key = ?"


def setting(**changes):
    shape = {"groups": "4 4 4", "channels": "50 50 50"}
    return NOTE, json.dumps({**SETTINGS, **KNOWN, **shape, **changes}), MEASURED


def origin(**changes):
    return NOTE, json.dumps(json.dumps({**ORIGIN, **changes})), "lmscout.origin"


EDITS = {
    "value of words": ((VALUE, "words"), "trial 3 "),
    "value of bytes": ((VALUE, b"\xff\x00"), "trial 3 "),
    "no value": ((f"delete from trial_values {THIRD}",), "trial 3 "),
    "value without end": (
        (f"update trial_values set value_type = 'INF_POS', value = null {THIRD}",),
        "trial 3 ",
    ),
    "kind of value": ((f"update trial_values set value_type = 'ODD' {THIRD}",), "trial 3 "),
    "course of words": ((MIDDLE, "words"), "trial 3 "),
    "course of nothing": (
        (
            "update trial_intermediate_values set intermediate_value_type = 'NAN', "
            f"intermediate_value = null {THIRD}",
        ),
        "trial 3 ",
    ),
    "no course": ((f"delete from trial_intermediate_values {THIRD}",), "trial 3 "),
    "steps of words": (
        (f"update trial_intermediate_values set step = 'x' {THIRD} and step = 3000",),
        "trial 3 ",
    ),
    "negative steps": (
        (f"update trial_intermediate_values set step = -5 {THIRD} and step = 3000",),
        "trial 3 ",
    ),
    "other chunks": (
        (f"update trial_intermediate_values set step = 3001 {THIRD} and step = 3000",),
        "trial 3 .*3001",
    ),
    "state": ((f"update trials set state = 'ODD' {THIRD}",), "trial 3 "),
    "date": ((f"update trials set datetime_start = 'yesterday' {THIRD}",), "trial 3 "),
    "too many units": ((PARAM, 51.0), r"trial 3 .*block01.mlp = 51 \(expected 0 to 50"),
    "negative units": ((PARAM, -1.0), "trial 3 .*block01.mlp = -1"),
    "units of words": ((PARAM, "many"), "trial 3 "),
    "units without end": ((PARAM, float("inf")), "trial 3 "),
    "no units": ((f"delete from trial_params {THIRD} and param_name = 'block01.mlp'",), "trial 3 "),
    "units of another": (
        (f"update trial_params set param_name = 'odd' {THIRD} and param_name = 'block01.mlp'",),
        "trial 3 .*odd",
    ),
    "a distribution": ((f"update trial_params set distribution_json = '[' {THIRD}",), "trial 3 "),
    "negative tokens": ((ATTRIBUTE, "-6000", "tokens"), "trial 3 .*tokens = -6000"),
    "tokens of words": ((ATTRIBUTE, '"6000"', "tokens"), "trial 3 .*tokens = '6000'"),
    "other tokens": ((ATTRIBUTE, "5999", "tokens"), "trial 3 .*tokens = 5999"),
    "tokens that are true": ((ATTRIBUTE, "true", "tokens"), "trial 3 .*tokens = True"),
    "no tokens": ((f"delete from trial_user_attributes {THIRD} and key='tokens'",), "trial 3 "),
    "a far round": ((ATTRIBUTE, "1000000000", "round"), "trial 3 .*round = 1000000000"),
    "a part of a round": ((ATTRIBUTE, "0.5", "round"), "trial 3 .*round = 0.5"),
    "kept of NaN": ((ATTRIBUTE, "NaN", "kept"), "trial 3 .*kept = nan"),
    "kept of digits": ((ATTRIBUTE, "9" * 5000, "kept"), "trial 3 "),
    "seconds of Infinity": ((ATTRIBUTE, "Infinity", "seconds"), "trial 3 .*seconds = inf"),
    "origin of a trial": ((ATTRIBUTE, "[1]", "origin"), "trial 3 .*origin"),
    "an attribute": ((ATTRIBUTE, "{", "seconds"), "trial 3 "),
    "tail": ((NOTE, '"words"', "lmscout.tail"), "lmscout.tail"),
    "a long tail": ((NOTE, '"1.5"', "lmscout.tail"), "lmscout.tail"),
    "a note": ((NOTE, "{", "lmscout.tail"), "lmscout.tail of study 'lmscout' is not JSON"),
    "a deep note": ((NOTE, "[" * 100_000, "lmscout.tail"), "lmscout.tail"),
    "settings": ((NOTE, "[1, 2]", MEASURED), MEASURED),
    "origin no JSON": ((NOTE, '"{"', "lmscout.origin"), "lmscout.origin .*expected JSON"),
    "origin a list": ((NOTE, '"[1]"', "lmscout.origin"), "lmscout.origin .*expected a table"),
    "dtype": (origin(dtype="floaty"), "dtype .*got 'floaty', expected one of float32"),
    "dtype of torch": (origin(dtype="nn"), "dtype .*got 'nn'"),
    "dtype a number": (origin(dtype=3), "dtype .*got 3"),
    "model": (origin(model=[1]), "model .*expected a text"),
    "final tokens": (origin(final_tokens=-1), "final_tokens .*got -1"),
}
OF_SETTINGS = {
    "window": (1, 8.5, "8", None, True, 10**30),
    "importance": ("odd", 3, [1]),
    "quality": (True, "odd"),
    "compensate": (1, "yes"),
    "seed": (-1, "0"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_one_line_that_names_its_place(kept, tmp_path, name):
    statement, words = EDITS[name]
    folder = edited(kept, tmp_path / "run", statement)
    with pytest.raises(LmscoutError, match=words) as caught:
        read(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 700
    assert "; restore a copy" in line or "; use another study" in line


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, some in OF_SETTINGS.items() for value in some]
)
def test_settings_of_another_kind_are_one_line(kept, tmp_path, name, value):
    folder = edited(kept, tmp_path / "run", setting(**{name: value}))
    with pytest.raises(LmscoutError, match=f"{MEASURED}: {name} .*; restore a copy"):
        read_recorded(folder)
    with pytest.raises(LmscoutError, match=f"measured with {name} = |{name} of study "):
        read(folder)


@pytest.mark.parametrize("state", ["FAIL", "RUNNING", "WAITING"])
def test_trials_that_others_left_are_no_pairs(kept, tmp_path, state):
    left = f"update trials set state = '{state}' {THIRD}"
    pairs, _ = read(edited(kept, tmp_path / "run", (left,)))
    assert len(pairs) == 5


def test_what_was_not_edited_is_read(kept, tmp_path):
    pairs, recorded = read(edited(kept, tmp_path / "run"))
    assert [one.plan for one in pairs] == plans(6)
    assert (recorded.model, recorded.calibration.window) == ("m", 8)


COLUMNS = [
    ("trials", "number"),
    ("trials", "state"),
    ("trials", "datetime_complete"),
    ("trial_params", "param_name"),
    ("trial_params", "param_value"),
    ("trial_params", "distribution_json"),
    ("trial_values", "value"),
    ("trial_values", "objective"),
    ("trial_values", "value_type"),
    ("trial_intermediate_values", "step"),
    ("trial_intermediate_values", "intermediate_value"),
    ("trial_intermediate_values", "intermediate_value_type"),
    ("trial_user_attributes", "key"),
    ("trial_user_attributes", "value_json"),
    ("study_user_attributes", "key"),
    ("study_user_attributes", "value_json"),
    ("study_directions", "direction"),
    ("studies", "study_name"),
    ("version_info", "schema_version"),
    ("version_info", "library_version"),
    ("alembic_version", "version_num"),
]
ANYTHING = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.sampled_from(['"x"', "NaN", "1e999", "[]", "{}", "null", "true", "-1", "0.5", "[" * 9999]),
)


def refusal(folder):
    """Why a study is refused; an empty remedy where it is read."""
    try:
        read(folder)
    except LmscoutError as error:
        return str(error)
    return "; "


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(COLUMNS), ANYTHING, st.integers(0, 40))
def test_whatever_is_written_anywhere_is_read_or_refused_in_a_line(
    kept, tmp_path, place, value, row
):
    table, column = place
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(kept, folder / FILE_NAME)
    with closing(sqlite3.connect(folder / FILE_NAME)) as tables:
        (rows,) = tables.execute(f"select count(*) from {table}").fetchone()
        try:
            with tables:
                tables.execute(
                    f"update {table} set {column} = ? where rowid = "
                    f"(select rowid from {table} limit 1 offset ?)",
                    (value, row % rows),
                )
        except (sqlite3.Error, UnicodeEncodeError):  # what the table itself refuses
            return
    line = refusal(folder)
    assert "\n" not in line
    assert "; " in line or "is no longer compatible" in line  # Optuna's, with its remedy
