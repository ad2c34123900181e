import gzip
import hashlib
import sys
from types import SimpleNamespace

import pytest

from lmscout.errors import LmscoutError
from lmscout.evaluation import Text, read_text, same_text


def text(content):
    return Text("made here", content, hashlib.sha256(content.encode()).hexdigest())


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a"])
def test_content_is_read_exactly_whatever_the_name_and_the_compression(tmp_path, name):
    content = " \n = Ünïcode =\r\n\n\ttabs  and  blanks \n"
    plain, packed = tmp_path / name, tmp_path / f"packed-{name}"
    plain.write_bytes(content.encode())
    packed.write_bytes(gzip.compress(content.encode()))
    one, other = read_text(str(plain)), read_text(str(packed))
    assert one.content == other.content == content
    assert one.sha256 == other.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert (one.source, other.source) == (str(plain), str(packed))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a").write_bytes("\ufefftext".encode())
    assert read_text(str(tmp_path / "a")).content == "text"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").write_text("text")
    assert read_text("~/a").content == "text"


BAD_FILES = {
    "empty": (b"", "no text"),
    "blank": (b" \n\t\n", "no text"),
    "empty.gz": (gzip.compress(b""), "no text"),
    "latin-1": ("schön".encode("latin-1"), "UTF-8"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00", "binary"),
    "utf-16": ("text".encode("utf-16-le"), "binary"),
    "cut.gz": (gzip.compress(b"many words " * 500)[:40], "gzip"),
    "changed.gz": (gzip.compress(b"many words " * 500)[:-8] + b"\1" * 8, "gzip"),
    "binary.gz": (gzip.compress(bytes(range(256))), "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_text_is_one_line(tmp_path, name):
    content, hint = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LmscoutError, match=hint) as error:
        read_text(str(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(LmscoutError, match=r"no such file.*hub:"):
        read_text(str(tmp_path / "absent"))
    with pytest.raises(LmscoutError, match="directory"):
        read_text(str(tmp_path))


def test_texts_are_the_same_but_for_white_space():
    assert same_text(text("one two\nthree"), text(" one\ttwo three\n\n"))
    assert not same_text(text("one two\nthree"), text("one two\nThree"))
    assert not same_text(text("one two"), text("onetwo"))


def test_wikitext_reads_as_one_text(wikitext_test):
    found = read_text(str(wikitext_test))
    assert found.content == gzip.decompress(wikitext_test.read_bytes()).decode()


@pytest.mark.parametrize(
    ("source", "asked", "field"),
    [
        ("hub:imdb", ("imdb", None, None), "text"),
        ("hub:imdb:test", ("imdb", None, "test"), "text"),
        ("hub:a/b", ("a/b", None, None), "text"),
        ("hub:a/b/c:validation#sentence", ("a/b", "c", "validation"), "sentence"),
        ("hub:a/b#body", ("a/b", None, None), "body"),
        ("hub:a/b:train[:10%]#text", ("a/b", None, "train[:10%]"), "text"),
    ],
)
def test_addresses_of_data_sets(monkeypatch, source, asked, field):
    class Rows(dict):
        features = dict.fromkeys(("text", "sentence", "body"), SimpleNamespace(dtype="string"))

    def load_dataset(name, config, split):
        rows = Rows({field: [f"{name} {config} {split}", None, "end"]})
        return {"only": rows} if split is None else rows

    utils = SimpleNamespace(disable_progress_bars=lambda: None)
    fake = SimpleNamespace(load_dataset=load_dataset, utils=utils)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_text(source).content == f"{asked[0]} {asked[1]} {asked[2]}\n\n\n\nend"


@pytest.mark.parametrize("address", ["", "a/b/c/d", "a//b", "a:", "a#", ":x"])
def test_malformed_addresses_show_how_to_write_one(address):
    with pytest.raises(LmscoutError, match=r"hub:Salesforce/wikitext"):
        read_text(f"hub:{address}")


def test_without_the_datasets_library_one_line_says_how_to_install_it(lmscout_without):
    asked = ("eval", "nowhere", "--perplexity", "hub:Salesforce/wikitext")
    code, err = lmscout_without("datasets", *asked)
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'lmscout[hub]'" in err


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    pytest.importorskip("datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(LmscoutError, match=r"cannot be had from the Hub \(.*or give a file"):
        read_text("hub:Salesforce/wikitext/wikitext-2-raw-v1:test")
