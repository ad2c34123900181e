"""Files from elsewhere: within the bounds they are read, beyond them each is one line."""

import gzip
import json
import os
import struct

import pytest
import yaml

from lmscout import reading
from lmscout.errors import LmscoutError, brief
from lmscout.reading import (
    check_safetensors_header,
    named_file,
    parse_json,
    read_bytes,
    read_json,
    read_json_object,
    read_json_rows,
    read_text,
    read_yaml,
)


def refused(read, *arguments, **named):
    with pytest.raises(LmscoutError) as caught:
        read(*arguments, **named)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path):
    value = {"a": [1, 2.5, "é", None, True, {"b": []}]}
    for mark in (b"", b"\xef\xbb\xbf"):
        path = tmp_path / "x.json"
        path.write_bytes(mark + json.dumps(value).encode())
        assert read_json(path) == value
        assert read_json_object(path) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nests too deep (more than 64 levels)"),
        ('{"a":' * 50_000, "nests too deep"),
        ("[" * 65 + "]" * 65, "nests too deep"),
        ("9" * 5_000, "too many digits (got 5,000, expected at most 100)"),
        ("-" + "9" * 101, "too many digits"),
        ("0." + "9" * 5_000, "too many digits"),
        ("1e999", "1e999 is too large"),
        ('{"a": 1, "a": 2}', "the name 'a' is given twice"),
        ('"\\ud800"', "half of a character"),
        ('{"a": 1', "line 1, column 8: not JSON"),
        ('{"a": 1}\n{"a": 2}', "holds more than one JSON value"),
        ("", "not JSON"),
    ],
)
def test_json_beyond_the_bounds_is_one_line(text, said):
    message = refused(parse_json, text, "x.json")
    assert message.startswith("x.json")
    assert said in message


def test_json_at_the_bounds_is_read():
    assert parse_json("[" * 64 + "]" * 64, "x")
    assert parse_json("[" * 64 + '"' + "[{" * 500 + '"' + "]" * 64, "x")  # brackets in text
    assert parse_json("9" * 100, "x") == int("9" * 100)
    assert parse_json('{"a": 1, "a": 2}', "x", lenient=True) == {"a": 2}


def test_json_of_too_many_values_is_refused_unparsed(monkeypatch):
    monkeypatch.setattr(reading, "MOST_VALUES", 1000)
    assert "too many values" in refused(parse_json, "[" + "[]," * 1000 + "1]", "x")
    assert len(parse_json('["' + "," * 2000 + '"]', "x")[0]) == 2000


def test_rows_are_an_array_or_lines(tmp_path):
    path = tmp_path / "rows"
    for text in ('[{"a": 1}, {"a": 2}]', '{"a": 1}\n{"a": 2}\n', '{"a": 1}\r\n\r\n{"a": 2}'):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_json_rows(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n')
    assert f"{path}, line 2: not JSON" in refused(read_json_rows, path)
    path.write_text('{"a": 1}')
    assert "expected a list" in refused(read_json_rows, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfea\0", "UTF-16"),
        (gzip.compress(b"a", mtime=0), "compressed with gzip"),
        (b"a\xe9", "not UTF-8 text (byte 1)"),
    ],
)
def test_what_is_no_utf_8_has_the_right_reason(tmp_path, content, said):
    (tmp_path / "x").write_bytes(content)
    assert said in refused(read_text, tmp_path / "x")


def test_gzip_is_decompressed_only_as_far_as_the_bound(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"ab") + gzip.compress(b"c"))  # two members
    assert read_bytes(path, 3, compressed=True) == b"abc"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    message = refused(read_bytes, path, 10 * reading.MIB, compressed=True)
    assert "more than 10 MiB decompressed" in message
    path.write_bytes(gzip.compress(b"a" * 1000)[:-20])
    assert "damaged gzip" in refused(read_bytes, path, 10**6, compressed=True)


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe or a device" in refused(read_json, tmp_path / "pipe")
    assert "Is a directory" in refused(read_json, tmp_path)
    assert "No such file" in refused(read_json, tmp_path / "none")
    assert "too large" in refused(read_bytes, "/dev/zero", 1000, pipe=True)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: " + "[" * 100_000, "nests too deep"),
        ("- " * 50_000, "nests too deep"),
        ("? " * 50_000, "nests too deep"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "stands for nothing before it"),
        ("x: " + "9" * 5_000, "too many digits"),
        ("x: 0x" + "f" * 5_000, "too many digits"),
        ("x: -" + "9" * 5_000, "too many digits"),
        ("x: '" + "9" * 20_000 + "'", "too long"),
        ("a: 1\nb: 2\na: 3", "line 1: the name 'a' is given twice"),
        ("x: !!int ''", "not YAML"),
        ("x: !!timestamp a", "not YAML"),
        ("x: !!python/object/apply:os.system ['true']", "is not plain data"),
        ("--- 1\n--- 2", "not YAML"),
    ],
)
def test_yaml_beyond_the_bounds_is_one_line(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    message = refused(read_yaml, path)
    assert message.startswith(str(path))
    assert said in message


def test_yaml_of_plain_data_is_read(tmp_path):
    path = tmp_path / "x.yaml"
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    path.write_text("\ufeff" + yaml.safe_dump(value), "utf-8")
    assert read_yaml(path) == value
    path.write_text("a: &x {p: 1}\nb: *x\nc: {<<: *x, q: 2}\n")
    assert read_yaml(path) == {"a": {"p": 1}, "b": {"p": 1}, "c": {"p": 1, "q": 2}}


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "..", "a\\b", "", 7, "a\0b", "a" * 256]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    assert refused(named_file, tmp_path, name, "index").startswith("index: ")


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "inside").write_text("x")
    (folder / "good").symlink_to("inside")
    (folder / "bad").symlink_to("../outside")
    assert named_file(folder, "good", "index") == folder / "good"
    assert "outside its folder" in refused(named_file, folder, "bad", "index")


def test_the_hubs_cache_links_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("x")
    (snapshot / "w").symlink_to("../../blobs/abc")
    assert named_file(snapshot, "w", "index") == snapshot / "w"


@pytest.mark.parametrize("length", [2**63, 2**31, 10**6])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "longer than the file" in refused(check_safetensors_header, path)


def test_a_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**30))
    os.truncate(path, 2**30 + 8)  # sparse
    assert "header is too large" in refused(check_safetensors_header, path)


def test_any_value_fits_a_message():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**10_000, "a" * 10**6, list(range(10**6)), {1: deep}):
        assert len(brief(value)) <= 60
    for value in ("abc", 7, [1, 2, {"a": None}], (), 0.5, {"x": "y"}):
        assert brief(value) == repr(value)
