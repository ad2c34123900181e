"""Prune a language model with an accuracy predictor (arXiv 2309.09507).

`prune` opens the run and calls the steps in order: prepare, calibrate, find plans, report,
recover the selected plans, save.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
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
    dtype_named,
    load_config,
    load_model,
    memory_dtype,
    model_windows,
    read_origin,
)
from lmscout.files import as_json, write_file
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.pruning.budgets import Budget, budget_of
from lmscout.pruning.calibration import Calibrated, calibrate
from lmscout.pruning.config import (
    PruneConfig,
    check_request,
    is_complete,
    model_folders,
    open_pruning,
)
from lmscout.pruning.cutting import ShapeName, check_range
from lmscout.pruning.devices import RemoteCopies
from lmscout.pruning.estimate import memory_parts, placement_of
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import (
    CardFigures,
    MeasuredModel,
    check_generation,
    check_plan,
    is_finished,
    save,
)
from lmscout.pruning.families import family_of, set_units
from lmscout.pruning.finalists import (
    COARSE,
    NEARBY,
    REFIT_STUDY,
    SPREAD,
    Contest,
    feasible,
    front,
    smallest,
)
from lmscout.pruning.finalists import STUDY as FINALS
from lmscout.pruning.latency import Latency, from_json, measure_latency, to_json
from lmscout.pruning.measuring import (
    Fitted,
    first_steps,
    fitted_to_proxy,
    measure_rounds,
    proxy_columns,
    tail_on,
)
from lmscout.pruning.placement import block_devices, place
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Target
from lmscout.pruning.recovery.elastic import Elastic, recover_all_plans
from lmscout.pruning.recovery.run import (
    ELASTIC,
    RecoveryConfig,
    WinnerRecovery,
    recover_winners,
    recovery_file,
    remove_finished,
)
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.report import ReportText, report
from lmscout.pruning.results import (
    LABELS,
    Finalist,
    FrontPoint,
    Pruning,
    QualityBound,
    Reported,
    Size,
)
from lmscout.pruning.space import PlanSpace, fast_multiple, space_of
from lmscout.pruning.storage import home_path, storage_option_url
from lmscout.pruning.study import STUDY as PAIRS
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_lock import folder_lock
from lmscout.pruning.study_record import record_origin, recorded_chunks
from lmscout.results import SCHEMA
from lmscout.runs import RESULT, Run

FRONT_FILES = ("front.csv", "front.json")  # in the run folder

_CPU = torch.device("cpu")
_TIMED_WINDOWS = 8  # of calibration text, for latency


def prune(
    model: str | LoadedModel,
    calibration: Text,
    config: PruneConfig,
    out: Path,
    device: torch.device = _CPU,
    compute_dtype: str | None = None,
    *,
    report_on: Text | None = None,
    recover_on: Text | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Prune a model to one or several sizes.

    The same call continues a run that was stopped at any moment, and returns the result of one
    that has finished; a model that is named is not loaded then.

    Args:
        model: folder or Hub name, or the loaded model with its tokenizer; its units are reordered
            in place, and elastic recovery changes its weights.
        calibration: text on which plans are measured.
        config: all other settings.
        out: run folder, for the study and the saved model; of several sizes each model has a
            folder in it, such as ``keep-0.8``.  ``~`` is the home folder.
        device: of a model that is named.
        compute_dtype: of its weights in memory; None for the device's default.
        report_on: text on which perplexities are reported; never the calibration text.
        recover_on: text that recovery trains on; the calibration text if None.
        progress: called with the name of a stage, its steps done, and all of its steps.

    Returns:
        The selected plans, the saved models, and all measurements.

    Raises:
        LmscoutError: an option is invalid, or a file cannot be read or written.
    """
    out = home_path(out)
    check_request(config, calibration, report_on, out, recover_on)
    texts = {"calibration": calibration, "report": report_on, "recover_text": recover_on}
    if not isinstance(model, LoadedModel):
        if (out / RESULT).is_file():
            dtype = compute_dtype or _name(memory_dtype(load_config(model), device))
            run = open_pruning(out, model, dtype, config, texts)
            if is_complete(run, config):
                return run.load(Pruning)
        model, config = _loaded(model, config, device, compute_dtype)
    set_units(model.model.config, config.units)
    opening = out, model.source, _name(model.model.dtype), config, texts
    run = open_pruning(*opening)
    if is_complete(run, config):
        result = run.load(Pruning)
        remove_finished(out, [size.keep for size in result.sizes])
        return result
    stages = Stages(progress)
    job = _prepared(model, calibration, config, run, stages, report_on, recover_on)
    dense = _calibrated(job)
    found = _find_plans(job, dense.calibrated)
    with folder_lock(out):
        run = open_pruning(*opening)
        if is_complete(run, config):  # by another process of this command
            return run.load(Pruning)
        run.begin()
        result = _reported_and_saved(job, dense, found)
        if result.front:
            _write_front(result.front, out)
        run.end(result)
        remove_finished(out, found.keep)
    return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _loaded(
    name: str, config: PruneConfig, device: torch.device, compute_dtype: str | None
) -> tuple[LoadedModel, PruneConfig]:
    """The model on its devices; those over which it is spread do not share the measuring."""
    model_config = load_config(name)
    set_units(model_config, config.units)
    named = None if compute_dtype is None else dtype_named(compute_dtype)
    wanted = named or memory_dtype(model_config, device)
    blocks = placement_of(model_config, config, wanted, device)
    if len(set(blocks)) == 1:
        return load_model(name, wanted, device), config
    loaded = load_model(name, wanted, "cpu")
    place(loaded.model, family_of(model_config), blocks)
    return loaded, replace(config, devices=())


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
    named = config.dtype and dtype_named(config.dtype)
    dtype = named or loaded.saved_dtype or model.dtype
    on = ReportText(loaded.tokenizer, report_on, config.protocol, dtype, config.report_tokens)
    job = _Job(loaded, calibration, config, run, stages, on, recover_on, space)
    if config.of != "latency":  # which is measured first
        for keep in config.keep:
            job.space.require(_budget(job, keep))
    return job


