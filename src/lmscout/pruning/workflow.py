"""Prune a language model with an accuracy predictor (arXiv 2309.09507): the steps of a run.

`prune` opens the run and calls the steps in order: prepare, calibrate, find plans, report,
recover the selected plans, save.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lmscout.evaluation import (
    LoadedModel,
    Perplexity,
    Text,
    load_config,
    load_model,
    memory_dtype,
    model_windows,
    read_origin,
)
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.pruning.budgets import Budget, budget_of
from lmscout.pruning.calibration import Calibrated, calibrate
from lmscout.pruning.config import PruneConfig, check_request, model_folders
from lmscout.pruning.cutting import ShapeName, check_range
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import check_generation, check_plan, is_finished, save
from lmscout.pruning.families import family_of
from lmscout.pruning.finalists import (
    REFIT_STUDY,
    candidates_of,
    measure_finalists,
    refit_finalists,
)
from lmscout.pruning.finalists import STUDY as FINALS
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
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.recovery.elastic import Elastic, recover_all_plans
from lmscout.pruning.recovery.run import (
    ELASTIC,
    WinnerRecovery,
    recover_winners,
    recovery_file,
    remove_finished,
)
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.report import ReportText, held_out_tokens, report
from lmscout.pruning.results import LABELS, Finalist, Pruning, Reported, Size
from lmscout.pruning.saved_run import is_complete, open_pruning
from lmscout.pruning.space import PlanSpace, fast_multiple, space_of
from lmscout.pruning.storage import home_path, storage_option_url
from lmscout.pruning.study import STUDY as PAIRS
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_lock import folder_lock
from lmscout.pruning.study_record import record_origin, recorded_chunks
from lmscout.runs import RESULT, Run

_TIMED_WINDOWS = 8  # of calibration text, for latency


def prune_named(
    model: str | LoadedModel,
    calibration: Text,
    config: PruneConfig,
    out: Path,
    device: torch.device,
    compute_dtype: str | None = None,
    *,
    report_on: Text | None = None,
    recover_on: Text | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Prune a model by its name, see `prune`; the result of a finished run needs no weights.

    Args:
        model: folder or Hub name, or the loaded model.
        calibration: text on which plans are measured.
        config: all other settings.
        out: run folder; ``~`` is the home folder.
        device: of the model.
        compute_dtype: of the weights in memory; None for the device's default.
        report_on: text on which perplexities are reported.
        recover_on: text that recovery trains on.
        progress: called with the name of a stage, its steps done, and all of its steps.

    Raises:
        LmscoutError: an option is invalid, or a file cannot be read or written.
    """
    out = home_path(out)
    check_request(config, calibration, report_on, out, recover_on)
    if not isinstance(model, LoadedModel):
        if (out / RESULT).is_file():
            dtype = compute_dtype or str(memory_dtype(load_config(model), device)).split(".")[-1]
            run = open_pruning(out, model, dtype, config, calibration, report_on, recover_on)
            if is_complete(run, config):
                return run.load(Pruning)
        wanted = None if compute_dtype is None else getattr(torch, compute_dtype)
        model = load_model(model, wanted, device)
    texts = {"report_on": report_on, "recover_on": recover_on}
    return prune(model, calibration, config, out, progress=progress, **texts)


