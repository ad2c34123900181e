"""Discover: rank every proxy of a space on the search split, report the best on the test split.

A proxy of these spaces joins two branches, each an input under a chain of unary operations.  All
scores of a pair of inputs are a table of left by right branches, made by broadcasting; branches
that are equal on every architecture (mean and identity, l1 and abs, ...) are tabulated once.
Tables are made and ranked in pieces that stay in the cache; memory holds a float and a hash per
proxy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    Compared,
    Points,
    SavedTree,
    SignedProxy,
    assess,
    compare_baselines,
    number_json,
)
from lmscout.discovery.scorer import (
    Scorer,
    ScorerOptions,
    Scores,
    Split,
    cache_name,
    run_settings,
    search_size,
    split_benchmark,
)
from lmscout.errors import LmscoutError, brief
from lmscout.metrics import Interval, kendall, spearman, spearman_many
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.proxies import Branch, Expression, Space, evaluate, format_expression
from lmscout.proxies import space as space_called
from lmscout.proxies.expression import format_branch
from lmscout.proxies.primitives import BINARY
from lmscout.proxies.spaces import APPLY
from lmscout.results import NotSaved, Result, SavedAs, named
from lmscout.runs import Run, kept_result
from lmscout.statistics import Statistics
from lmscout.statistics.workers import worker_processes

Array = npt.NDArray[np.float64]
Marks = npt.NDArray[np.uint64]
BranchValues = Callable[[str, tuple[str, ...]], npt.NDArray[np.floating]]

SCORES = "scores.parquet"
"""File of a run folder, see `write_scores`."""

_PIECE = 1 << 18  # scores: two mebibytes of float64
_ROWS = 1 << 19  # proxies that are written at once

Read = Callable[[Sequence[tuple[str, ...]], StageProgress | None], Statistics]
Source = Callable[[], tuple[Benchmark, Read | None]]
TOP = 10  # formulas that are listed
_TRIED = 500  # of the best, until `TOP` different orders are found
_SAME_ORDER = 1 - 1e-9  # |ρ| of proxies with one order
SavedSpace = Annotated[
    Space,
    SavedAs(
        lambda one: {"name": one.name, "aggregations": list(one.aggregations)},
        lambda saved: space_called(saved["name"], tuple(saved["aggregations"])),
    ),
]


@dataclass(frozen=True)
class SpaceRanking:
    """Every proxy of a space with its rank correlation on the given architectures."""

    spearman: npt.NDArray[np.float32]  # [space.size], NaN if the proxy ranks nothing
    fingerprint: Marks  # [space.size], equal for equal scores (to 1e-12)

    @property
    def n_undefined(self) -> int:
        """Number of proxies that rank nothing: constant, or not finite somewhere."""
        return int(np.isnan(self.spearman).sum())

    @property
    def n_distinct(self) -> int:
        """Number of different score vectors that rank anything."""
        return int(np.unique(self.fingerprint[~np.isnan(self.spearman)]).size)

    def best(self) -> int:
        """Index of the first largest absolute correlation; ValueError if there is none."""
        strength = np.abs(self.spearman)
        if np.isnan(strength).all():
            raise ValueError("no proxy of the space ranks these architectures")
        return int(np.nanargmax(strength))

    def leaders(self) -> Iterator[int]:
        """Indices by decreasing absolute correlation, one of each score vector."""
        seen: set[int] = set()
        for index in np.argsort(-np.abs(self.spearman), kind="stable"):
            mark = int(self.fingerprint[index])
            if np.isnan(self.spearman[index]):
                return
            if mark not in seen:
                seen.add(mark)
                yield int(index)


def rank_space(
    space: Space,
    branch: BranchValues,
    depth: npt.NDArray[np.integer],
    quality: npt.ArrayLike,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpaceRanking:
    """Correlate every proxy of a space with quality [architectures].

    `branch` gives the block values [architectures, blocks] of an input under a chain, NaN beyond an
    architecture's depth.  By default there is one thread per core.
    """
    target = np.asarray(quality, np.float64)
    tables = {name: _distinct_branches(name, space.chains, branch) for name in space.inputs}
    rho, fingerprint = np.empty(space.shape, np.float32), np.empty(space.shape, np.uint64)
    rng = np.random.default_rng(0)
    multipliers = rng.integers(0, 1 << 63, target.size, np.uint64) * np.uint64(2) + np.uint64(1)

    def fill(task: tuple[int, int, int]) -> int:
        a, p, b = task
        (left, left_member), (right, right_member) = (tables[name] for name in space.pairs[p])
        table = np.empty((len(left), len(right)), np.float32)
        marks = np.empty(table.shape, np.uint64)
        step = max(1, _PIECE // (len(right) * target.size))
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            with np.errstate(over="ignore", invalid="ignore"):  # such proxies are undefined
                scores = _scores(BINARY[b].symbol, space.aggregations[a], left[rows], right, depth)
            flat = np.ascontiguousarray(scores.reshape(-1, target.size))
            table[rows] = spearman_many(flat, target).reshape(-1, len(right))
            marks[rows] = _fingerprints(flat, multipliers).reshape(-1, len(right))
        expand = np.ix_(left_member, right_member)
        rho[a, p, :, :, b] = table[expand]
        fingerprint[a, p, :, :, b] = marks[expand]
        return len(space.chains) ** 2

    tasks = list(product(*(range(space.shape[axis]) for axis in (0, 1, 4))))
    done = 0
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        try:
            for count in pool.map(fill, tasks):
                done += count
                if progress:
                    progress(done, space.size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return SpaceRanking(rho.reshape(-1), fingerprint.reshape(-1))


def _distinct_branches(
    name: str, chains: Sequence[tuple[str, ...]], branch: BranchValues
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Different branches [distinct, architectures, blocks] of an input, and each chain's place."""
    values = np.stack([branch(name, chain) for chain in chains]).astype(np.float64)
    values += 0.0  # -0.0 is 0.0
    seen: dict[bytes, int] = {}
    member = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in values])
    return values[np.unique(member, return_index=True)[1]], member


