import pytest
from benchmark_files import encoders, write_folder, write_json

from lmscout.benchmarks import load
from lmscout.benchmarks.loading import load_space_or_benchmark
from lmscout.benchmarks.space import NANO, PICO
from lmscout.errors import LmscoutError


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("LMSCOUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_flexibert_by_name_and_by_path(data, tmp_path):
    (data / "flexibert").mkdir(parents=True)
    found = write_json(data / "flexibert" / "BERT_benchmark.json", encoders(2))
    named = load("flexibert")
    assert (named.name, named.source, len(named)) == ("flexibert", str(found), 2)
    write_json(tmp_path / "mine.json", encoders(1))
    given = load("flexibert:mine.json")
    assert (given.name, given.source, len(given)) == ("flexibert:mine.json", "mine.json", 1)


def test_lts_by_name_and_by_path(data, tmp_path):
    published = write_folder(data / "lts" / "random_GPT2_wt103")
    named = load("lts:random_GPT2_wt103")
    assert named.source == str(published)
    assert named.metric == "negated WikiText-103 validation perplexity"
    write_folder(data / "lts" / "other")
    assert load("lts:other").metric == "negated validation perplexity"
    write_folder(tmp_path / "here", ("M1",))
    for name in ("lts:here", "lts:./here", f"lts:{tmp_path / 'here'}"):
        benchmark = load(name)
        assert benchmark.name == name
        assert benchmark.identifiers == ("M1",)


def test_what_follows_lts_is_a_path_once_it_has_a_separator():
    with pytest.raises(LmscoutError, match="some/where: no such folder"):
        load("lts:some/where")
    with pytest.raises(LmscoutError, match="lts/somewhere was not found"):
        load("lts:somewhere")


@pytest.mark.parametrize("name", ["", "bert", "flexibert:", "lts", "lts:", "glue:x", "bench:"])
def test_an_unknown_name_lists_what_is_accepted(name):
    with pytest.raises(LmscoutError) as caught:
        load(name)
    assert str(caught.value) == (
        f"unknown benchmark {name!r}; it can be pico, iso, DIR or bench:DIR, flexibert, "
        "flexibert:PATH, lts:random_GPT2_wt103, lts:NAME or lts:PATH"
    )


def test_a_name_is_a_space_or_else_a_benchmark(tmp_path):
    assert load_space_or_benchmark("pico") is PICO
    assert load_space_or_benchmark("nano") is NANO
    write_json(tmp_path / "mine.json", encoders(1))
    assert load_space_or_benchmark("flexibert:mine.json").name == "flexibert:mine.json"
    with pytest.raises(LmscoutError, match="unknown space 'picco'; there are the spaces"):
        load_space_or_benchmark("picco")
    with pytest.raises(LmscoutError, match=r"nowhere\.json: cannot be read"):
        load_space_or_benchmark("flexibert:nowhere.json")
