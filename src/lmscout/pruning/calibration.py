"""Calibration: order a model's units and prepare the measuring of plans, from a text."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LAST_SEED, LmscoutError, check_types, check_whole
from lmscout.evaluation.perplexity import attention_span, check_window
from lmscout.progress import StageProgress
from lmscout.pruning.compensation import Compensation, Refit, refit
from lmscout.pruning.cutting import ShapeName, cut
from lmscout.pruning.devices import ParallelEvaluator, RemoteCopies, outputs_of, replica
from lmscout.pruning.evaluator import (
    LIKELIHOOD,
    QUALITIES,
    Evaluator,
    Measurement,
    Reference,
    SubnetworkEvaluator,
    shape_of,
)
from lmscout.pruning.families import (
    CHANNELS,
    KINDS,
    Affine,
    Experts,
    Family,
    Place,
    family_of,
    units_of,
)
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.importance import (
    FROM_MOMENTS,
    METHODS,
    OBS,
    UnitOrder,
    importance,
    importance_from_moments,
    loss_metrics,
    sort_sublayer,
)
from lmscout.pruning.moments import Moments, moments_by_block
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.removal import order_of_experts, removal_order, routed

Weights = Literal["cut", "compensated", "refit"]  # of a subnetwork

WINDOW = 128  # tokens of a window, if a model attends over as many
_FEWEST_WINDOWS = 12
_CHUNK = 1_500  # tokens of a chunk, after each of which a plan may be stopped
_ACCELERATOR_CHUNK = 8_192  # fewer tokens do not keep an accelerator busy
_DIGEST_PIECE = 1 << 22  # numbers of a tensor that are converted at a time


@dataclass(frozen=True)
class CalibrationConfig:
    """How much text is used for what, and how units are ordered.

    Attributes:
        importance: method that orders units.
        compensate: whether plans are measured, and saved, with compensated output projections.
        quality: what is measured: "kl" (divergence from the dense model) or "nll" (loss increase);
            None for "kl" in a run, but "nll" in one with a bound or a front.
        window: tokens of a window; None for 128, or the model's attention span if that is less.
        measured_tokens: tokens on which every plan is measured.
        final_tokens: other tokens, on which the finalists are measured again.
        moment_tokens: tokens from which Gram matrices are collected.
        gradient_windows: at most so many windows whose gradient orders units.
        windows: windows of text in all, divided as the tokens are; None for the tokens above.
        seed: of the choice of windows; None for the seed of the run.

    Raises:
        LmscoutError: a name is unknown, or a number is out of its bounds.

    Example:
        >>> import lmscout
        >>> config = lmscout.CalibrationConfig(window=64, compensate=False)
        >>> config.of_tokens(7_400).measured_tokens
        900
    """

    importance: str = OBS
    compensate: bool = True
    quality: str | None = None
    window: int | None = None
    measured_tokens: int = 9_000
    final_tokens: int = 15_000
    moment_tokens: int = 50_000
    gradient_windows: int = 32
    windows: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_types("CalibrationConfig", self.__annotations__, vars(self))
        for name, given, known in (
            ("importance", self.importance, METHODS),
            ("quality", self.quality or LIKELIHOOD, QUALITIES),
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
        """Tokens of a window; of the longest one if `window` is None."""
        return WINDOW if self.window is None else self.window

    @property
    def tokens(self) -> int:
        """Tokens of text that are used in all, if there are as many."""
        return self.measured_tokens + self.final_tokens + self.moment_tokens

    def of_tokens(self, tokens: int) -> CalibrationConfig:
        """The same with so many tokens of text in all, in the same proportions.

        Raises:
            LmscoutError: they are fewer than 3.
        """
        check_whole("calibration tokens", tokens, 3)
        measured, final, moment = (
            max(1, round(tokens * own / self.tokens))
            for own in (self.measured_tokens, self.final_tokens, self.moment_tokens)
        )
        return replace(self, measured_tokens=measured, final_tokens=final, moment_tokens=moment)

    def fitted(self, config: PreTrainedConfig, seed: int) -> CalibrationConfig:
        """The same with a window that fits the dense model, and the seed of the run if none.

        Raises:
            LmscoutError: the given window is longer than the model's attention span.
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
    """A model whose units are in final order, with what measures its plans."""

    model: PreTrainedModel  # the dense model
    family: Family  # its family
    shape: Shape  # its units
    settings: CalibrationConfig  # how it was calibrated
    measured: Tensor  # [windows, T] on which every plan is measured
    final: Tensor  # [windows, T] on which the finalists are measured
    # [windows, T] from which Gram matrices are collected, and on which models are refit
    moments: Tensor
    mass: ImportanceMass  # importance of what a plan cuts
    compensation: Compensation | None  # of output projections; None to leave them as cut
    digests: Mapping[str, str]  # of the model and of the calibration text
    # the model and its compensation on further devices
    copies: tuple[tuple[PreTrainedModel, Compensation | None], ...] = ()
    # the same on the workers of a cluster, which then measure in place of the devices
    remote: RemoteCopies | None = None
    # by digest of the windows, the predictions of the dense model that plans are compared to; for
    # other windows, they are measured with the present weights
    references: Mapping[str, tuple[Reference, ...]] = field(default_factory=dict)
    # by digest of the windows, the number of chunks of an earlier run
    chunks: Mapping[str, int] = field(default_factory=dict)
    # the refit of the plan that was cut last, which is often cut again
    latest_refit: dict[Plan, Refit] = field(default_factory=dict)
    in_host: bool = False  # whether compensation and new weights are kept in the host's memory

    def evaluator(self, windows: Tensor) -> Evaluator:
        """Measures plans on [windows, T] tokens as they will be saved, on all devices.

        The dense model is measured once, on its own device.
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
                quality=self.quality,
                chunks=chunks,
                references=references,
            )
            references = one.references
            evaluators.append(one)
        if self.remote is not None:
            remote = self.remote.evaluators(evaluators[0], windows, self.quality)
            return ParallelEvaluator(remote)
        return ParallelEvaluator(evaluators) if self.copies else evaluators[0]

    def sent_to(self, remote: RemoteCopies | None) -> Calibrated:
        """The same with copies of the model on the workers of a cluster, if there is one."""
        if remote is not None:
            remote.send(self.model, self.compensation)
        return replace(self, remote=remote)

    def copied_to(self, devices: Sequence[torch.device]) -> Calibrated:
        """The same with a copy of the model on each of these devices to share the work."""
        copies = []
        for device in devices:
            model = replica(self.model, device)
            compensation = self.compensation and Compensation.of_factors(
                outputs_of(model, self.family), self.compensation.factors, device
            )
            copies.append((model, compensation))
        return replace(self, copies=tuple(copies))

    def with_chunks(self, measured: int | None, final: int | None) -> Calibrated:
        """The same with the chunks of an earlier run, for each text; None to follow the device."""
        both = ((self.measured, measured), (self.final, final))
        return replace(self, chunks={text_digest(one): count for one, count in both if count})

    def checked(self) -> Calibrated:
        """The same with the dense model measured on the finalists' text as well.

        Raises:
            LmscoutError: its loss there is not finite.
        """
        digest = text_digest(self.final)
        if digest in self.references:
            return self
        known = self.evaluator(self.final).references
        return replace(self, references={**self.references, digest: known})

    def recalibrated(
        self, references: Mapping[str, tuple[Reference, ...]], digests: Mapping[str, str]
    ) -> Calibrated:
        """The same with new moments, after the model's weights were changed in place.

        References are those of the weights before; digests, of the change, are added.
        """
        compensation = None
        if self.settings.compensate:
            moments = moments_by_block(self.model, self.family, self.moments)
            outputs = outputs_of(self.model, self.family)
            compensation = Compensation(outputs, moments, in_host=self.in_host)
        digests = {**self.digests, **digests}
        return replace(
            self, compensation=compensation, references=references, digests=digests, latest_refit={}
        )

    def compensated(self, plan: Plan) -> dict[Place, Affine]:
        """The compensated output projections of a plan, for `cut`; none without compensation."""
        if self.compensation is None:
            return {}
        sublayers = self.family.all_sublayers(self.model)
        found = {}
        for (place, sublayer), units in zip(sublayers.items(), plan.steps, strict=True):
            if units:
                entries = sublayer.first(units).output.weight.shape[-1]
                output = self.compensation.output(*place, entries)
                found[place] = output.to("cpu") if self.in_host else output
        return found

    def subnetwork(
        self,
        plan: Plan,
        weights: Weights,
        *,
        shape: ShapeName = "any",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> PreTrainedModel:
        """Cut a plan out of the dense model, see `cut`.

        `weights` are "cut", "compensated" (output projections) or "refit" (all maps).
        """
        known = weights == "refit" and plan in self.latest_refit
        outputs = {} if weights == "cut" or known else self.compensated(plan)
        if weights == "refit" and not known:
            self.latest_refit.clear()
            kept_on = "cpu" if self.in_host else None
            new = refit(self.model, self.family, plan, outputs, self.moments, kept_on)
            self.latest_refit[plan] = new
            outputs.clear()
        fitted = self.latest_refit[plan] if weights == "refit" else None
        return cut(self.model, plan, outputs, refit=fitted, shape=shape, dtype=dtype, device=device)

    def measured_held_out(self, model: PreTrainedModel) -> Measurement:
        """The loss increase of a cut model on the windows of finalists."""
        evaluator = replace(self, copies=(), remote=None).evaluator(self.final)
        assert isinstance(evaluator, SubnetworkEvaluator)
        return evaluator.measure_model(model)

    @property
    def study_settings(self) -> dict[str, str | int | bool]:
        """All that a measured value depends on."""
        settings = asdict(self.settings)
        del settings["final_tokens"], settings["windows"]
        return {**self.digests, **settings, "quality": self.quality}

    @property
    def quality(self) -> str:
        """What is measured."""
        return self.settings.quality or LIKELIHOOD

    @property
    def seed(self) -> int:
        """Seed of the run's random choices."""
        return self.settings.seed or 0


