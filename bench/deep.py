"""What deep proxies cost on sketches of 500 architectures, and what sketches get wrong.

    python bench/deep.py [--models 40] [--proxies 300] [--folder DIR]

Sketches of some FlexiBERT encoders are collected (into DIR, where a second call finds them)
and repeated to make 500 architectures: what a proxy costs does not depend on the numbers.
Random proxies, each once, without a cache to help, are scored by one thread and by two; beside
them plain torch calls, one architecture and one tensor at a time, on the same samples; and a
sum over the same samples, which is what memory allows.

The error is Spearman's correlation between scores on sketches and on full tensors, for four
proxies of the literature, over the encoders collected.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.stats
import torch

from lmscout.benchmarks import load
from lmscout.proxies import LITERATURE, Expression, Grammar, walk
from lmscout.proxies.grammar import random_score
from lmscout.proxies.primitives import STACKS
from lmscout.statistics import Batch, full_reading
from lmscout.statistics.deep_values import DeepEvaluator, full_score
from lmscout.statistics.sketches import Sketches, StackSketch, collect_sketches, spec_values

ARCHITECTURES = 500
KNOWN = ("snip", "grad-norm", "synaptic-saliency", "head-importance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--proxies", type=int, default=300)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    specs = list(load("flexibert").specs)
    random.Random(0).shuffle(specs)
    specs = specs[: arguments.models]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sketches = collect_sketches(specs, name="flexibert-sample", folder=folder)
    speed(repeated(sketches), arguments.proxies)
    error(sketches, specs)


def speed(sketches: Sketches, count: int) -> None:
    rng = np.random.default_rng(0)
    drawn = (random_score(Grammar(), rng) for _ in range(4 * count))
    proxies = list(dict.fromkeys(one for one in drawn if reads_tensors(one)))[:count]
    DeepEvaluator(sketches).scores(LITERATURE["snip"])  # warm up

    alone = DeepEvaluator(sketches, cache_bytes=0)
    one_thread = seconds(lambda: [alone.scores(one) for one in proxies]) / len(proxies)

    def in_two_threads() -> None:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(alone.scores, proxies))

    two_threads = seconds(in_two_threads) / len(proxies)
    caching = DeepEvaluator(sketches)
    cached = seconds(lambda: [caching.scores(one) for one in proxies]) / len(proxies)

    some, models = proxies[:20], np.arange(0, ARCHITECTURES, 20)
    tensors = {int(model): plain_tensors(sketches.subset([model])) for model in models}

    def plainly() -> None:
        for proxy in some:
            for of_model in tensors.values():
                plain(proxy, of_model)

    plain_seconds = seconds(plainly) / len(some) / len(models) * ARCHITECTURES
    leaves = [reads(one, sketches) for one in proxies]
    bound = seconds(lambda: [sample.sum() for one in leaves for sample in one]) / len(proxies)
    size = np.mean([one.size for one in proxies])
    samples = [one for stack in sketches.stacks.values() for one in stack.samples.values()]
    print(
        f"{len(proxies)} distinct random proxies of {size:.1f} words x {ARCHITECTURES} "
        f"architectures ({sum(one.nbytes for one in samples) / 1e6:.0f} MB of samples): "
        f"{1 / one_thread:.0f} a second on one thread, {1 / two_threads:.0f} on two, "
        f"{1 / cached:.0f} on one with the cache; plain torch {1 / plain_seconds:.2f}, "
        f"ratio {plain_seconds / one_thread:,.0f}; reading their leaves once "
        f"{1 / bound:.0f}, ratio {bound / one_thread:.2f}"
    )


def error(sketches: Sketches, specs: list) -> None:
    full = {name: [] for name in KNOWN}
    batch = Batch()
    for spec in specs:
        reading = full_reading(spec.build(0).double(), batch.tokens(spec), spec.parameters())
        for name, scores in full.items():
            scores.append(full_score(LITERATURE[name], reading, spec_values(spec)))
    evaluator = DeepEvaluator(sketches)
    for name in KNOWN:
        got = evaluator.scores(LITERATURE[name])
        off = np.median(np.abs(got / np.array(full[name]) - 1))
        rho = scipy.stats.spearmanr(got, full[name]).statistic
        print(f"{name}: sketches to full tensors ρ {rho:.4f}, median error {off:.1%}")


def repeated(sketches: Sketches) -> Sketches:
    """The same architectures again and again, 500 in all."""
    models = len(sketches.depth)
    times = -(-ARCHITECTURES // models)

    def again(stack: StackSketch) -> StackSketch:
        every = stack.only(torch.arange(len(stack.block)).repeat(times))
        shift = torch.arange(times).repeat_interleave(len(stack.block)) * models
        return replace(every, architecture=every.architecture + shift)

    many = Sketches(
        {name: again(stack) for name, stack in sketches.stacks.items()},
        np.tile(sketches.depth, times),
        {name: np.tile(values, times) for name, values in sketches.spec.items()},
    )
    return many.subset(np.arange(ARCHITECTURES))


def reads_tensors(proxy: Expression) -> bool:
    return any(leaf in leaves for leaf in proxy.leaves for leaves in STACKS.values())


def reads(proxy: Expression, sketches: Sketches) -> list[torch.Tensor]:
    """Samples of the leaves of a proxy, once for each time it names them."""
    own = {leaf: one for stack in sketches.stacks.values() for leaf, one in stack.samples.items()}
    parts = {leaf: leaf.removeprefix("mixer_").removeprefix("mlp_") for leaf in proxy.leaves}
    named = [node.name for _, node in walk(proxy) if not node.operands]
    found = []
    for name in named:
        if parts[name] in own:
            sample = own[parts[name]]
            found.append(sample[: len(sample) // (2 if parts[name] != name else 1)])
    return found


def plain_tensors(sketches: Sketches) -> PlainReading:
    """The samples of one architecture as if they were its tensors."""
    depth = int(sketches.depth[0])
    blocks: dict[str, list[list[torch.Tensor]]] = {}
    for stack in sketches.stacks.values():
        heights, widths = (one.tolist() for one in stack.sampled_sizes())
        for leaf, samples in stack.samples.items():
            blocks[leaf] = [[] for _ in range(depth)]
            for place, block in enumerate(stack.block.tolist()):
                sample = samples[place, : heights[place], : widths[place]]
                blocks[leaf][block].append(sample.contiguous())
    linear = sketches.stacks["linear"]
    mixing = [
        [bool(mixes) for mixes in linear.mixes[linear.block == block]] for block in range(depth)
    ]
    return PlainReading(blocks, mixing, {n: float(v[0]) for n, v in sketches.spec.items()})


class PlainReading:
    """As much of a `Reading` as the definition looks at."""

    def __init__(self, blocks: dict, mixing: list, spec: dict[str, float]) -> None:
        self.inputs = {name: tensors for name, tensors in blocks.items() if name != "act_grad"}
        self.act_grad = blocks["act_grad"]
        self.mixing = self.linears = mixing
        self.spec = spec


def plain(proxy: Expression, reading: PlainReading) -> float:
    return full_score(proxy, reading, reading.spec)  # type: ignore[arg-type]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
