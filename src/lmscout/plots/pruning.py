"""Figures of pruning runs: of a result, or of the measured pairs of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState

from lmscout.errors import LmscoutError
from lmscout.plots.style import COLOURS, dots, errors, figure, finite, line, logarithmic, safe
from lmscout.pruning.features import SCALES, TargetScale
from lmscout.pruning.plan import Floats, Plan, Rows, as_rows
from lmscout.pruning.results import LABELS, Pruning, Reported, Size
from lmscout.pruning.storage import existing_storage_url, storage_file
from lmscout.pruning.study import Pair
from lmscout.pruning.study_record import RecordedPairs, read_pairs

Source = Pruning | RecordedPairs | optuna.Study | Path | str

_KIND = {"attention": "attention", "mlp": "MLP"}
_BAND = (0.1, 0.9)  # quantiles of the errors of held-out predictions
_ASIDE = 0.012  # share by which pairs of one size are spread
_MARK = {
    "dense": ("dense", "diamond", 12),
    "dense_elastic": ("dense", "diamond-open", 12),
    "uniform": ("uniform", "square", 10),
    "uniform_compensated": ("uniform", "square-open", 10),
    "uniform_refit": ("uniform", "triangle-up", 11),
    "uniform_protected": ("uniform", "triangle-down-open", 11),
    "found": ("found", "star", 16),
    "found_compensated": ("found", "star-open", 13),
    "found_plain": ("found", "star-open", 13),
    "found_recovered": ("found", "star-diamond", 15),
}
_SAMPLES = 200  # of the bootstrap
_RIDGE = 1e-2  # of the variance of a column


def pairs_of(source: Source) -> RecordedPairs:
    """The measured pairs of a run; LmscoutError if it has no study of lmscout, or an edited one.

    The study of a result is read if it is a file: no server that a result names is asked.  A run
    folder or the URL of a storage may be of a running run.
    """
    if isinstance(source, RecordedPairs):
        return source
    if isinstance(source, optuna.Study):
        return _of_optuna(source)
    if isinstance(source, Pruning):
        file = storage_file(existing_storage_url(source.study))
        if file is None or not file.is_file():
            raise LmscoutError(f"the pairs at {source.study} are in no file here: give their URL")
        source = source.study
    return read_pairs(source)


def _of_optuna(study: optuna.Study) -> RecordedPairs:
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    if not trials or any(not {"tokens", "round"} <= one.user_attrs.keys() for one in trials):
        raise LmscoutError(f"study {study.study_name!r} holds no pairs of lmscout")
    dense = Plan.from_dict({name: one.high for name, one in trials[0].distributions.items()})  # type: ignore[attr-defined]
    return RecordedPairs(
        dense,
        tuple(
            Pair(
                Plan.from_dict(one.params),
                float(one.value or 0.0),
                int(one.user_attrs["tokens"]),
                one.state == TrialState.PRUNED,
                int(one.user_attrs["round"]),
                float(one.user_attrs.get("kept", 0.0)),
                float(one.user_attrs.get("seconds", 0.0)),
                str(one.user_attrs.get("origin", "")),
            )
            for one in trials
        ),
    )


def pareto(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that are better than all smaller ones, from small to large."""
    front: list[Pair] = []
    for one in sorted(pairs, key=lambda pair: (pair.kept, pair.value)):
        if not front or one.value < front[-1].value:
            front.append(one)
    return front


@dataclass(frozen=True)
class Effect:
    """The effect of removing a tenth of a block's units of one kind on the values of pairs.

    Factors less 1: 0.2 is a value that is 20 % larger.
    """

    kind: str  # "attention" or "mlp"
    block: int  # number of the block
    value: float  # of a ridge regression on all pairs
    low: float  # of a 95 % bootstrap interval over pairs
    high: float  # likewise


