"""Recovery within a run of pruning: what is asked, refused and kept, and all plans at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.recovery.adapters import check_peft
from lmscout.pruning.recovery.checkpoint import FOLDER, check_file
from lmscout.pruning.recovery.elastic import Elastic, recover_all_plans
from lmscout.pruning.recovery.settings import RecoverySettings
from lmscout.pruning.report import ReportText
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.space import PlanSpace
from lmscout.stages import Stages

ELASTIC = "elastic"


@dataclass(frozen=True)
class RecoveryRequest:
    """What is to be recovered.

    Attributes:
        winners: how each winner is trained by itself; None for not at all.
        elastic: how all plans are trained at once, before any is measured; None for not at all.
    """

    winners: RecoverySettings | None = None
    elastic: RecoverySettings | None = None

    def check(self, out: Path | None, window: int, keep: Sequence[float], of: str) -> None:
        """Refuse what cannot be done, before any work.

        Args:
            out: the run folder; None where nothing will be written.
            window: tokens a window.
            keep: the sizes.
            of: what they are shares of.

        Raises:
            LmscoutError: settings are none, peft is missing, a checkpoint in the run folder is of
                other settings, or plans of equal latency would have to be drawn before anything
                is measured.
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
        """What a saved model's record says of it; nothing where nothing was asked for."""
        both = {"recovered": self.winners, "elastic": self.elastic}
        return {name: one.identity() for name, one in both.items() if one is not None}


def recovery_file(out: Path, name: str | float) -> Path:
    """Where a run keeps the adapters of its elastic recovery, or of the winner of a size."""
    name = name if isinstance(name, str) else share_folder(name)
    return out / FOLDER / f"{name}.safetensors"


def share_folder(keep: float) -> str:
    """The name of what a run keeps of one size: another one for every share, however close."""
    return f"keep-{float(keep)!r}"


def recover_plans(
    calibrated: Calibrated,
    windows: Tensor,
    space: PlanSpace,
    sizes: Mapping[float, Budget],
    settings: RecoverySettings,
    out: Path,
    on: ReportText,
    stages: Stages,
) -> tuple[Calibrated, Elastic]:
    """Elastic recovery, after the dense model's perplexity was taken.

    Args:
        calibrated: the dense model, which is changed in place.
        windows: [windows, T] int64, the text.
        space: draws plans.
        sizes: budgets that they are drawn for, by the share that is kept.
        settings: how it is trained.
        out: the run folder.
        on: on what the dense model's perplexity is reported.
        stages: told of the work.

    Returns:
        As `recover_all_plans`.

    Raises:
        LmscoutError: as `recover_all_plans`.
    """
    with stages("reporting"):
        as_given = on.dense_perplexity(calibrated)
    with stages("recovering all plans") as told:
        checkpoint = recovery_file(out, ELASTIC)
        recovered, elastic = recover_all_plans(
            calibrated, windows, space, sizes, settings, checkpoint, progress=told
        )
    return recovered, replace(elastic, as_given=as_given)
