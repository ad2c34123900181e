"""Prune a language model with an accuracy predictor, from text to a saved folder.

Measure pairs of plans and their quality, learn to predict quality, narrow and search by what
was learnt, measure the few best again on more text, save the winner, and report it beside
what a uniform cut of the same size gives (arXiv 2309.09507).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.evaluation import LoadedModel, Perplexity, Text, model_windows, read_origin
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.pruning.budgets import Budget, budget_of
from lmscout.pruning.calibration import Calibrated, calibrate
from lmscout.pruning.config import Request, check_request, model_folders
from lmscout.pruning.cutting import ShapeName, check_range
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import check_generation, check_plan, is_finished, save
from lmscout.pruning.families import family_of
from lmscout.pruning.finalists import STUDY as FINALS
from lmscout.pruning.finalists import candidates_of, measure_finalists
from lmscout.pruning.latency import Latency, from_json, measure_latency, to_json
from lmscout.pruning.measuring import (
    Fitted,
    fitted_to_proxy,
    measure_rounds,
    proxy_columns,
    tail_on,
)
from lmscout.pruning.model_card import CardFigures, MeasuredModel
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.ranges import Ranges
from lmscout.pruning.recovery.elastic import Elastic
from lmscout.pruning.recovery.run import (
    WinnerRecovery,
    recover_plans,
    recover_winners,
    remove_finished,
)
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.report import ReportText, held_out_tokens, report
from lmscout.pruning.results import SHOWN, Finalist, Pruning, Reported, Size
from lmscout.pruning.sampler import Target
from lmscout.pruning.saved_run import is_complete, open_pruning
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.storage import storage_option_url
from lmscout.pruning.study import STUDY as PAIRS
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_lock import folder_lock
from lmscout.pruning.study_record import record_origin, recorded_chunks
from lmscout.pruning.uniform_space import fast_multiple, space_of
from lmscout.runs import Run

_TIMED_WINDOWS = 8  # on which latency is measured


def prune(
    loaded: LoadedModel,
    calibration: Text,
    request: Request,
    out: Path,
    *,
    report_on: Text | None = None,
    recover_on: Text | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Prune a model to one or several sizes.

    The same call continues a run that was stopped at any moment, and gives the result of one that
    has finished.

    Args:
        loaded: the dense model with its tokenizer; its units are reordered in place, and elastic
            recovery changes its weights.
        calibration: text on which plans are measured.
        request: what is wanted.
        out: folder of the run: the study and the saved model; where several sizes are
            wanted, each model in a folder of its own in it, such as ``keep-0.8``.
        report_on: text on which perplexities are reported; never the calibration text.
        recover_on: text that recovery trains on; the calibration text if None.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        What was found and saved.

    Raises:
        LmscoutError: whatever the user can mend.
    """
    check_request(request, calibration, report_on, out, recover_on)
    computed = str(loaded.model.dtype).removeprefix("torch.")
    run = open_pruning(out, loaded.source, computed, request, calibration, report_on, recover_on)
    if is_complete(run, request):
        remove_finished(out, request.keep)
        return run.load(Pruning)
    stages = Stages(progress)
    with ExitStack() as held:
        result = _pruning(loaded, calibration, request, run, report_on, recover_on, stages, held)
        run.end(result)
        remove_finished(out, request.keep)
    return result