@dataclass(frozen=True)
class _Dense:
    """The calibrated dense model."""

    calibrated: Calibrated
    training: Tensor  # [windows, T] that recovery trains on
    perplexity: Perplexity | None  # of the model as given; None without a report text
    elastic: Elastic | None  # the recovery of all plans


def _calibrated(job: _Job) -> _Dense:
    """Split the text, order the units, measure the dense model, and begin the run.

    A model without a finite loss, or one that cannot be saved, is refused before anything is
    written.
    """
    model, config = job.loaded.model, job.config
    recovery, elastic = config.recovery.elastic, None
    chunks = [recorded_chunks(job.storage, study) for study in (PAIRS, FINALS)]
    remote = None
    if config.cluster is not None:
        remote = RemoteCopies.begin(config.cluster, model.device)
    with job.stages("calibrating") as update:
        windows = _windows(job, job.calibration)
        training, text = windows, job.recover_on or job.calibration
        chats = text.chats and config.recovery != RecoveryConfig()
        if job.recover_on is not None or chats:
            training = _windows(job, text, learned=True)
        job.report_text.check(model)
        blocks = block_devices(model, family_of(model.config))
        in_host = any(one.in_host for one in memory_parts(model, config, blocks))
        calibrated = calibrate(model, windows, config.calibration, in_host=in_host, progress=update)
        calibrated = calibrated.with_chunks(*chunks)
        if recovery is None and config.objective is None:
            calibrated = calibrated.checked()
    check_range(model, job.report_text.dtype)
    check_generation(model)
    with job.stages("reporting"):
        perplexity = job.report_text.dense_perplexity(calibrated)
    with folder_lock(job.run.folder):
        job.run.begin()
        if recovery is not None:
            keep = config.keep or feasible(job.space, partial(_budget, job), SPREAD)
            sizes = {share: _budget(job, share) for share in keep}
            file = recovery_file(job.run.folder, ELASTIC)
            with job.stages("recovering all plans") as update:
                calibrated, elastic = recover_all_plans(
                    calibrated, training, job.space, sizes, recovery, file, progress=update
                )
            elastic = replace(elastic, as_given=perplexity)
            check_range(model, job.report_text.dtype)
    calibrated = calibrated.copied_to(config.devices).sent_to(remote)
    return _Dense(calibrated, training, perplexity, elastic)


