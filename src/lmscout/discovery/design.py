"""Design: regularized evolution of an architecture for a proxy's score within limits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from lmscout.benchmarks.limits import LATENCY, MACS, PARAMS, Limit, LimitedSpace, limited, limits_of
from lmscout.benchmarks.space import Space
from lmscout.discovery.assessment import SavedSpec, SignedProxy
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, mean_of
from lmscout.errors import LAST_SEED, LmscoutError, check_whole, public
from lmscout.metrics import SAMPLES, multiplicities
from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.progress import Progress, Stages, part_of
from lmscout.results import Path_, Result, named
from lmscout.statistics.workers import worker_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHOICES = 5  # architectures that a design reports
TIED = 1e-12  # relative, as in the rank correlations
_ONE_IN = 20  # the best 5 %
_SEED = 0  # of the bootstrap
_AT_ONCE = 2**22  # means in memory

POPULATION, SAMPLE = 50, 10
AT_ONCE = 16  # architectures proposed at a time, whatever the number of workers
_TRIES = 20  # mutations, and then draws, until one is new


@dataclass(frozen=True)
class Choice:
    """One of the architectures that a proxy scores best.

    Attributes:
        spec: the architecture.
        score: mean over draws of initial weights and data, without the proxy's sign.
        standard_error: of the score; None with one draw.
        chance: that other draws would have it among the best 5 % by score of all that were
            scored, by a bootstrap over draws; None with one draw.
        latency: milliseconds, as measured for a limit of it; None without one.
        identifier: its name on a benchmark; None in a space.
        rank: its true rank among the benchmark's architectures within the limits, 1 is the best;
            None in a space.
    """

    spec: SavedSpec
    score: float
    standard_error: float | None = None
    chance: float | None = None
    latency: float | None = None
    identifier: str | None = None
    rank: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name, those of a benchmark on one alone."""
        place = {"architecture": self.identifier, "rank": self.rank} if self.identifier else {}
        figures = named(self, "score", "standard_error", "chance")
        return {**place, **figures, **architecture_json(self.spec), "latency": self.latency}


def architecture_json(spec: ArchitectureSpec) -> dict[str, object]:
    """The size of an architecture, and its spec."""
    size = {"params": spec.parameters(), "macs": spec.multiply_adds()}
    return {**size, "depth": spec.depth, "width": spec.width, "spec": spec.to_dict()}