def _scores(
    sign: str, aggregation: str, left: Array, right: Array, depth: npt.NDArray[np.integer]
) -> Array:
    """Scores of all pairs of branches: [left, right, architectures].

    The padding beyond an architecture's depth is left out by depth, so that a NaN within the depth
    still makes the score NaN.
    """
    inside = np.arange(left.shape[2]) < depth[:, None]
    if sign == "@" or (sign == "*" and aggregation in ("sum", "mean")):
        a, b = np.where(inside, left, 0.0), np.where(inside, right, 0.0)
        total: Array = np.matmul(a.transpose(1, 0, 2), b.transpose(1, 2, 0)).transpose(1, 2, 0)
        return total / depth if (sign, aggregation) == ("*", "mean") else total
    if aggregation in ("sum", "mean"):  # linear: aggregate first, then join
        share = depth if aggregation == "mean" else 1
        a, b = (np.where(inside, one, 0.0).sum(axis=2) / share for one in (left, right))
        linear: Array = APPLY[sign](a[:, None], b[None])
        return linear
    extreme, empty = (np.maximum, -np.inf) if aggregation == "max" else (np.minimum, np.inf)
    result = np.full((len(left), len(right), left.shape[1]), empty)
    for block in range(left.shape[2]):
        joined = APPLY[sign](left[:, None, :, block], right[None, :, :, block])
        extreme(result, joined, out=result, where=inside[:, block])
    return result


def _fingerprints(scores: Array, multipliers: Marks) -> Marks:
    """Hash of each row, of its scores to 40 significant bits."""
    bits = (scores + 0.0).view(np.uint64)
    bits += np.uint64(1 << 11)
    bits >>= np.uint64(12)
    hashed: Marks = (bits * multipliers).sum(axis=1, dtype=np.uint64)
    return hashed


