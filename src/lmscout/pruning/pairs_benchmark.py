"""The pairs of a prune run as a benchmark: subnetworks with measured quality.

Their statistics are read in the dense model, by one pass and look-ups, so whole spaces of proxies
can be ranked on them as on any other benchmark.
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
from lmscout.proxies import Branch, Expression, simplified
from lmscout.pruning.calibration import calibrate, model_digest
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Floats, Rows, Shape, as_rows
from lmscout.pruning.prefix_tables import BlockTable, tabulate
from lmscout.pruning.proxy_objective import WINDOWS
from lmscout.pruning.recovery.elastic import SETTING, merge_trained
from lmscout.pruning.recovery.run import ELASTIC, recovery_file
from lmscout.pruning.storage import existing_storage_url, shown_url, sqlite_file
from lmscout.pruning.study import Pair, PairStudy
from lmscout.pruning.study_record import Recorded, read_recorded
from lmscout.statistics import INPUT_NAMES, Batch, Statistics
from lmscout.statistics.collect import RowStore, provenance

PREFIX = "study:"
METRIC = "negated rise of the loss over the dense model's, nats a token"


@dataclass(frozen=True, kw_only=True)
class SubnetworkSpec(ArchitectureSpec):
    """A subnetwork of a trained model, as a benchmark counts it.

    Attributes:
        dense: digests of the model and of the calibration text.
        attention: groups that each block keeps.
        mlp: channels that each block keeps.
        body: parameters of blocks and the final norm; norms and output biases of what is dropped
            are counted.
        rest: all other parameters: embeddings and head.
    """

    kind: ClassVar[str] = "subnetwork"
    causal: ClassVar[bool] = True

    dense: tuple[str, str]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    body: int
    rest: int

    @property
    def depth(self) -> int:
        """Blocks of which something is kept."""
        return sum(map(any, zip(self.attention, self.mlp, strict=True)))

    def parameters(self) -> int:
        """Of the whole model."""
        return self.body + self.rest

    def body_parameters(self) -> int:
        """Of the blocks and the final norm."""
        return self.body

    def build(self, seed: int) -> LanguageModel:
        """Not built: a subnetwork is no untrained architecture."""
        raise LmscoutError("a subnetwork is read in its trained model, and cannot be built anew")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SubnetworkSpec:
        """The spec from what `to_dict` gave, less ``kind``."""
        tuples = {name: tuple(values[name]) for name in ("dense", "attention", "mlp")}
        return cls(**{**values, **tuples})


@dataclass(frozen=True, eq=False)
class StudyBenchmark:
    """A study's pairs, and how their statistics are read.

    Attributes:
        benchmark: one architecture a whole pair, in the order of measuring.
        recorded: what the study says of itself.
        loaded: the dense model; its units are put in order when statistics are read.
        text: source of the calibration text.
        shape: units of the model.
        rows: [n, 2L] the plans.
        cache: where statistics are kept.
        adapter: file of the elastic recovery after which pairs were measured; None without.
    """

    benchmark: Benchmark
    recorded: Recorded
    loaded: LoadedModel
    text: str
    shape: Shape
    rows: Rows
    cache: Path
    adapter: Path | None = None

    def read(
        self, chains: Sequence[tuple[str, ...]], progress: StageProgress | None = None
    ) -> Statistics:
        """Statistics of every subnetwork under chains of operations, or those that are kept.

        Args:
            chains: innermost operation first.
            progress: called with subnetworks done and in all.

        Raises:
            LmscoutError: the text is not the one that pairs were measured on, the adapter is not
                theirs, or the cache cannot be written.
        """
        depth = np.array([spec.depth for spec in self.benchmark.specs])
        settings = self.recorded.calibration
        update = provenance(
            f"subnetwork means, {sorted(self.recorded.settings.items())}",
            ["|".join(chain) for chain in chains],
            self.benchmark.specs,
            settings.seed or 0,
            Batch(WINDOWS, settings.length, settings.seed or 0),
        )
        shape = len(INPUT_NAMES), len(chains), int(depth.max())
        store = RowStore(self.cache, "ledger", update, shape)
        if not store.done.all():
            values = self._values(chains)
            for index, row in enumerate(values):
                store.set_row(index, row[:, :, : depth.max()])
            store.save()
        if progress:
            progress(len(depth), len(depth))
        return Statistics(store.rows, tuple(map(tuple, chains)), depth, store.path)

    def _values(self, chains: Sequence[tuple[str, ...]]) -> Floats:
        """[plans, inputs, chains, blocks]; blocks that are kept come first, and NaN after them."""
        windows = tokenize_windows(
            self.loaded.tokenizer, read_text(self.text), self.recorded.calibration.length
        )
        # Statistics need the order of units, and no compensated projection.
        settings = replace(self.recorded.calibration, compensate=False)
        calibrated = calibrate(self.loaded.model, windows, settings)
        if calibrated.digests["calibration"] != self.recorded.settings.get("calibration"):
            raise LmscoutError(
                f"{self.text}: is not the text on which the pairs of {self.benchmark.name} were "
                "measured; name that one with --calibration"
            )
        if self.adapter is not None:
            merge_trained(calibrated, self.adapter, str(self.recorded.settings[SETTING]))
        nodes = {
            (name, chain): simplified(Branch(name, chain).expression())
            for name in INPUT_NAMES
            for chain in map(tuple, chains)
        }
        tables: dict[Expression, BlockTable] = tabulate(
            calibrated.model,
            calibrated.family,
            calibrated.shape,
            calibrated.measured[:WINDOWS],
            dict.fromkeys(nodes.values()),
        )
        every = [tables[node].block_values(self.rows) for node in nodes.values()]
        values = np.stack(every, axis=1).reshape(
            len(self.rows), len(INPUT_NAMES), len(chains), self.shape.depth
        )
        there = np.asarray((self.rows > 0).reshape(len(self.rows), 2, -1).any(axis=1))
        gone = ~there[:, None, None]
        order = np.argsort(gone, axis=-1, kind="stable")
        packed = np.where(gone, np.nan, values)
        return np.take_along_axis(packed, np.broadcast_to(order, packed.shape), axis=-1)


def study_benchmark(
    run: str, cache: Path, *, model: str | None = None, calibration: str | None = None
) -> StudyBenchmark:
    """The pairs of a prune run as a benchmark.

    Pairs that were dropped early, on a part of the text, are left out.

    Args:
        run: its folder, or its storage's URL.
        cache: where statistics are kept.
        model: the dense model, where it is elsewhere now than the run says.
        calibration: the calibration text, likewise.

    Raises:
        LmscoutError: there is no study, the run does not say what it is of, the model is
            another one than the run's, or what elastic recovery made of it cannot be had.
    """
    recorded, url = read_recorded(run), existing_storage_url(run)
    run = shown_url(run)
    for option, given, said in (
        ("--model", model, recorded.model),
        ("--calibration", calibration, recorded.text),
    ):
        if not (given or said):
            raise LmscoutError(f"{PREFIX}{run}: the run does not say of what it is; give {option}")
    loaded, digest = _dense(model or str(recorded.model), recorded)
    if digest != recorded.settings.get("model"):
        raise LmscoutError(
            f"{loaded.source}: is not the model whose plans {PREFIX}{run} holds; name that one "
            "with --model"
        )
    adapter = _adapter(run, url, recorded, loaded.model.dtype)
    dense: Any = loaded.model
    dense.to(torch.float32)  # a CPU is slow at anything else
    family = family_of(loaded.model.config)
    shape = shape_of(family.all_parts(loaded.model))
    with PairStudy(url, shape, recorded.settings, create=False) as pair_study:
        pairs = [pair for pair in pair_study.pairs() if not pair.partial]
    benchmark = Benchmark(
        f"{PREFIX}{run}",
        tuple(_specs(pairs, loaded, shape, digest, str(recorded.settings.get("calibration")))),
        np.array([-pair.value for pair in pairs]),
        METRIC,
        tuple(f"pair{number}" for number in range(len(pairs))),
        shown_url(url),
    )
    return StudyBenchmark(
        benchmark,
        recorded,
        loaded,
        calibration or str(recorded.text),
        shape,
        as_rows([pair.plan for pair in pairs]),
        cache,
        adapter,
    )


def _dense(source: str, recorded: Recorded) -> tuple[LoadedModel, str]:
    """The dense model as it was in memory, and its digest, which depends on the dtype."""
    loaded = load_model(source, recorded.dtype)
    digest = model_digest(loaded.model)
    if recorded.dtype is None and digest != recorded.settings.get("model"):
        # An older study does not say; what an accelerator measured was as it is saved.
        loaded = load_model(source, loaded.saved_dtype)
        digest = model_digest(loaded.model)
    return loaded, digest


def _adapter(run: str, url: str, recorded: Recorded, dtype: torch.dtype) -> Path | None:
    """File of the adapter that pairs were measured with; None where they had none.

    Raises:
        LmscoutError: it is not there, or was trained in 16 bits.
    """
    if SETTING not in recorded.settings:
        return None
    beside = sqlite_file(url)
    file = recovery_file(Path(run) if beside is None else beside.parent, ELASTIC)
    if not file.is_file():
        raise LmscoutError(
            f"{PREFIX}{run}: its pairs were measured after elastic recovery, and {file} is not "
            "there; name a run folder that holds both, or a run without --elastic"
        )
    if dtype != torch.float32:
        # An adapter belongs to units in their order, which rounding decides for many of them.
        raise LmscoutError(
            f"{PREFIX}{run}: its pairs were measured after elastic recovery in "
            f"{str(dtype).removeprefix('torch.')}, which cannot be made again exactly; "
            "name a run of --compute-dtype float32, or one without --elastic"
        )
    return file


def _specs(
    pairs: Sequence[Pair], loaded: LoadedModel, shape: Shape, model: str, text: str
) -> list[SubnetworkSpec]:
    dense: Any = loaded.model
    config = dense.config
    whole = parameter_count(dense)
    tables = {
        id(weight): weight.numel()
        for module in (dense.get_input_embeddings(), dense.get_output_embeddings())
        if module is not None
        for weight in module.parameters()
    }
    rest = sum(tables.values())
    return [
        SubnetworkSpec(
            width=int(config.hidden_size),
            vocabulary=int(config.vocab_size),
            max_length=int(config.max_position_embeddings),
            dense=(model, text),
            attention=pair.plan.attention,
            mlp=pair.plan.mlp,
            body=whole - rest - shape.parameters + shape.parameters_of(pair.plan),
            rest=rest,
        )
        for pair in pairs
    ]
