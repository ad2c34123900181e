"""The sections of a pruning run's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmscout import plots
from lmscout.errors import LmscoutError
from lmscout.plots.pruning import pairs_of
from lmscout.progress import duration
from lmscout.pruning.results import LABELS, Pruning, QualityBound, Reported, Size
from lmscout.pruning.storage import may_exist
from lmscout.pruning.study_record import RecordedPairs
from lmscout.reports.page import (
    Content,
    Figure,
    Part,
    Section,
    Table,
    Text,
    Verdict,
    time_section,
)

_LINE = "the blue line joins those that no smaller one beats"
_ASIDE = "those of one size are spread sideways a little"
_PAIRS = (
    "Lower and further left is better. Small points are the measured pairs; {}. Plans far above "
    "are cut off; double-click shows them."
)
_FRONT = (
    f"{_PAIRS} Large marks are the reported models, measured on other text than the pairs: teal "
    "found, orange uniform, grey dense."
)
_PREDICTED = (
    "Every grey point was predicted by a model that had not seen it. On the dotted line a "
    "prediction is exact; the band holds 80 % of the errors. Finalists are measured on text that "
    "no pair used, with two standard errors."
)
_PLAN = (
    "Upward bars are attention, downward bars the MLP; full height is the dense model, the dotted "
    "line what a uniform cut of the same size keeps."
)
_SENSITIVITY = (
    "How much larger the value of a pair gets if a tenth of the block's units is removed: a linear "
    "model of the logarithm over all complete pairs, with 95 % bootstrap intervals. Low blocks are "
    "cheap to cut."
)
_NARROWING = (
    "Each bar is the range in which plans were proposed, narrower and darker after more pairs; the "
    "star is what the selected plan keeps. Blocks without a blue bar were not narrowed."
)
_VALUES = (
    "Divergence from the dense model's predictions (with --quality nll, a bound or --front: loss "
    "increase over the dense model), nats/token"
)
_PROGRESS = (
    "Open circles were stopped early. Vertical lines separate the steps: each was proposed from "
    "the pairs to its left."
)


def content(result: Pruning, pairs: RecordedPairs | None) -> Content:
    """The report of a finished run with the pairs of its study; None if it cannot be read."""
    return Content(headline(result), _sections(result, pairs), _verdicts(result), _tiles(result))


def headline(result: Pruning) -> str:
    """What was found, how good it is and against what, in a sentence."""
    if len(result.sizes) == 1:
        return f"{_of_size(result, result.sizes[0])}."
    parts = "; ".join(_short(result, size) for size in result.sizes)
    return f"{len(result.sizes)} sizes from one study of {result.pairs:,} pairs: {parts}."


def best_of(size: Size) -> Reported:
    """The selected model, recovered if it was."""
    named = {one.name: one for one in size.models}
    return named.get("found_recovered") or named.get("found") or size.models[-1]


def best_uniform(size: Size, measure: str) -> Reported | None:
    """The uniform model of the size with the lowest value of a measure; None without any."""
    some = [
        one for one in size.models if one.name.startswith("uniform") and measure in one.measures
    ]
    return min(some, key=lambda one: one.measures[measure], default=None)


def _measure(result: Pruning, one: Reported) -> str:
    both = "perplexity" in one.measures and "perplexity" in result.dense.measures
    return "perplexity" if both else "loss_increase"


def _of_size(result: Pruning, size: Size) -> str:
    one = best_of(size)
    kept = f"With {one.kept:.1%} of its prunable parameters ({one.kept_of_all:.1%} of all)"
    measure = _measure(result, one)
    uniform = best_uniform(size, measure)
    if measure == "perplexity":
        value, dense = one.measures[measure], result.dense.measures[measure]
        text = f"{kept} the model has perplexity {value:,.2f}, {value / dense - 1:+.1%} over the "
        text += f"dense model\u2019s {dense:,.2f}"
        if uniform is not None:
            text += f"; the best uniform cut of this size has {uniform.measures[measure]:,.2f}"
        return text
    if one.loss_increase is None:
        return f"{kept} the model has no loss increase: recovery was trained on the text"
    text = f"{kept} the model loses {_nats(one.loss_increase)} against the dense model, measured "
    text += f"on {result.held_out_tokens:,} held-out tokens"
    if uniform is not None:
        text += f"; the best uniform cut of this size {_nats(uniform.measures[measure])}"
    return text


def _nats(value: float) -> str:
    return f"{value:+.4f} nats/token" if math.isfinite(value) else "an infinite number of nats"


def _short(result: Pruning, size: Size) -> str:
    one = best_of(size)
    measure = _measure(result, one)
    uniform, value = best_uniform(size, measure), one.measures.get(measure)
    if value is None:
        return f"keep {size.keep:g}"
    digits = ",.2f" if measure == "perplexity" else "+.4f"
    against = f" against {uniform.measures[measure]:{digits}} uniform" if uniform else ""
    return f"keep {size.keep:g} has {measure.replace('_', ' ')} {value:{digits}}{against}"


def _verdicts(result: Pruning) -> list[Verdict]:
    """Sentences on found against uniform models, the predictor, and adaptation to the text."""
    found = []
    for size in result.sizes:
        worse = {one.model for one in size.comparisons if one.worse}
        found += [Verdict(text, "bad" if worse else "good") for text in size.verdict]
        found.append(Verdict(size.words, "warn" if "noise" in size.words else ""))
    if result.predictor is not None and not result.predictor.beats_mean:
        found.append(Verdict("The predictor is no better than predicting the mean.", "bad"))
    if result.below_dense is not None:
        found.append(Verdict(result.below_dense, "warn"))
    return found


def _tiles(result: Pruning) -> list[tuple[str, str, str]]:
    """The most important numbers."""
    size = result.sizes[0]
    one = best_of(size)
    shown = [("parameters", f"{one.params:,}", f"{one.kept_of_all:.1%} of {result.dense.params:,}")]
    if one.loss_increase is not None:
        uniform = best_uniform(size, "loss_increase")
        note = "" if uniform is None else f"best uniform {uniform.measures['loss_increase']:+.4f}"
        shown.append(("loss increase, nats/token", f"{one.loss_increase:+.4f}", note))
    if "perplexity" in one.measures:
        dense = result.dense.measures.get("perplexity", math.nan)
        shown.append(("perplexity", f"{one.measures['perplexity']:,.2f}", f"dense {dense:,.2f}"))
    shown.append(("measured pairs", f"{result.pairs:,}", ""))
    if result.predictor is not None:
        tau = result.predictor.chosen
        shown.append(("predictor, Kendall\u2019s τ", f"{tau.kendall:.3f}", f"R² {tau.r2:.3f}"))
    whole = sum(one for one in result.seconds.values() if math.isfinite(one))
    shown.append(("time", duration(whole), ""))
    start = f"keep {size.keep:g}: " if len(result.sizes) > 1 else ""
    return [
        (start + name if place < 3 else name, value, note)
        for place, (name, value, note) in enumerate(shown)
    ]


def _sections(result: Pruning, pairs: RecordedPairs | None) -> list[Section]:
    dense = result.dense.plan
    some = pairs if pairs is not None else RecordedPairs(dense, ())
    quality: list[Part] = [_tradeoff(result, some), models_table(result)]
    if result.bound is not None:
        quality += [Text(f"{result.bound.words}."), bound_table(result.bound)]
    found = [
        Section("Quality against size", quality),
        Section("The plan", _plans(result)),
    ]
    if some.pairs:
        found.append(Section("Sensitivity of the blocks", _sensitivity(some)))
    found.append(Section("Predictor and search", _predictor(result)))
    measured: list[Part] = [finalists_table(result)]
    if some.pairs:
        measured.append(pairs_table(some))
    found.append(Section("Everything measured", measured))
    more = [Figure(plots.progress(some), _PROGRESS)] if some.pairs else []
    found.append(time_section(result.seconds, *more))
    return found


def running(folder: Path, problem: str) -> Content:
    """The report of a run without a result, from its study; LmscoutError if that is unreadable."""
    try:
        pairs = pairs_of(folder)
    except LmscoutError as error:
        if not may_exist(folder) or "there is no study" in str(error):
            return Content("No pair has been measured yet.", [])
        raise LmscoutError(f"{folder}: {problem}, and {error}") from error
    complete = [one for one in pairs.pairs if not one.partial]
    if not complete:
        return Content("No complete pair has been measured yet.", [])
    best = min(complete, key=lambda one: one.value)
    text = (
        f"{len(pairs.pairs):,} pairs measured so far, {len(pairs.pairs) - len(complete):,} of them "
        f"stopped early; the lowest value is {best.value:+.4f} nats/token, of a plan that "
        f"keeps {best.kept:.1%} of the prunable parameters."
    )
    found = [
        Section("Quality against size", [_tradeoff(pairs, pairs)]),
        Section("Progress", [Figure(plots.progress(pairs), _PROGRESS)]),
        Section("Sensitivity of the blocks", _sensitivity(pairs)),
        Section("Everything measured", [pairs_table(pairs)]),
    ]
    return Content(text, found)


def _tradeoff(source: Pruning | RecordedPairs, pairs: RecordedPairs) -> Figure:
    drawn = plots.tradeoff(source, pairs)
    front = any("front" in (one.name or "") for one in drawn.data)
    caption = _FRONT if isinstance(source, Pruning) else _PAIRS
    return Figure(drawn, caption.format(_LINE if front else _ASIDE))


def _plans(result: Pruning) -> list[Part]:
    parts: list[Part] = []
    for size in result.sizes:
        drawn = plots.plan(size, result.dense.plan)
        if len(result.sizes) > 1:
            drawn.layout.title.text = f"What every block keeps at {size.keep:g}"
        dropped = size.plan.dropped
        gone = f" Dropped: {', '.join(map(str, dropped))}." if dropped else ""
        parts.append(Figure(drawn, _PLAN + gone))
    return parts


def _sensitivity(pairs: RecordedPairs) -> list[Part]:
    try:
        return [Figure(plots.block_sensitivity(pairs), _SENSITIVITY)]
    except LmscoutError as error:
        return [Text(f"{error}.")]


def _predictor(result: Pruning) -> list[Part]:
    if result.objective is not None:
        return [Text(f"Objective: {result.objective.words}.")]
    if result.predictor is None:
        return [
            Text(
                "There was no predictor: "
                + ("all plans were measured." if result.pairs else "no plan was measured.")
            )
        ]
    parts: list[Part] = [Text(f"{result.predictor.words}.")]
    parts.append(Figure(plots.predicted(result), _PREDICTED))
    for place, size in enumerate(result.sizes):
        if any(one.size == place for one in result.narrowing_steps):
            drawn = plots.narrowing(result, place)
            if len(result.sizes) > 1:
                drawn.layout.title.text = f"Narrowing of the ranges at {size.keep:g}"
            parts.append(Figure(drawn, _NARROWING))
    if result.narrowing_steps:
        keeps = [f"{size.keep:g}" for size in result.sizes]
        rows = [
            [
                *(one.pairs, keeps[one.size] if one.size < len(keeps) else ""),
                "-".join(map(str, sorted(set(one.blocks)))),
                *(one.kind, one.verdict, one.keeping, one.instead_of, one.cost),
            ]
            for one in result.narrowing_steps
        ]
        columns = (
            "after pairs:,d; keep; blocks; kind; verdict; keeping:.0%; instead of:.0%; "
            "costs, nats/token:+.4f"
        )
        note = "Predicted, at the same size: what keeping fewer units of these blocks costs."
        parts.append(Table("Narrowing", columns, rows, note))
    return parts


def models_table(result: Pruning) -> Table:
    """The reported models with their protocol."""
    dense = result.dense.measures.get("perplexity")
    rows: list[list[object]] = []
    found: list[int] = []
    for keep, one in result.reported:
        found += [len(rows)] if one.name in ("found", "found_recovered") else []
        value = one.measures.get("perplexity")
        over = None if value is None or dense is None else value / dense - 1
        size = one.params, one.kept_of_all, one.kept, one.cost
        name = LABELS.get(one.name, one.name)
        rows.append([name, f"{keep:g}", *size, one.loss_increase, value, over])
    note = (
        f"Kept: share of all parameters, and of those in attention and MLP; cost: share of the "
        f"dense model\u2019s {result.of}. Loss increase: over the dense model on "
        f"{result.held_out_tokens:,} held-out tokens of calibration text."
    )
    if (measured := result.dense.perplexity) is not None:
        rules = measured.protocol
        special = ", ".join(measured.special_tokens) or "none"
        note += (
            f" Perplexity: {measured.source}, protocol {rules.name} (windows of {rules.window}, "
            f"stride {rules.stride}), {measured.tokens:,} tokens scored, special tokens {special}."
        )
    columns = (
        "model; keep; parameters:,d; kept of all:.1%; kept:.1%; cost:.1%; loss increase:+.4f; "
        "perplexity:,.2f; over dense:+.1%"
    )
    return Table("Models", columns, rows, note, found)


def bound_table(bound: QualityBound) -> Table:
    """The sizes that were tested for a bound, largest first."""
    rows = [
        [f"{one.keep:g}", one.loss_increase, one.upper, "yes" if one.meets else "no"]
        for one in bound.tested
    ]
    note = (
        f"Loss increase over the dense model on held-out text, nats/token; with "
        f"{bound.confidence:.0%} confidence it is at most the upper limit on further text, which "
        f"must not exceed {bound.limit:.4g}."
    )
    columns = "keep; loss increase:+.4f; upper limit:+.4f; meets the bound"
    return Table("Sizes tested for the bound", columns, rows, note)


def finalists_table(result: Pruning) -> Table:
    """Plans measured again on held-out text, best first."""
    rows: list[list[object]] = []
    found: list[int] = []
    for size in result.sizes:
        found.append(len(rows))
        rows += [
            [
                *(f"{size.keep:g}", place, one.predicted, one.measured, one.held_out, one.refit),
                *(_units(one.plan.attention), _units(one.plan.mlp)),
            ]
            for place, one in enumerate(size.finalists, 1)
        ]
    columns = (
        "keep; rank:d; predicted:+.4f; measured:+.4f; held out:+.4f; refit:+.4f; attention:wide; "
        "MLP:wide"
    )
    note = (
        f"{_VALUES}: predicted; measured on the text of all pairs; on held-out text; there with "
        "refit weights. Then the units that each block keeps."
    )
    return Table("Finalists", columns, rows, note, found)


def pairs_table(pairs: RecordedPairs) -> Table:
    """Every measured pair."""
    columns = (
        "pair:d; value:+.4f; kept:.1%; tokens:,d; round:d; proposed as; stopped early; seconds:.2f"
    )
    rows = [
        [
            *(place, one.value, one.kept, one.tokens, one.round, one.origin),
            *("yes" if one.partial else "", one.seconds),
        ]
        for place, one in enumerate(pairs.pairs, 1)
    ]
    note = f"{_VALUES}, on the same tokens of calibration text."
    return Table("Architecture-accuracy pairs", columns, rows, note, long=True)


def _units(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def facts(settings: Mapping[str, Any]) -> str:
    """What a run is of, for the title."""
    keep = settings.get("keep")
    shares = f", keep {', '.join(map(str, keep))}" if isinstance(keep, list) and keep else ""
    return f"{Path(str(settings.get('model'))).name or 'model'}{shares}"
