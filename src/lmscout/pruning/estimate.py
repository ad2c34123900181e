"""Memory and time of a run before it starts.

The model's configuration suffices.  Memory follows from the sizes of a model without weights; time
is measured on models of one and two blocks with random weights.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lmscout.evaluation import parameter_bytes, parameter_count, unfilled_model, vocabulary_size
from lmscout.evaluation.cost import await_device, free_memory, median_seconds
from lmscout.memory import require_memory
from lmscout.pruning.calibration import CalibrationConfig, chunks_of
from lmscout.pruning.compensation import refit
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.evaluator import KEPT_SHARE, shape_of
from lmscout.pruning.families import Family, Sublayer, family_of, set_units
from lmscout.pruning.finalists import FRONT, MOST_REFIT, SPREAD, TESTS
from lmscout.pruning.importance import FROM_MOMENTS, OBS, loss_metrics
from lmscout.pruning.latency import Latency, measure_latency
from lmscout.pruning.moments import BATCH_TOKENS, moments_by_block
from lmscout.pruning.placement import homes, spread
from lmscout.pruning.recovery.elastic import ElasticAdapter, plan_loss
from lmscout.pruning.recovery.training import RecoverySettings
from lmscout.pruning.removal import order_seconds
from lmscout.statistics.single_pass import train_only

_FLOAT, _DOUBLE = 4, 8  # bytes
_TRAINED = 4 * _FLOAT  # bytes of a trained number: itself, its gradient, and two moments of that
_TIMED_TOKENS = 2048
_REPEATS = 3
_FILLED = 0.95  # of a device's memory, as an allocator leaves gaps


@dataclass(frozen=True)
class Recovering:
    """Cost of a recovery."""

    name: str  # "elastic" or "winners"
    trainings: int  # number of trainings, one after the other
    steps: int | None  # of each; None if only their time is limited
    memory: int  # peak bytes
    seconds: float  # of all trainings, on the dense model's sizes


@dataclass(frozen=True)
class Part:
    """What one device holds of a model."""

    device: str
    blocks: int
    weights: int  # bytes
    peak: int  # bytes, without recovery


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes of each device, at most, and time in seconds of a run."""

    device: str  # on which it was timed
    parameters: int  # of the dense model
    weights: int  # bytes of the dense model
    importance: int  # peak bytes while units are ordered
    calibrating: int  # peak bytes while moments are collected
    measuring: int  # peak bytes while pairs are measured
    refitting: int  # peak bytes while a plan is refit; 0 without
    ordering: float  # seconds of ordering units and collecting moments
    refit: float  # seconds of one refit; 0 without
    refits: int  # number of finalists that are refit, about
    pair: dict[float, float]  # by size, seconds of one that shares no prefix
    pairs: int  # number of pairs
    total: float  # seconds of all pairs, an upper bound: plans share prefixes and may stop early
    recovery: tuple[Recovering, ...] = ()  # cost of the trainings, in their order
    parts: tuple[Part, ...] = ()  # what each device holds of a model that is spread over several
    in_host: bool = False  # whether what the calibration makes is in the host's memory

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most, on the device that holds most."""
        recovering = [one.memory for one in self.recovery]
        stages = self.importance, self.calibrating, self.measuring, self.refitting
        return max(*stages, *recovering)

    def to_json(self) -> dict[str, object]:
        """All fields by name."""
        return {**asdict(self), "pair": {repr(float(keep)): one for keep, one in self.pair.items()}}


def estimate(
    config: PreTrainedConfig, request: PruneConfig, *, dtype: torch.dtype, device: torch.device
) -> Estimate:
    """Estimate memory and time of a run on a device, with weights in a dtype."""
    set_units(config, request.units)
    family = family_of(config)
    calibration = request.calibration.fitted(config, request.seed)
    window = calibration.length
    model = unfilled_model(partial(_from_config, config, dtype), "meta")
    blocks = placement(model, request, (device, *request.devices))
    parts = memory_parts(model, request, blocks)
    sizes, depth = max(parts, key=lambda one: one.peak), len(blocks)
    latency = _time_one_block(config, family, window, dtype, device)
    pair = {
        keep: _seconds(latency, keep, depth) * calibration.measured_tokens
        for keep in request.keep or SPREAD
    }
    one_block = partial(_first_blocks, config, dtype, device, 1)
    first = list(family.all_sublayers(model).values())[:2]
    ordering, refitting = _time_closed_form(one_block, family, request, calibration, first)
    ordering, refitting = depth * ordering, depth * refitting
    pairs = request.measured_pairs
    # an elastic recovery is first; a winner is trained beside the dense model
    recovery = []
    few_blocks = partial(_first_blocks, config, dtype, device)
    for name, settings, trainings, beside in (
        ("elastic", request.recovery.elastic, 1, 0),
        ("winners", request.recovery.winners, max(1, len(request.keep)), sizes.weights),
    ):
        if settings is not None:
            seconds, memory = estimate_training(model, family, settings, window, few_blocks)
            steps = None if settings.timed else settings.last_step(window)
            peak = sizes.held + beside + memory // len(parts)
            recovery.append(Recovering(name, trainings, steps, peak, trainings * seconds))
    several = tuple(Part(str(one.device), one.depth, one.weights, one.peak) for one in parts)
    return Estimate(
        device=str(device),
        parameters=parameter_count(model),
        weights=sizes.weights,
        importance=sizes.importance(),
        calibrating=sizes.calibrating(),
        measuring=sizes.measuring(),
        refitting=sizes.refitting(),
        ordering=ordering,
        refit=refitting,
        refits=_refits(request),
        pair=pair,
        pairs=pairs,
        total=pairs * float(np.mean(list(pair.values()))),
        recovery=tuple(recovery),
        parts=several if len(parts) > 1 else (),
        in_host=sizes.in_host,
    )


def placement_of(
    config: PreTrainedConfig, request: PruneConfig, dtype: torch.dtype, device: torch.device
) -> list[torch.device]:
    """The device of every block of a model with weights in a dtype, see `placement`."""
    devices = device, *request.devices
    if len(devices) == 1:
        return [device]
    return placement(unfilled_model(partial(_from_config, config, dtype), "meta"), request, devices)


def placement(
    model: PreTrainedModel, request: PruneConfig, devices: Sequence[torch.device]
) -> list[torch.device]:
    """The device of every block: the first device if all fits, else spread over all."""
    family = family_of(model.config)
    alone = [devices[0]] * len(family.blocks(model))
    if len(devices) == 1 or not (request.split or memory_parts(model, request, alone)[0].in_host):
        return alone
    return spread(model, family, devices)


def memory_parts(
    model: PreTrainedModel, request: PruneConfig, blocks: Sequence[torch.device]
) -> list[MemoryPart]:
    """What each device holds; what the calibration makes in the host's memory if it has to."""
    for in_host in (False, True):
        devices = dict.fromkeys(blocks)
        parts = [MemoryPart(model, request, blocks, one, in_host=in_host) for one in devices]
        if all(one.fits for one in parts):
            break
    return parts


