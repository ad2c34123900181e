"""Calibration: everything about a model that plans are judged by, made once from text."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LmscoutError, check_whole
from lmscout.evaluation import attention_span, check_window
from lmscout.progress import StageProgress
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.devices import ParallelEvaluator, replica
from lmscout.pruning.evaluator import (
    LIKELIHOOD,
    QUALITIES,
    Evaluator,
    Reference,
    SubnetworkEvaluator,
    shape_of,
)
from lmscout.pruning.families import KINDS, Affine, Family, family_of
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.importance import (
    FROM_MOMENTS,
    METHODS,
    UnitScores,
    importance,
    importance_from_moments,
    sort_sublayer,
)
from lmscout.pruning.moments import Moments, Place, moments_by_block
from lmscout.pruning.plan import Plan, Shape

LAST_SEED = 2**63 - 1  # that PyTorch's generators take
WINDOW = 128  # tokens of a window, where a model attends over as many
_FEWEST_WINDOWS = 12
_CHUNK = 1_500  # tokens of a chunk, on which a hopeless plan can be told
_ACCELERATED_CHUNK = 8_192  # the same, where fewer tokens keep nothing busy
_PIECE = 1 << 22  # numbers of a tensor that a fingerprint reads at a time


@dataclass(frozen=True)
class CalibrationConfig:
    """How much text is used for what, and how units are ordered.

    Attributes:
        importance: the method that orders units.
        compensate: whether plans are measured, and saved, with compensated output projections.
        quality: what is measured: "nll" or "kl".
        window: tokens a window; None for 128, or for what the model attends over if that is less.
        measured_tokens: on which every plan is measured.
        final_tokens: others, on which the last few are measured again.
        moment_tokens: from which Gram matrices are collected.
        gradient_windows: windows whose gradient orders units, as far as there are so many.
        windows: of text in all, divided as the tokens are; None for what the tokens make.
        seed: of the choice of windows; None for the seed of the run.

    Raises:
        LmscoutError: a name is unknown, or a number is none or out of its bounds.
    """

    importance: str = "taylor"
    compensate: bool = True
    quality: str = LIKELIHOOD
    window: int | None = None
    measured_tokens: int = 9_000
    final_tokens: int = 15_000
    moment_tokens: int = 50_000
    gradient_windows: int = 32
    windows: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, given, known in (
            ("importance", self.importance, METHODS),
            ("quality", self.quality, QUALITIES),
        ):
            if given not in known:
                raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
        check_whole("window", self.length, 2)  # nothing predicts the first token of one
        check_whole("windows", 3 if self.windows is None else self.windows, 3)
        for name in ("measured_tokens", "final_tokens", "moment_tokens", "gradient_windows"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed or 0, 0, LAST_SEED)

    @property
    def length(self) -> int:
        """Tokens a window, at most where none are given."""
        return WINDOW if self.window is None else self.window

    @property
    def tokens(self) -> int:
        """Tokens of the text that are used in all, where there are so many."""
        return self.measured_tokens + self.final_tokens + self.moment_tokens

    def of_tokens(self, tokens: int) -> CalibrationConfig:
        """The same with so many tokens of text in all, divided as they are now.

        Args:
            tokens: for measuring, finalists and moments together; at least 3.

        Raises:
            LmscoutError: they are fewer.
        """
        check_whole("calibration tokens", tokens, 3)
        whole = self.tokens
        measured, final, moment = (
            max(1, round(tokens * own / whole))
            for own in (self.measured_tokens, self.final_tokens, self.moment_tokens)
        )
        return replace(self, measured_tokens=measured, final_tokens=final, moment_tokens=moment)

    def fitted(self, config: PreTrainedConfig, seed: int) -> CalibrationConfig:
        """The same with what was left open: a window that fits a model, and a seed.

        Args:
            config: of the dense model.
            seed: of the run.

        Raises:
            LmscoutError: the window that was given is longer than the model attends over.
        """
        window = self.window
        if window is None:
            window = min(WINDOW, attention_span(config) or WINDOW)
        check_window(window, config)
        whole = self if self.windows is None else self.of_tokens(self.windows * window)
        seed = seed if self.seed is None else self.seed
        return replace(whole, window=window, windows=None, seed=seed)


@dataclass(frozen=True)
class Calibrated:
    """A model whose units are in final order, with what measures its plans.

    Attributes:
        model: the dense model.
        family: its family.
        shape: its units.
        settings: how it was calibrated.
        measured: [windows, T] on which every plan is measured.
        final: [windows, T] on which the last few are.
        moments: [windows, T] from which Gram matrices are collected.
        mass: importance of what a plan cuts.
        compensation: refits output projections; None where plans stay as they are cut.
        digests: of the model and of the calibration text.
        copies: of the model, with what refits them, on further devices.
        references: by digest of the windows, the dense model's predictions to which plans are
            compared, where they are not those of the weights that are there now.
        chunks: by digest of the windows, in how many chunks plans were measured on them
            before, wherever that was.
    """

    model: PreTrainedModel
    family: Family
    shape: Shape
    settings: CalibrationConfig
    measured: Tensor
    final: Tensor
    moments: Tensor
    mass: ImportanceMass
    compensation: Compensation | None
    digests: Mapping[str, str]
    copies: tuple[tuple[PreTrainedModel, Compensation | None], ...] = ()
    references: Mapping[str, tuple[Reference, ...]] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)

    def evaluator(self, windows: Tensor) -> Evaluator:
        """Measures plans on [windows, T] tokens, in chunks, as they will be saved.

        The dense model is measured once, on its own device; copies of it are given what came out.
        """
        digest = text_digest(windows)
        chunks = self.chunks.get(digest) or chunks_of(windows.numel(), self.model.device)
        references = self.references.get(digest)
        evaluators: list[SubnetworkEvaluator] = []
        for model, compensation in ((self.model, self.compensation), *self.copies):
            one = SubnetworkEvaluator(
                model,
                self.family,
                windows,
                compensation=compensation,
                quality=self.settings.quality,
                chunks=chunks,
                references=references,
            )
            references = one.references
            evaluators.append(one)
        return ParallelEvaluator(evaluators) if self.copies else evaluators[0]

    def copied_to(self, devices: Sequence[torch.device]) -> Calibrated:
        """The same, with a copy of the model on each of these devices to share the work."""
        copies = []
        for device in devices:
            model = replica(self.model, device)
            compensation = None
            if self.compensation is not None:
                compensation = self.compensation.copied(_outputs(model, self.family), device)
            copies.append((model, compensation))
        return replace(self, copies=tuple(copies))

    def as_begun(self, measured: int | None, final: int | None) -> Calibrated:
        """The same, to go on in as many chunks of each text as plans were measured in before.

        Args:
            measured: chunks of the text of all pairs; None where the device is to say.
            final: of that of the last few.
        """
        both = ((self.measured, measured), (self.final, final))
        return replace(self, chunks={text_digest(one): count for one, count in both if count})

    def checked(self) -> Calibrated:
        """The same, with the dense model measured on the text of the last few plans as well.

        Raises:
            LmscoutError: its loss there is not finite.
        """
        digest = text_digest(self.final)
        if digest in self.references:
            return self
        known = self.evaluator(self.final).references
        return replace(self, references={**self.references, digest: known})

    def compensated(self, plan: Plan) -> dict[tuple[int, str], Affine]:
        """The compensated output projections of a plan, for `cut`; none where plans stay as cut."""
        if self.compensation is None:
            return {}
        outputs = {}
        sublayers = self.family.all_sublayers(self.model)
        for ((block, kind), part), units in zip(sublayers.items(), plan.steps, strict=True):
            if units:
                entries = part.first(units).output.weight.shape[1]
                outputs[block, kind] = self.compensation.output(block, kind, entries)
        return outputs

    @property
    def study_settings(self) -> dict[str, str | int | bool]:
        """All on which a measured value depends."""
        settings = asdict(self.settings)
        del settings["final_tokens"], settings["windows"]
        return {**self.digests, **settings}

    @property
    def seed(self) -> int:
        """Of what is drawn."""
        return self.settings.seed or 0


def chunks_of(tokens: int, device: torch.device) -> int:
    """In how many chunks so many tokens are measured, where nobody has begun."""
    chunk = _CHUNK if device.type == "cpu" else _ACCELERATED_CHUNK
    return max(4, tokens // chunk)


def calibrate(
    model: PreTrainedModel,
    windows: Tensor,
    settings: CalibrationConfig,
    *,
    progress: StageProgress | None = None,
) -> Calibrated:
    """Order a model's units and make ready to measure its plans.

    The windows for measuring, for the last measuring, and for the rest are drawn apart; where
    there are few, measuring gets a third of them, and the last measuring a third of what is left.

    Args:
        model: the dense model; its units are sorted in place.
        windows: [windows, T] int64, all of the calibration text.
        settings: how much is used for what.
        progress: called with blocks done and in all, while moments are collected.

    Raises:
        LmscoutError: there is too little text, or the model is not sound or not known.
    """
    family = family_of(model.config)
    if len(windows) < _FEWEST_WINDOWS:
        raise LmscoutError(
            f"calibration text has {len(windows)} windows of {windows.shape[1]} tokens, and at "
            f"least {_FEWEST_WINDOWS} are needed: give a longer text"
        )
    seed = settings.seed or 0
    settings = replace(settings, window=windows.shape[1], seed=seed)
    digests = {"model": model_digest(model), "calibration": text_digest(windows)}
    shuffled = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    measured, rest = _taken(shuffled, settings.measured_tokens)
    final, rest = _taken(rest, settings.final_tokens)
    for_moments = rest[: max(1, round(settings.moment_tokens / windows.shape[1]))]
    scores: UnitScores = {}
    if settings.importance not in FROM_MOMENTS:
        gradient_windows = for_moments[: settings.gradient_windows]
        scores = importance(settings.importance, model, family, windows=gradient_windows, seed=seed)
    sublayers = family.all_sublayers(model)

    def in_order() -> Iterator[tuple[Place, Moments]]:
        """Moments with the units sorted, each half as soon as what it needs is known."""
        for place, moments in moments_by_block(
            model, family, for_moments, grams=settings.compensate, progress=progress
        ):
            if place not in scores:
                scores[place] = importance_from_moments(
                    settings.importance, place, sublayers[place], moments
                )
            yield place, moments.reordered(sort_sublayer(sublayers[place], scores[place]))

    compensation = None
    if settings.compensate:
        compensation = Compensation(_outputs(model, family), in_order())
    elif settings.importance in FROM_MOMENTS:
        deque(in_order(), maxlen=0)
    else:  # nobody asks for moments
        for place, sublayer in sublayers.items():
            sort_sublayer(sublayer, scores[place])
    falling = {
        place: values.sort(descending=True).values.numpy() for place, values in scores.items()
    }
    mass = ImportanceMass.of_scores(
        *([falling[block, kind] for block in range(len(falling) // 2)] for kind in KINDS)
    )
    return Calibrated(
        model,
        family,
        shape_of(family.all_parts(model)),
        settings,
        measured,
        final,
        for_moments,
        mass,
        compensation,
        digests,
    )


def _outputs(model: PreTrainedModel, family: Family) -> dict[Place, Affine]:
    """The output projection of every half."""
    return {place: sublayer.output for place, sublayer in family.all_sublayers(model).items()}


def calibrate_again(
    calibrated: Calibrated,
    references: Mapping[str, tuple[Reference, ...]],
    digests: Mapping[str, str],
    *,
    progress: StageProgress | None = None,
) -> Calibrated:
    """The same after the model's weights were changed in place: with new moments.

    Args:
        calibrated: as it was before; its units stay in their order.
        references: as `Calibrated.references`.
        digests: what tells the new weights from those before.
        progress: called with blocks done and in all.
    """
    model, family = calibrated.model, calibrated.family
    compensation = None
    if calibrated.settings.compensate:
        moments = moments_by_block(model, family, calibrated.moments, progress=progress)
        compensation = Compensation(_outputs(model, family), moments)
    return replace(
        calibrated,
        compensation=compensation,
        references=references,
        digests={**calibrated.digests, **digests},
    )


def model_digest(model: PreTrainedModel) -> str:
    """A digest of a model's weights that does not depend on the order of its units.

    So a model whose units were sorted by an earlier run is known again.  Power sums of the
    bits of each tensor, as integers modulo 2**64, are exact in any order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sums = torch.zeros(3, dtype=torch.int64)
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = tensor.detach().contiguous().view(width[tensor.element_size()]).flatten()
        for piece in bits.split(_PIECE):
            numbers = piece.long()
            squares = numbers * numbers
            sums += torch.stack([numbers.sum(), squares.sum(), (squares * numbers).sum()]).cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums.tolist()}".encode())
    return digest.hexdigest()[:16]


def text_digest(windows: Tensor) -> str:
    """A digest of calibration tokens [windows, T]."""
    return hashlib.sha256(windows.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _taken(windows: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The first windows, of so many tokens or a third of these, and the others."""
    count = max(1, min(round(tokens / windows.shape[1]), len(windows) // 3))
    return windows[:count], windows[count:]
