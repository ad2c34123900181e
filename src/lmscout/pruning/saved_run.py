"""The run folder of pruning: its settings, and whether the run has finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lmscout.evaluation import Text, model_fingerprint
from lmscout.files import remove_drafts
from lmscout.pruning.config import PruneConfig, model_folders
from lmscout.pruning.export import is_finished
from lmscout.pruning.families import EXPERTS
from lmscout.pruning.recovery.training import FOLDER as RECOVERY_FOLDER
from lmscout.pruning.storage import shown_url
from lmscout.runs import Run, open_run

COMMAND = "prune"


def open_pruning(
    out: Path,
    model: str,
    compute_dtype: str,
    config: PruneConfig,
    calibration: Text,
    report_on: Text | None,
    recover_on: Text | None,
) -> Run:
    """Open a run folder before any work, see `lmscout.runs.open_run`.

    An unfinished run may continue with other settings, as far as its study allows.  `model` is the
    dense model's folder, or its name on the Hub; `compute_dtype` that of its weights in memory.

    Raises:
        LmscoutError: the folder holds a finished run with other settings, or another command's.
    """
    remove_drafts(out / RECOVERY_FOLDER)
    used = asdict(config.calibration)
    del used["seed"]  # the run's
    settings: dict[str, object] = {
        "model": model,
        "model_fingerprint": model_fingerprint(model),
        "compute_dtype": compute_dtype,
        **{name: getattr(config, name) for name in ("keep", "of", "shape", "seed", "protocol")},
        "max_increase": config.max_increase,
        **({"front": True} if config.front else {}),
        **({} if config.units == EXPERTS else {"units": config.units}),
        "pairs": config.measured_pairs,
        "refit": config.refit,
        "dtype": config.dtype,
        **used,
        **{name: getattr(config, name) for name in ("channel_multiple", "objective", "features")},
        "recovery": asdict(config.recovery),
        "storage": None if config.storage is None else shown_url(config.storage),
    }
    texts = {"calibration": calibration, "report": report_on, "recover_text": recover_on}
    for name, text in texts.items():
        settings[name] = None if text is None else text.source
        settings[f"{name}_sha256"] = None if text is None else text.sha256
    return open_run(out, COMMAND, settings, foreign=True, continues=True)


def is_complete(run: Run, config: PruneConfig) -> bool:
    """Whether a run has finished, and all models that it saved are still there."""
    return run.finished and all(map(is_finished, model_folders(config.keep, run.folder)))
