"""Prune a language model with an accuracy predictor, from text to a saved folder.

Measure pairs of plans and their quality, learn to predict quality, narrow and search by what
was learnt, measure the few best again on more text, save the winner, and report it beside
what a uniform cut of the same size gives (arXiv 2309.09507).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

import torch
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import LoadedModel, Text, protocol_of, same_text, tokenize_windows
from lmscout.pruning.calibration import Calibrated, CalibrationSettings, calibrate
from lmscout.pruning.families import family_of
from lmscout.pruning.finalists import STUDY, candidates_of, measure_finalists
from lmscout.pruning.ledger import Ledger
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.outcome import Pruning, Size
from lmscout.pruning.recovery.checkpoint import FOLDER as RECOVERY_FOLDER
from lmscout.pruning.recovery.run import RecoveryRequest, recover_plans
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.recovery.winners import WinnerRecovery, recover_winners, remove_finished
from lmscout.pruning.report import ReportText, report
from lmscout.pruning.saving.cutting import ShapeName
from lmscout.pruning.saving.export import CONFIG, save
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.covering import Target
from lmscout.pruning.searching.grained_space import GrainedSpace
from lmscout.pruning.searching.latency import Latency, from_json, measure_latency, to_json
from lmscout.pruning.searching.model_budgets import MEASURES, budget_of
from lmscout.pruning.searching.ranges import Ranges
from lmscout.pruning.searching.space import AnySpace, PlanSpace
from lmscout.pruning.searching.uniform_space import UniformSpace
from lmscout.pruning.storage import FILE_NAME
from lmscout.pruning.subnetworks.importance import METHODS
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.subnetwork import QUALITIES, shape_of
from lmscout.stages import Progress, Stages

_TIMED_WINDOWS = 8  # on which latency is measured


@dataclass(frozen=True)
class Request:
    """What is asked of a run.

    Attributes:
        keep: shares to keep, each above 0 and below 1.
        of: what they are shares of: "parameters" (those in attention and MLP),
            "multiply-adds", "memory" or "latency" (of the whole model).
        shape: "any", or "uniform" for models that stock transformers loads.
        pairs: architecture-accuracy pairs to measure in all.
        seed: of everything that is drawn.
        protocol: of the reported perplexities.
        dtype: of the saved weights; as the dense model's are saved if None.
        calibration: how calibration text is used.
        storage: URL of an Optuna storage for the ledger; a file in the run folder if None.
        grain: MLP widths are multiples of it; if None, what the model's device runs fast.
        devices: further devices that share the measuring, each with a copy of the model.
        recovery: what is trained again, and how.
    """

    keep: tuple[float, ...] = (0.8,)
    of: str = "parameters"
    shape: str = "any"
    pairs: int = 200
    seed: int = 0
    protocol: str = "llm-pruner"
    dtype: torch.dtype | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    storage: str | None = None
    grain: int | None = None
    devices: tuple[torch.device, ...] = ()
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)


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

    The same call continues a run that was stopped at any moment.

    Args:
        loaded: the dense model with its tokenizer; its units are reordered in place, and elastic
            recovery changes its weights.
        calibration: text on which plans are measured.
        request: what is wanted.
        out: folder of the run: the ledger and the saved model; where several sizes are
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
    stages = Stages(progress)
    settings = replace(request.calibration, seed=request.seed)
    family = family_of(loaded.model.config)
    units = shape_of([family.parts(block) for block in family.blocks(loaded.model)])
    grain = request.grain or fast_grain(loaded.model)
    space = space_of(request.shape, units, loaded.model, grain)
    if request.of != "latency":  # else it takes measuring first
        for budget in _budgets(request, loaded.model, units, settings.window, None):
            space.require(budget)
    with stages("calibrating") as told:
        windows = tokenize_windows(loaded.tokenizer, calibration, settings.window)
        training = windows
        if recover_on is not None:
            training = tokenize_windows(loaded.tokenizer, recover_on, settings.window)
        calibrated = calibrate(loaded.model, windows, settings, progress=told)
    dtype = request.dtype or loaded.saved_dtype or loaded.model.dtype
    on = ReportText(loaded.tokenizer, report_on, request.protocol, dtype)
    elastic = None
    if request.recovery.elastic is not None:
        budgets = _budgets(request, loaded.model, units, settings.window, None)
        sizes = dict(zip(request.keep, budgets, strict=True))
        calibrated, elastic = recover_plans(
            calibrated, training, space, sizes, request.recovery.elastic, out, on, stages
        )
    calibrated = calibrated.copied_to(request.devices)
    storage = request.storage or out
    final_settings = {**calibrated.ledger_settings, "final_tokens": settings.final_tokens}
    with (
        Ledger(storage, units, calibrated.ledger_settings) as ledger,
        Ledger(storage, units, final_settings, study=STUDY) as finals,
    ):
        latency = _latency(ledger, calibrated) if request.of == "latency" else None
        budgets = _budgets(request, loaded.model, units, settings.window, latency)
        for budget in budgets:
            space.require(budget)
        with stages("measuring pairs") as told:
            learnt = measure_rounds(
                ledger,
                calibrated.evaluator(calibrated.measured),
                calibrated.mass,
                space,
                [Target(budget, Ranges.above(units)) for budget in budgets],
                pairs=request.pairs,
                seed=request.seed,
                progress=told,
            )
        with stages("searching") as told:
            candidates = []
            for number, target in enumerate(learnt.targets):
                candidates.append(candidates_of(ledger, learnt, space, target, request.seed))
                if told:
                    told(number + 1, len(budgets))
        with stages("measuring finalists") as told:
            contests = measure_finalists(calibrated, ledger, finals, learnt, candidates, told)
    winners = [contest[0].plan for contest in contests]
    with stages("reporting") as told:
        dense, reported = report(
            calibrated,
            budgets,
            winners,
            tokenizer=loaded.tokenizer,
            text=report_on,
            protocol=request.protocol,
            dtype=dtype,
            progress=told,
        )
    winner_of = None
    trained: Sequence[Trained | None] = [None] * len(winners)
    if request.recovery.winners is not None:
        winner_of = WinnerRecovery(
            calibrated, training, request.recovery.winners, request.shape, out
        )
        reported, trained = recover_winners(winner_of, request.keep, winners, reported, on, stages)
    folders = model_folders(request.keep, out)
    with stages("saving"):
        for keep, winner, folder in zip(request.keep, winners, folders, strict=True):
            model = None if winner_of is None else winner_of(keep, winner)[0]
            _save(calibrated, loaded, winner, model, folder, dtype, request, keep)
        remove_finished(out, request.keep)
    return Pruning(
        request.of,
        dense if elastic is None else replace(dense, perplexity=elastic.as_given),
        tuple(
            Size(keep, rows, tuple(contest), folder, done)
            for keep, contest, rows, folder, done in zip(
                request.keep, contests, reported, folders, trained, strict=True
            )
        ),
        learnt.predictor.report if learnt.predictor else None,
        learnt.shrinks,
        len(ledger),
        ledger.url,
        stages.seconds,
        elastic,
        None if elastic is None else replace(dense, name="dense_elastic"),
    )


def check_request(
    request: Request,
    calibration: Text,
    report: Text | None,
    out: Path,
    recover_on: Text | None = None,
) -> None:
    """Refuse what cannot be done, before any work.

    Raises:
        LmscoutError: a share, a name or the protocol is none, the texts are the same, or the
            run folder holds something that is not a run to continue.
    """
    for keep in request.keep:
        if not 0 < keep < 1:
            raise LmscoutError(
                f"keep of {keep:g} is not a share to prune to: give one between 0 and 1"
            )
    if len(set(request.keep)) < len(request.keep) or not request.keep:
        raise LmscoutError("keep: give one or several shares, each once")
    settings = request.calibration
    for name, given, known in (
        ("shape", request.shape, get_args(ShapeName)),
        ("measure", request.of, MEASURES),
        ("importance", settings.importance, METHODS),
        ("quality", settings.quality, QUALITIES),
    ):
        if given not in known:
            raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
    protocol_of(request.protocol)
    for name, seen in (("calibration", calibration), ("recovery", recover_on)):
        if report is not None and seen is not None and same_text(seen, report):
            raise LmscoutError(
                f"{name} text {seen.source} and report text {report.source} are the same: "
                "a perplexity on what a choice has seen says nothing"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not ((out / FILE_NAME).is_file() or (out / RECOVERY_FOLDER).is_dir()):
            raise LmscoutError(
                f"output folder {out} is not empty, and holds no run to continue: name another"
            )
        for folder in model_folders(request.keep, out):
            if (folder / CONFIG).exists():
                raise LmscoutError(
                    f"output folder {folder} is not empty: it holds a finished model; name another"
                )
    request.recovery.check(out, settings.window, request.keep, request.of)


def model_folders(keep: Sequence[float], out: Path) -> list[Path]:
    """Where the models of a run are saved: the run folder itself, if there is one."""
    return [out] if len(keep) == 1 else [out / f"keep-{share:g}" for share in keep]


def space_of(shape: str, units: Shape, model: PreTrainedModel, grain: int = 1) -> PlanSpace:
    """The plans that may be proposed; the grain is of those whose blocks have any size."""
    if shape == "uniform":
        return UniformSpace(units, model.config)
    return AnySpace(units) if grain == 1 else GrainedSpace(units, grain)


def fast_grain(model: PreTrainedModel) -> int:
    """Of what MLP widths are to be multiples, so that a model's device runs them fast.

    Tensor cores take rows of 16 bytes; other rows go three times as slowly.
    """
    return 16 // model.dtype.itemsize if model.device.type == "cuda" else 1


def _budgets(
    request: Request,
    model: PreTrainedModel,
    units: Shape,
    window: int,
    latency: Latency | None,
) -> list[Budget]:
    family = family_of(model.config)
    return [
        budget_of(request.of, keep, model, family, units, window=window, latency=latency)
        for keep in request.keep
    ]


def _latency(ledger: Ledger, calibrated: Calibrated) -> Latency:
    """Measured once a run, since times differ from run to run and plans must not."""
    noted = ledger.note("latency")
    if noted is None:
        windows = calibrated.measured[:_TIMED_WINDOWS]
        measured = measure_latency(calibrated.model, calibrated.family, windows)
        noted = ledger.note("latency", json.dumps(to_json(measured)))
    assert noted is not None
    return from_json(json.loads(noted))


def _save(
    calibrated: Calibrated,
    loaded: LoadedModel,
    plan: Plan,
    recovered: PreTrainedModel | None,
    folder: Path,
    dtype: torch.dtype,
    request: Request,
    keep: float,
) -> None:
    compensate = calibrated.settings.compensate
    save(
        calibrated.model,
        plan,
        folder,
        shape=cast(ShapeName, request.shape),
        tokenizer=loaded.tokenizer,
        outputs=calibrated.refitted(plan) if compensate else None,
        recovered=recovered,
        dtype=dtype,
        beside=[path.name for path in folder.iterdir()] if folder.is_dir() else (),
        note={
            "source": loaded.source,
            "keep": keep,
            "of": request.of,
            "pairs": request.pairs,
            "seed": request.seed,
            "importance": calibrated.settings.importance,
            "compensated": compensate,
            **request.recovery.note(),
        },
    )
