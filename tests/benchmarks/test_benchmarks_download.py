import hashlib
import http.client
import urllib.error

import pytest
from file_server import serving

from lmscout.benchmarks.loading import content_digest, describe, download
from lmscout.errors import LmscoutError

FILES = ("a.yaml", "deep/er/b.yaml", "c.yaml")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    for file in FILES:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content: of {file}\n")
    return folder


def left_in(cache):
    return [path for path in cache.rglob("*") if path.is_file() or "partial" in path.name]


def test_digest_of_one_file_is_its_own_and_of_several_tells_them_apart(served):
    alone = hashlib.sha256((served / "a.yaml").read_bytes()).hexdigest()
    assert content_digest(served, ["a.yaml"]) == alone
    whole = content_digest(served, FILES)
    assert content_digest(served, reversed(FILES)) == whole
    (served / "a.yaml").rename(served / "z.yaml")
    assert content_digest(served, ("z.yaml", *FILES[1:])) != whole
    (served / "z.yaml").rename(served / "a.yaml")
    (served / "a.yaml").write_text("content: of b.yaml\n")
    assert content_digest(served, FILES) != whole


def test_files_arrive_whole_in_a_folder_that_need_not_exist(served, tmp_path):
    destination = tmp_path / "cache" / "lts" / "small"
    with serving(served) as url:
        download(url, FILES, content_digest(served, FILES), destination)
        for file in FILES:
            assert (destination / file).read_bytes() == (served / file).read_bytes()
        # Another process downloads the same: nothing changes, nothing fails.
        download(url, FILES, content_digest(served, FILES), destination)
    assert len(left_in(tmp_path / "cache")) == len(FILES)


def test_files_that_are_not_the_pinned_ones_are_refused(served, tmp_path):
    pinned = content_digest(served, FILES)
    (served / "c.yaml").write_text("content: changed\n")
    with serving(served) as url, pytest.raises(LmscoutError, match="nothing was kept") as caught:
        download(url, FILES, pinned, tmp_path / "cache" / "small")
    assert pinned in str(caught.value)
    assert left_in(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "small").exists()


@pytest.mark.parametrize(
    ("faults", "error", "said"),
    [
        ({"cut": ("deep/er/b.yaml",)}, http.client.IncompleteRead, "10 bytes read"),
        ({"absent": ("c.yaml",)}, urllib.error.HTTPError, "HTTP status 404"),
    ],
)
def test_an_interrupted_download_leaves_nothing(served, tmp_path, faults, error, said):
    with serving(served, **faults) as url, pytest.raises(error) as caught:
        download(url, FILES, content_digest(served, FILES), tmp_path / "cache" / "small")
    assert said in describe(caught.value)
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    assert left_in(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "small").exists()


def test_a_folder_in_the_way_is_named_and_left_alone(served, tmp_path):
    destination = tmp_path / "small"
    destination.mkdir()
    (destination / "mine.txt").write_text("mine")
    with serving(served) as url, pytest.raises(LmscoutError, match="small is not empty: remove"):
        download(url, FILES, content_digest(served, FILES), destination)
    assert [path.name for path in destination.iterdir()] == ["mine.txt"]


def test_a_cache_directory_that_cannot_be_written_is_named_before_anything_is_fetched(tmp_path):
    (tmp_path / "file").write_text("in the way")
    parent = tmp_path / "file" / "cache"
    with pytest.raises(LmscoutError, match=r"cannot be written .*set LMSCOUT_CACHE"):
        download("http://127.0.0.1:1/", FILES, "0", parent / "small")


def test_a_read_only_cache_directory_is_named(tmp_path):
    parent = tmp_path / "cache"
    parent.mkdir()
    parent.chmod(0o555)
    try:
        (parent / "probe").touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may write to read-only directories")
    with pytest.raises(LmscoutError, match="cache directory cannot be written"):
        download("http://127.0.0.1:1/", FILES, "0", parent / "small")
