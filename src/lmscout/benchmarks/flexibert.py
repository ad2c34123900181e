"""The FlexiBERT benchmark: 500 encoders with their GLUE scores, in upstream's JSON.

Serianni and Kalita, "Training-free Neural Architecture Search for RNNs and Transformers",
arXiv 2305.18915; github aaronserianni/training-free-nas, ``data/BERT_benchmark.json``.
"""

from pathlib import Path

import numpy as np
from pydantic import AliasPath, Field

from lmscout.benchmarks.benchmark import Benchmark, Row, checked
from lmscout.errors import LmscoutError, brief
from lmscout.models import FlexibertBlock, FlexibertSpec
from lmscout.reading import read_json_rows

MIXER_NAMES: dict[tuple[str, str | int], str] = {
    ("SA", "SDP"): "SDP",
    ("SA", "WMA"): "WMA",
    ("LT", "DFT"): "DFT",
    ("LT", "DCT"): "DCT",
    ("DSC", 5): "DSC5",
    ("DSC", 9): "DSC9",
}


class Layer(Row):
    """One encoder layer, in upstream's words."""

    operation_type: str
    operation_parameter: str | int
    num_operation_heads: int
    feed_forward_dimension: int
    num_feed_forward: int


_MODEL = "hparams", "model_hparam_overrides"


class TrainedEncoder(Row):
    """One row of the file: architecture, and mean GLUE score after fine-tuning."""

    id: int
    glue: float = Field(validation_alias=AliasPath("scores", "glue"))
    hidden_size: int = Field(validation_alias=AliasPath(*_MODEL, "hidden_size"))
    layers: list[Layer] = Field(validation_alias=AliasPath(*_MODEL, "nas_config", "encoder_layers"))


def read_flexibert(path: Path, name: str) -> Benchmark:
    """The benchmark in a file of upstream's form: rows as a JSON array, or one a line.

    LmscoutError if the file is not JSON, or a row is invalid.
    """
    rows = read_json_rows(path)
    if not rows:
        raise LmscoutError(f"{path}: expected a list of architectures with at least one in it")
    specs, encoders = [], []
    for index, row in enumerate(rows):
        identifier = row.get("id") if isinstance(row, dict) else None
        where = f"{path}: row {index}"
        where += "" if identifier is None else f" (id {brief(identifier)})"
        encoder = checked(TrainedEncoder, row, where)
        specs.append(_spec(encoder, where))
        encoders.append(encoder)
    return Benchmark(
        name=name,
        specs=tuple(specs),
        quality=np.array([encoder.glue for encoder in encoders]),
        metric="GLUE score",
        identifiers=tuple(str(encoder.id) for encoder in encoders),
        source=str(path),
    )


def _spec(encoder: TrainedEncoder, where: str) -> FlexibertSpec:
    blocks = []
    for index, layer in enumerate(encoder.layers):
        operation = (layer.operation_type, layer.operation_parameter)
        if operation not in MIXER_NAMES:
            known = ", ".join(f"{kind} {parameter}" for kind, parameter in MIXER_NAMES)
            raise LmscoutError(
                f"{where}: encoder_layers.{index}: operation "
                f"{operation[0][:60]} {brief(operation[1])[:60]} is "
                f"unknown; there are {known}"
            )
        blocks.append(
            FlexibertBlock(
                mixer=MIXER_NAMES[operation],
                heads=layer.num_operation_heads,
                feed_forward=layer.feed_forward_dimension,
                stack=layer.num_feed_forward,
            )
        )
    try:
        return FlexibertSpec(width=encoder.hidden_size, blocks=tuple(blocks))
    except LmscoutError as error:
        raise LmscoutError(f"{where}: {error}") from None