def certainty(draws: Scores, places: Sequence[int]) -> list[tuple[float | None, float | None]]:
    """Standard error of the mean score at places, and the chance to be among the best 5 %.

    Scores are [draws, n], higher is better; those whose mean is not finite are left out.  Draws are
    sampled with replacement, and all means computed anew.  The chance is the share of the samples
    in which an architecture is among the best 5 % of those with a score, at least one; those of
    equal scores are equally likely to be.  Both are None with one draw.
    """
    n_draws = len(draws)
    if n_draws < 2:
        return [(None, None) for _ in places]
    with np.errstate(over="ignore"):
        errors = draws[:, places].std(axis=0, ddof=1) / math.sqrt(n_draws)
    defined = draws[:, np.isfinite(mean_of(draws))]
    n = defined.shape[1]
    samples = multiplicities(n_draws, _SEED) / n_draws
    chances = np.zeros(len(places))
    for part in np.array_split(samples, math.ceil(SAMPLES * n / _AT_ONCE)):
        means, chosen = part @ defined, part @ draws[:, places]
        for place, own in enumerate(chosen.T[:, :, None]):
            margin = TIED * np.abs(own)
            better = (means > own + margin).sum(axis=1)
            tied = (np.abs(means - own) <= margin).sum(axis=1)
            free = max(n // _ONE_IN, 1) - better
            chances[place] += np.clip(free / tied, 0, 1).sum()
    return list(zip(errors.tolist(), (chances / SAMPLES).tolist(), strict=True))


class RegularizedEvolution:
    """Regularized evolution (Real et al., arXiv 1802.01548) of architectures within a limit.

    The best of a random sample of the population is mutated, the child joins, and the oldest is
    removed.  No architecture is proposed twice.

    Attributes:
        drawn: architectures proposed before the first mutation.
    """

    def __init__(
        self, space: LimitedSpace, seed: int, *, population: int = POPULATION, sample: int = SAMPLE
    ) -> None:
        """Start with an empty population; parents are the best of a sample of it."""
        self.drawn = 0
        self._space, self._rng = space, np.random.default_rng(seed)
        self._known: set[ArchitectureSpec] = set()
        self._population: deque[tuple[float, ArchitectureSpec]] = deque(maxlen=population)
        self._sample = sample

    @property
    def _full(self) -> bool:
        return len(self._population) == self._population.maxlen

    def ask(self, count: int) -> list[ArchitectureSpec]:
        """Architectures to score: draws until the population is full, then children.

        Fewer than `count` if hardly anything new is left.
        """
        proposed = []
        for _ in range(count):
            one = self._new()
            if one is None:
                break
            self._known.add(one)
            self.drawn += not self._full
            proposed.append(one)
        return proposed

    def tell(self, proposed: Sequence[ArchitectureSpec], scores: Sequence[float]) -> None:
        """Add architectures with a finite score; higher is better."""
        scored = zip(scores, proposed, strict=True)
        self._population.extend((score, spec) for score, spec in scored if np.isfinite(score))

    def _new(self) -> ArchitectureSpec | None:
        if self._full:
            for _ in range(_TRIES):
                child = self._space.mutate(self._parent(), self._rng)
                if child not in self._known:
                    return child
        for _ in range(_TRIES):
            drawn = self._space.draw(self._rng)
            if drawn not in self._known:
                return drawn
        return None

    def _parent(self) -> ArchitectureSpec:
        places = self._rng.choice(len(self._population), self._sample, replace=False)
        return max((self._population[place] for place in places), key=lambda one: one[0])[1]


def limits_saved(limits: Sequence[Limit]) -> dict[str, Any]:
    """The fields of a result that hold its limits."""
    values = {one.name: one.value for one in limits}
    return {"limit": values.get(PARAMS), MACS: values.get(MACS), LATENCY: values.get(LATENCY)}


def latency_among(limits: Sequence[Limit], spec: ArchitectureSpec) -> float | None:
    """The milliseconds of an architecture, as a limit has measured them; None without one."""
    return next((one.cost(spec) for one in limits if one.name == LATENCY), None)


class Untrained:
    """Methods of results that hold an architecture within limits."""

    spec: ArchitectureSpec  # the architecture
    limit: int | None  # parameters, at most
    max_macs: int | None  # multiply-adds of a token in the blocks, at most
    max_latency: float | None  # milliseconds, at most

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that were given."""
        return limits_of(self.limit, self.max_macs, self.max_latency)

    @property
    def within(self) -> str:
        """The limits in words, such as " within 3,000,000 parameters"; empty if there is none."""
        return f" within {' and '.join(map(str, self.limits))}" if self.limits else ""

    @property
    def limits_json(self) -> dict[str, float | None]:
        """The limits by the names of their arguments."""
        return {PARAMS: self.limit, MACS: self.max_macs, LATENCY: self.max_latency}

    @public
    def to_model(self, seed: int = 0) -> PreTrainedModel | LanguageModel:
        """The architecture as an untrained PyTorch model in eval mode.

        Args:
            seed: of its weights.

        Returns:
            The model that `save_pretrained` writes: transformers' interface, with ``logits``
            ``[B, T, vocabulary]`` and, with ``labels``, ``loss`` in nats/token.  Of FlexiBERT's
            encoders lmscout's own model, ``[B, T]`` tokens to ``[B, T, width]`` hidden states.
        """
        from lmscout.models.pretrained import has_class, untrained_model  # transformers is slow

        check_whole("seed", seed, 0, LAST_SEED)
        return untrained_model(self.spec, seed) if has_class(self.spec) else self.spec.build(seed)

    @public
    def save_pretrained(self, folder: Path_, seed: int = 0) -> None:
        """Write the untrained architecture and its ``spec.json`` as a folder for transformers.

        lmscout's own tokenizer is added if the architecture has as many tokens, as those of the
        built-in spaces have.

        Args:
            folder: made if it does not exist.
            seed: of its weights.

        Raises:
            LmscoutError: transformers has no class for it, as for FlexiBERT's encoders; the folder
                cannot be written.
        """
        from lmscout.builtin import load_tokenizer
        from lmscout.evaluation.quiet import quiet
        from lmscout.models.pretrained import save_untrained  # transformers is slow to import

        check_whole("seed", seed, 0, LAST_SEED)
        with quiet():
            save_untrained(self.spec, Path(folder), seed)
            tokenizer = load_tokenizer()
            if len(tokenizer) == getattr(self.spec, "vocabulary", None):
                tokenizer.save_pretrained(folder)


@dataclass(frozen=True, repr=False)
class Design(Untrained, Result):
    """The architecture of a space with the best score of a proxy.

    Attributes:
        space: the space's name.
        proxy: the objective.
        limit: parameters, at most; None for no such limit.
        seed: of the search.
        weights: draws of initial weights over which scores are averaged.
        spec: the architecture.
        score: its score, without the proxy's sign.
        n_scored: number of different architectures scored.
        n_undefined: number of them without a finite score.
        drawn_score: the best score among those proposed before the first mutation.
        seconds: by stage.
        trace: parameters and score of every architecture, in the order of scoring; NaN without a
            score; empty in a result of an earlier version.
        max_macs: multiply-adds of a token in the blocks, at most; None for no such limit.
        max_latency: milliseconds, at most; None for no such limit.
        choices: the five of the best scores, `spec` first; fewer if there are fewer, none in a
            result of an earlier version.
    """

    space: str
    proxy: SignedProxy
    limit: int | None
    seed: int
    weights: int
    spec: SavedSpec
    score: float
    n_scored: int
    n_undefined: int
    drawn_score: float | None
    seconds: dict[str, float]
    trace: tuple[tuple[int, float], ...] = ()
    max_macs: int | None = None
    max_latency: float | None = None
    choices: tuple[Choice, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row for each of the architectures of the best scores."""
        run = self.to_json()
        first = ("proxy", "score", "standard_error", "chance")
        last = ("depth", "width", "params", "macs", "latency")
        names = [name for name in run if name not in (*first, *last, "choices", "seconds")]
        choices = self.choices or (Choice(self.spec, self.score),)
        rows = [run | one.to_json() for one in choices]
        return [{name: row[name] for name in (*first, *names, *last)} for row in rows]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "space": self.space,
            "proxy": self.proxy.name,
            "sign": self.proxy.sign,
            **self.limits_json,
            **named(self, "seed", "weights", "n_scored", "n_undefined", "drawn_score", "score"),
            **architecture_json(self.spec),
            "choices": [one.to_json() for one in self.choices],
            "seconds": self.seconds,
        }


