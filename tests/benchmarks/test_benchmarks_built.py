import json
from collections import Counter

import numpy as np
import pytest
from built_files import row, spec_of, write_built, write_rows

from lmscout.benchmarks import load
from lmscout.benchmarks.built import built_folder, replicates
from lmscout.benchmarks.space import PICO, sample
from lmscout.benchmarks.training import Recipe
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec, LlamaSpec


def test_quality_is_the_negated_final_loss_averaged_over_seeds(tmp_path):
    write_built(tmp_path / "own", {2: [3.5], 0: [4.0, 4.3, 4.6], 1: [5.25]})
    benchmark = load(f"bench:{tmp_path / 'own'}")
    assert benchmark.name == f"bench:{tmp_path / 'own'}"
    assert benchmark.metric == "negated validation loss after 1,234,567 tokens"
    assert benchmark.source == str(tmp_path / "own")
    assert benchmark.specs == (spec_of(0), spec_of(1), spec_of(2))
    assert benchmark.quality == pytest.approx([-4.3, -5.25, -3.5])
    assert benchmark.identifiers == ("000-llama-1x8", "001-llama-2x16", "002-llama-3x8")


def test_an_architecture_without_a_finite_loss_is_left_out(tmp_path):
    write_built(tmp_path, {0: [4.0], 1: [None], 2: [3.0, None, 3.1]})
    assert load(f"bench:{tmp_path}").specs == (spec_of(0),)
    write_built(tmp_path, {0: [None]})
    with pytest.raises(LmscoutError, match="no architecture was trained to a finite loss"):
        load(f"bench:{tmp_path}")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, 0, 4.0), row(0, 0, 4.1)], "architecture 0: two of its rows have one seed"),
        ([row(0, 0, 4.0), row(0, 1, 4.0, spec=row(1, 0, 4.0)["spec"])], "have different specs"),
        ([row(0, 0, 4.0, spec={"kind": "mamba"})], "architecture 0: .* kind 'mamba' is unknown"),
        ([row(0, 0, "4.0")], "line 1: validation_loss.*: input should be a valid number"),
        ([row(0, 0, 1e308)], "line 1: validation_loss.*: input should be less than"),
        ([row(0, 0, 4.0), {"architecture": 1}], "line 2: seed: field required"),
        ([], "holds no rows"),
    ],
)
def test_a_damaged_table_is_one_line_that_names_the_place(tmp_path, rows, said):
    write_rows(tmp_path, rows)
    with pytest.raises(LmscoutError, match=said) as caught:
        load(f"bench:{tmp_path}")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_not_finished_or_not_there_says_so(tmp_path):
    with pytest.raises(LmscoutError, match=r"gone: no table\.jsonl; expected a folder"):
        load(f"bench:{tmp_path / 'gone'}")
    write_built(tmp_path, {0: [4.0]})
    (tmp_path / "table.jsonl").unlink()
    with pytest.raises(LmscoutError, match="its building is not finished; start the same"):
        load(f"bench:{tmp_path}")
    write_built(tmp_path, {0: [4.0]})
    (tmp_path / "table.jsonl").write_text("{")
    with pytest.raises(LmscoutError, match="line 1: not JSON"):
        load(f"bench:{tmp_path}")
    for settings, said in (("{", "line 1, column 2: not JSON"), ("[]", "expected an object")):
        write_built(tmp_path, {0: [4.0]})
        (tmp_path / "settings.json").write_text(settings)
        with pytest.raises(LmscoutError, match=said):
            load(f"bench:{tmp_path}")


@pytest.fixture(scope="module")
def pico():
    return load("pico")


def test_pico_is_what_the_issue_asks_for(pico):
    assert len(pico) == len(set(pico.specs)) == 240
    assert Counter(map(type, pico.specs)) == {Gpt2Spec: 120, LlamaSpec: 120}
    assert {spec.depth for spec in pico.specs} == set(range(2, 11))
    assert {spec.width for spec in pico.specs} == set(range(64, 321, 32))
    seeds = Counter(len(one.losses) for one in replicates(built_folder("pico")))
    assert seeds == {1: 216, 3: 24}
    assert -5 < pico.quality.min() < pico.quality.max() < -3.5
    assert pico.metric == "negated validation loss after 4,500,000 tokens"


def test_pico_is_what_bench_build_draws_and_trains_by_default(pico):
    assert pico.specs == sample(PICO, 240, 0)
    settings = json.loads((built_folder("pico") / "settings.json").read_text())
    assert settings["recipe"] == vars(Recipe())
    assert (settings["space"]["name"], settings["n"], settings["seed"]) == ("pico", 240, 0)
    rows = (built_folder("pico") / "table.jsonl").read_text().splitlines()
    for line in map(json.loads, rows):
        assert len(line["validation_loss"]) == 5
        assert np.isfinite(line["validation_loss"]).all()
        assert line["seconds"] > 0
    by_number = {line["architecture"]: line for line in map(json.loads, rows)}
    for number, spec in enumerate(pico.specs):
        assert by_number[number]["parameters"] == spec.parameters()
