import pytest
import yaml
from benchmark_files import MODEL_CONFIG, write_folder

from lmscout.benchmarks.lts import read_lts, read_yaml
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec


def read(folder):
    return read_lts(folder, "lts:small")


def refused(folder):
    with pytest.raises(LmscoutError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message.replace(str(folder), "FOLDER")


def test_a_folder_becomes_specs_and_negated_perplexities(tmp_path):
    benchmark = read(write_folder(tmp_path))
    assert benchmark.name == "lts:small"
    assert benchmark.metric == "negated validation perplexity"
    assert benchmark.source == str(tmp_path)
    assert benchmark.identifiers == ("config_0_j0", "config_0_j1", "config_1_j0")
    assert benchmark.quality.tolist() == [-20.0, -21.0, -22.0]
    assert benchmark.specs[0] == Gpt2Spec(
        width=128,
        heads=(2, 8),
        inner=(1071, 640),
        embedding_width=256,
        divisor=4,
        cutoffs=(19997, 39997),
        tied=(False, True, True),
        vocabulary=50264,
        max_length=192,
        weight_std=0.02,
        projection_std=0.01,
    )


def test_rows_are_in_natural_order(tmp_path):
    names = ("config_10/j0", "config_2/j10", "config_2/j9", "config_1/j0")
    assert read(write_folder(tmp_path, names)).identifiers == (
        "config_1_j0",
        "config_2_j9",
        "config_2_j10",
        "config_10_j0",
    )


def test_the_published_200(shared_data):
    folder = shared_data / "lts" / "random_GPT2_wt103"
    if not folder.exists():
        pytest.skip(f"{folder.name} is not beside the FlexiBERT benchmark")
    benchmark = read(folder)
    assert len(benchmark) == 200
    assert benchmark.identifiers[0] == "config_0_j0"
    assert benchmark.identifiers[-1] == "config_19_j9"
    assert benchmark.quality[0] == -45.022968707221274
    assert benchmark.specs[0].inner == (1071, 640, 1286, 800, 1871)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        # The one-billion-word folder: all cutoffs beyond the vocabulary, no embedding width.
        ({"cutoffs": [59997, 99997, 639997, 50264]}, "cutoffs", ()),
        ({"cutoffs": [59997, 99997, 639997, 50264]}, "tied", (False,)),
        ({"cutoffs": [19997, 50264]}, "cutoffs", (19997,)),
        ({"d_embed": -1}, "embedding_width", 128),
        ({"d_embed": None}, "embedding_width", 128),
        ({"n_head": 4}, "heads", (4, 4)),
        ({"d_inner": 300}, "inner", (300, 300)),
        ({"tgt_len": 32}, "max_length", 32),
        ({"d_head": [64, 16]}, "heads", (2, 8)),
    ],
)
def test_upstreams_other_ways_of_writing(tmp_path, changes, field, value):
    for spec in read(write_folder(tmp_path, **changes)).specs:
        assert getattr(spec, field) == value


def test_a_pareto_folder_has_one_level_and_bare_perplexities(tmp_path):
    write_folder(tmp_path, ("M1", "M10", "M2"))
    (tmp_path / "ppl_summary.yaml").write_text("M1: 74.5\nM10: 64\nM2: 72.0\n")
    benchmark = read(tmp_path)
    assert benchmark.identifiers == ("M1", "M2", "M10")
    assert benchmark.quality.tolist() == [-74.5, -72.0, -64.0]


def test_what_is_missing_is_named(tmp_path):
    assert refused(tmp_path / "none") == "FOLDER: no such folder"
    assert refused(tmp_path).startswith("FOLDER: no architectures; expected config_*/j*/")
    write_folder(tmp_path)
    summary = tmp_path / "ppl_summary.yaml"
    rows = yaml.safe_load(summary.read_text())
    summary.unlink()
    assert refused(tmp_path).startswith("FOLDER: ppl_summary.yaml is missing")
    del rows["config_1_j0"]
    summary.write_text(yaml.safe_dump(rows))
    assert "ppl_summary.yaml: no perplexity for config_1_j0" in refused(tmp_path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{valid_ppl: .nan}", "valid_ppl: input should be a finite number, not nan"),
        ("{valid_ppl: .inf}", "valid_ppl: input should be a finite number, not inf"),
        ("{valid_ppl: -3.0}", "valid_ppl: input should be greater than 0, not -3.0"),
        ("{valid_ppl: many}", "valid_ppl: input should be a valid number, not 'many'"),
        ("{test_ppl: 3.0}", "valid_ppl: field required"),
    ],
)
def test_a_perplexity_that_is_none_names_the_row(tmp_path, entry, said):
    write_folder(tmp_path)
    summary = tmp_path / "ppl_summary.yaml"
    rows = yaml.safe_load(summary.read_text())
    del rows["config_0_j1"]
    summary.write_text(f"{yaml.safe_dump(rows)}config_0_j1: {entry}\n")
    assert refused(tmp_path) == f"FOLDER/ppl_summary.yaml: config_0_j1: {said}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab": "word"}, "a Transformer-XL architecture"),
        ({"attn_type": 2}, "attn_type is 2: a Transformer-XL architecture"),
        ({"primer_square": True}, "a Primer architecture"),
        ({"tie_weight": False}, "not the tied adaptive softmax"),
        ({"d_head": 32}, "d_head times n_head is not d_model"),
        ({"n_head": [2, 3]}, "GPT-2 spec: heads[1] is 3, which does not divide width 128"),
        ({"n_layer": 3}, "n_layer is 3, but n_head has 2 entries and d_inner 2"),
        ({"tie_projs": [False]}, "tied has 1 entries; the 3 clusters need one each"),
        ({"d_model": "128"}, "d_model: input should be a valid integer, not '128'"),
        ({"cutoffs": [39997, 19997]}, "must increase"),
    ],
)
def test_a_config_that_is_no_gpt2_names_its_file(tmp_path, changes, said):
    write_folder(tmp_path)
    path = tmp_path / "config_0" / "j1" / "model_config.yaml"
    path.write_text(yaml.safe_dump({**MODEL_CONFIG, **changes}))
    message = refused(tmp_path)
    assert message.startswith("FOLDER/config_0/j1/model_config.yaml: ")
    assert said in message


def test_a_python_tag_is_refused_and_never_run(tmp_path):
    write_folder(tmp_path)
    trace = tmp_path / "trace"
    path = tmp_path / "config_0" / "j1" / "model_config.yaml"
    path.write_text(f"d_model: 8\nn_layer: !!python/object/apply:os.mkdir ['{trace}']\n")
    message = refused(tmp_path)
    assert message.startswith("FOLDER/config_0/j1/model_config.yaml, line 2: the tag ")
    assert "python/object/apply:os.mkdir" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", ", line 2: not YAML: "),
        ("a: 1\n\tb: 2\n", ", line 2: not YAML: "),
        ("", ": expected names with values, found NoneType"),
        ("- 1\n", ": expected names with values, found list"),
        ("a: \x00\n", ": not YAML: "),
        ("a: 2020-99-99\n", ": not YAML: "),
    ],
)
def test_what_is_not_yaml_says_where(tmp_path, text, said):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(LmscoutError) as caught:
        read_yaml(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
