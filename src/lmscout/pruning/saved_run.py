"""The run folder of pruning: what a run was asked for, and whether it has finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lmscout.evaluation import Text, model_fingerprint
from lmscout.files import remove_drafts
from lmscout.pruning.config import PruneConfig, model_folders
from lmscout.pruning.export import is_finished
from lmscout.pruning.recovery.training import FOLDER as RECOVERY_FOLDER
from lmscout.pruning.storage import shown_url
from lmscout.runs import Run, open_run

COMMAND = "prune"


def open_pruning(
    out: Path,
    model: str,
    compute_dtype: str,
    request: PruneConfig,
    calibration: Text,
    report_on: Text | None,
    recover_on: Text | None,
) -> Run:
    """Look at the folder of a run before any work, see `lmscout.runs.open_run`.

    An unfinished run may go on with other settings, as far as its study allows.

    Args:
        out: the folder.
        model: the dense model's folder, or its name on the Hub.
        compute_dtype: of its weights in memory.
        request: what is wanted.
        calibration: text on which plans are measured.
        report_on: text on which perplexities are reported, or None.
        recover_on: text that recovery trains on, or None.

    Raises:
        LmscoutError: the folder holds a finished run with other settings, or another command's.
    """
    remove_drafts(out / RECOVERY_FOLDER)
    used = asdict(request.calibration)
    del used["seed"]  # the run's
    settings: dict[str, object] = {
        "model": model,
        "model_fingerprint": model_fingerprint(model),
        "compute_dtype": compute_dtype,
        "keep": request.keep,
        "of": request.of,
        "shape": request.shape,
        "pairs": 0 if request.objective is not None else request.pairs,
        "seed": request.seed,
        "protocol": request.protocol,
        "dtype": None if request.dtype is None else str(request.dtype).removeprefix("torch."),
        **used,
        "channel_multiple": request.channel_multiple,
        "objective": request.objective,
        "features": request.features,
        "recovery": asdict(request.recovery),
        "storage": None if request.storage is None else shown_url(request.storage),
    }
    for name, text in (
        ("calibration", calibration),
        ("report", report_on),
        ("recover_text", recover_on),
    ):
        settings[name] = None if text is None else text.source
        settings[f"{name}_sha256"] = None if text is None else text.sha256
    return open_run(out, COMMAND, settings, foreign=True, continues=True)


def is_complete(run: Run, request: PruneConfig) -> bool:
    """Whether a run has finished, and all models that it saved are still there."""
    return run.finished and all(map(is_finished, model_folders(request.keep, run.folder)))
