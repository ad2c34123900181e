import pytest
import yaml
from benchmark_files import MODEL_CONFIG, write_folder

import lmscout
from lmscout.benchmarks.lts import read_lts, read_yaml
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec, TransformerXlSpec


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


WIKITEXT = {
    "cutoffs": [19997, 39997, 199997, 267736],
    "n_token": 267736,
    "tie_projs": [False, True, True, True],
    "tgt_len": 192,
    "vocab": "word",
}
BILLION = {
    "cutoffs": [59997, 99997, 639997, 793470],
    "n_token": 793470,
    "tie_projs": [False] * 4,
    "tgt_len": 32,
    "vocab": "word",
}
PARETO = {**BILLION, "cutoffs": [59997, 99997, 639997, 267735], "n_token": 267735, "vocab": None}
# Data, (d_model, d_embed, div_val), n_head, d_inner; then AdaEmb, Attn, FFN, nonembedding and total
# of params_summary.yaml: random_TransXL_wt103 (config_0 j0 and j5, 10 j0, 11 j4, 15 j1),
# random_TransXL_lm1b (config_0 j0 and j7) and pareto_TransXL_lm1b_arm (M1).
RECORDED = [
    (
        WIKITEXT,
        (64, 512, 2),
        [4, 2, 2, 8, 8],
        [710, 1021, 1683, 1053, 1748],
        (40235200, 103040, 802055, 906375, 41443618),
    ),
    (
        WIKITEXT,
        (64, 512, 1),
        [4, 8, 8, 2, 2, 2, 2],
        [1010, 1629, 2004, 1286, 734, 592, 886],
        (137113600, 144256, 1050637, 1196685, 138612328),
    ),
    (
        WIKITEXT,
        (512, 256, 2),
        [8, 2, 4, 8, 8, 2, 8, 8],
        [1616, 1126, 1235, 1803, 1654, 1063, 1993, 1677],
        (20332640, 10493952, 12475271, 22985607, 43717826),
    ),
    (
        WIKITEXT,
        (128, 128, 1),
        [4, 8, 4, 4, 2, 2, 4, 2],
        [605, 1620, 1179, 1257, 973, 616, 1905, 612],
        (34270208, 657408, 2254143, 2915647, 37453978),
    ),
    (
        WIKITEXT,
        (128, 128, 4),
        [4, 8, 8, 4, 8, 4, 4, 2],
        [1482, 1569, 1129, 1328, 1121, 1838, 1446, 860],
        (4636854, 657408, 2769685, 3431189, 8352550),
    ),
    (
        BILLION,
        (64, 64, 4),
        [8, 2, 4, 4, 4, 8, 8],
        [1344, 785, 1812, 1952, 559, 616, 1413],
        (6798721, 144256, 1094497, 1240545, 8838371),
    ),
    (
        BILLION,
        (512, 512, 4),
        [4, 2, 4, 8, 2, 4, 2],
        [1588, 1048, 1880, 1504, 1837, 1024, 1264],
        (54694408, 9182208, 10402209, 19598753, 75436330),
    ),
    (PARETO, (512, -1, 4), [2, 2], [1216, 1280], (41550144, 2623488, 2559424, 5187008, 47349977)),
]


@pytest.mark.parametrize(("data", "widths", "heads", "inner", "counts"), RECORDED)
def test_counts_of_transformer_xl_are_those_recorded_upstream(
    tmp_path, data, widths, heads, inner, counts
):
    sizes = dict(zip(("d_model", "d_embed", "div_val"), widths, strict=True))
    blocks = {"n_layer": len(heads), "n_head": heads, "d_inner": inner}
    (spec,) = read(write_folder(tmp_path, ["config_0/j0"], **data, **sizes, **blocks)).specs
    assert isinstance(spec, TransformerXlSpec)
    assert (spec.width, spec.heads, spec.inner) == (sizes["d_model"], tuple(heads), tuple(inner))
    assert not spec.pre_norm
    assert counts == (
        spec.embedding_parameters(),
        spec.attention_parameters(),
        spec.mlp_parameters(),
        spec.body_parameters(),
        spec.parameters(),
    )


def test_a_folder_of_transformer_xl_is_ranked(tmp_path):
    names = [f"config_0/j{number}" for number in range(4)]
    small = {"n_token": 90, "cutoffs": [20, 40, 90], "d_embed": 16, "vocab": "word"}
    write_folder(tmp_path, names, **small)
    for number, name in enumerate(names):
        path = tmp_path / name / "model_config.yaml"
        config = yaml.safe_load(path.read_text())
        config |= {"d_model": 16, "d_inner": [40 - 8 * number, 24], "pre_lnorm": number == 3}
        path.write_text(yaml.safe_dump(config))
    found = lmscout.rank(f"lts:{tmp_path}", ["parameters", "snip"], workers=1, progress=False)
    assert [spec.pre_norm for spec in read(tmp_path).specs] == [False, False, False, True]
    rows = found.to_frame().query("kind == 'proxy'").set_index("name")
    assert rows.loc["parameters", "spearman"] == 1
    assert rows["spearman"].notna().all()


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
        ({"attn_type": 2}, "attn_type is 2: not Transformer-XL's relative positions"),
        ({"clamp_len": 64}, "attention of limited length; lmscout reads folders of GPT-2 and"),
        ({"vocab": "word", "d_model": 125, "n_head": 5}, "Transformer-XL spec: width is 125"),
        ({"primer_square": True}, "a Primer architecture"),
        ({"tie_weight": False}, "not the tied adaptive softmax"),
        ({"d_head": 32}, "d_head times n_head is not d_model"),
        ({"n_head": [2, 3]}, "GPT-2 spec: heads[1] is 3, which does not divide width 128"),
        ({"n_layer": 3}, "n_layer is 3, but n_head has 2 entries, d_inner 2 and d_head 3"),
        ({"d_head": [64]}, "d_inner 2 and d_head 1; give as many as layers"),
        ({"cutoffs": [-5, 19997]}, "cutoffs.0: input should be greater than 0, not -5"),
        ({"vocab": "char"}, "vocab is 'char' (expected word, bpe, bbpe, gpt2)"),
        ({"tie_projs": [False]}, "tied has 1 entries; the 3 clusters need one each"),
        ({"d_model": "128"}, "d_model: input should be a valid integer, not '128'"),
        ({"cutoffs": [39997, 19997]}, "must increase"),
    ],
)
def test_a_config_that_is_none_of_theirs_names_its_file(tmp_path, changes, said):
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