def prune(
    loaded: LoadedModel,
    calibration: Text,
    config: PruneConfig,
    out: Path,
    *,
    report_on: Text | None = None,
    recover_on: Text | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Prune a model to one or several sizes.

    The same call continues a run that was stopped at any moment, and returns the result of one
    that has finished.

    Args:
        loaded: the dense model with its tokenizer; its units are reordered in place, and elastic
            recovery changes its weights.
        calibration: text on which plans are measured.
        config: all other settings.
        out: run folder, for the study and the saved model; of several sizes each model has a
            folder in it, such as ``keep-0.8``.
        report_on: text on which perplexities are reported; never the calibration text.
        recover_on: text that recovery trains on; the calibration text if None.
        progress: called with the name of a stage, its steps done, and all of its steps.

    Returns:
        The selected plans, the saved models, and all measurements.

    Raises:
        LmscoutError: an option is invalid, or a file cannot be read or written.
    """
    check_request(config, calibration, report_on, out, recover_on)
    computed = str(loaded.model.dtype).removeprefix("torch.")
    run = open_pruning(out, loaded.source, computed, config, calibration, report_on, recover_on)
    if is_complete(run, config):
        remove_finished(out, config.keep)
        return run.load(Pruning)
    stages = Stages(progress)
    with ExitStack() as lock:
        job = _prepared(loaded, calibration, config, run, stages, report_on, recover_on)
        dense = _calibrated(job, lock)
        found = _find_plans(job, dense.calibrated)
        result = _reported_and_saved(job, dense, found)
        run.end(result)
        remove_finished(out, config.keep)
    return result


@dataclass(frozen=True)
class _Job:
    """The input of a run."""

    loaded: LoadedModel
    calibration: Text
    config: PruneConfig  # with the calibration settings that fit the model
    run: Run
    stages: Stages
    report_text: ReportText
    recover_on: Text | None  # None for the calibration text
    space: PlanSpace

    @property
    def storage(self) -> str | Path:
        """Where the study is kept."""
        storage = self.config.storage
        return self.run.folder if storage is None else storage_option_url(storage)


def _prepared(
    loaded: LoadedModel,
    calibration: Text,
    config: PruneConfig,
    run: Run,
    stages: Stages,
    report_on: Text | None,
    recover_on: Text | None,
) -> _Job:
    """Fit the settings to the model; refuse budgets that no plan meets."""
    model = loaded.model
    settings = config.calibration.fitted(model.config, config.seed)
    config = replace(config, calibration=settings)
    config.recovery.check(None, settings.length, config.keep, config.of)
    units = shape_of(family_of(model.config).all_parts(model))
    space = space_of(config.shape, units, model, config.channel_multiple or fast_multiple(model))
    named = config.dtype and getattr(torch, config.dtype)
    dtype = named or loaded.saved_dtype or model.dtype
    on = ReportText(loaded.tokenizer, report_on, config.protocol, dtype, config.report_tokens)
    job = _Job(loaded, calibration, config, run, stages, on, recover_on, space)
    if config.of != "latency":  # which is measured first
        _budgets(job, units)
    return job


@dataclass(frozen=True)
class _Dense:
    """The calibrated dense model."""

    calibrated: Calibrated
    training: Tensor  # [windows, T] that recovery trains on
    perplexity: Perplexity | None  # of the model as given; None without a report text
    elastic: Elastic | None  # the recovery of all plans


def _calibrated(job: _Job, lock: ExitStack) -> _Dense:
    """Split the text, order the units, measure the dense model, and begin the run.

    A model without a finite loss, or one that cannot be saved, is refused before anything is
    written.  From then on `lock` holds the run folder.
    """
    model, config = job.loaded.model, job.config
    recovery, elastic = config.recovery.elastic, None
    chunks = [recorded_chunks(job.storage, study) for study in (PAIRS, FINALS)]
    with job.stages("calibrating") as update:
        windows = _windows(job, job.calibration)
        training = windows if job.recover_on is None else _windows(job, job.recover_on)
        job.report_text.check(model)
        calibrated = calibrate(model, windows, config.calibration, progress=update)
        calibrated = calibrated.with_chunks(*chunks)
        if recovery is None and config.objective is None:
            calibrated = calibrated.checked()
    check_range(model, job.report_text.dtype)
    check_generation(model)
    with job.stages("reporting"):
        perplexity = job.report_text.dense_perplexity(calibrated)
    lock.enter_context(folder_lock(job.run.folder))
    job.run.begin()
    if recovery is not None:
        sizes = dict(zip(config.keep, _budgets(job, calibrated.shape), strict=True))
        file = recovery_file(job.run.folder, ELASTIC)
        with job.stages("recovering all plans") as update:
            calibrated, elastic = recover_all_plans(
                calibrated, training, job.space, sizes, recovery, file, progress=update
            )
        elastic = replace(elastic, as_given=perplexity)
        check_range(model, job.report_text.dtype)
    return _Dense(calibrated.copied_to(config.devices), training, perplexity, elastic)


def _windows(job: _Job, text: Text) -> Tensor:
    length = job.config.calibration.length
    return model_windows(job.loaded.model, job.loaded.tokenizer, text, length)


@dataclass(frozen=True)
class _Found:
    """The plans of a search."""

    budgets: Sequence[Budget]  # of every size
    finalists: Sequence[Sequence[Finalist]]  # of every size, best first
    fitted: Fitted
    pairs: int
    study: str  # URL

    @property
    def winners(self) -> list[Plan]:
        """The selected plan of every size."""
        return [finalists[0].plan for finalists in self.finalists]


def _find_plans(job: _Job, calibrated: Calibrated) -> _Found:
    """Open the study, measure pairs, fit, search, and measure the finalists."""
    config, stages, units = job.config, job.stages, calibrated.shape
    settings = calibrated.study_settings
    final_settings = {**settings, "final_tokens": calibrated.settings.final_tokens}
    with (
        PairStudy(job.storage, units, settings) as study,
        PairStudy(job.storage, units, final_settings, study=FINALS) as finals,
        PairStudy(job.storage, units, final_settings, study=REFIT_STUDY) as refits,
    ):
        sources = job.loaded.source, job.calibration.source
        record_origin(study, *sources, calibrated.settings, calibrated.model.dtype)
        latency = _latency(study, calibrated) if config.of == "latency" else None
        budgets = _budgets(job, units, latency)
        targets = [Target(budget, Ranges.above(units)) for budget in budgets]
        if config.objective is not None:
            with stages("scoring"):
                fitted = fitted_to_proxy(config.objective, calibrated, targets)
        elif not config.pairs:
            fitted = Fitted(None, tuple(targets), ())
        else:
            calibrated, fitted = _measure_pairs(job, calibrated, (study, finals), targets)
        with stages("searching") as update:
            candidates = []
            mass = calibrated.mass
            for number, target in enumerate(fitted.targets):
                some = candidates_of(study, fitted, job.space, target, mass, config.seed)
                candidates.append(some)
                if update:
                    update(number + 1, len(budgets))
        with stages("measuring finalists") as update:
            finalists = measure_finalists(calibrated, study, finals, fitted, candidates, update)
        if config.weights == "refit" and config.objective is None:
            with stages("refitting finalists") as update:
                finalists = refit_finalists(calibrated, refits, finalists, update)
        return _Found(budgets, finalists, fitted, len(study), study.url)


def _measure_pairs(
    job: _Job,
    calibrated: Calibrated,
    studies: tuple[PairStudy, PairStudy],
    targets: Sequence[Target],
) -> tuple[Calibrated, Fitted]:
    """Measure pairs and fit a predictor, in turns with other processes on the study."""
    config, (study, finals) = job.config, studies
    with (
        job.stages("measuring pairs") as update,
        study.locked(update and partial(_report_pairs, update, config.pairs)),
    ):
        begun = calibrated.with_chunks(study.chunks, finals.chunks)
        if begun.chunks != calibrated.chunks and config.recovery.elastic is None:
            # Another run has begun the study meanwhile, perhaps on another kind of device.
            calibrated = replace(begun, references={})
        fitted = measure_rounds(
            study,
            calibrated.evaluator(calibrated.measured),
            calibrated.mass,
            job.space,
            targets,
            pairs=config.pairs,
            seed=config.seed,
            tail=tail_on(calibrated.model.device),
            extra=proxy_columns(config.features, calibrated),
            progress=update,
        )
    return calibrated, fitted


def _report_pairs(update: StageProgress, wanted: int, pairs: int) -> None:
    update(min(pairs, wanted), wanted)


def _budgets(job: _Job, units: Shape, latency: Latency | None = None) -> list[Budget]:
    """The budget of every size.

    Raises:
        LmscoutError: no plan of the space meets one.
    """
    config, model = job.config, job.loaded.model
    family, window = family_of(model.config), config.calibration.length
    budgets: list[Budget] = [
        budget_of(config.of, keep, model, family, units, window=window, latency=latency)
        for keep in config.keep
    ]
    for budget in budgets:
        job.space.require(budget)
    return budgets


def _latency(study: PairStudy, calibrated: Calibrated) -> Latency:
    """Measured once for a study: times differ between runs, and plans must not."""
    noted = study.note("latency")
    if noted is None:
        windows = calibrated.measured[:_TIMED_WINDOWS]
        measured = measure_latency(calibrated.model, calibrated.family, windows)
        noted = study.note("latency", json.dumps(to_json(measured)))
    assert noted is not None
    return from_json(json.loads(noted))


def _reported_and_saved(job: _Job, dense: _Dense, found: _Found) -> Pruning:
    """Measure the models of the report, recover the selected plans, and save them."""
    config, stages, calibrated = job.config, job.stages, dense.calibrated
    out, on, winners = job.run.folder, job.report_text, found.winners
    folders = model_folders(config.keep, out)
    for winner, folder in zip(winners, folders, strict=True):
        if is_finished(folder):
            check_plan(folder, winner, on.dtype)
    with stages("reporting") as update:
        # Elastic recovery has changed the dense weights.
        known = dense.perplexity if dense.elastic is None else None
        row, models = report(
            calibrated, found.budgets, winners, on, config.weights, dense=known, progress=update
        )
    dense_elastic = None
    if dense.elastic is not None:
        dense_elastic = replace(row, name="dense_elastic")
        row = replace(row, perplexity=dense.perplexity, loss_increase=0.0)
    recovery, settings = None, config.recovery.winners
    trained: Sequence[Trained | None] = [None] * len(winners)
    if settings is not None:
        recovery = WinnerRecovery(
            calibrated, dense.training, settings, config.shape, config.weights, out
        )
        models, trained = recover_winners(recovery, config.keep, winners, models, on, stages)
    columns = config.keep, models, map(tuple, found.finalists), folders, trained
    fitted = found.fitted
    result = Pruning(
        of=config.of,
        dense=row,
        sizes=tuple(Size(*one) for one in zip(*columns, strict=True)),
        predictor=None if fitted.predictor is None else fitted.predictor.report,
        narrowing_steps=fitted.narrowing_steps,
        pairs=found.pairs,
        study=found.study,
        seconds=stages.seconds,
        elastic=dense.elastic,
        dense_elastic=dense_elastic,
        objective=None if fitted.objective is None else fitted.objective.report,
        held_out_tokens=held_out_tokens(calibrated),
    )
    with stages("saving") as update:
        for number, size in enumerate(result.sizes):
            if not is_finished(size.folder):
                _save(job, calibrated, result, size, recovery)
            if update:
                update(number + 1, len(folders))
    return result


def _save(
    job: _Job,
    calibrated: Calibrated,
    result: Pruning,
    size: Size,
    recovery: WinnerRecovery | None,
) -> None:
    """Save the selected plan of one size; a recovered one is merged again from its adapter."""
    loaded, plan, folder = job.loaded, size.plan, size.folder
    rows: list[Reported] = [result.dense, *filter(None, [result.dense_elastic]), *size.models]
    figures = CardFigures(
        result.pairs,
        tuple(
            MeasuredModel(row.name, LABELS[row.name], row.params, row.perplexity) for row in rows
        ),
        "found" if recovery is None else "found_recovered",
        read_origin(loaded.source, loaded.folder),
        size.verdict,
    )
    shape, dtype = cast(ShapeName, job.config.shape), job.report_text.dtype
    if recovery is not None:
        pruned = recovery(size.keep, plan)[0]
    else:  # on the CPU, as a dense model may leave no room on its accelerator
        weights = job.config.weights
        pruned = calibrated.subnetwork(plan, weights, shape=shape, dtype=dtype, device="cpu")
    save(
        calibrated.model,
        plan,
        folder,
        shape=shape,
        tokenizer=loaded.tokenizer,
        pruned=pruned,
        dtype=dtype,
        existing=[path.name for path in folder.iterdir()] if folder.is_dir() else (),
        settings=job.config.note(size.keep),
        figures=figures,
    )