def _pruning(
    loaded: LoadedModel,
    calibration: Text,
    request: Request,
    run: Run,
    report_on: Text | None,
    recover_on: Text | None,
    stages: Stages,
    held: ExitStack,
) -> Pruning:
    """Do what a checked request asks for, in the folder of its run, which is locked in `held`."""
    out, model = run.folder, loaded.model
    settings = request.calibration.fitted(model.config, request.seed)
    request, window = replace(request, calibration=settings), settings.length
    request.recovery.check(None, window, request.keep, request.of)
    family = family_of(model.config)
    units = shape_of(family.all_parts(model))
    space = space_of(request.shape, units, model, request.channel_multiple or fast_multiple(model))
    if request.of != "latency":  # else it takes measuring first
        for budget in _budgets(request, model, units, None):
            space.require(budget)
    storage = out if request.storage is None else storage_option_url(request.storage)
    dtype = request.dtype or loaded.saved_dtype or model.dtype
    on = ReportText(
        loaded.tokenizer, report_on, request.protocol, dtype, limit_tokens=request.report_tokens
    )
    begun = [recorded_chunks(storage, study) for study in (PAIRS, FINALS)]
    with stages("calibrating") as update:
        windows = model_windows(model, loaded.tokenizer, calibration, window)
        training = windows
        if recover_on is not None:
            training = model_windows(model, loaded.tokenizer, recover_on, window)
        on.check(model)
        calibrated = calibrate(model, windows, settings, progress=update).as_begun(*begun)
    elastic = None
    if request.recovery.elastic is not None:
        _begin(run, held)
        sizes = dict(zip(request.keep, _budgets(request, model, units, None), strict=True))
        calibrated, elastic = recover_plans(
            calibrated, training, space, sizes, request.recovery.elastic, out, on, stages
        )
    calibrated = calibrated.copied_to(request.devices)
    calibrated, known = _dense_measured(calibrated, on, request, elastic, stages)
    if elastic is None:
        _begin(run, held)
    origin = (loaded.source, calibration.source)
    found = _found(calibrated, space, request, storage, origin, stages)
    winners = [contest[0].plan for contest in found.contests]
    folders = _checked_folders(request.keep, out, winners, dtype)
    with stages("reporting") as update:
        dense, reported = report(
            calibrated, found.budgets, winners, on, dense=known, progress=update
        )
    dense, dense_elastic = _dense_rows(dense, elastic)
    winner_of = None
    trained: Sequence[Trained | None] = [None] * len(winners)
    if request.recovery.winners is not None:
        winner_of = WinnerRecovery(
            calibrated, training, request.recovery.winners, request.shape, out
        )
        reported, trained = recover_winners(winner_of, request.keep, winners, reported, on, stages)
    with stages("saving") as update:
        for number, (keep, winner) in enumerate(zip(request.keep, winners, strict=True)):
            if not is_finished(folders[number]):
                recovered = None if winner_of is None else winner_of(keep, winner)[0]
                size = Size(keep, reported[number], (), folders[number])
                _save(
                    calibrated,
                    loaded.tokenizer,
                    winner,
                    recovered,
                    folders[number],
                    dtype,
                    note=request.note(keep),
                    figures=_card_figures(loaded, found.pairs, (dense, dense_elastic), size),
                    shape=request.shape,
                )
            if update:
                update(number + 1, len(folders))
    fitted = found.fitted
    return Pruning(
        request.of,
        dense,
        tuple(
            Size(keep, rows, tuple(contest), folder, done)
            for keep, contest, rows, folder, done in zip(
                request.keep, found.contests, reported, folders, trained, strict=True
            )
        ),
        fitted.predictor.report if fitted.predictor else None,
        fitted.narrowing_steps,
        found.pairs,
        found.pair_study,
        stages.seconds,
        elastic,
        dense_elastic,
        None if fitted.objective is None else fitted.objective.report,
        held_out_tokens(calibrated),
    )


@dataclass(frozen=True)
class _Found:
    """What pairs, or a judge, and a search have found: finalists of every budget, best first."""

    budgets: Sequence[Budget]
    contests: Sequence[Sequence[Finalist]]
    fitted: Fitted
    pairs: int
    pair_study: str


def _found(
    calibrated: Calibrated,
    space: PlanSpace,
    request: Request,
    storage: str | Path,
    origin: tuple[str, str],
    stages: Stages,
) -> _Found:
    """Measure, learn and search, or let a proxy judge, and measure the finalists."""
    units, settings = calibrated.shape, calibrated.settings
    final_settings = {**calibrated.study_settings, "final_tokens": settings.final_tokens}
    with (
        PairStudy(storage, units, calibrated.study_settings) as pair_study,
        PairStudy(storage, units, final_settings, study=FINALS) as finals,
    ):
        record_origin(pair_study, *origin, settings, calibrated.model.dtype)
        latency = _latency(pair_study, calibrated) if request.of == "latency" else None
        budgets = _budgets(request, calibrated.model, units, latency)
        for budget in budgets:
            space.require(budget)
        targets = [Target(budget, Ranges.above(units)) for budget in budgets]
        if request.objective is not None:
            with stages("judging"):
                fitted = fitted_to_proxy(request.objective, calibrated, targets)
        else:
            with (
                stages("measuring pairs") as update,
                pair_study.locked(update and partial(_report_other_studies, update, request.pairs)),
            ):
                # Another run may have begun the study since this one looked at it.
                if not calibrated.references:
                    calibrated = calibrated.as_begun(pair_study.chunks, finals.chunks)
                fitted = measure_rounds(
                    pair_study,
                    calibrated.evaluator(calibrated.measured),
                    calibrated.mass,
                    space,
                    targets,
                    pairs=request.pairs,
                    seed=request.seed,
                    tail=tail_on(calibrated.model.device),
                    extra=proxy_columns(request.features, calibrated),
                    progress=update,
                )
        with stages("searching") as update:
            candidates = []
            for number, target in enumerate(fitted.targets):
                candidates.append(candidates_of(pair_study, fitted, space, target, request.seed))
                if update:
                    update(number + 1, len(budgets))
        with stages("measuring finalists") as update:
            contests = measure_finalists(calibrated, pair_study, finals, fitted, candidates, update)
        return _Found(budgets, contests, fitted, len(pair_study), pair_study.url)