def effects(source: Source) -> list[Effect]:
    """The effect of every block, from a linear model of log values on removed shares.

    Raises:
        LmscoutError: there are fewer complete pairs than twice the blocks.
    """
    recorded = pairs_of(source)
    some = [one for one in recorded.pairs if not one.partial]
    units = np.array(recorded.dense.attention + recorded.dense.mlp, float)
    if len(some) < max(20, 2 * recorded.dense.depth):
        raise LmscoutError(
            f"{len(some)} complete pairs are too few for the sensitivity of "
            f"{recorded.dense.depth} blocks"
        )
    removed = 1 - as_rows([one.plan for one in some]) / np.maximum(units, 1)
    values = np.array([one.value for one in some])
    target = TargetScale.of("log", values).forward(values)
    rng = np.random.default_rng(0)

    def slopes(rows: Rows) -> Floats:
        x, y = removed[rows], target[rows]
        x, y = x - x.mean(axis=0), y - y.mean()
        penalty = _RIDGE * len(rows) * np.diag(x.var(axis=0) + 1e-6)
        return np.asarray(np.linalg.solve(x.T @ x + penalty, x.T @ y))

    own = slopes(np.arange(len(some)))
    drawn = np.array([slopes(rng.integers(0, len(some), len(some))) for _ in range(_SAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    depth = recorded.dense.depth
    return [
        Effect(
            "attention" if column < depth else "mlp",
            column % depth,
            *(float(np.expm1(0.1 * one[column])) for one in (own, low, high)),
        )
        for column in range(2 * depth)
    ]


def tradeoff(source: Source, pairs: RecordedPairs | None = None) -> go.Figure:
    """Loss increase against size: every pair with the front, and the reported models.

    Pairs of a single size are spread sideways a little.

    Args:
        source: a result, a run folder or a study.
        pairs: the measured pairs; by default those of the source's study, if it can be read.
    """
    made = figure(
        "Quality against size", "share of prunable parameters kept", "loss increase, nats/token"
    )
    models = [] if not isinstance(source, Pruning) else source.reported
    levels = [one.loss_increase for _, one in models if one.loss_increase is not None]
    if pairs is None:
        try:
            pairs = pairs_of(source)
        except LmscoutError:
            if not models:
                raise
    if pairs is not None and pairs.pairs:
        shares = [one.kept for one in pairs.pairs]
        aside = _ASIDE if max(shares) - min(shares) < _ASIDE else 0.0
        rng = np.random.default_rng(0)
        for name, some, symbol in (
            ("measured pairs", [one for one in pairs.pairs if not one.partial], "circle"),
            ("stopped early", [one for one in pairs.pairs if one.partial], "circle-open"),
        ):
            if some:
                dots(
                    made,
                    f"{name} ({len(some):,})",
                    "searched",
                    [one.kept + aside * rng.uniform(-1, 1) for one in some],
                    [one.value for one in some],
                    marker={"size": 6, "opacity": 0.6, "symbol": symbol},
                    text=[pair_text(one) for one in some],
                )
        front = pareto([one for one in pairs.pairs if not one.partial])
        if not aside:
            line(
                made,
                "front of the pairs",
                "predicted",
                [one.kept for one in front],
                [one.value for one in front],
            )
        levels.append(float(np.quantile([one.value for one in pairs.pairs], 0.5)))
    for name in dict.fromkeys(one.name for _, one in models):
        colour, symbol, size = _MARK.get(name, ("dense", "x", 9))
        own = [(keep, one) for keep, one in models if one.name == name]
        dots(
            made,
            safe(LABELS.get(name, name)),
            colour,
            [one.kept for _, one in own],
            [one.loss_increase for _, one in own],
            marker={"size": size, "symbol": symbol},
            text=[model_text(one) for _, one in own],
        )
    known = [one for one in levels if np.isfinite(one)]
    if known:
        top, low = 1.25 * max(*known, 1e-3), min(*known, 0.0)
        made.update_yaxes(range=[low - 0.05 * (top - low), top])
    made.update_xaxes(tickformat=".0%")
    return made


def pair_text(pair: Pair) -> str:
    """What shows on hovering over a pair."""
    early = f"<br>stopped after {pair.tokens:,} tokens" if pair.partial else ""
    return (
        f"{pair.value:+.4f} nats/token, keeps {pair.kept:.1%}<br>round {pair.round}, "
        f"{safe(pair.origin, 30)}{early}"
    )


def model_text(model: Reported) -> str:
    """What shows on hovering over a reported model."""
    parts = [f"<b>{safe(LABELS.get(model.name, model.name))}</b>"]
    parts.append(f"{model.params:,} parameters, {model.kept:.1%} of the prunable ones")
    if model.loss_increase is not None:
        parts.append(f"{model.loss_increase:+.4f} nats/token")
    if model.perplexity is not None:
        parts.append(f"perplexity {model.perplexity.value:,.2f}")
    return "<br>".join(parts)


def predicted(found: Pruning) -> go.Figure:
    """Predicted against measured values of held-out pairs and of finalists.

    The band holds the central 80 % of the errors of held-out predictions; the bars of finalists
    are two standard errors over chunks of text.

    Raises:
        LmscoutError: there was no predictor.
    """
    if found.predictor is None:
        raise LmscoutError("the run fitted no predictor, so nothing was predicted")
    held_out = np.array(found.predictor.held_out).reshape(-1, 2)
    finalists = [
        one
        for size in found.sizes
        for one in size.finalists
        if one.predicted is not None and one.held_out is not None
    ]
    made = figure("Predicted against measured", "predicted, nats/token", "measured, nats/token")
    every = np.concatenate(
        [
            held_out.ravel(),
            [one.predicted for one in finalists],
            [one.held_out for one in finalists],
        ]
    ).astype(float)
    every = every[np.isfinite(every)]
    if not every.size:
        return made
    logs = bool((every > 0).mean() > 0.97 and every.max() > 20 * every[every > 0].min())
    least = float(every[every > 0].min()) if logs else float(every.min())
    ends = [least, float(every.max())]
    grid = np.geomspace(ends[0], ends[1], 60) if logs else np.linspace(ends[0], ends[1], 60)
    scale = found.predictor.chosen.scale
    if len(held_out) > 1 and np.ptp(held_out[:, 1]) > 0 and scale in SCALES:
        low, high = band(held_out, scale, grid)
        if logs:
            low = np.maximum(low, least / 2)
        made.add_trace(
            go.Scatter(
                name="80 % of errors",
                mode="lines",
                fill="toself",
                hoverinfo="skip",
                x=[*grid.tolist(), *grid[::-1].tolist()],
                y=[*low.tolist(), *high[::-1].tolist()],
                line={"width": 0},
                fillcolor="rgba(63,138,224,0.18)",
            )
        )
    if len(held_out):
        dots(
            made,
            f"held-out pairs ({len(held_out):,})",
            "searched",
            held_out[:, 0].tolist(),
            held_out[:, 1].tolist(),
            marker={"size": 6, "opacity": 0.7},
            hovertemplate="predicted %{x:+.4f}, measured %{y:+.4f}<extra></extra>",
        )
    line(made, "as predicted", "dense", ends, ends, dash="dot")
    for colour, name, some in (
        ("predicted", "finalists", [one for size in found.sizes for one in size.finalists[1:]]),
        ("found", "selected", [size.finalists[0] for size in found.sizes if size.finalists]),
    ):
        own = [one for one in some if one in finalists]
        if not own:
            continue
        dots(
            made,
            name,
            colour,
            [one.predicted for one in own],
            [one.held_out for one in own],
            marker={
                "size": 13 if name == "selected" else 9,
                "symbol": "star" if name == "selected" else "circle",
            },
            error_y=errors([_two_errors(one.chunks) for one in own]),
            text=[
                f"{name}<br>predicted {one.predicted:+.4f}, held-out text "
                f"{one.held_out:+.4f} ± {_two_errors(one.chunks):.4f}"
                for one in own
            ],
        )
    if logs:
        made.update_xaxes(logarithmic(ends))
        made.update_yaxes(logarithmic(ends))
    return made


def band(held_out: Floats, scale: str, predictions: Floats) -> tuple[Floats, Floats]:
    """The central 80 % of measured values at predictions [n], nats/token.

    By the errors of held-out pairs [m, 2], predicted and measured, on the scale of the target.
    """
    target = TargetScale.of(scale, held_out[:, 1])
    errors = target.forward(held_out[:, 1]) - target.forward(held_out[:, 0])
    centre = target.forward(predictions)
    low, high = (target.backward(centre + q) for q in np.quantile(errors, _BAND))
    return low, high


def _two_errors(chunks: Sequence[float]) -> float:
    known = np.array(chunks, float)
    return float(2 * known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0


def plan(found: Pruning | Size, dense: Plan | None = None) -> go.Figure:
    """The selected plan as a picture: the share of its units that each block keeps.

    Args:
        found: a result, of whose sizes the first is drawn, or a size.
        dense: the dense model's plan, for a size.
    """
    if isinstance(found, Pruning):
        return plan(found.sizes[0], found.dense.plan)
    assert dense is not None
    blocks = list(range(dense.depth))
    made = figure("What every block keeps", "block", "share of units kept", height=360)
    level = next((one.plan for one in found.models if one.name == "uniform"), None)
    for sign, kind in ((1, "attention"), (-1, "mlp")):
        most, kept = getattr(dense, kind), getattr(found.plan, kind)
        shares = [units / whole if whole else 0.0 for units, whole in zip(kept, most, strict=True)]
        made.add_bar(
            name="",
            x=blocks,
            y=[sign] * len(blocks),
            width=0.86,
            showlegend=False,
            hoverinfo="skip",
            marker={"color": "rgba(141,149,161,0.14)"},
        )
        made.add_bar(
            name=f"{_KIND[kind]} ({'up' if sign > 0 else 'down'})",
            x=blocks,
            y=[sign * one for one in shares],
            width=0.86,
            marker={"color": COLOURS[kind]},
            text=[
                f"block {block}: {_KIND[kind]} keeps {units} of {whole} ({share:.0%})"
                for block, units, whole, share in zip(blocks, kept, most, shares, strict=True)
            ],
            textposition="none",
            hoverinfo="text",
        )
        if level is not None:
            even = [
                sign * units / whole if whole else 0.0
                for units, whole in zip(getattr(level, kind), most, strict=True)
            ]
            edges = [edge for block in blocks for edge in (block - 0.5, block + 0.5)]
            line(
                made,
                "uniform",
                "uniform",
                edges,
                [one for one in even for _ in (0, 1)],
                dash="dot",
                showlegend=sign > 0,
                legendgroup="uniform",
            )
    dropped = found.plan.dropped
    for block in dropped:
        made.add_annotation(
            x=block,
            y=0,
            text="dropped",
            textangle=-90,
            showarrow=False,
            font={"size": 11, "color": COLOURS["bad"]},
        )
    made.update_layout(barmode="overlay", bargap=0.1)
    made.update_yaxes(
        tickvals=[-1, -0.5, 0, 0.5, 1],
        ticktext=["100 %", "50 %", "0", "50 %", "100 %"],
        range=[-1.06, 1.06],
        zeroline=True,
        zerolinecolor="rgba(128,134,142,0.7)",
    )
    made.update_xaxes(showgrid=False, dtick=1 if len(blocks) <= 16 else None)
    return made


def narrowing(found: Pruning, size: int = 0) -> go.Figure:
    """How the ranges of blocks narrowed: the range of every step, and the selected plan.

    Args:
        found: a result.
        size: position of the size among those of the run.
    """
    dense, chosen = found.dense.plan, found.sizes[size].plan
    depth = dense.depth
    made = figure("Narrowing of the ranges", height=110 + 2 * 24 * depth)
    made.set_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_titles=["attention", "MLP"]
    )
    steps = [one for one in found.narrowing_steps if one.size == size]
    when = sorted({one.pairs for one in steps})
    for row, kind in enumerate(("attention", "mlp"), 1):
        made.add_bar(
            name="at first",
            y=list(range(depth)),
            x=[1.0] * depth,
            orientation="h",
            row=row,
            col=1,
            marker={"color": "rgba(147,167,196,0.22)"},
            showlegend=row == 1,
            legendgroup="first",
            hoverinfo="skip",
            width=0.8,
        )
        for number, pairs in enumerate(when):
            own = {
                block: one
                for one in steps
                if one.kind == kind and one.pairs == pairs
                for block in range(one.blocks[0], min(one.blocks[1], depth - 1) + 1)
            }
            shade = 0.25 + 0.75 * (number + 1) / len(when)
            made.add_bar(
                name=f"after {pairs:,} pairs",
                y=list(own),
                orientation="h",
                row=row,
                col=1,
                base=[one.left[0] for one in own.values()],
                x=[one.left[1] - one.left[0] for one in own.values()],
                width=0.8 - 0.55 * (number + 1) / len(when),
                marker={"color": f"rgba(63,138,224,{shade:.2f})"},
                showlegend=row == 1,
                legendgroup=str(pairs),
                text=[
                    f"after {pairs:,} pairs: {one.left[0]:.0%} to {one.left[1]:.0%}, "
                    f"{safe(one.verdict, 20)}<br>{safe(one.words, 200)}"
                    for one in own.values()
                ],
                textposition="none",
                hoverinfo="text",
            )
        shares = [
            kept / most if most else 0.0
            for kept, most in zip(getattr(chosen, kind), getattr(dense, kind), strict=True)
        ]
        dots(
            made,
            "selected plan",
            "found",
            shares,
            list(range(depth)),
            showlegend=row == 1,
            legendgroup="selected",
            marker={"size": 11, "symbol": "star"},
            text=[f"block {block}: keeps {one:.0%}" for block, one in enumerate(shares)],
            row=row,
            col=1,
        )
        made.update_yaxes(
            title_text="block",
            range=[depth - 0.5, -0.5],
            row=row,
            col=1,
            dtick=1 if depth <= 24 else None,
            showgrid=False,
        )
    made.update_layout(barmode="overlay")
    made.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    made.update_xaxes(title_text="share of units kept", row=2, col=1)
    return made


def sensitivity(source: Source) -> go.Figure:
    """How much removing a tenth of each block's units raises the values of pairs.

    Raises:
        LmscoutError: there are too few pairs.
    """
    found = effects(source)
    made = figure("Sensitivity of the blocks", "block", "change of the value", height=360)
    for kind in ("attention", "mlp"):
        own = [one for one in found if one.kind == kind]
        made.add_bar(
            name=_KIND[kind],
            x=[one.block for one in own],
            y=[one.value for one in own],
            marker={"color": COLOURS[kind]},
            error_y=errors(
                [one.high - one.value for one in own], [one.value - one.low for one in own], "dense"
            ),
            text=[
                f"block {one.block} {_KIND[kind]}: {one.value:+.1%} ({one.low:+.1%} to "
                f"{one.high:+.1%})"
                for one in own
            ],
            textposition="none",
            hoverinfo="text",
        )
    made.update_layout(barmode="group", bargap=0.25)
    most = 3 * max(abs(one.value) for one in found)  # a longer interval is cut off
    low, high = min(one.low for one in found), max(one.high for one in found)
    made.update_yaxes(range=[1.1 * max(low, -most), 1.1 * min(high, most)])
    made.update_yaxes(tickformat=".0%", zeroline=True, zerolinecolor="rgba(128,134,142,0.7)")
    made.update_xaxes(showgrid=False, dtick=1 if len(found) <= 32 else None)
    return made


def progress(source: Source) -> go.Figure:
    """Values of the pairs in the order of measuring, coloured by the share kept."""
    recorded = pairs_of(source).pairs
    made = figure("The pairs as they were measured", "pair", "value, nats/token", height=340)
    kept = [one.kept for one in recorded]
    colours: dict[str, object] = {"color": COLOURS["searched"]}
    if len(kept) > 1 and max(kept) - min(kept) > _ASIDE:
        bar = {"title": {"text": "kept"}, "tickformat": ".0%", "thickness": 10, "outlinewidth": 0}
        colours = {"color": kept, "colorscale": "Viridis", "colorbar": bar}
    made.add_trace(
        go.Scatter(
            name="pairs",
            mode="markers",
            x=list(range(1, len(recorded) + 1)),
            y=finite([one.value for one in recorded]),
            showlegend=False,
            marker={
                "size": 7,
                **colours,
                "symbol": ["circle-open" if one.partial else "circle" for one in recorded],
            },
            text=[f"pair {place}<br>{pair_text(one)}" for place, one in enumerate(recorded, 1)],
            hoverinfo="text",
        )
    )
    ends = [
        place
        for place in range(1, len(recorded))
        if recorded[place].round != recorded[place - 1].round
    ]
    for place in ends:
        made.add_vline(place + 0.5, line={"color": "rgba(128,134,142,0.35)", "width": 1})
    values = [one.value for one in recorded]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        made.update_yaxes(logarithmic(values))
    return made
