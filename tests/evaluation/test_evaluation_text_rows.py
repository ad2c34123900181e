"""Text from JSON lines and Parquet, by a field's name."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmscout.errors import LmscoutError
from lmscout.evaluation import read_text

ROWS = [
    {"body": "one\nrow", "title": "a", "number": 1},
    {"body": "", "title": "b", "number": 2},
    {"body": None, "title": "c", "number": 3},
    {"body": "a line\u2028separator", "title": "d", "number": 4},
]
BODY = "one\nrow\n\n\n\n\n\na line\u2028separator"
TITLES = "a\n\nb\n\nc\n\nd"
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"


def json_lines(path):
    path.write_text(LINES, encoding="utf-8-sig")


def compressed(path):
    path.write_bytes(gzip.compress(LINES.encode()))


def parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def dictionary(path):
    columns = pa.Table.from_pylist(ROWS)
    encoded = {name: columns[name].dictionary_encode() for name in ("body", "title")}
    pq.write_table(pa.table({**encoded, "number": columns["number"]}), path)


KINDS = [
    ("rows.jsonl", json_lines),
    ("rows.ndjson", json_lines),
    ("rows.jsonl.gz", compressed),
    ("rows.parquet", parquet),
    ("rows.PARQUET", dictionary),
]


@pytest.mark.parametrize(("name", "write"), KINDS)
def test_rows_of_a_field_are_joined_by_blank_lines(tmp_path, name, write):
    path = tmp_path / "C: data#2" / name
    path.parent.mkdir()
    write(path)
    assert read_text(f"{path}#body").content == BODY
    assert read_text(f"{path}#title").content == TITLES
    for source, said in (
        (f"{path}#absent", "has no .*'absent'.*body, title"),
        (f"{path}#number", "body|title"),
        (f"{path}", "fields of text are body, title: name one, as .*#FIELD"),
        (f"{path.parent}/no-{name}#body", "no such file"),
    ):
        with pytest.raises(LmscoutError, match=said) as refused:
            read_text(source)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("write", [0, 1])
def test_text_or_the_only_field_of_strings_need_no_name(tmp_path, write):
    for rows in ([{"text": "a", "title": "b"}], [{"number": 1, "story": "a"}]):
        path = tmp_path / ("rows.parquet" if write else "rows.jsonl")
        if write:
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text(json.dumps(rows[0]))
        assert read_text(str(path)).content == "a"


def test_a_file_of_the_whole_name_is_that_file(tmp_path):
    path = tmp_path / "rows.jsonl#body"
    path.write_text("plain text")
    assert read_text(str(path)).content == "plain text"
    other = tmp_path / "notes#1.txt"
    other.write_text("plain as well")
    assert read_text(str(other)).content == "plain as well"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1, 2]", "line 2: is no JSON object"),
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: nests too deep"),
        ('{"title": "b"}', "line 2: has no text in field 'body'; fields of text are title"),
        ('{"body": 3}', "line 2: has no text in field 'body'; fields of text are none"),
        ('{"body": "\\ud800"}', "lone surrogate"),
        ('{"body": ' + "9" * 5000 + "}", "line 2: a number has too many digits"),
    ],
)
def test_damaged_lines_are_told_by_number(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "a"}\n' + line + "\n")
    with pytest.raises(LmscoutError, match=said) as refused:
        read_text(f"{path}#body")
    assert "\n" not in str(refused.value)


def test_damaged_parquet_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet(path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-9] + b"\xff" * 5 + whole[-4:]):
        path.write_bytes(content)
        with pytest.raises(LmscoutError, match="cannot be read as Parquet") as refused:
            read_text(f"{path}#body")
        assert "\n" not in str(refused.value)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(LmscoutError, match="cannot be read as Parquet"):
        read_text(str(tmp_path / "folder.parquet"))
