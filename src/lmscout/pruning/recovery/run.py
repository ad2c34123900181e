"""Recovery within a run of pruning: the request and its checks, all plans, and the winners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.progress import StageProgress, Stages, part_of
from lmscout.pruning.calibration import Calibrated, Weights, text_digest
from lmscout.pruning.cutting import ShapeName
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery.adapters import check_peft, recover
from lmscout.pruning.recovery.config import RecoverySettings
from lmscout.pruning.recovery.training import FOLDER, Trained, check_file
from lmscout.pruning.report import ReportText, held_out_increase
from lmscout.pruning.results import Reported

ELASTIC = "elastic"


@dataclass(frozen=True)
class RecoveryConfig:
    """What a run of pruning recovers.

    Attributes:
        winners: how each winner is trained by itself; None to train none.
        elastic: how all plans are trained at once, before any is measured; None to train none.
    """

    winners: RecoverySettings | None = None
    elastic: RecoverySettings | None = None

    def check(self, out: Path | None, window: int, keep: Sequence[float], of: str) -> None:
        """Check the request before any work.

        Args:
            out: the run folder; None if nothing will be written.
            window: tokens of a window.
            keep: the sizes.
            of: what they are shares of.

        Raises:
            LmscoutError: settings are out of their bounds, peft is missing, a checkpoint in the
                run folder is of other settings, or elastic recovery is for shares of latency.
        """
        trainings: dict[str | float, RecoverySettings | None] = {ELASTIC: self.elastic}
        trainings |= dict.fromkeys(keep, self.winners)
        for name, settings in trainings.items():
            if settings is not None:
                settings.check()
                settings.last_step(window)
                if out is not None:
                    check_file(recovery_file(out, name), settings.identity())
        if self.winners is not None:
            check_peft()
        if self.elastic is not None and of == "latency":
            raise LmscoutError(
                "elastic recovery draws plans of a size before anything is measured, and latency "
                "is measured: use parameters, multiply-adds or memory"
            )

    def note(self) -> dict[str, object]:
        """The settings for a saved model's record; empty without recovery."""
        both = {"recovered": self.winners, "elastic": self.elastic}
        return {name: one.identity() for name, one in both.items() if one is not None}


def recovery_file(out: Path, name: str | float) -> Path:
    """The run's checkpoint of its elastic recovery, or of the winner of a size."""
    name = name if isinstance(name, str) else share_folder(name)
    return out / FOLDER / f"{name}.safetensors"


def share_folder(keep: float) -> str:
    """The name of a size's folder, different for every share."""
    return f"keep-{float(keep)!r}"


@dataclass(frozen=True)
class WinnerRecovery:
    """Recovers the winners of one run; a second call merges what was trained before.

    Attributes:
        calibrated: the dense model.
        windows: [windows, T] int64, the text.
        settings: how winners are trained.
        shape: "any" or "uniform".
        weights: of the winners before.
        out: the run folder.
    """

    calibrated: Calibrated
    windows: Tensor
    settings: RecoverySettings
    shape: str
    weights: Weights
    out: Path

    @property
    def steps(self) -> int:
        """Steps allowed for each winner."""
        return self.settings.last_step(self.windows.shape[1])

    def __call__(
        self, keep: float, plan: Plan, *, progress: StageProgress | None = None
    ) -> tuple[PreTrainedModel, Trained]:
        """Cut the winner of a size out of the dense model as it would be saved, and recover it.

        Returns:
            The model in the dense one's dtype and on its device, and a summary of the training.

        Raises:
            LmscoutError: the checkpoint does not fit, or the loss is not finite.
        """
        calibrated = self.calibrated
        identity = {
            **calibrated.study_settings,
            "text": text_digest(self.windows),
            "plan": " ".join(map(str, plan.steps)),
            "shape": self.shape,
            "weights": self.weights,
        }
        return recover(
            calibrated.subnetwork(plan, self.weights, shape=cast(ShapeName, self.shape)),
            calibrated.model,
            self.windows,
            self.settings,
            recovery_file(self.out, keep),
            identity,
            progress=progress,
        )


def recover_winners(
    recovery: WinnerRecovery,
    keep: Sequence[float],
    winners: Sequence[Plan],
    reported: Sequence[tuple[Reported, ...]],
    on: ReportText,
    stages: Stages,
) -> tuple[list[tuple[Reported, ...]], list[Trained]]:
    """Recover and measure the winner of every size, one after the other.

    One is in memory at a time: it is made again from its adapter to be saved.

    Returns:
        The rows of each size with "found_recovered" after "found"; and the trainings.

    Raises:
        LmscoutError: as a `WinnerRecovery`.
    """
    tables, trainings = [], []
    with stages("recovering") as progress:
        for number, (share, plan, rows) in enumerate(zip(keep, winners, reported, strict=True)):
            part = part_of(progress, number * recovery.steps, len(winners) * recovery.steps)
            model, trained = recovery(share, plan, progress=part)
            increase = held_out_increase(model, recovery.calibrated, recovery.windows)
            perplexity = on.perplexity(model)
            table: list[Reported] = []
            for row in rows:
                table.append(row)
                if row.name == "found":
                    recovered = replace(row, perplexity=perplexity, loss_increase=increase)
                    table.append(replace(recovered, name="found_recovered"))
            tables.append(tuple(table))
            trainings.append(trained)
    return tables, trainings


def remove_finished(out: Path, keep: Sequence[float]) -> None:
    """Remove the adapters of winners that have been saved with their models."""
    for share in keep:
        recovery_file(out, share).unlink(missing_ok=True)
    folder = out / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