def write_scores(path: Path, space: Space, ranking: SpaceRanking) -> None:
    """Write one row per proxy, in the space's order.

    Columns: proxy (the expression, as `rank --proxy` reads it), aggregation, binary, left_input,
    left_chain, right_input, right_chain (operations of a chain innermost first, joined by "|"),
    spearman on the search split (null if undefined) and fingerprint, equal for equal scores.
    """
    chains = pa.array(["|".join(chain) for chain in space.chains])
    columns = {  # name -> axis of the space's shape, and its values
        "aggregation": (0, pa.array(space.aggregations)),
        "binary": (4, pa.array([operation.name for operation in BINARY])),
        "left_input": (1, pa.array([left for left, _ in space.pairs])),
        "left_chain": (2, chains),
        "right_input": (1, pa.array([right for _, right in space.pairs])),
        "right_chain": (3, chains),
    }
    text_of = _expressions(space)
    schema = pa.schema(
        [("proxy", pa.string())]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in columns]
        + [("spearman", pa.float32()), ("fingerprint", pa.uint64())]
    )
    with (
        path.open("wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=list(columns),
            column_encoding={"proxy": "DELTA_BYTE_ARRAY"},  # neighbours share a prefix
        ) as writer,
    ):
        for start in range(0, space.size, _ROWS):
            rows = slice(start, min(start + _ROWS, space.size))
            places = np.unravel_index(np.arange(rows.start, rows.stop), space.shape)
            rho = ranking.spearman[rows]
            arrays = [
                text_of(places),
                *(
                    pa.DictionaryArray.from_arrays(places[axis].astype(np.int32), values)
                    for axis, values in columns.values()
                ),
                pa.array(rho, mask=np.isnan(rho)),
                pa.array(ranking.fingerprint[rows]),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _expressions(space: Space) -> Callable[[Sequence[npt.NDArray[np.intp]]], pa.Array]:
    """A function that gives the text of many proxies at once, by their places in the space."""
    branches = pa.array(
        [format_branch(Branch(name, chain)) for name in space.inputs for chain in space.chains]
    )
    pairs = np.array([[space.inputs.index(name) for name in pair] for pair in space.pairs])
    # A matrix product is the sum of the products, whatever the aggregation (`Space.proxy`).
    prefixes = pa.array(
        [
            f"{'sum' if operation.symbol == '@' else name}("
            for name in space.aggregations
            for operation in BINARY
        ]
    )
    signs = pa.array([f" {'*' if one.symbol == '@' else one.symbol} " for one in BINARY])

    def at(places: Sequence[npt.NDArray[np.intp]]) -> pa.Array:
        aggregation, pair, *sides, binary = places
        left, right = (
            branches.take(pa.array(pairs[pair, side] * len(space.chains) + chain))
            for side, chain in enumerate(sides)
        )
        prefix = prefixes.take(pa.array(aggregation * len(BINARY) + binary))
        sign = signs.take(pa.array(binary))
        return pc.binary_join_element_wise(prefix, left, sign, right, ")", "")

    return at


@dataclass(frozen=True, repr=False)
class Finding(Compared):
    """A proxy that was chosen on the search split, assessed on the test split.

    Attributes:
        benchmark: the benchmark's name.
        metric: name of its quality.
        n_architectures: number of its architectures.
        split: search and test architectures.
        sign: 1, or -1 if the proxy decreases with quality on the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy on the search split.
        test: its assessment on the test split; its name is the proxy's text.
        baselines: the configuration baselines on the test split.
        ahead: test ρ less that of the best of them, paired.
        points: all architectures; None in a result of an earlier version.
    """

    benchmark: str
    metric: str
    n_architectures: int
    split: Split
    sign: int
    search: tuple[float, float]
    test: Assessment
    baselines: tuple[Assessment, ...]
    ahead: Interval
    points: Points | None = field(default=None, kw_only=True)

    @property
    def best(self) -> str:
        """The proxy, with a minus sign before it if lower scores are better."""
        return self.test.name if self.sign > 0 else f"-{self.test.name}"

    @property
    def assessed(self) -> Assessment:
        """The proxy's assessment on the test split."""
        return self.test

    def benchmark_json(self) -> dict[str, object]:
        """The benchmark and the sizes of its splits."""
        return {
            **named(self, "benchmark", "metric", "n_architectures"),
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
        }

    def choice_json(self) -> dict[str, object]:
        """The proxy, and its comparison with the baselines."""
        rho, tau = self.search
        return {
            "best": {
                "proxy": self.test.name,
                "sign": self.sign,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            **self.comparison_json(),
            "baselines": [
                {
                    "name": baseline.name,
                    **{name: number_json(one.value) for name, one in baseline.intervals.items()},
                }
                for baseline in self.baselines
            ],
        }


def assess_choice(
    benchmark: Benchmark, split: Split, text: str, searched: Scores, held_out: Scores
) -> Finding:
    """Fix a proxy's sign by its scores of the search split, and assess those of the test split."""
    quality, test = benchmark.quality[split.search], benchmark.subset(split.test)
    sign = 1 if spearman(searched, quality) >= 0 else -1
    baselines, ahead = compare_baselines(sign * held_out, test)
    scores = np.full(len(benchmark), np.nan)
    scores[split.search], scores[split.test] = sign * searched, sign * held_out
    return Finding(
        benchmark.name,
        benchmark.metric,
        len(benchmark),
        split,
        sign,
        (spearman(sign * searched, quality), kendall(sign * searched, quality)),
        assess(text, sign * held_out, test),
        baselines,
        ahead,
        points=Points.of(benchmark, scores),
    )


@dataclass(frozen=True)
class Leader:
    """One of the best proxies of a space, with its sign on the search split."""

    proxy: SignedProxy
    search: float  # ρ on the search split, with that sign
    test: float  # ρ on the test split, with that sign

    def to_json(self) -> dict[str, object]:
        """The expression, its sign, and both correlations; null where one is not defined."""
        rho = {"search": number_json(self.search), "test": number_json(self.test)}
        return {"proxy": self.proxy.name, "sign": self.proxy.sign, **rho}


@dataclass(frozen=True, repr=False)
class Discovery(Finding, Result):
    """The best proxy of a space that was ranked exhaustively.

    Attributes:
        space: the proxies ranked.
        n_distinct: number of different score vectors among them.
        n_undefined: number of proxies that rank nothing.
        proxy: the best one.
        seconds: by stage.
        statistics: the cache file of the statistics.
        top: the best on the search split, with different orders of its architectures if there are
            enough.
        ranking: every proxy on the search split; None in a loaded result.
    """

    space: SavedSpace
    n_distinct: int
    n_undefined: int
    proxy: SavedTree
    seconds: dict[str, float]
    statistics: Path
    top: tuple[Leader, ...]
    ranking: Annotated[SpaceRanking | None, NotSaved] = None

    def __repr__(self) -> str:
        rho = f"test ρ {self.test.agreement.spearman.value:.3f}"
        return f"Discovery({self.benchmark}: {brief(self.test.name)}, {rho})"

    def rows(self) -> list[dict[str, Any]]:
        """The best proxies, with ρ on the search and on the test split."""
        return [
            {"proxy": str(one.proxy), "search_spearman": one.search, "test_spearman": one.test}
            for one in self.top
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **self.benchmark_json(),
            "space": self.space.name,
            "aggregations": list(self.space.aggregations),
            "n_proxies": self.space.size,
            **named(self, "n_distinct", "n_undefined"),
            **self.choice_json(),
            "top": [one.to_json() for one in self.top],
            "seconds": self.seconds,
        }


@worker_processes()
def discover(
    benchmark: Benchmark | str,
    space: Space,
    *,
    search: int | None,
    seed: int,
    out: Path | None = None,
    progress: Progress | None = None,
    source: Source | None = None,
    overrides: Mapping[str, str | None] | None = None,
    **options: Unpack[ScorerOptions],
) -> Discovery:
    """Rank every proxy of a space on the search split and assess the best on the test split.

    The seed is that of the split.  A benchmark that is a name is loaded by `source`, with what
    gives the statistics of its architectures under chains if they are not built from their specs.
    The result of a finished run in the folder is loaded; `overrides` are further settings of it.
    LmscoutError if the split does not fit the benchmark, the cache or the folder cannot be written,
    or no proxy of the space ranks the search split.
    """
    if isinstance(benchmark, Benchmark):
        search = search_size(search, len(benchmark))
    of_space = {"space": space.name, "aggregations": space.aggregations}
    settings = run_settings(
        benchmark, seed, options, **of_space, search=search, **(overrides or {})
    )

    def compute() -> Discovery:
        found, read = source() if source else (benchmark, None)
        assert isinstance(found, Benchmark)
        size = search_size(search, len(found))
        split = split_benchmark(found.specs, search=size, seed=seed)
        return _ranked(found, space, split, read, Stages(progress), options)

    return kept_result(out, "discover", settings, Discovery, compute, save_discovery)


def save_discovery(run: Run, result: Discovery) -> None:
    """Write the folder of a run atomically."""
    assert result.ranking is not None
    more = {"search_rows": result.split.search.tolist(), "statistics": str(result.statistics)}
    with run.saving(result, **more) as draft:
        write_scores(draft / SCORES, result.space, result.ranking)


def _ranked(
    benchmark: Benchmark,
    space: Space,
    split: Split,
    read: Read | None,
    stages: Stages,
    options: ScorerOptions,
) -> Discovery:
    with stages("statistics") as update:
        if read is not None:
            statistics = read(space.chains, update)
        else:
            scorer = Scorer(benchmark.specs, cache_name(benchmark.name), **options)
            statistics = scorer.statistics(space.chains, update)
    with stages("ranking") as update:
        rows = split.search
        ranking = rank_space(
            space,
            lambda name, chain: statistics.branch(name, chain)[rows],
            statistics.depth[rows],
            benchmark.quality[rows],
            progress=update,
        )
    try:
        proxy = space.proxy(ranking.best())
    except ValueError as error:
        raise LmscoutError(
            f"{benchmark.name}: {error}; is the quality the same for all of them?"
        ) from error
    scores = proxy_scores(proxy, statistics)
    finding = assess_choice(
        benchmark, split, format_expression(proxy), scores[split.search], scores[split.test]
    )
    return Discovery(
        **vars(finding),
        space=space,
        n_distinct=ranking.n_distinct,
        n_undefined=ranking.n_undefined,
        ranking=ranking,
        proxy=proxy,
        seconds=stages.seconds,
        statistics=statistics.path,
        top=_top(benchmark, split, space, ranking, statistics),
    )


def _top(
    benchmark: Benchmark, split: Split, space: Space, ranking: SpaceRanking, statistics: Statistics
) -> tuple[Leader, ...]:
    """The best of a space on the search split.

    Proxies with an order that is listed already are left out, unless there are too few others.
    """
    leaders: list[Leader] = []
    same_order: list[Leader] = []
    orders: list[Scores] = []
    for index in islice(ranking.leaders(), _TRIED):
        proxy = space.proxy(index)
        scores = proxy_scores(proxy, statistics)
        searched, held_out = scores[split.search], scores[split.test]
        rho = spearman(searched, benchmark.quality[split.search])
        sign = 1 if rho >= 0 else -1
        test = sign * spearman(held_out, benchmark.quality[split.test])
        one = Leader(SignedProxy(format_expression(proxy), sign), sign * rho, test)
        if any(abs(spearman(searched, other)) >= _SAME_ORDER for other in orders):
            same_order.append(one)
            continue
        leaders.append(one)
        orders.append(searched)
        if len(leaders) == TOP:
            break
    leaders += same_order[: TOP - len(leaders)]
    return tuple(sorted(leaders, key=lambda one: -one.search))


def proxy_scores(proxy: Expression, statistics: Statistics) -> Scores:
    """Scores of a published expression on every architecture of collected statistics."""
    return evaluate(proxy, statistics.branch, statistics.depth)