def _report_other_studies(update: StageProgress, wanted: int, there: int) -> None:
    """Tell how far another run is, for which this one waits."""
    update(min(there, wanted), wanted)


def _budgets(
    request: Request,
    model: PreTrainedModel,
    units: Shape,
    latency: Latency | None,
) -> list[Budget]:
    family, window = family_of(model.config), request.calibration.length
    return [
        budget_of(request.of, keep, model, family, units, window=window, latency=latency)
        for keep in request.keep
    ]


def _latency(pair_study: PairStudy, calibrated: Calibrated) -> Latency:
    """Measured once a run, since times differ from run to run and plans must not."""
    noted = pair_study.note("latency")
    if noted is None:
        windows = calibrated.measured[:_TIMED_WINDOWS]
        measured = measure_latency(calibrated.model, calibrated.family, windows)
        noted = pair_study.note("latency", json.dumps(to_json(measured)))
    assert noted is not None
    return from_json(json.loads(noted))


def _dense_measured(
    calibrated: Calibrated,
    on: ReportText,
    request: Request,
    elastic: Elastic | None,
    stages: Stages,
) -> tuple[Calibrated, Perplexity | None]:
    """Measure the dense model on every text before any plan, so that one without loss ends here.

    Returns:
        What measures plans, and the dense model's perplexity on the report text: None without
        one, and after elastic recovery, for which it was measured before.

    Raises:
        LmscoutError: its loss is not finite, its weights do not fit into the saved dtype,
            or transformers would not save its generation configuration.
    """
    known = None
    check_range(calibrated.model, on.dtype)
    check_generation(calibrated.model)
    if elastic is None:
        with stages("reporting"):
            known = on.dense_perplexity(calibrated)
    if request.objective is None:
        with stages("calibrating"):
            calibrated = calibrated.checked()
    return calibrated, known


def _begin(run: Run, held: ExitStack) -> None:
    """Lock the run folder in `held`: from here on it is written to."""
    held.enter_context(folder_lock(run.folder))
    run.begin()


def _checked_folders(
    keep: Sequence[float], out: Path, winners: Sequence[Plan], dtype: torch.dtype
) -> list[Path]:
    """Folders of the saved models; one that is finished holds the winner of its size."""
    folders = model_folders(keep, out)
    for winner, folder in zip(winners, folders, strict=True):
        if is_finished(folder):
            check_plan(folder, winner, dtype)
    return folders


def _dense_rows(dense: Reported, elastic: Elastic | None) -> tuple[Reported, Reported | None]:
    """The dense model as it was given, and with elastic recovery."""
    if elastic is None:
        return dense, None
    as_given = replace(dense, perplexity=elastic.as_given, loss_increase=0.0)
    return as_given, replace(dense, name="dense_elastic")


def _save(
    calibrated: Calibrated,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    recovered: PreTrainedModel | None,
    folder: Path,
    dtype: torch.dtype,
    *,
    note: Mapping[str, object],
    figures: CardFigures,
    shape: str,
) -> None:
    save(
        calibrated.model,
        plan,
        folder,
        shape=cast(ShapeName, shape),
        tokenizer=tokenizer,
        outputs=calibrated.compensated(plan) if recovered is None else None,
        recovered=recovered,
        dtype=dtype,
        beside=[path.name for path in folder.iterdir()] if folder.is_dir() else (),
        note=note,
        figures=figures,
    )


def _card_figures(
    loaded: LoadedModel, pairs: int, dense: Sequence[Reported | None], size: Size
) -> CardFigures:
    """What the card of the model that is saved says of the run."""
    rows = (*dense, *size.reported)
    names = [row.name for row in rows if row]
    return CardFigures(
        pairs,
        tuple(
            MeasuredModel(row.name, row.params, row.perplexity, SHOWN[row.name])
            for row in rows
            if row
        ),
        "found_recovered" if "found_recovered" in names else "found",
        read_origin(loaded.source, loaded.folder),
        size.verdict,
    )
