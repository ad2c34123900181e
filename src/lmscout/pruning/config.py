"""What is asked of a run of pruning, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from lmscout.errors import LmscoutError, check_whole
from lmscout.evaluation import Text, protocol_of, same_text
from lmscout.pruning.budgets import MEASURES
from lmscout.pruning.calibration import LAST_SEED, CalibrationSettings
from lmscout.pruning.cutting import ShapeName
from lmscout.pruning.export import check_asked, is_finished
from lmscout.pruning.predictor import check_enough
from lmscout.pruning.proxy_objective import asked_proxy
from lmscout.pruning.recovery.run import RecoveryRequest, share_folder
from lmscout.pruning.recovery.training import FOLDER as RECOVERY_FOLDER
from lmscout.pruning.storage import FILE_NAME, check_storage, storage_option_url, storage_url
from lmscout.runs import RESULT, SETTINGS


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
        report_tokens: use only so many tokens from the report text's beginning; None for all.
        dtype: of the saved weights; as the dense model's are saved if None.
        calibration: how calibration text is used.
        storage: where the study is kept: URL of an Optuna storage, a SQLite file, or a folder that
            exists, for ``ledger.db`` in it; the run folder if None.
        channel_multiple: MLP widths are multiples of it; None: what the model's device runs fast.
        devices: further devices that share the measuring, each with a copy of the model.
        recovery: what is trained again, and how.
        objective: "proxy:..." to search by a proxy alone, with no pair and no finalist measured;
            `pairs` is then not looked at.
        features: proxies, written alike, whose scores the predictor is told.
    """

    keep: tuple[float, ...] = (0.8,)
    of: str = "parameters"
    shape: str = "any"
    pairs: int = 200
    seed: int = 0
    protocol: str = "llm-pruner"
    report_tokens: int | None = None
    dtype: torch.dtype | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    storage: str | None = None
    channel_multiple: int | None = None
    devices: tuple[torch.device, ...] = ()
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)
    objective: str | None = None
    features: tuple[str, ...] = ()

    def note(self, keep: float) -> dict[str, object]:
        """What the record of a saved model of a size says of how it was asked for."""
        return {
            "keep": keep,
            "of": self.of,
            "pairs": 0 if self.objective is not None else self.pairs,
            **({} if self.objective is None else {"objective": self.objective}),
            "seed": self.seed,
            "importance": self.calibration.importance,
            **({"features": list(self.features)} if self.features else {}),
            "compensated": self.calibration.compensate,
            **self.recovery.note(),
        }


def check_request(
    request: Request,
    calibration: Text,
    report: Text | None,
    out: Path | None,
    recover_on: Text | None = None,
) -> None:
    """Refuse what cannot be done, before any work.

    Args:
        request: what is wanted.
        calibration: text on which plans are measured.
        report: text on which perplexities are reported; None to report none.
        out: folder of the run; None where nothing will be written, so that none is looked at.
        recover_on: text that recovery trains on; None for the calibration text.

    Raises:
        LmscoutError: a share, a name or the protocol is none, a number is too small or too
            large, the texts are the same, or the run folder holds something that is not a run to
            continue.
    """
    _check_shares(request.keep)
    _check_names(request)
    _check_numbers(request)
    for name, seen in (("calibration", calibration), ("recovery", recover_on)):
        if report is not None and seen is not None and same_text(seen, report):
            raise LmscoutError(
                f"{name} text {seen.source} and report text {report.source} are the same: "
                "a perplexity on what a choice has seen says nothing"
            )
    if out is not None:
        _check_folder(request, out)
        if request.storage is not None:
            storage_option_url(request.storage)
        elif (out / FILE_NAME).exists():
            check_storage(storage_url(out))
    request.recovery.check(out, request.calibration.length, request.keep, request.of)


def model_folders(keep: Sequence[float], out: Path) -> list[Path]:
    """Where the models of a run are saved: the run folder itself, if there is one."""
    return [out] if len(keep) == 1 else [out / share_folder(share) for share in keep]


def _check_shares(keep: Sequence[float]) -> None:
    for share in keep:
        if not 0 < share < 1:
            raise LmscoutError(
                f"keep of {share:g} is not a share to prune to: give one between 0 and 1"
            )
    if len(set(keep)) < len(keep) or not keep:
        raise LmscoutError("keep: give one or several shares, each once")


def _check_names(request: Request) -> None:
    for name, given, known in (
        ("shape", request.shape, get_args(ShapeName)),
        ("measure", request.of, MEASURES),
    ):
        if given not in known:
            raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
    protocol_of(request.protocol)
    for text in (
        *([request.objective] if request.objective is not None else []),
        *request.features,
    ):
        asked_proxy(text)
    if request.objective is not None and request.features:
        raise LmscoutError(
            "a judge measures no pairs, so there is no predictor to tell a feature: leave out "
            "--objective or --feature"
        )


def _check_numbers(request: Request) -> None:
    check_whole("seed", request.seed, 0, LAST_SEED)
    for name, given in (
        ("channel_multiple", request.channel_multiple),
        ("report_tokens", request.report_tokens),
    ):
        if given is not None:
            check_whole(name, given, 1)
    if request.objective is None:
        check_enough(request.pairs)


def _check_folder(request: Request, out: Path) -> None:
    if (out / SETTINGS).is_file() and (out / RESULT).is_file():
        return  # opening the run compares all settings
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        folders = model_folders(request.keep, out)
        finished = [folder for folder in folders if is_finished(folder)]
        known = (out / SETTINGS).is_file()
        begun = known or (out / FILE_NAME).is_file() or (out / RECOVERY_FOLDER).is_dir()
        if not (begun or finished):  # a study may be elsewhere
            raise LmscoutError(
                f"output folder {out} is not empty, and holds no run to continue: name another"
            )
        if len(finished) == len(folders) and not known:
            raise LmscoutError(
                f"output folder {folders[0]} is not empty: it holds a finished model; name another"
            )
        # A run that was stopped between two models goes on with the next.
        for keep, folder in zip(request.keep, folders, strict=True):
            if folder in finished:
                check_asked(folder, request.shape, request.note(keep))
