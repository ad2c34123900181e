"""The pairs of a pruning run as a benchmark: subnetworks with measured quality.

Their statistics come from one pass of the dense model and look-ups, so whole spaces of proxies
are ranked on them as on any other benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lmscout.benchmarks import Benchmark
from lmscout.errors import LmscoutError
from lmscout.evaluation import LoadedModel, load_model, parameter_count, read_text, tokenize_windows
from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.progress import StageProgress
from lmscout.proxies import Branch, simplified
from lmscout.pruning.calibration import Calibrated, calibrate, model_digest
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import EXPERTS, family_of, set_units
from lmscout.pruning.plan import Floats, Rows, Shape, as_rows
from lmscout.pruning.prefix_tables import tabulate
from lmscout.pruning.proxy_objective import WINDOWS
from lmscout.pruning.recovery.elastic import SETTING, merge_trained
from lmscout.pruning.recovery.run import ELASTIC, recovery_file
from lmscout.pruning.storage import existing_storage_url, shown_url, storage_file
from lmscout.pruning.study import Pair, PairStudy
from lmscout.pruning.study_record import Recorded, read_recorded
from lmscout.statistics import INPUT_NAMES, Batch, Statistics
from lmscout.statistics.collect import RowStore, provenance

PREFIX = "study:"
METRIC = "negated loss increase over the dense model, nats/token"


@dataclass(frozen=True, kw_only=True)
class SubnetworkSpec(ArchitectureSpec):
    """A subnetwork of a trained model as an architecture of a benchmark."""

    kind: ClassVar[str] = "subnetwork"
    causal: ClassVar[bool] = True

    dense: tuple[str, str]  # digests of the model and of the calibration text
    attention: tuple[int, ...]  # groups that each block keeps
    mlp: tuple[int, ...]  # channels that each block keeps
    body: int  # parameters of blocks, with all norms and output biases, and the final norm
    rest: int  # all other parameters: embeddings and head

    @property
    def depth(self) -> int:
        """Number of blocks that keep something."""
        return sum(map(any, zip(self.attention, self.mlp, strict=True)))

    def parameters(self) -> int:
        """Of the whole model."""
        return self.body + self.rest

    def body_parameters(self) -> int:
        """Of the blocks and the final norm."""
        return self.body

    def multiply_adds(self) -> int:
        """Raise: a plan does not tell the sizes of its units."""
        raise LmscoutError("the multiply-adds of a subnetwork are not known: give another limit")

    def build(self, seed: int) -> LanguageModel:
        """Raise: a subnetwork is no untrained architecture."""
        raise LmscoutError("a subnetwork is part of its trained model, and cannot be built anew")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SubnetworkSpec:
        """The spec from the values of `to_dict`, without ``kind``."""
        tuples = {name: tuple(values[name]) for name in ("dense", "attention", "mlp")}
        return cls(**{**values, **tuples})


@dataclass(frozen=True, eq=False)
class StudyBenchmark:
    """A study's pairs and the source of their statistics."""

    benchmark: Benchmark  # one architecture for each complete pair, in the order of measuring
    recorded: Recorded  # origin and settings of the study
    loaded: LoadedModel  # the dense model; statistics sort its units
    text: str  # source of the calibration text
    shape: Shape  # units of the model
    rows: Rows  # [n, 2L] the plans
    cache: Path  # folder of the statistics
    adapter: Path | None = None  # of the elastic recovery before the pairs; None without

    def read(
        self, chains: Sequence[tuple[str, ...]], progress: StageProgress | None = None
    ) -> Statistics:
        """Statistics of every subnetwork under chains of operations, innermost first; cached.

        Raises:
            LmscoutError: the text or the adapter is not that of the pairs, or the cache cannot be
                written.
        """
        depth = np.array([spec.depth for spec in self.benchmark.specs])
        settings = self.recorded.calibration
        seed = settings.seed or 0
        name = f"subnetwork means, {sorted(self.recorded.settings.items())}"
        texts = ["|".join(chain) for chain in chains]
        batch = Batch(WINDOWS, settings.length, seed)
        key = provenance(name, texts, self.benchmark.specs, seed, batch)
        shape = len(INPUT_NAMES), len(chains), int(depth.max())
        store = RowStore(self.cache, "study", key, shape)
        if not store.done.all():
            for index, row in enumerate(self._values(chains)):
                store.set_row(index, row[:, :, : depth.max()])
            store.save()
        if progress:
            progress(len(depth), len(depth))
        return Statistics(store.rows, tuple(map(tuple, chains)), depth, store.path)

    def _values(self, chains: Sequence[tuple[str, ...]]) -> Floats:
        """[plans, inputs, chains, blocks]: blocks that are kept first, then NaN."""
        calibrated = self._calibrated()
        branches = (Branch(name, tuple(chain)) for name in INPUT_NAMES for chain in chains)
        nodes = [simplified(branch.expression()) for branch in branches]
        tokens = calibrated.measured[:WINDOWS]
        model, family, shape = calibrated.model, calibrated.family, calibrated.shape
        tables = tabulate(model, family, shape, tokens, dict.fromkeys(nodes))
        values = np.stack([tables[node].block_values(self.rows) for node in nodes], axis=1)
        values = values.reshape(-1, len(INPUT_NAMES), len(chains), self.shape.depth)
        exists = np.asarray((self.rows > 0).reshape(len(self.rows), 2, -1).any(axis=1))
        dropped = np.broadcast_to(~exists[:, None, None], values.shape)
        order = np.argsort(dropped, axis=-1, kind="stable")
        return np.take_along_axis(np.where(dropped, np.nan, values), order, axis=-1)

    def _calibrated(self) -> Calibrated:
        """The dense model with sorted units, after its elastic recovery."""
        settings = replace(self.recorded.calibration, compensate=False)
        windows = tokenize_windows(self.loaded.tokenizer, read_text(self.text), settings.length)
        calibrated = calibrate(self.loaded.model, windows, settings)
        if calibrated.digests["calibration"] != self.recorded.settings.get("calibration"):
            raise LmscoutError(
                f"{self.text}: is not the text on which the pairs of {self.benchmark.name} were "
                "measured; name that one as calibration"
            )
        if self.adapter is not None:
            merge_trained(calibrated, self.adapter, str(self.recorded.settings[SETTING]))
        return calibrated


