import os
import shutil

import pytest
from file_server import serving

from lmscout.benchmarks.loading import FLEXIBERT, LTS, cache_directory, find_flexibert, find_lts
from lmscout.errors import LmscoutError

# A port on which nothing listens: what being offline looks like.
NOWHERE = "http://127.0.0.1:1/"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LMSCOUT_DATA", raising=False)
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_data_directories_are_searched_in_order_before_the_cache(monkeypatch, tmp_path, cache):
    wanted = "flexibert/BERT_benchmark.json"
    for directory in ("second", "third", "cache"):
        path = tmp_path / directory / wanted
        path.parent.mkdir(parents=True)
        path.write_text("[]")
    assert find_flexibert(NOWHERE) == cache / wanted
    directories = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    monkeypatch.setenv("LMSCOUT_DATA", os.pathsep.join(map(str, directories)))
    assert find_flexibert(NOWHERE) == tmp_path / "second" / wanted


def test_the_cache_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv("LMSCOUT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory().name == "lmscout"
    assert tmp_path in cache_directory().parents


def test_the_published_flexibert_file_is_fetched_once(shared_data, cache):
    with serving(shared_data / "flexibert") as url:
        found = find_flexibert(url)
    assert found == cache / "flexibert" / "BERT_benchmark.json"
    original = shared_data / "flexibert" / "BERT_benchmark.json"
    assert found.read_bytes() == original.read_bytes()
    assert find_flexibert(NOWHERE) == found


def test_the_published_lts_folder_is_fetched_once(shared_data, cache):
    original = shared_data / "lts" / "random_GPT2_wt103"
    if not original.exists():
        pytest.skip(f"{original.name} is not beside the FlexiBERT benchmark")
    with serving(original) as url:
        found = find_lts("random_GPT2_wt103", url)
    assert found == cache / "lts" / "random_GPT2_wt103"
    assert files_in(found) == files_in(original)
    assert len(files_in(found)) == 202
    assert files_in(cache) == [f"lts/random_GPT2_wt103/{file}" for file in files_in(original)]
    assert find_lts("random_GPT2_wt103", NOWHERE) == found


def test_a_changed_file_is_refused_and_not_kept(shared_data, tmp_path, cache):
    served = tmp_path / "served"
    served.mkdir()
    shutil.copyfile(
        shared_data / "flexibert" / "BERT_benchmark.json", served / "BERT_benchmark.json"
    )
    with (served / "BERT_benchmark.json").open("ab") as file:
        file.write(b"\n")
    with serving(served) as url, pytest.raises(LmscoutError, match="not what was published"):
        find_flexibert(url)
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("find", "file"),
    [
        (lambda: find_flexibert(NOWHERE), "flexibert/BERT_benchmark.json"),
        (lambda: find_lts("random_GPT2_wt103", NOWHERE), "lts/random_GPT2_wt103"),
    ],
)
@pytest.mark.parametrize("given", ["", "some-data"])
def test_offline_and_absent_is_one_line_with_all_that_is_needed(
    monkeypatch, cache, find, file, given
):
    monkeypatch.setenv("LMSCOUT_DATA", given)
    with pytest.raises(LmscoutError) as caught:
        find()
    message = str(caught.value)
    assert "\n" not in message
    looked = f"LMSCOUT_DATA ({given or 'not set'}) or the cache ({cache})"
    assert message.startswith(f"{file} was not found in {looked}, and downloading {NOWHERE}")
    assert "refused" in message
    assert message.endswith(f"name the directory that holds {file} in LMSCOUT_DATA")
    assert files_in(cache) == []


def test_only_known_folders_are_downloaded():
    with pytest.raises(LmscoutError, match=r"lts/random_X was not found.*only random_GPT2_wt103"):
        find_lts("random_X", NOWHERE)


def test_what_is_published_is_pinned():
    assert FLEXIBERT.url.endswith("2d76e01b9586cad7340e8268dadba3056efd070b/data/")
    assert FLEXIBERT.sha256.startswith("fa2ff719")
    assert len(LTS["random_GPT2_wt103"].files) == 202
