"""Recovery within a run of pruning: what is requested, estimated, trained and kept.

What a recovery would take: a step is made on models of one and of two blocks, and extended.

It is a step of elastic recovery on all units: one on a plan, or on a winner that was cut, takes
less.

Recovery within a run of pruning: what is asked, refused and kept, and all plans at once.

The winners of a run: cut, recovered, reported; their adapters kept until they are saved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity
from lmscout.evaluation.cost import await_device, vocabulary_size
from lmscout.progress import StageProgress, Stages, part_of
from lmscout.pruning.calibration import Calibrated, text_digest
from lmscout.pruning.cutting import ShapeName, cut
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import Family, unit_maps
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery.adapters import check_peft, recover
from lmscout.pruning.recovery.config import RecoverySettings
from lmscout.pruning.recovery.elastic import ElasticAdapter, plan_loss
from lmscout.pruning.recovery.training import FOLDER, Trained, check_file
from lmscout.pruning.report import ReportText, held_out_increase
from lmscout.pruning.results import Reported
from lmscout.statistics.single_pass import train_only

_REPEATS = 3  # after one that is not counted
_LEARNING = 16  # bytes of a number that learns: itself, its gradient, and two moments of that


@dataclass(frozen=True)
class Training:
    """What one training takes.

    Attributes:
        steps: that its bounds allow.
        seconds: that they take where nothing is cut.
        learning: bytes of adapters, their gradients and the optimiser.
        activations: bytes that a step keeps for its backward pass.
    """

    steps: int
    seconds: float
    learning: int
    activations: int


def estimate_training(
    whole: PreTrainedModel,
    family: Family,
    settings: RecoverySettings,
    window: int,
    of_blocks: Callable[[int], PreTrainedModel],
) -> Training:
    """Foretell a training of the dense model.

    Args:
        whole: the dense model; its weights need not be there.
        family: its family.
        settings: of the training.
        window: tokens a window.
        of_blocks: makes a model of so many of its blocks, on the device of the training.

    Raises:
        LmscoutError: the bounds do not allow a single step.
    """
    steps = settings.last_step(window)
    (first, first_bytes), (both, both_bytes) = (
        _step(of_blocks(count), family, settings, window) for count in (1, 2)
    )
    sublayers = list(family.all_sublayers(whole).values())
    more = len(sublayers) // 2 - 1
    seconds = steps * (first + more * max(0.0, both - first))
    numbers = settings.rank * sum(sum(one.weight.shape) for h in sublayers for one in unit_maps(h))
    return Training(
        steps,
        min(seconds, settings.seconds or seconds),
        _LEARNING * numbers,
        first_bytes + more * (both_bytes - first_bytes),
    )


def _step(
    model: PreTrainedModel, family: Family, settings: RecoverySettings, window: int
) -> tuple[float, int]:
    """Seconds of a step, and bytes that it keeps for the backward pass."""
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch(window), window
    tokens = torch.randint(vocabulary_size(model), shape, generator=generator).to(model.device)
    adapter = ElasticAdapter(model, family, settings.rank, settings.seed)
    optimizer = torch.optim.AdamW(list(adapter.weights.values()))
    dense = shape_of(family.all_parts(model)).dense
    known = {one.untyped_storage().data_ptr() for one in model.parameters()}
    known |= {one.untyped_storage().data_ptr() for one in adapter.weights.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    with train_only(model, ()):
        for repeat in range(1 + _REPEATS):
            await_device(model.device)
            start = time.perf_counter()
            if repeat:
                loss = plan_loss(adapter, dense, tokens, settings.method)
            else:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    loss = plan_loss(adapter, dense, tokens, settings.method)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            await_device(model.device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), sum(kept.values())


ELASTIC = "elastic"


@dataclass(frozen=True)
class RecoveryConfig:
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
            **calibrated.study_settings,
            "text": text_digest(self.windows),
            "plan": " ".join(map(str, plan.as_dict().values())),
            "shape": self.shape,
        }
        return recover(
            cut(
                calibrated.model,
                plan,
                calibrated.compensated(plan),
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
    with stages("recovering") as update:
        for number, (share, plan, rows) in enumerate(zip(keep, winners, reported, strict=True)):
            part = part_of(update, number * winner_of.steps, len(winners) * winner_of.steps)
            found, increase, done = _measured(winner_of, share, plan, on, part)
            wider.append(_with_recovered(rows, found, increase))
            trained.append(done)
    return wider, trained


def _measured(
    winner_of: WinnerRecovery, keep: float, plan: Plan, on: ReportText, update: StageProgress | None
) -> tuple[Perplexity | None, float | None, Trained]:
    model, done = winner_of(keep, plan, progress=update)
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