def _refits(request: PruneConfig) -> int:
    """Finalists that are refit, about; the selected plans are among them."""
    if request.weights != "refit" or request.objective is not None:
        return 0
    beside = len(request.keep)  # the allocation of each size
    each = MOST_REFIT if request.pairs else 1
    bisections = 2 if request.pairs else 1
    sizes = len(request.keep) or bisections * TESTS
    return each * sizes + (beside if request.pairs else 0) + (len(FRONT) if request.front else 0)


class MemoryPart:
    """Bytes that the stages of a run hold at once on one device."""

    def __init__(
        self,
        model: PreTrainedModel,
        request: PruneConfig,
        blocks: Sequence[torch.device],
        device: torch.device,
        *,
        in_host: bool,
    ) -> None:
        family = family_of(model.config)
        settings = request.calibration.fitted(model.config, request.seed)
        self._request, self.settings = request, settings
        self.device, self.in_host = device, in_host
        places = family.all_sublayers(model).items()
        self.sublayers = [one for place, one in places if blocks[place[0]] == device]
        self._width = self.sublayers[0].output.weight.shape[0]
        self._vocabulary = vocabulary_size(model)
        self._each = model.dtype.itemsize
        self.depth = len(self.sublayers) // 2
        own = [one for one, home in homes(model, family, blocks) if home == device]
        self.weights = sum(one.nbytes for one in own if isinstance(one, nn.Parameter))
        self.held = self.weights  # and the factors of the compensation
        if settings.compensate and not in_host:
            numbers = [one.moments for one in self.sublayers]
            self.held += sum(
                _FLOAT * n * columns * (self._width + columns) for n, columns in numbers
            )

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most, without recovery."""
        return max(self.importance(), self.calibrating(), self.measuring(), self.refitting())

    @property
    def fits(self) -> bool:
        """Whether a GPU has as much; other devices have no memory of their own."""
        return self.device.type != "cuda" or self.peak <= _FILLED * self._room

    @property
    def _room(self) -> int:
        """Bytes of a GPU for this process, with those that it has taken."""
        return free_memory(self.device) + torch.cuda.memory_reserved(self.device)

    def importance(self) -> int:
        """For gradients the hidden states of all blocks, and the gradients of one."""
        settings = self.settings
        if settings.importance in FROM_MOMENTS:
            return self.calibrating()
        numbers = [
            [map_.weight.numel() for map_ in one.maps] or [one.parameters] for one in self.sublayers
        ]
        largest = max(map(max, numbers))
        if settings.importance not in ("taylor", OBS):
            return self.weights + 2 * _DOUBLE * largest
        tokens = settings.gradient_windows * settings.length
        states = tokens * self._width * self._each * (self.depth + 1)
        block = int(np.array([sum(one) for one in numbers]).reshape(-1, 2).sum(axis=1).max())
        working = max(3 * _FLOAT * largest, self._working(BATCH_TOKENS))
        outputs = 2 * tokens * self._width * self._each  # gradients of a block's two outputs
        return self.weights + states + block * self._each + outputs + working + self._metrics

    def calibrating(self) -> int:
        """The hidden state of all text, a Gram matrix, and the factors of those before it."""
        states = self.settings.moment_tokens * self._width * self._each
        gram, square = (
            0,
            max(n * columns**2 for n, columns in (one.moments for one in self.sublayers)),
        )
        if self.settings.importance == OBS:  # an inverse and products, before and after a step
            gram = square * (_FLOAT + 4 * _DOUBLE)
        elif self.settings.compensate:
            gram = square * (_FLOAT + 2 * _DOUBLE)
        return self.held + states + gram + self._metrics + self._working(BATCH_TOKENS)

    def refitting(self) -> int:
        """All text in both models and a sublayer, new weights, a Gram matrix and its factor.

        Or the new weights in a cut model, to measure it.
        """
        if self._request.weights != "refit":
            return 0
        entries = max(one.moments[1] for one in self.sublayers)
        # Both hidden states, the dense update, and what enters the output projection.
        states = self.settings.moment_tokens * (3 * self._width + entries) * self._each
        square = max(map_.weight.shape[1] for one in self.sublayers for map_ in one.maps) ** 2
        gram = square * (_FLOAT + 2 * _DOUBLE)
        cut = int(max(self._request.keep, default=1.0) * self.weights)
        new = 0 if self.in_host else cut
        return self.held + new + max(states + gram, cut) + self._working(BATCH_TOKENS)

    @property
    def _metrics(self) -> int:
        """Metrics of the loss at all outputs."""
        held = self.settings.importance == OBS and not self.in_host
        each = _FLOAT * self._width**2 if held else 0
        return each * len(self.sublayers)

    def measuring(self) -> int:
        """Hidden states after every step, as far as they are kept, and logits of a chunk."""
        tokens = self.settings.measured_tokens
        states = tokens * self._width * self._each * (2 * self.depth + 1)
        if self.device.type == "cuda":
            states = max(0, min(states, int(KEPT_SHARE * (self._room - self.held))))
        return self.held + states + self._working(tokens // chunks_of(tokens, self.device))

    def _working(self, tokens: int) -> int:
        """Logits in two precisions with their probabilities, or what a block computes."""
        logits = tokens * self._vocabulary * (self._each + 2 * _FLOAT)
        widest = max(sum(len(map_.weight) for map_ in one.inputs) for one in self.sublayers)
        return max(logits, 2 * tokens * widest * self._each)


def _time_one_block(
    config: PreTrainedConfig, family: Family, window: int, dtype: torch.dtype, device: torch.device
) -> Latency:
    """Seconds of a block's steps, and of embedding and head."""
    size = max(1, _TIMED_TOKENS // window)
    tokens = _random_tokens(config.get_text_config().vocab_size, size, window)
    if device.type == "cpu":
        sizes = _first_blocks(config, dtype, torch.device("meta"), 1)
        require_memory("timing a block", parameter_bytes(sizes), "use a machine with more memory")
    model = _first_blocks(config, dtype, device, 1)
    return measure_latency(model, family, tokens, repeats=_REPEATS)


def _time_closed_form(
    one_block: Callable[[], PreTrainedModel],
    family: Family,
    request: PruneConfig,
    settings: CalibrationConfig,
    sublayers: Sequence[Sublayer],
) -> tuple[float, float]:
    """Seconds of ordering a block's units with the moments, and of its refit; 0 without.

    Measured on one block, on few tokens and on twice as many, and extrapolated.
    """
    model = one_block()
    window, device = settings.length, model.device
    plan = shape_of(family.all_parts(model)).dense

    def seconds(work: Callable[[Tensor], object], tokens: int) -> float:
        found = []
        for share in (1, 1, 2):  # the first lets libraries load
            size = share * max(1, _TIMED_TOKENS // window)
            windows = _random_tokens(vocabulary_size(model), size, window)
            await_device(device)
            start = time.perf_counter()
            work(windows)
            await_device(device)
            found.append(time.perf_counter() - start)
        rate = max(0.0, found[2] - found[1]) / (size // 2 * window)
        return found[1] + rate * max(0, tokens - size // 2 * window)

    grams = settings.compensate or settings.importance == OBS
    total = seconds(
        lambda windows: deque(moments_by_block(model, family, windows, grams=grams), maxlen=0),
        settings.moment_tokens,
    )
    if settings.importance == OBS:
        tokens = settings.gradient_windows * window
        total += seconds(lambda windows: loss_metrics(model, family, windows), tokens)
        for one in sublayers:
            count, columns = one.moments
            total += count * order_seconds(columns, one.units, device) if count else 0.0
    if request.weights != "refit":
        return total, 0.0
    return total, seconds(
        lambda windows: refit(model, family, plan, {}, windows), settings.moment_tokens
    )


def _seconds(latency: Latency, keep: float, depth: int) -> float:
    """Seconds a token, of a plan that keeps the same share of every block."""
    steps = sum(
        float(np.interp(keep * curve.units[-1], curve.units, curve.seconds))
        for curve in (*latency.attention, *latency.mlp)
    )
    return (steps * depth + latency.fixed) / (latency.windows * latency.tokens)


def estimate_training(
    model: PreTrainedModel,
    family: Family,
    settings: RecoverySettings,
    window: int,
    few_blocks: Callable[[int], PreTrainedModel],
) -> tuple[float, int]:
    """Seconds and bytes of an elastic training on all units; one of a plan takes less.

    A step is measured on one block and on two, which `few_blocks` makes, and extrapolated; the
    dense model may be without weights.  Bytes are those of adapters, their gradients, the
    optimizer and a step's activations.
    """
    (first, first_bytes), (both, both_bytes) = (
        _training_step(few_blocks(count), family, settings, window) for count in (1, 2)
    )
    sublayers = family.all_sublayers(model).values()
    more = len(sublayers) // 2 - 1
    seconds = settings.last_step(window) * (first + more * max(0.0, both - first))
    sides = sum(sum(map_.weight.shape) for one in sublayers for map_ in one.maps)
    activations = first_bytes + more * (both_bytes - first_bytes)
    adapters = _TRAINED * settings.rank * sides
    return min(seconds, settings.seconds or seconds), adapters + activations


def _training_step(
    model: PreTrainedModel, family: Family, settings: RecoverySettings, window: int
) -> tuple[float, int]:
    """Seconds of a step, and bytes that it keeps for the backward pass."""
    tokens = _random_tokens(vocabulary_size(model), settings.batch(window), window)
    tokens = tokens.to(model.device)
    adapter = ElasticAdapter(model, family, settings.rank, settings.seed)
    optimizer = torch.optim.AdamW(list(adapter.weights.values()))
    dense = shape_of(family.all_parts(model)).dense
    parameters = (*model.parameters(), *adapter.weights.values())
    known = {one.untyped_storage().data_ptr() for one in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with nullcontext() if kept else hooks:
            loss = plan_loss(adapter, dense, tokens, settings.method)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with train_only(model, ()):
        seconds = median_seconds(step, model.device, _REPEATS)
    return seconds, sum(kept.values())


def _random_tokens(vocabulary: int, size: int, window: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (size, window), generator=generator)


def _first_blocks(
    config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, count: int
) -> PreTrainedModel:
    """A model of random weights with so many blocks."""
    few = cast(Any, copy.deepcopy(config))
    few.num_hidden_layers = count
    for name in ("layer_types", "no_rope_layers", "block_numbers"):
        if values := getattr(few, name, None):
            setattr(few, name, values[:count])
    for name in ("attention_groups", "mlp_channels", "expert_channels"):  # the largest block
        if values := getattr(few, name, None):
            setattr(few, name, [max(values)] * count)
    with torch.random.fork_rng(devices=[]), device:
        model = _from_config(few, dtype)
    model.train(mode=False)
    return model


def _from_config(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    return cast(PreTrainedModel, auto.from_config(config, dtype=dtype, trust_remote_code=False))