@worker_processes()
def design(
    space: Space,
    proxy: SignedProxy,
    *,
    limits: tuple[Limit, ...],
    evaluations: int,
    seed: int,
    weights: int = 1,
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> Design:
    """Search a space for the architecture that a proxy scores best; see `lmscout.design`.

    The search is deterministic and every score is cached, so the same call continues a search that
    was stopped.  The models' weights do not depend on the seed.  Of several architectures with the
    best score, the one with the fewest parameters is found.  A measured latency differs from run to
    run, so with a limit of it the same call may find another.  LmscoutError if there is no limit,
    or nothing within the limits, the cache cannot be written, or no architecture has a score.
    """
    if not (limits or space.budgeted):
        raise LmscoutError(
            f"{space.name}: no limit; give --max-params, --max-macs or --max-latency"
        )
    # With few evaluations a quarter of them is still enough to choose parents from.
    population = min(POPULATION, max(SAMPLE, evaluations // 4))
    engine = RegularizedEvolution(limited(space, limits), seed, population=population)
    found: dict[ArchitectureSpec, float] = {}
    draws = []
    stages = Stages(progress)
    with stages("scores") as update:
        while len(found) < evaluations:
            proposed = engine.ask(min(AT_ONCE, evaluations - len(found)))
            if not proposed:
                break
            scorer = Scorer(proposed, f"design-{space.name}", **options)
            part = part_of(update, len(found) * weights, evaluations * weights)
            draws.append(proxy.sign * scorer.drawn_scores([proxy.name], weights, part)[proxy.name])
            signed = mean_of(draws[-1]).tolist()
            engine.tell(proposed, signed)
            found.update(zip(proposed, signed, strict=True))
    defined = {spec: score for spec, score in found.items() if np.isfinite(score)}
    if not defined:
        raise LmscoutError(
            f"{proxy.name} gives none of {len(found)} architectures of the space {space.name} a "
            "score; try another proxy"
        )
    best = sorted(defined, key=lambda one: (-defined[one], one.parameters()))[:CHOICES]
    place_of = {spec: place for place, spec in enumerate(found)}
    sure = certainty(np.concatenate(draws, axis=1), [place_of[one] for one in best])
    drawn = [defined[one] for one in list(found)[: engine.drawn] if one in defined]
    return Design(
        space=space.name,
        proxy=proxy,
        seed=seed,
        weights=weights,
        spec=best[0],
        score=proxy.sign * defined[best[0]],
        n_scored=len(found),
        n_undefined=len(found) - len(defined),
        drawn_score=proxy.sign * max(drawn) if drawn else None,
        seconds=stages.seconds,
        trace=tuple((one.parameters(), proxy.sign * score) for one, score in found.items()),
        choices=tuple(
            Choice(one, proxy.sign * defined[one], *figures, latency_among(limits, one))
            for one, figures in zip(best, sure, strict=True)
        ),
        **limits_saved(limits),
    )