def chunks_of(tokens: int, device: torch.device) -> int:
    """Number of chunks of so many tokens in a new run."""
    return max(4, tokens // (_CHUNK if device.type == "cpu" else _ACCELERATOR_CHUNK))


def calibrate(
    model: PreTrainedModel,
    windows: Tensor,
    settings: CalibrationConfig,
    *,
    in_host: bool = False,
    progress: StageProgress | None = None,
) -> Calibrated:
    """Order a model's units and prepare the measuring of its plans.

    Windows for measuring, for finalists and for moments are drawn apart.  A short text is divided:
    a third for measuring, a third of the rest for finalists.

    Args:
        model: the dense model; its units are sorted in place.
        windows: [windows, T] int64, all of the calibration text.
        settings: how much is used for what.
        in_host: whether what the calibration makes is kept in the host's memory, for a model that
            leaves no room for it on its devices.
        progress: called with blocks done and in all, while moments are collected.

    Raises:
        LmscoutError: the text is too short, or the model's loss is not finite or its type unknown.
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
    if units_of(model.config) == CHANNELS:
        digests["units"] = CHANNELS
    shuffled = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    measured, rest = _split(shuffled, settings.measured_tokens)
    final, rest = _split(rest, settings.final_tokens)
    for_moments = rest[: max(1, round(settings.moment_tokens / windows.shape[1]))]
    orders, compensation = _sort_units(model, family, for_moments, settings, in_host, progress)
    none = UnitOrder.falling(torch.zeros(0, dtype=torch.float64))
    parts = family.all_parts(model)
    scores = [
        [orders.get((block, kind), none).scores.numpy() for block in range(len(parts))]
        for kind in KINDS
    ]
    mass = ImportanceMass.of_scores(*scores, in_nats=settings.importance == OBS)
    shape = shape_of(parts)
    of_text = measured, final, for_moments
    return Calibrated(
        *(model, family, shape, settings, *of_text, mass, compensation, digests), in_host=in_host
    )


def _sort_units(
    model: PreTrainedModel,
    family: Family,
    windows: Tensor,
    settings: CalibrationConfig,
    in_host: bool,
    progress: StageProgress | None,
) -> tuple[dict[Place, UnitOrder], Compensation | None]:
    """Sort all units in place, and factor the Gram matrices in the final order."""
    method, sublayers = settings.importance, family.all_sublayers(model)
    seed, text = settings.seed or 0, windows[: settings.gradient_windows]
    orders: dict[Place, UnitOrder] = {}
    metrics = loss_metrics(model, family, text, in_host=in_host) if method == OBS else {}
    if method != OBS and method not in FROM_MOMENTS:
        scores = importance(method, model, family, windows=text, seed=seed)
        orders = {
            place: UnitOrder.of_members(
                sublayers[place], [*map(UnitOrder.falling, values.view(-1, values.shape[-1]))]
            )
            for place, values in scores.items()
        }
    grams = settings.compensate or method == OBS

    def sort_experts(place: Place, sublayer: Experts, hidden: Tensor) -> None:
        if method == OBS:
            orders[place] = order_of_experts(sublayer, hidden, metrics.pop(place).to(hidden.device))
        elif method in FROM_MOMENTS:
            orders[place] = UnitOrder.falling(routed(sublayer, hidden).weighted_norm)
        sort_sublayer(sublayer, orders[place].order)

    def sorted_moments() -> Iterator[tuple[Place, Moments]]:
        """Sort every sublayer after its moments were collected, and reorder these."""
        for place, moments in moments_by_block(
            model, family, windows, grams=grams, progress=progress, experts=sort_experts
        ):
            sublayer = sublayers[place]
            members = list(zip(sublayer.members, moments.members, strict=True))
            if method == OBS:
                metric = metrics.pop(place).to(sublayer.device)
                found = [removal_order(place, *one, metric) for one in members]
                orders[place] = UnitOrder.of_members(sublayer, found)
            elif method in FROM_MOMENTS:
                found = [
                    UnitOrder.falling(importance_from_moments(method, place, *one))
                    for one in members
                ]
                orders[place] = UnitOrder.of_members(sublayer, found)
            yield place, moments.reordered(sort_sublayer(sublayer, orders[place].order))

    if settings.compensate:
        outputs = outputs_of(model, family)
        return orders, Compensation(outputs, sorted_moments(), in_host=in_host)
    if method == OBS or method in FROM_MOMENTS:
        deque(sorted_moments(), maxlen=0)
    else:
        for place, one in orders.items():
            sort_sublayer(sublayers[place], one.order)
    return orders, None


def model_digest(model: PreTrainedModel) -> str:
    """A digest of a model's weights that does not depend on the order of its units.

    A model whose units were sorted by an earlier run keeps its digest.  Power sums of the bits of
    each tensor, as integers modulo 2**64, are exact in any order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sums = torch.zeros(3, dtype=torch.int64)
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = tensor.detach().contiguous().view(width[tensor.element_size()]).flatten()
        for piece in bits.split(_DIGEST_PIECE):
            numbers = piece.long()
            squares = numbers * numbers
            sums += torch.stack([numbers.sum(), squares.sum(), (squares * numbers).sum()]).cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums.tolist()}".encode())
    return digest.hexdigest()[:16]


def text_digest(windows: Tensor) -> str:
    """A digest of calibration tokens [windows, T]."""
    return hashlib.sha256(windows.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _split(windows: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The first windows, of so many tokens but at most a third of all, and the others."""
    count = max(1, min(round(tokens / windows.shape[1]), len(windows) // 3))
    return windows[:count], windows[count:]
