"""Small samples of every tensor that a proxy may read, of all architectures at once.

A deep proxy joins tensors before they are reduced, so statistics collected in advance do not serve
it.  Of each tensor, viewed as [first axis, the rest], 16 rows and 16 columns are kept, and six
exact moments of the whole tensor.  The places follow from the seed and the shape alone: a weight
and its gradient are sampled at the same places, and so are equal shapes of two architectures.  The
pass is in float64: its last bits, which differ between CPUs, are below what decides a search.

The error, on two samples of 40 FlexiBERT encoders: `sum(total(abs(mul(weight, grad))))` is off
by 3 to 4 % (the mixers' part by 4 to 5 %), with a Spearman correlation of 0.996 to the full one
(0.977 and 0.986).  Of 40 random proxies the median is 0.985 (0.970 with 8 x 8 elements, 0.995 with
32 x 32), but a tenth are below 0.42 at any size: no sample estimates sums of numbers of both signs,
or of rare huge ones.  A proxy chosen on sketches is therefore scored again on full tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.models import ArchitectureSpec
from lmscout.proxies.primitives import SPEC_LEAVES, STACKS, without_noise
from lmscout.statistics.collect import Build, Options, Row, evaluated_rows
from lmscout.statistics.single_pass import run_pass

ROWS, COLUMNS = 16, 16
"""Rows and columns of a tensor that are kept."""

ROOM = 40
"""Tensors per block that a row of the file has room for; FlexiBERT's largest block has 31."""

MOMENTS = ("mean", "l1", "frobenius", "std", "low", "high")
"""Exact numbers of a whole tensor."""

# `mixer` and `mlp` are parts of `linear`, without tensors of their own.
OWN_STACKS = ("linear", "act", "hidden", "head", "softmax")
_LEAVES = tuple(leaf for stack in OWN_STACKS for leaf in STACKS[stack])
_KEY = ("leaf", "block", "place", "mixes", "rows", "columns")
_HEADER = (*_KEY, *MOMENTS)  # stored before each sample


