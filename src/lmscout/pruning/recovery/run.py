"""Recovery within a run of pruning: the request and its checks, and the winners.

A winner gets low-rank adapters of peft (LoRA, arXiv 2106.09685), which are trained and merged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmscout.errors import LmscoutError
from lmscout.evaluation.quiet import quiet
from lmscout.evaluation.text import without_codes
from lmscout.progress import StageProgress, Stages, part_of
from lmscout.pruning.calibration import Calibrated, Weights, text_digest
from lmscout.pruning.cutting import ShapeName
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery import training
from lmscout.pruning.recovery.training import DISTILL, RecoverySettings
from lmscout.pruning.report import ReportText, held_out_increase
from lmscout.pruning.results import Reported

ELASTIC = "elastic"


@dataclass(frozen=True)
class RecoveryConfig:
    """What a run of pruning recovers.

    Attributes:
        winners: how each winner is trained by itself; None to train none.
        elastic: how all plans are trained at once, before any is measured; None to train none.

    Example:
        >>> import lmscout
        >>> recovery = lmscout.RecoveryConfig.of("distill", steps=100)
        >>> config = lmscout.PruneConfig(keep=(0.7,), recovery=recovery)
        >>> config.recovery.winners.steps
        100
    """

    winners: RecoverySettings | None = None
    elastic: RecoverySettings | None = None

    @classmethod
    def of(
        cls,
        recover: str | None = None,
        *,
        elastic: bool = False,
        seed: int = 0,
        steps: int | None = None,
        tokens: int | None = None,
        minutes: float | None = None,
        rank: int | None = None,
        rate: float | None = None,
        batch: int | None = None,
    ) -> RecoveryConfig:
        """A recovery as the options of ``lmscout prune`` describe it; None for a default.

        Args:
            recover: "lora" or "distill", of the selected models' training; None for none.
            elastic: whether one adapter is trained for all plans, by `recover` or "distill".
            seed: of the order of the text and of the adapters.
            steps: maximum steps; 300 unless tokens or minutes are given.
            tokens: maximum tokens over all steps.
            minutes: maximum minutes; the result then depends on the machine.
            rank: of the adapters.
            rate: highest learning rate.
            batch: tokens per step.

        Raises:
            LmscoutError: a name is unknown, or a number is out of its bounds.
        """
        given = {
            "steps": steps,
            "tokens": tokens,
            "seconds": None if minutes is None else 60 * minutes,
            "rank": rank,
            "learning_rate": rate,
            "batch_tokens": batch,
        }
        values: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        if tokens is not None or minutes is not None:
            values.setdefault("steps", None)  # one limit is enough
        settings = RecoverySettings(method=recover or DISTILL, seed=seed, **values)
        settings.check()
        return cls(settings if recover else None, settings if elastic else None)

    def check(self, out: Path | None, window: int, keep: Sequence[float], of: str) -> None:
        """Check the request before any work; the run folder is None if nothing will be written.

        Raises:
            LmscoutError: settings are out of their bounds, peft is missing, a checkpoint in the
                run folder is of other settings, or elastic recovery is for shares of latency.
        """
        trainings: dict[str | float, RecoverySettings | None] = {ELASTIC: self.elastic}
        trainings |= dict.fromkeys(keep or ("winner",), self.winners)
        for name, settings in trainings.items():
            if settings is not None:
                settings.check()
                settings.last_step(window)
                if out is not None:
                    training.check_file(recovery_file(out, name), settings.identity())
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
    return out / training.FOLDER / f"{name}.safetensors"


def share_folder(keep: float) -> str:
    """The name of a size's folder, different for every share."""
    return f"keep-{float(keep)!r}"


