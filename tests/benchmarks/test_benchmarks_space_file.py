import json
from dataclasses import asdict

import pytest

from lmscout.benchmarks.loading import load_space_or_benchmark
from lmscout.benchmarks.space import PICO, load_space, read_space, sample
from lmscout.errors import LmscoutError

LEAST = {
    "depths": [1, 2],
    "widths": [16],
    "head_sizes": [8],
    "expansions": [2],
    "vocabulary": 100,
    "max_length": 32,
}


def written(folder, **values):
    path = folder / "mine.json"
    path.write_text(json.dumps(values))
    return path


def test_a_space_that_was_written_is_read_again(tmp_path):
    values = {name: value for name, value in asdict(PICO).items() if name != "name"}
    space = read_space(written(tmp_path, **values))
    assert space.name == "mine"
    assert {**asdict(space), "name": "pico"} == asdict(PICO)
    assert load_space(str(tmp_path / "mine.json")) == space
    assert load_space_or_benchmark(str(tmp_path / "mine.json")) == space


def test_what_a_build_notes_of_its_space_is_a_space(tmp_path):
    assert read_space(written(tmp_path, **asdict(PICO))).depths == PICO.depths


def test_the_least_that_a_file_says_is_enough_to_draw(tmp_path):
    space = read_space(written(tmp_path, **LEAST))
    assert (space.families, space.groups, space.missing) == (("gpt2", "llama"), (1,), (0.0,))
    assert len(set(sample(space, 4, 0))) == 4


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"depths": []}, "depths: list should have at least 1 item"),
        ({"depths": [0, 1]}, "depths.0: input should be greater than 0, not 0"),
        ({"depths": "two"}, "depths: "),
        ({"expansions": [1.0, -2.0]}, "expansions.1: .*greater than 0, not -2.0"),
        (
            {"families": ["gpt2", "mamba"]},
            "families.1: string should match pattern .*gpt2.llama.*, not 'mamba'",
        ),
        ({"missing": [0.0, 0.9]}, "less than or equal to 0.5, not 0.9"),
        ({"vocabulary": 1}, "greater than or equal to 2"),
        ({"widths": [16, 20]}, "none of head_sizes divides 20"),
        ({"head_sizes": [1]}, "1 is odd"),
        ({"max_length": None}, "max_length"),
        ({"colour": 1}, "unknown field colour"),
        ({"width": [8]}, "unknown field width; did you mean 'widths'"),
        ({"params": 0}, "params: input should be greater than 0, not 0"),
        ({"params": 9000, "macs": 9000}, "macs: 9,000 is not above params, 9,000"),
        ({"tolerance": 0}, "tolerance: input should be greater than 0"),
        ({"depths": [True]}, "depths.0: input should be a valid integer"),
    ],
)
def test_what_no_architecture_can_have_is_refused(tmp_path, change, hint):
    with pytest.raises(LmscoutError, match=rf"mine\.json: .*{hint}"):
        read_space(written(tmp_path, **LEAST | change))


def test_a_file_that_is_no_json_or_not_there_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{\n'depths'")
    with pytest.raises(LmscoutError, match="line 2, column 1: not JSON"):
        load_space(str(tmp_path / "x.json"))
    with pytest.raises(LmscoutError, match=r"y\.json: cannot be read"):
        load_space(str(tmp_path / "y.json"))
    with pytest.raises(LmscoutError, match="unknown space 'y'"):
        load_space("y")


def test_a_width_of_one_can_be_drawn(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(
        '{"families": ["gpt2"], "depths": [1], "widths": [1], "head_sizes": [1], "expansions": '
        '[1, 2], "vocabulary": 8, "max_length": 4}'
    )
    assert {spec.inner for spec in sample(load_space(str(path)), 2, 0)} == {(1,), (2,)}