def _windows(job: _Job, text: Text, *, learned: bool = False) -> Tensor:
    loaded, length = job.loaded, job.config.calibration.length
    return model_windows(loaded.model, loaded.tokenizer, text, length, learned=learned)


@dataclass(frozen=True)
class _Found:
    """The plans of a search."""

    contest: Contest
    keep: tuple[float, ...]  # sizes
    finalists: Sequence[Sequence[Finalist]]  # of every size, best first
    bound: QualityBound | None = None  # None if sizes were given
    front: tuple[FrontPoint, ...] = ()

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
        PairStudy(job.storage, units, settings, patient=True) as study,
        PairStudy(job.storage, units, final_settings, study=FINALS, patient=True) as finals,
        PairStudy(job.storage, units, final_settings, study=REFIT_STUDY, patient=True) as refits,
    ):
        sources = job.loaded.source, job.calibration.source
        record_origin(study, *sources, calibrated.settings, calibrated.model.dtype)
        latency = _latency(study, calibrated) if config.of == "latency" else None
        contest = Contest(
            *(calibrated, study, finals, refits, Fitted(None, (), ()), job.space),
            partial(_budget, job, latency=latency),
            refit=config.weights == "refit",
            seed=config.seed,
        )
        if config.max_increase is not None:
            found = _by_quality(job, contest, config.max_increase)
        else:
            found = _by_size(job, contest)
        if config.front:
            with stages("measuring the front") as update:
                found = replace(found, front=front(found.contest, update))
        return found


def _by_size(job: _Job, contest: Contest) -> _Found:
    """The best plans of the given sizes."""
    config, stages = job.config, job.stages
    budgets = [contest.budget_at(keep) for keep in config.keep]
    for budget in budgets:
        job.space.require(budget)
    if config.objective is not None:
        targets = [Target(budget, job.space.ranges) for budget in budgets]
        with stages("scoring"):
            fitted = fitted_to_proxy(config.objective, contest.calibrated, targets)
        contest = replace(contest, fitted=fitted)
    else:
        spread = contest.feasible(SPREAD) if config.front else []
        contest = _with_pairs(job, contest, [*config.keep, *spread], config.pairs)
    allocations: list[Plan] = []
    if contest.refit and config.objective is None and contest.calibrated.mass.in_nats:
        # Refit corrects more of what they remove than compensation, by which pairs are measured.
        allocations = [contest.allocation(keep) for keep in config.keep]
    with stages("searching") as update:
        candidates = []
        for number, target in enumerate(contest.fitted.targets[: len(budgets)]):
            plans = [*contest.candidates(target), *allocations[number : number + 1]]
            candidates.append(list(dict.fromkeys(plans)))
            if update:
                update(number + 1, len(budgets))
    with stages("measuring finalists") as update:
        finalists = contest.measured(candidates, update)
    if contest.refit and config.objective is None:
        with stages("refitting finalists") as update:
            finalists = contest.with_refits(finalists, update, also=allocations)
    return _Found(contest, config.keep, finalists)


def _by_quality(job: _Job, contest: Contest, limit: float) -> _Found:
    """The best plan of the smallest size that meets a bound.

    The first pairs are spread over sizes; the others are near the size that meets the bound by
    what is known then.
    """
    config, stages = job.config, job.stages
    step, first = first_steps(config.pairs)
    if first:
        contest = _with_pairs(job, contest, contest.feasible(SPREAD), first, step)
        if first < config.pairs:
            with stages("bisecting") as update:
                near = smallest(contest, limit, tolerance=COARSE, progress=update)[1].keep
            sizes = contest.feasible([round(near * share, 3) for share in NEARBY])
            contest = _with_pairs(job, contest, sizes, config.pairs, step)
    with stages("bisecting") as update:
        finalists, bound = smallest(contest, limit, progress=update)
    return _Found(contest, (bound.keep,), [finalists], bound)


