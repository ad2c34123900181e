"""The winners of a run: cut, recovered, reported; their adapters kept until they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel

from lmscout.evaluation import Perplexity
from lmscout.pruning.calibration import Calibrated, text_digest
from lmscout.pruning.outcome import Reported
from lmscout.pruning.recovery.checkpoint import FOLDER
from lmscout.pruning.recovery.recover import recover
from lmscout.pruning.recovery.run import recovery_file
from lmscout.pruning.recovery.settings import RecoverySettings
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.report import ReportText, held_out_increase
from lmscout.pruning.saving.cutting import ShapeName, cut
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.stages import StageProgress, Stages, part_of


@dataclass(frozen=True)
class WinnerRecovery:
    """Recovers the winners of one run; called once more, it merges what was trained before.

    Attributes:
        calibrated: the dense model.
        windows: [windows, T] int64, the text.
        settings: how winners are trained.
        shape: "any" or "uniform".
        out: the run folder.
    """

    calibrated: Calibrated
    windows: Tensor
    settings: RecoverySettings
    shape: str
    out: Path

    @property
    def steps(self) -> int:
        """That are allowed for each."""
        return self.settings.last_step(self.windows.shape[1])

    def __call__(
        self, keep: float, plan: Plan, *, progress: StageProgress | None = None
    ) -> tuple[PreTrainedModel, Trained]:
        """A plan cut out of the dense model as it would be saved, and recovered.

        Args:
            keep: its size.
            plan: what is kept.
            progress: called with steps made and allowed.

        Returns:
            The model in the dense one's dtype and on its device, and what was done.

        Raises:
            LmscoutError: the checkpoint does not fit, or the loss is not finite.
        """
        calibrated = self.calibrated
        identity = {
            **calibrated.ledger_settings,
            "text": text_digest(self.windows),
            "plan": " ".join(map(str, plan.as_dict().values())),
            "shape": self.shape,
        }
        return recover(
            cut(
                calibrated.model,
                plan,
                calibrated.refitted(plan),
                shape=cast(ShapeName, self.shape),
            ),
            calibrated.model,
            self.windows,
            self.settings,
            recovery_file(self.out, keep),
            identity,
            progress=progress,
        )


def recover_winners(
    winner_of: WinnerRecovery,
    keep: Sequence[float],
    winners: Sequence[Plan],
    reported: Sequence[tuple[Reported, ...]],
    on: ReportText,
    stages: Stages,
) -> tuple[list[tuple[Reported, ...]], list[Trained]]:
    """Recover and measure the winner of every size, one after the other.

    No more than one is in memory at a time: it is made again from its adapter to be saved.

    Args:
        winner_of: recovers them.
        keep: the sizes.
        winners: the plan found for each.
        reported: for every size its rows.
        on: on what perplexities are reported.
        stages: told of the work.

    Returns:
        The rows, each winner's followed by that of the recovered one; and the trainings.

    Raises:
        LmscoutError: as a `WinnerRecovery`.
    """
    wider, trained = [], []
    with stages("recovering") as told:
        for number, (share, plan, rows) in enumerate(zip(keep, winners, reported, strict=True)):
            part = part_of(told, number * winner_of.steps, len(winners) * winner_of.steps)
            found, increase, done = _measured(winner_of, share, plan, on, part)
            wider.append(_with_recovered(rows, found, increase))
            trained.append(done)
    return wider, trained


def _measured(
    winner_of: WinnerRecovery, keep: float, plan: Plan, on: ReportText, told: StageProgress | None
) -> tuple[Perplexity | None, float | None, Trained]:
    model, done = winner_of(keep, plan, progress=told)
    increase = held_out_increase(model, winner_of.calibrated, winner_of.windows)
    return on.perplexity(model), increase, done


def _with_recovered(
    rows: Sequence[Reported], perplexity: Perplexity | None, increase: float | None
) -> tuple[Reported, ...]:
    wider: list[Reported] = []
    for row in rows:
        wider.append(row)
        if row.name == "found":
            wider.append(
                replace(row, name="found_recovered", perplexity=perplexity, loss_increase=increase)
            )
    return tuple(wider)


def remove_finished(out: Path, keep: Sequence[float]) -> None:
    """Remove the adapters of winners that have been saved with their models."""
    for share in keep:
        recovery_file(out, share).unlink(missing_ok=True)
    folder = out / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