def check_peft() -> None:
    """Raise LmscoutError if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise LmscoutError("recovery needs peft: pip install 'lmscout[recover]'")


def add_adapters(
    model: PreTrainedModel, rank: int, seed: int
) -> tuple[Any, dict[str, nn.Parameter]]:
    """Put an adapter on every linear layer of a model's blocks, in place; at first it adds nothing.

    Its scale is 1.  Returns the `peft.LoraModel`, and its adapters by name, in float32 or wider;
    only these require gradients afterwards.
    """
    from peft import LoraConfig, LoraModel

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(one, Conv1D) for one in model.modules()),
    )
    with quiet(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = LoraModel(model, config, "default")
    adapters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for one in adapters.values():
        one.data = one.data.to(torch.promote_types(one.dtype, torch.float32))
    return adapted, adapters


def recover(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    windows: Tensor,
    settings: RecoverySettings,
    checkpoint: Path,
    identity: training.Identity,
    *,
    progress: StageProgress | None = None,
) -> tuple[PreTrainedModel, training.Trained]:
    """Train adapters on a cut model, which changes in place, and merge them; see `train`.

    The checkpoint stays when training has ended: the same call then merges what it holds.
    """
    adapted, adapters = add_adapters(pruned, settings.rank, settings.seed)
    models: tuple[Any, Any] = pruned, dense
    head, dense_head = (one.get_output_embeddings() for one in models)
    vocabulary = pruned.config.vocab_size

    def loss_of(_: int, tokens: Tensor) -> Tensor:
        plain = without_codes(tokens)
        with _narrow_adapters(pruned):
            hidden = _hidden(pruned, plain)
        if settings.method != DISTILL:
            return training.likelihood_loss(head, hidden, tokens, vocabulary)
        with torch.no_grad():
            target = _hidden(dense, plain)
        return training.divergence_loss(head, hidden, dense_head, target, vocabulary, tokens)

    trained = training.train(
        adapters,
        loss_of,
        windows,
        settings,
        checkpoint,
        {**identity, **settings.identity()},
        device=pruned.device,
        dtype=pruned.dtype,
        same=True,
        progress=progress,
    )
    with quiet():
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.requires_grad_(True), trained


@contextmanager
def _narrow_adapters(model: PreTrainedModel) -> Iterator[None]:
    """On CUDA, compute adapters in the model's dtype: in float32 they take most of a step."""
    if model.device.type != "cuda" or model.dtype == torch.float32:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    # A graph must not hold weights that were cast before it.
    autocast = torch.autocast("cuda", dtype=model.dtype, cache_enabled=False)
    with autocast, disable_input_dtype_casting(model):
        yield


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The last hidden state, [B, T, width]."""
    body: Any = model.base_model
    tokens = tokens.to(model.device)
    hidden: Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden


@dataclass(frozen=True)
class WinnerRecovery:
    """Recovers the winners of one run; a second call merges what was trained before."""

    calibrated: Calibrated  # the dense model
    windows: Tensor  # [windows, T] int64, the text
    settings: RecoverySettings  # how winners are trained
    shape: str  # "any" or "uniform"
    weights: Weights  # of the winners before
    out: Path  # the run folder

    @property
    def progress_total(self) -> int:
        """The end of the progress of each winner."""
        return self.settings.progress_total(self.windows.shape[1])

    def __call__(
        self, keep: float, plan: Plan, *, progress: StageProgress | None = None
    ) -> tuple[PreTrainedModel, training.Trained]:
        """Cut the winner of a size out of the dense model as it would be saved, and recover it.

        It has the dense model's dtype and device.
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
) -> tuple[list[tuple[Reported, ...]], list[training.Trained]]:
    """Recover and measure the winner of every size, one after the other.

    One is in memory at a time: it is made again from its adapter to be saved.  Returns the rows
    of each size with "found_recovered" after "found", and the trainings.
    """
    tables, trainings = [], []
    with stages("recovering") as progress:
        for number, (share, plan, rows) in enumerate(zip(keep, winners, reported, strict=True)):
            each = recovery.progress_total
            part = part_of(progress, number * each, len(winners) * each)
            model, trained = recovery(share, plan, progress=part)
            increase = held_out_increase(model, recovery.calibrated, recovery.windows)
            perplexity = on.perplexity(model)
            after = [row.name for row in rows].index("found") + 1
            found = replace(rows[after - 1], perplexity=perplexity, loss_increase=increase)
            found = replace(found, name="found_recovered")
            tables.append((*rows[:after], found, *rows[after:]))
            trainings.append(trained)
    return tables, trainings


def remove_finished(out: Path, keep: Sequence[float]) -> None:
    """Remove the adapters of winners that have been saved with their models."""
    for share in keep:
        recovery_file(out, share).unlink(missing_ok=True)
    folder = out / training.FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