def _with_pairs(
    job: _Job, contest: Contest, sizes: Sequence[float], pairs: int, step: int | None = None
) -> Contest:
    """Measure pairs of some sizes and fit a predictor, in turns with other processes."""
    config, calibrated = job.config, contest.calibrated
    sizes = list(dict.fromkeys(sizes))
    targets = [Target(contest.budget_at(keep), job.space.ranges) for keep in sizes]
    if not config.pairs:
        return replace(contest, fitted=Fitted(None, tuple(targets), ()))
    study, finals = contest.pairs, contest.finals
    group = _group(job, calibrated, sizes, pairs)
    with (
        job.stages("measuring pairs") as update,
        study.locked(update and partial(_report_pairs, update, config.pairs), group=group),
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
            pairs=pairs,
            seed=config.seed,
            round_size=step,
            tail=tail_on(calibrated.model.device),
            extra=proxy_columns(config.features, calibrated),
            group=group,
            progress=update,
        )
    return replace(contest, calibrated=calibrated, fitted=fitted)


def _group(job: _Job, calibrated: Calibrated, sizes: Sequence[float], pairs: int) -> str:
    """The same for runs whose steps are the same; their study has the same settings."""
    config, space = job.config, job.space
    same = (*sizes, config.of, config.shape, pairs, config.pairs, config.seed, config.features)
    seen = repr((*same, space.name, calibrated.model.device.type))
    return hashlib.sha256(seen.encode()).hexdigest()[:12]


def _report_pairs(update: StageProgress, wanted: int, pairs: int) -> None:
    update(min(pairs, wanted), wanted)


def _budget(job: _Job, keep: float, latency: Latency | None = None) -> Budget:
    """The budget of a size."""
    config, model = job.config, job.loaded.model
    family, window = family_of(model.config), config.calibration.length
    shape = job.space.shape
    return budget_of(config.of, keep, model, family, shape, window=window, latency=latency)


def _latency(study: PairStudy, calibrated: Calibrated) -> Latency:
    """Measured once for a study: times differ between runs, and plans must not."""
    noted = study.note("latency")
    if noted is None:
        windows = calibrated.measured[:_TIMED_WINDOWS]
        measured = measure_latency(calibrated.model, calibrated.family, windows)
        noted = study.note("latency", to_json(measured))
    assert noted is not None
    return from_json(noted)


def _reported_and_saved(job: _Job, dense: _Dense, found: _Found) -> Pruning:
    """Measure the models of the report, recover the selected plans, and save them."""
    config, stages, calibrated = job.config, job.stages, dense.calibrated
    out, on, winners = job.run.folder, job.report_text, found.winners
    folders = model_folders(found.keep, out)
    budgets = list(map(found.contest.budget_at, found.keep))
    for winner, folder in zip(winners, folders, strict=True):
        if is_finished(folder):
            check_plan(folder, winner, on.dtype)
    with stages("reporting") as update:
        # Elastic recovery has changed the dense weights.
        known = dense.perplexity if dense.elastic is None else None
        row, models = report(
            calibrated, budgets, winners, on, config.weights, dense=known, progress=update
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
        models, trained = recover_winners(recovery, found.keep, winners, models, on, stages)
    columns = found.keep, models, map(tuple, found.finalists), folders, trained
    fitted, study = found.contest.fitted, found.contest.pairs
    result = Pruning(
        of=config.of,
        dense=row,
        sizes=tuple(Size(*one, calibrated.quality) for one in zip(*columns, strict=True)),
        predictor=None if fitted.predictor is None else fitted.predictor.report,
        narrowing_steps=fitted.narrowing_steps,
        pairs=len(study),
        study=study.url,
        seconds=stages.seconds,
        elastic=dense.elastic,
        dense_elastic=dense_elastic,
        objective=None if fitted.objective is None else fitted.objective.report,
        held_out_tokens=calibrated.final[:, 1:].numel(),  # predicted ones
        bound=found.bound,
        front=found.front,
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


def _write_front(points: Sequence[FrontPoint], out: Path) -> None:
    """Write the front as a table, and as JSON with the plans."""
    rows = [one.row() for one in points]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    plans = [{**row, "plan": one.plan.as_dict()} for row, one in zip(rows, points, strict=True)]
    values = {"schema": SCHEMA, "front": plans}
    for name, content in zip(FRONT_FILES, (text.getvalue(), as_json(values)), strict=True):
        write_file(out / name, content)