@dataclass(frozen=True, eq=False, repr=False)
class StackSketch:
    """The N tensors of one stack, of all blocks of all architectures.

    Samples and moments are NaN throughout if a tensor holds a NaN or an infinity.
    """

    samples: Mapping[str, Tensor]  # leaf -> [N, R, C] float64; 0 beyond a smaller tensor
    moments: Mapping[str, Tensor]  # leaf -> [N, 6] float64 in the order of `MOMENTS`, exact
    architecture: Tensor  # [N] int64
    block: Tensor  # [N] int64
    mixes: Tensor  # [N] bool, whether a linear layer is of the mixer rather than the MLP
    rows: Tensor  # [N] int64, size of the first axis
    columns: Tensor  # [N] int64, product of the other axes

    def sampled_sizes(self) -> tuple[Tensor, Tensor]:
        """Sampled rows and columns of each tensor: [N] and [N] int64."""
        _, rows, columns = next(iter(self.samples.values())).shape
        return self.rows.clamp(max=rows), self.columns.clamp(max=columns)

    def only(self, mask: Tensor) -> StackSketch:
        """Some of its tensors, by a mask [N] bool."""
        return StackSketch(
            {name: one[mask] for name, one in self.samples.items()},
            {name: one[mask] for name, one in self.moments.items()},
            *(one[mask] for one in (self.architecture, self.block, self.mixes)),
            *(one[mask] for one in (self.rows, self.columns)),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Sketches:
    """Sketches of the A architectures of a benchmark."""

    stacks: Mapping[str, StackSketch]  # those of `OWN_STACKS`
    depth: npt.NDArray[np.int64]  # [A] number of blocks
    spec: Mapping[str, npt.NDArray[np.float64]]  # "depth", "width" and "params" -> [A]

    def disturbed(self, by: float) -> Sketches:
        """The same with each tensor multiplied by a number of its own between 1 - by and 1 + by."""
        random = torch.Generator().manual_seed(0)
        stacks = {}
        for name, stack in self.stacks.items():
            samples, moments = dict(stack.samples), dict(stack.moments)
            for leaf, one in samples.items():
                draw = torch.rand(len(one), dtype=torch.float64, generator=random)
                factor = 1 + by * (2 * draw - 1)
                samples[leaf], moments[leaf] = (
                    one * factor[:, None, None],
                    moments[leaf] * factor[:, None],
                )
            stacks[name] = replace(stack, samples=samples, moments=moments)
        return replace(self, stacks=stacks)

    def subset(self, rows: npt.ArrayLike) -> Sketches:
        """The sketches of some architectures: distinct indices in any order, or a mask [A]."""
        chosen = np.arange(len(self.depth))[np.asarray(rows)]
        place = torch.full((len(self.depth),), -1)
        place[torch.from_numpy(chosen)] = torch.arange(len(chosen))
        stacks = {}
        for name, stack in self.stacks.items():
            kept = stack.only(place[stack.architecture] >= 0)
            stacks[name] = replace(kept, architecture=place[kept.architecture])
        spec = {name: values[chosen] for name, values in self.spec.items()}
        return Sketches(stacks, self.depth[chosen], spec)


def joined_sketches(parts: Sequence[Sketches]) -> Sketches:
    """The architectures of several sketches, in their order."""
    first = np.cumsum([0, *(len(one.depth) for one in parts)])
    stacks = {}
    for name in parts[0].stacks:
        each = [one.stacks[name] for one in parts]
        stacks[name] = StackSketch(
            {leaf: torch.cat([one.samples[leaf] for one in each]) for leaf in each[0].samples},
            {leaf: torch.cat([one.moments[leaf] for one in each]) for leaf in each[0].moments},
            torch.cat([one.architecture + at for one, at in zip(each, first[:-1], strict=True)]),
            *(
                torch.cat([getattr(one, field) for one in each])
                for field in ("block", "mixes", "rows", "columns")
            ),
        )
    spec = {name: np.concatenate([one.spec[name] for one in parts]) for name in parts[0].spec}
    return Sketches(stacks, np.concatenate([one.depth for one in parts]), spec)


def collect_sketches(
    specs: Sequence[ArchitectureSpec],
    *,
    size: tuple[int, int] = (ROWS, COLUMNS),
    **options: Unpack[Options],
) -> Sketches:
    """The sketches of a benchmark, with so many rows and columns of each tensor, see `Options`.

    The seed is that of the sampled places, too; the next call continues interrupted work.
    LmscoutError if the folder cannot be written, or an architecture has too many tensors.
    """
    options["name"] += "-sketches"
    slots = ROOM * max(spec.depth for spec in specs)
    columns = [*_HEADER, f"{size[0]} x {size[1]} elements"]
    shape = (slots, len(_HEADER) + size[0] * size[1])
    measure = partial(_measure, slots=slots, size=size)
    store = evaluated_rows(specs, ("sketches", columns), shape, measure, np.float64, **options)
    known = list(map(spec_values, specs))
    return Sketches(
        {stack: _stack(stack, store.rows, size) for stack in OWN_STACKS},
        np.array([spec.depth for spec in specs], np.int64),
        {leaf: np.array([one[leaf] for one in known]) for leaf in SPEC_LEAVES},
    )


def spec_values(spec: ArchitectureSpec) -> dict[str, float]:
    """The values of the leaves that read the configuration, for one architecture."""
    values = {"depth": spec.depth, "width": spec.width, "params": spec.parameters()}
    return {leaf: float(values[leaf]) for leaf in SPEC_LEAVES}


def _measure(build: Build, spec: ArchitectureSpec, *, slots: int, size: tuple[int, int]) -> Row:
    """One architecture's row: [slots, header and sample], NaN in unused slots."""
    model, tokens = build(spec, torch.float64)
    mixing = [
        tuple(layer not in point.mlp for layer in point.linear) for point in model.probe_points()
    ]
    seen: list[Row] = []

    def see(name: str, block: int, place: int, tensor: Tensor) -> None:
        mixes = name in STACKS["linear"] and mixing[block][place]
        matrix = tensor.detach().reshape(len(tensor), -1)
        key = (_LEAVES.index(name), block, place, mixes, *matrix.shape)
        seen.append(np.concatenate([key, *_sketch(matrix, build.seed, size)]))

    run_pass(model, tokens, see, act_gradients=True)
    if len(seen) > slots:
        raise LmscoutError(
            f"an architecture of {spec.depth} blocks has {len(seen)} tensors, and a sketch has "
            f"room for {slots}: raise ROOM in lmscout.statistics.sketches"
        )
    row = np.full((slots, len(_HEADER) + size[0] * size[1]), np.nan)
    row[: len(seen)] = seen
    return row


def _sketch(matrix: Tensor, seed: int, size: tuple[int, int]) -> tuple[Row, Row]:
    """The moments [6] and the padded sample [R * C] of one tensor."""
    low, high = torch.aminmax(matrix)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        return np.full(len(MOMENTS), np.nan), np.full(size[0] * size[1], np.nan)
    n = matrix.numel()
    l1 = matrix.abs().mean()
    mean = without_noise(matrix.mean(), l1)
    variance = matrix.var() if n > 1 else mean.new_zeros(())
    frobenius = (variance * (n - 1) + mean.square() * n).sqrt()  # without another pass
    moments = torch.stack([mean, l1, frobenius, variance.sqrt(), low, high])
    rows, columns = sampled_places(matrix.shape[0], matrix.shape[1], seed, size)
    sample = torch.zeros(size, dtype=torch.float64)
    sample[: len(rows), : len(columns)] = matrix[rows[:, None], columns]
    return moments.cpu().numpy(), sample.flatten().numpy()


@cache
def sampled_places(
    rows: int, columns: int, seed: int, size: tuple[int, int] = (ROWS, COLUMNS)
) -> tuple[Tensor, Tensor]:
    """Ascending rows and columns of a matrix, drawn by seed and shape; all of a smaller one."""
    random = np.random.default_rng((seed, rows, columns))
    drawn = (
        np.sort(random.choice(n, min(n, kept), replace=False))
        for n, kept in zip((rows, columns), size, strict=True)
    )
    first, second = map(torch.from_numpy, drawn)
    return first, second


def _stack(stack: str, stored: npt.NDArray[np.float64], size: tuple[int, int]) -> StackSketch:
    """The tensors of one stack from all rows of the file, by architecture, block and place."""
    architecture, slot = np.nonzero(~np.isnan(stored[:, :, 0]))
    leaf = stored[architecture, slot, 0]
    listed: dict[str, npt.NDArray[np.float64]] = {}
    keys: list[npt.NDArray[np.int64]] = []
    for name in STACKS[stack]:
        own = np.flatnonzero(leaf == _LEAVES.index(name))
        where = architecture[own], slot[own]
        key = np.stack([where[0], *stored[where][:, 1 : len(_KEY)].T])
        order = np.lexsort(key[2::-1])
        listed[name] = stored[where[0][order], where[1][order]]
        keys.append(key[:, order].astype(np.int64))
    if any(not np.array_equal(keys[0], other) for other in keys[1:]):
        raise LmscoutError(f"tensors of {' and '.join(STACKS[stack])} do not match each other")
    architectures, blocks, _, mixes, rows, columns = map(torch.from_numpy, keys[0])
    head = len(_HEADER)
    samples = {
        name: torch.from_numpy(values[:, head:].reshape(-1, *size).copy())
        for name, values in listed.items()
    }
    moments = {
        name: torch.from_numpy(values[:, len(_KEY) : head].copy())
        for name, values in listed.items()
    }
    return StackSketch(samples, moments, architectures, blocks, mixes.bool(), rows, columns)
