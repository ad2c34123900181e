"""Scores of given proxies, functions or expressions, from the full tensors of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.proxies import Entry, Expression, Reading, as_published, evaluate, resolve
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.statistics.collect import Build, Options, Row, evaluated_rows
from lmscout.statistics.deep_values import full_score, joined_score
from lmscout.statistics.reductions import chain_means
from lmscout.statistics.single_pass import INPUT_NAMES, run_pass
from lmscout.statistics.sketches import spec_values


def score_proxies(
    specs: Sequence[ArchitectureSpec],
    names: Sequence[str],
    *,
    ones: str = "",
    **options: Unpack[Options],
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of architectures by a few proxies, see `Options`: name -> [architectures] float64.

    The tensors of an input, or of "act_grad", may be replaced by ones.  Where all proxies are
    functions of the configuration alone, no model is built and no file is written.  LmscoutError if
    a proxy is unknown or malformed, or the folder cannot be written.
    """
    proxies = tuple(map(resolve, names))
    of_specs = {name: _spec_scores(one, specs) for name, one in zip(names, proxies, strict=True)}
    known = {name: one for name, one in of_specs.items() if one is not None}
    if len(known) == len(of_specs):
        if progress := options.get("progress"):
            progress(len(specs), len(specs))
        return known
    options["name"] += "-proxies"
    kind = f"scores with ones for {ones}" if ones else "scores"
    measure = partial(_measure, proxies=proxies, ones=ones)
    # In float64: SynFlow multiplies from layer to layer, and a deep model's is beyond float32.
    store = evaluated_rows(specs, (kind, names), (len(names),), measure, np.float64, **options)
    return {proxy: store.rows[:, column] for column, proxy in enumerate(names)}


def _spec_scores(
    proxy: Entry | Expression, specs: Sequence[ArchitectureSpec]
) -> npt.NDArray[np.float64] | None:
    """Scores [architectures] of a proxy of the configuration alone; None for any other."""
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    if expression is None or not expression.leaves <= set(SPEC_LEAVES):
        return None
    leaves = {name: Expression(name) for name in expression.leaves}
    values = map(spec_values, specs)
    return np.array(
        [joined_score(expression, {leaves[name]: one[name] for name in leaves}) for one in values]
    )


def _measure(
    build: Build, spec: ArchitectureSpec, *, proxies: tuple[Entry | Expression, ...], ones: str
) -> Row:
    scores: dict[Entry | Expression, float] = {}
    dtypes = sorted({precision(one) for one in proxies}, key=lambda dtype: dtype.itemsize)
    spec.require_memory(dtypes[-1].itemsize)
    model, tokens = build(spec)
    for dtype in dtypes:  # of one draw, the narrow one first
        reading = full_reading(model.to(dtype), tokens, spec.parameters())
        if ones:
            reading = with_ones(reading, ones)
        known: dict[Expression, Tensor] = {}
        here = [one for one in proxies if precision(one) == dtype]
        scores |= {one: score(one, reading, spec, known) for one in here}
        del reading  # before the next one
    return np.array([scores[one] for one in proxies])


def precision(proxy: Entry | Expression) -> torch.dtype:
    """The type of the pass that a proxy reads.

    Float64 for trees of the deep space, so that what a search finds does not depend on the last
    bits of a CPU; float32 for functions and for the published form, as in the literature.
    """
    function = isinstance(proxy, Entry) and proxy.function is not None
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    deep = not function and expression is not None and as_published(expression) is None
    return torch.float64 if deep else torch.float32


def full_reading(model: LanguageModel, tokens: Tensor, parameters: int) -> Reading:
    """Run one pass over tokens [B, T] int64 and keep a copy of every tensor."""
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


def with_ones(reading: Reading, name: str) -> Reading:
    """A reading whose tensors of one input, or of "act_grad", are ones of the same shapes."""
    blocks = reading.act_grad if name == "act_grad" else reading.inputs[name]
    ones = tuple(tuple(torch.ones_like(one) for one in block) for block in blocks)
    if name == "act_grad":
        return replace(reading, act_grad=ones)
    return replace(reading, inputs={**reading.inputs, name: ones})


def score(
    proxy: Entry | Expression,
    reading: Reading,
    spec: ArchitectureSpec,
    known: dict[Expression, Tensor] | None = None,
) -> float:
    """Score one model by one proxy, from the full tensors of a pass.

    Trees of the same pass share what is known, see `full_score`.
    An expression of the published form is computed as the collected statistics are, so that both
    agree; any other one by its definition.
    """
    if isinstance(proxy, Entry) and proxy.function is not None:
        return proxy.function(reading)
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    assert expression is not None  # an entry has one or the other
    if as_published(expression) is None:
        return full_score(expression, reading, spec_values(spec), known)

    def block_values(name: str, chain: tuple[str, ...]) -> list[list[float]]:
        means = ([chain_means(one, [chain])[0] for one in block] for block in reading.inputs[name])
        return [[np.mean(values).item() if values else 0.0 for values in means]]

    return float(evaluate(expression, block_values, [len(reading.linears)])[0])
