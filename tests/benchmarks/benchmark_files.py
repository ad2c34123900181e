"""Small files in upstream's formats, for tests to break."""

import copy
import json

import yaml

ENCODER = {
    "id": 7,
    "completed": True,
    "scores": {"cola": 42.69, "glue": 74.5},
    "hparams": {
        "model_hparam_overrides": {
            "hidden_size": 128,
            "nas_config": {
                "encoder_layers": [
                    {
                        "operation_type": "SA",
                        "operation_parameter": "WMA",
                        "num_operation_heads": 4,
                        "feed_forward_dimension": 1024,
                        "num_feed_forward": 3,
                    },
                    {
                        "operation_type": "DSC",
                        "operation_parameter": 9,
                        "num_operation_heads": 2,
                        "feed_forward_dimension": 512,
                        "num_feed_forward": 1,
                    },
                ]
            },
        }
    },
}

MODEL_CONFIG = {
    "adaptive": True,
    "attn_type": 0,
    "cutoffs": [19997, 39997, 199997, 50264],
    "d_embed": 256,
    "d_head": -1,
    "d_inner": [1071, 640],
    "d_model": 128,
    "div_val": 4,
    "dtype": None,
    "n_head": [2, 8],
    "n_layer": 2,
    "n_token": 50264,
    "proj_init_std": 0.01,
    "tgt_len": 192,
    "tie_projs": [False, True, True, True],
    "tie_weight": True,
    "weight_init_std": 0.02,
}


def encoders(count=3):
    rows = []
    for index in range(count):
        row = copy.deepcopy(ENCODER)
        row["id"] = index
        row["scores"]["glue"] = 70.0 + index
        rows.append(row)
    return rows


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def write_folder(folder, names=("config_0/j0", "config_0/j1", "config_1/j0"), **changes):
    """A LiteTransformerSearch folder; perplexities are 20, 21, 22, ..."""
    perplexities = {}
    for index, name in enumerate(names):
        path = folder / name / "model_config.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump({**MODEL_CONFIG, **changes}))
        perplexities[name.replace("/", "_")] = {"valid_ppl": 20.0 + index, "test_ppl": 99.0}
    (folder / "ppl_summary.yaml").write_text(yaml.safe_dump(perplexities))
    return folder
