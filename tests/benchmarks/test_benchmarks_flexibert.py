import math

import pytest
from benchmark_files import encoders, write_json

from lmscout.benchmarks.flexibert import read_flexibert
from lmscout.errors import LmscoutError
from lmscout.models import FlexibertBlock, FlexibertSpec


def test_a_row_becomes_what_was_trained(tmp_path):
    benchmark = read_flexibert(write_json(tmp_path / "b.json", encoders()), "flexibert:b")
    assert benchmark.name == "flexibert:b"
    assert benchmark.metric == "GLUE score"
    assert benchmark.identifiers == ("0", "1", "2")
    assert benchmark.quality.tolist() == [70.0, 71.0, 72.0]
    assert benchmark.source == str(tmp_path / "b.json")
    blocks = (
        FlexibertBlock(mixer="WMA", heads=4, feed_forward=1024, stack=3),
        FlexibertBlock(mixer="DSC9", heads=2, feed_forward=512, stack=1),
    )
    assert benchmark.specs[0] == FlexibertSpec(width=128, blocks=blocks)


def test_the_published_500(shared_data):
    path = shared_data / "flexibert" / "BERT_benchmark.json"
    benchmark = read_flexibert(path, "flexibert")
    assert len(benchmark) == 500
    assert benchmark.identifiers == tuple(str(i) for i in range(500))
    assert benchmark.quality[0] == 74.73375
    assert (benchmark.quality.min(), benchmark.quality.max()) == pytest.approx(
        (53.66, 75.13), abs=0.01
    )
    assert len(set(benchmark.specs)) == 491
    assert {spec.width for spec in benchmark.specs} == {128, 256}
    assert {spec.depth for spec in benchmark.specs} == {2, 4}
    assert {b.feed_forward for spec in benchmark.specs for b in spec.blocks} == {512, 1024}


def refused(tmp_path, rows):
    path = write_json(tmp_path / "b.json", rows)
    with pytest.raises(LmscoutError) as caught:
        read_flexibert(path, "flexibert")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message[len(str(path)) :]


def test_a_score_that_is_not_a_number_names_the_row(tmp_path):
    rows = encoders()
    rows[1]["scores"]["glue"] = math.nan
    assert refused(tmp_path, rows).startswith(": row 1 (id 1): scores.glue: ")
    assert refused(tmp_path, rows).endswith(", not nan")
    del rows[1]["scores"]["glue"]
    assert refused(tmp_path, rows) == ": row 1 (id 1): scores.glue: field required"
    rows[1]["scores"]["glue"] = "74.7"
    assert refused(tmp_path, rows).endswith(", not '74.7'")


def layer(rows, **changes):
    overrides = rows[2]["hparams"]["model_hparam_overrides"]
    overrides["nas_config"]["encoder_layers"][1].update(changes)
    return rows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operation_parameter": 7}, "encoder_layers.1: operation DSC 7 is unknown"),
        ({"operation_type": "RNN"}, "encoder_layers.1: operation RNN 9 is unknown"),
        ({"num_operation_heads": 3}, "blocks[1]: heads 3 does not divide the width 128"),
        ({"num_operation_heads": "2"}, "num_operation_heads: input should be a valid integer"),
        ({"feed_forward_dimension": 0}, "feed_forward must be a whole number above 0"),
    ],
)
def test_a_bad_layer_names_the_row_and_the_layer(tmp_path, changes, said):
    message = refused(tmp_path, layer(encoders(), **changes))
    assert message.startswith(": row 2 (id 2): ")
    assert said in message


def test_rows_that_are_not_rows(tmp_path):
    assert "row 0: " in refused(tmp_path, [[1, 2]])
    assert "at least one" in refused(tmp_path, [])
    assert "expected a list" in refused(tmp_path, {"id": 0})


def test_a_repeated_id_is_refused(tmp_path):
    assert refused(tmp_path, encoders() + encoders(1)) == ": two rows are called 0"


def test_truncated_json_says_where_it_ends(shared_data, tmp_path):
    text = (shared_data / "flexibert" / "BERT_benchmark.json").read_text()
    path = tmp_path / "b.json"
    path.write_text(text[: len(text) // 2])
    last_line = text[: len(text) // 2].count("\n") + 1
    with pytest.raises(LmscoutError, match=f"b.json, line {last_line}, column [0-9]+: not JSON"):
        read_flexibert(path, "flexibert")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LmscoutError, match=r"none\.json: cannot be read: No such file"):
        read_flexibert(tmp_path / "none.json", "flexibert")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(LmscoutError, match=r"latin\.json: not UTF-8 text"):
        read_flexibert(tmp_path / "latin.json", "flexibert")
