"""Scores of given proxies, functions or expressions, from one reading of full tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.proxies import Entry, Expression, Reading, as_published, evaluate, resolve
from lmscout.statistics.collect import Build, Progress, Row, RowStore, fill, provenance
from lmscout.statistics.deep_values import full_score
from lmscout.statistics.reductions import chain_means
from lmscout.statistics.single_pass import INPUT_NAMES, Batch, run_pass
from lmscout.statistics.sketches import spec_values
from lmscout.statistics.workers import Workers


def score_proxies(
    specs: Sequence[ArchitectureSpec],
    names: Sequence[str],
    *,
    name: str,
    folder: Path,
    seed: int = 0,
    batch: Batch | None = None,
    ones: str = "",
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Score architectures by a few proxies; kept like statistics.

    Args:
        specs: the architectures.
        names: catalog names or expressions.
        name: prefix of the file's name.
        folder: where the file lies.
        seed: of the models' weights.
        batch: what the models read.
        ones: an input, or "act_grad", whose tensors are replaced by ones before a proxy reads
            them: what the scores are then is what they owe to all the rest.
        workers: how the work is spread.
        progress: called with architectures done and in all.

    Returns:
        name -> [architectures] float64.

    Raises:
        LmscoutError: a proxy is unknown or malformed, or the folder cannot be written.
    """
    batch, workers = batch or Batch(), workers or Workers()
    kind = f"scores with ones for {ones}" if ones else "scores"
    update = provenance(kind, names, specs, seed, batch, device=workers.device)
    # SynFlow multiplies from layer to layer: a deep model's is beyond float32.
    store = RowStore(folder, f"{name}-proxies", update, (len(names),), np.float64)
    proxies = tuple(map(resolve, names))
    build = Build(seed, batch, workers.device)
    measure = partial(_score, proxies=proxies, build=build, ones=ones)
    fill(store, specs, measure, workers, progress)
    return {entry: store.rows[:, column] for column, entry in enumerate(names)}


def full_reading(model: LanguageModel, tokens: Tensor, parameters: int) -> Reading:
    """Run one pass and keep every tensor: what the catalog's functions are given.

    Args:
        model: as built by a spec; left as it was found.
        tokens: [B, T] int64.
        parameters: number of parameters of the model.
    """
    points = model.probe_points()
    kept: dict[str, list[dict[int, Tensor]]] = {
        name: [{} for _ in points] for name in (*INPUT_NAMES, "act_grad")
    }

    def keep(name: str, block: int, place: int, tensor: Tensor) -> None:
        kept[name][block][place] = tensor.detach().clone()

    run_pass(model, tokens, keep, act_gradients=True)
    ordered = {
        name: tuple(tuple(block[place] for place in sorted(block)) for block in blocks)
        for name, blocks in kept.items()
    }
    return Reading(
        model=model,
        tokens=tokens,
        inputs={name: ordered[name] for name in INPUT_NAMES},
        act_grad=ordered["act_grad"],
        linears=tuple(point.linear for point in points),
        mixing=tuple(tuple(layer not in point.mlp for layer in point.linear) for point in points),
        parameters=parameters,
        gates=tuple(gate for point in points for gate in point.gate),
    )


def score(proxy: Entry | Expression, reading: Reading, spec: ArchitectureSpec) -> float:
    """Score one model by one proxy, from the full tensors of a reading.

    An expression of the published form is computed as the collected statistics are, so that both
    agree; any other one by its definition.
    """
    if isinstance(proxy, Entry) and proxy.function is not None:
        return proxy.function(reading)
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    assert expression is not None  # an entry has one or the other
    if as_published(expression) is None:
        return full_score(expression, reading, spec_values(spec))

    def block_values(name: str, chain: tuple[str, ...]) -> list[list[float]]:
        return [[_block_value(tensors, chain) for tensors in reading.inputs[name]]]

    return float(evaluate(expression, block_values, [len(reading.linears)])[0])


def _block_value(tensors: tuple[Tensor, ...], chain: tuple[str, ...]) -> float:
    """Mean over a block's tensors; 0 where it has none, as in the collected statistics."""
    values = [chain_means(one, [chain])[0] for one in tensors]
    return np.mean(values).item() if values else 0.0


def with_ones(reading: Reading, name: str) -> Reading:
    """A reading whose tensors of one input, or of "act_grad", are ones of the same shapes."""
    if name == "act_grad":
        return replace(reading, act_grad=_ones(reading.act_grad))
    return replace(reading, inputs={**reading.inputs, name: _ones(reading.inputs[name])})


def _ones(blocks: tuple[tuple[Tensor, ...], ...]) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(tuple(torch.ones_like(one) for one in block) for block in blocks)


def _score(
    spec: ArchitectureSpec,
    *,
    proxies: tuple[Entry | Expression, ...],
    build: Build,
    ones: str,
) -> Row:
    reading = full_reading(*build(spec), spec.parameters())
    if ones:
        reading = with_ones(reading, ones)
    return np.array([score(proxy, reading, spec) for proxy in proxies])
