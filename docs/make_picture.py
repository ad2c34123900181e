"""Write docs/picture.svg: predicted against measured, in both halves of lmscout.

    python docs/make_picture.py RUN

Left, the held-out architectures of `pico`: the score of the best proxy, found as
`lmscout demo` finds it, against their loss after training.  Right, the pairs of the demo's
study: loss increases predicted by cross-validation against measured ones.  RUN is the folder of
`lmscout demo --out RUN`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from lmscout import proxies
from lmscout.benchmarks import load
from lmscout.benchmarks.download import cache_directory
from lmscout.builtin import tiny_folder
from lmscout.cli.demo import SEARCH, SEQUENCES, calibration_settings, calibration_text
from lmscout.discovery import discover
from lmscout.discovery.discover import proxy_scores
from lmscout.evaluation import load_model, tokenize_windows
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.predictor import fit_predictor
from lmscout.pruning.study import PairStudy
from lmscout.statistics import Batch, collect

TARGET = Path(__file__).parent / "picture.svg"
SIDE, GAP, MARGIN, TOP = 300, 96, 56, 64
INK, DOT, FAINT = "#1f2328", "#0969da", "#8c959f"


def main() -> None:
    """Draw both panels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    panels = [architectures(), pairs(run)]
    width = 2 * MARGIN + len(panels) * SIDE + (len(panels) - 1) * GAP
    height = TOP + SIDE + MARGIN
    body = "".join(panel(MARGIN + place * (SIDE + GAP), *one) for place, one in enumerate(panels))
    TARGET.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" '
        f'fill="{INK}"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n',
        "utf-8",
    )
    print(f"wrote {TARGET}")


def architectures() -> tuple[str, str, str, str, np.ndarray, np.ndarray]:
    """The best proxy on held-out architectures."""
    benchmark = load("pico")
    space = proxies.published(("mean", "sum"))
    cache = cache_directory() / "statistics"
    batch = Batch(size=SEQUENCES)
    found = discover(benchmark, space, search=SEARCH, seed=0, cache=cache, batch=batch)
    statistics = collect(benchmark.specs, space.chains, name="pico", folder=cache, batch=batch)
    score = found.sign * proxy_scores(found.proxy, statistics)[found.split.test]
    loss = -benchmark.quality[found.split.test]
    rho = spearmanr(score, -loss).statistic
    return (
        "Discover: untrained against trained",
        f"{len(loss)} held-out architectures, ρ {rho:.2f}",
        "score of the best proxy (rank)",
        "loss after training (nats)",
        rankdata(score),
        loss,
    )


def pairs(run: Path) -> tuple[str, str, str, str, np.ndarray, np.ndarray]:
    """Cross-validated predictions of the pairs of a run."""
    loaded = load_model(str(tiny_folder()))
    settings = calibration_settings()
    windows = tokenize_windows(loaded.tokenizer, calibration_text(), settings.window)
    calibrated = calibrate(loaded.model, windows, settings)
    with PairStudy(run, calibrated.shape, calibrated.study_settings) as pair_study:
        predictor = fit_predictor(pair_study.pairs(), calibrated.shape, calibrated.mass, seed=0)
    measured, predicted = predictor.cross_validated
    tau = kendalltau(measured, predicted).statistic
    return (
        "Prune: predicted against measured",
        f"{len(measured)} plans of lmscout-tiny, cross-validated, τ {tau:.2f}",
        "predicted loss increase (nats)",
        "measured (nats)",
        predicted,
        measured,
    )


def panel(
    left: float, title: str, subtitle: str, across: str, up: str, x: np.ndarray, y: np.ndarray
) -> str:
    """One scatter of points, with its axes."""
    bottom = TOP + SIDE
    x_low, x_high = limits(x)
    y_low, y_high = limits(y)
    parts = [
        text(left, 24, title, size=15, weight="bold"),
        text(left, 44, subtitle, colour=FAINT),
        f'<path d="M{left} {TOP}V{bottom}H{left + SIDE}" fill="none" stroke="{FAINT}"/>',
        text(left + SIDE / 2, bottom + 40, across, anchor="middle"),
        f'<g transform="translate({left - 38} {TOP + SIDE / 2}) rotate(-90)">'
        f"{text(0, 0, up, anchor='middle')}</g>",
    ]
    for tick in ticks(x_low, x_high):
        place = left + SIDE * (tick - x_low) / (x_high - x_low)
        parts.append(text(place, bottom + 18, f"{tick:g}", anchor="middle", colour=FAINT))
    for tick in ticks(y_low, y_high):
        place = bottom - SIDE * (tick - y_low) / (y_high - y_low)
        parts.append(text(left - 6, place + 4, f"{tick:g}", anchor="end", colour=FAINT))
    for one, other in zip(x, y, strict=True):
        across_at = left + SIDE * (one - x_low) / (x_high - x_low)
        up_at = bottom - SIDE * (other - y_low) / (y_high - y_low)
        parts.append(
            f'<circle cx="{across_at:.1f}" cy="{up_at:.1f}" r="3" fill="{DOT}" fill-opacity="0.5"/>'
        )
    return "".join(parts)


def limits(values: np.ndarray) -> tuple[float, float]:
    """A little beyond the values."""
    room = 0.04 * np.ptp(values)
    return float(values.min() - room), float(values.max() + room)


def ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers between, four or so."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 5:
        step *= 2
    return [float(one) + 0.0 for one in np.arange(np.ceil(low / step) * step, high, step).round(6)]


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: int = 13,
    weight: str = "normal",
    anchor: str = "start",
    colour: str = INK,
) -> str:
    """One line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{colour}">{content}</text>'
    )


if __name__ == "__main__":
    main()
