"""LiteTransformerSearch's folders of trained decoders, in upstream's layout.

Javaheripi et al., "LiteTransformerSearch: Training-free Neural Architecture Search for
Efficient Language Models", arXiv 2203.02094; github microsoft/archai, branch neurips-lts,
``archai/nlp/nas/saved_logs``.  A folder holds one ``model_config.yaml`` for each architecture,
one or two folders down, and ``ppl_summary.yaml`` with their perplexities.  Its
``params_summary.yaml`` is not read: upstream filled some of GPT-2 with the Transformer-XL
formula, so lmscout recounts.

The configurations of GPT-2 and Transformer-XL have the same fields.  Folders named
``*_TransXL_*`` are of words, ``*_GPT2_*`` of byte pairs, whatever the data.
"""

import os
import re
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lmscout.benchmarks.benchmark import Benchmark, Row, checked
from lmscout.errors import LmscoutError, brief
from lmscout.models import Gpt2Spec, TransformerXlSpec
from lmscout.models.spec import MOST_BLOCKS
from lmscout.reading import read_yaml

CONFIG_FILE = "model_config.yaml"
PERPLEXITY_FILE = "ppl_summary.yaml"
METRIC = "negated validation perplexity"
WORDS = (267_735, 267_736, 793_470)
"""Sizes of the vocabularies of words: WikiText-103's, and that of the one-billion-word data."""

VOCABULARIES = (None, "word", "bpe", "bbpe", "gpt2")
_READ = "lmscout reads folders of GPT-2 and Transformer-XL architectures"


class ModelConfig(Row):
    """The fields of ``model_config.yaml`` that define the architecture."""

    n_layer: Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
    n_head: int | list[int]
    d_head: int | list[int] | None = -1
    d_model: int
    d_inner: int | list[int]
    d_embed: int | None = -1
    n_token: int
    tgt_len: Annotated[int, Field(ge=2)]
    div_val: int
    cutoffs: list[Annotated[int, Field(gt=0)]]
    tie_projs: list[bool]
    tie_weight: bool = True
    adaptive: bool = True
    attn_type: int = 0
    clamp_len: int = -1
    same_length: bool = False
    pre_lnorm: bool = False
    primer_conv: bool = False
    primer_square: bool = False
    vocab: str | None = None
    weight_init_std: float = 0.02
    proj_init_std: float = 0.01


class Perplexity(Row):
    """One architecture's values in ``ppl_summary.yaml``."""

    valid_ppl: Annotated[float, Field(gt=0)]


def read_lts(folder: Path, name: str, metric: str = METRIC) -> Benchmark:
    """The benchmark in a folder of LiteTransformerSearch.

    The folder holds ``config_*/j*/model_config.yaml`` (or ``*/model_config.yaml``) and
    ``ppl_summary.yaml``.  LmscoutError if a file is missing or malformed, or an architecture has no
    perplexity or is neither a GPT-2 nor a Transformer-XL.
    """
    configs = _config_files(folder)
    summary_path = folder / PERPLEXITY_FILE
    if not os.path.exists(summary_path):
        raise LmscoutError(f"{folder}: {PERPLEXITY_FILE} is missing; it holds the perplexities")
    summary = read_yaml(summary_path)
    specs, perplexities = [], []
    for identifier, path in configs.items():
        specs.append(_spec(checked(ModelConfig, read_yaml(path), str(path)), path))
        if identifier not in summary:
            raise LmscoutError(f"{summary_path}: no perplexity for {identifier} ({path})")
        values = summary[identifier]
        if not isinstance(values, dict):  # upstream's Pareto folders record the number alone
            values = {"valid_ppl": values}
        row = checked(Perplexity, values, f"{summary_path}: {identifier}")
        perplexities.append(row.valid_ppl)
    return Benchmark(
        name=name,
        specs=tuple(specs),
        quality=-np.array(perplexities),
        metric=metric,
        identifiers=tuple(configs),
        source=str(folder),
    )


def _config_files(folder: Path) -> dict[str, Path]:
    """The architectures' files by identifier (``config_0_j0``), in natural order."""
    if not os.path.isdir(folder):
        raise LmscoutError(f"{folder}: no such folder")
    paths = [*folder.glob(f"*/{CONFIG_FILE}"), *folder.glob(f"*/*/{CONFIG_FILE}")]
    if not paths:
        raise LmscoutError(f"{folder}: no architectures; expected config_*/j*/{CONFIG_FILE}")
    named = {"_".join(path.relative_to(folder).parent.parts): path for path in paths}
    return dict(sorted(named.items(), key=lambda item: _natural(item[0])))


def _natural(identifier: str) -> tuple[tuple[int, str], ...]:
    """A sort key by which config_2 comes before config_10."""
    parts = re.split(r"(\d+)", identifier)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _spec(config: ModelConfig, path: Path) -> Gpt2Spec | TransformerXlSpec:
    reason = _foreign(config)
    if reason:
        raise LmscoutError(f"{path}: {reason}; {_READ}")
    inner = _per_layer(config.d_inner, config.n_layer)
    heads = _per_layer(config.n_head, config.n_layer)
    sizes = _per_layer(-1 if config.d_head is None else config.d_head, config.n_layer)
    if {len(heads), len(inner), len(sizes)} != {config.n_layer}:
        raise LmscoutError(
            f"{path}: n_layer is {config.n_layer}, but n_head has {len(heads)} entries, "
            f"d_inner {len(inner)} and d_head {len(sizes)}; give as many as layers, or one number"
        )
    if any(
        head > 0 and count * head != config.d_model
        for count, head in zip(heads, sizes, strict=True)
    ):
        raise LmscoutError(f"{path}: d_head times n_head is not d_model; {_READ}")
    # Upstream stops at the first cutoff beyond the vocabulary.
    cutoffs = tuple(takewhile(lambda cutoff: cutoff < config.n_token, config.cutoffs))
    words = config.vocab == "word" or config.n_token in WORDS
    kind = partial(TransformerXlSpec, pre_norm=config.pre_lnorm) if words else Gpt2Spec
    try:
        return kind(
            width=config.d_model,
            heads=heads,
            inner=inner,
            embedding_width=config.d_model if config.d_embed in (None, -1) else config.d_embed,
            divisor=config.div_val,
            cutoffs=cutoffs,
            tied=tuple(config.tie_projs[: len(cutoffs) + 1]),
            vocabulary=config.n_token,
            max_length=config.tgt_len,
            weight_std=config.weight_init_std,
            projection_std=config.proj_init_std,
        )
    except LmscoutError as error:
        raise LmscoutError(f"{path}: {error}") from None


def _foreign(config: ModelConfig) -> str | None:
    """Why this is not an architecture of LiteTransformerSearch, or None."""
    if config.attn_type != 0:
        return f"attn_type is {config.attn_type}: not Transformer-XL's relative positions"
    if config.clamp_len > 0 or config.same_length:
        return "clamp_len or same_length is set: attention of limited length"
    if config.primer_conv or config.primer_square:
        return "primer_conv or primer_square is set: a Primer architecture"
    if not (config.adaptive and config.tie_weight):
        return "adaptive or tie_weight is off: not the tied adaptive softmax"
    if config.vocab not in VOCABULARIES:
        return f"vocab is {brief(config.vocab)} (expected {', '.join(filter(None, VOCABULARIES))})"
    return None


def _per_layer(value: int | list[int], layers: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,) * layers