def study_benchmark(
    run: str, cache: Path, *, model: str | None = None, calibration: str | None = None
) -> StudyBenchmark:
    """The complete pairs of a pruning run, a folder or a URL, as a benchmark.

    Model and calibration text may have moved since the run.

    Raises:
        LmscoutError: there is no study, its origin is unknown, the model is another one, or the
            adapter of its elastic recovery is missing.
    """
    recorded, url = read_recorded(run), existing_storage_url(run)
    run = shown_url(run)
    source, text = model or recorded.model, calibration or recorded.text
    for option, given in (("model", source), ("calibration", text)):
        if not given:
            raise LmscoutError(f"{PREFIX}{run}: the run does not record its origin; give {option}")
    loaded = load_model(str(source), recorded.dtype)
    digest = model_digest(loaded.model)  # which depends on the dtype
    if digest != recorded.settings.get("model"):
        raise LmscoutError(
            f"{loaded.source}: is not the model whose plans {PREFIX}{run} holds; name that one "
            "as model"
        )
    adapter = _adapter(run, url, recorded, loaded.model.dtype)
    dense: Any = loaded.model
    set_units(dense.config, str(recorded.settings.get("units", EXPERTS)))
    dense.to(torch.float32)  # a CPU is slow at anything else
    shape = shape_of(family_of(dense.config).all_parts(dense))
    with PairStudy(url, shape, recorded.settings, create=False) as study:
        pairs = [pair for pair in study.pairs() if not pair.partial]
    benchmark = Benchmark(
        f"{PREFIX}{run}",
        tuple(_specs(pairs, dense, shape, (digest, str(recorded.settings.get("calibration"))))),
        np.array([-pair.value for pair in pairs]),
        METRIC,
        tuple(f"pair{number}" for number in range(len(pairs))),
        shown_url(url),
    )
    rows = as_rows([pair.plan for pair in pairs])
    return StudyBenchmark(benchmark, recorded, loaded, str(text), shape, rows, cache, adapter)


def _adapter(run: str, url: str, recorded: Recorded, dtype: torch.dtype) -> Path | None:
    """File of the adapter that pairs were measured with, None without; LmscoutError if missing."""
    if SETTING not in recorded.settings:
        return None
    database = storage_file(url)
    file = recovery_file(Path(run) if database is None else database.parent, ELASTIC)
    if not file.is_file():
        raise LmscoutError(
            f"{PREFIX}{run}: its pairs were measured after elastic recovery, and {file} is not "
            "there; name a run folder that holds both, or a run without elastic recovery"
        )
    if dtype != torch.float32:
        # In 16 bits rounding decides the order of many units, to which an adapter belongs.
        raise LmscoutError(
            f"{PREFIX}{run}: its pairs were measured after elastic recovery in "
            f"{str(dtype).removeprefix('torch.')}, which cannot be made again exactly; "
            "name a run of compute dtype float32, or one without elastic recovery"
        )
    return file


def _specs(
    pairs: Sequence[Pair], dense: Any, shape: Shape, digests: tuple[str, str]
) -> list[SubnetworkSpec]:
    config = dense.config
    modules = filter(None, (dense.get_input_embeddings(), dense.get_output_embeddings()))
    weights = {id(one): one.numel() for module in modules for one in module.parameters()}
    rest = sum(weights.values())
    fixed = parameter_count(dense) - rest - shape.parameters
    return [
        SubnetworkSpec(
            width=int(config.hidden_size),
            vocabulary=int(config.vocab_size),
            max_length=int(config.max_position_embeddings),
            dense=digests,
            attention=pair.plan.attention,
            mlp=pair.plan.mlp,
            body=fixed + shape.parameters_of(pair.plan),
            rest=rest,
        )
        for pair in pairs
    ]
