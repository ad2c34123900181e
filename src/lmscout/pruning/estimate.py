"""What a run would take, before it starts: memory from the sizes, seconds from a single block.

A model's configuration is enough.  Its sizes are read off a model without weights; seconds are
measured on a model of one block with random weights, which costs as much as any other block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lmscout.evaluation import parameter_bytes, parameter_count, unfilled_model, vocabulary_size
from lmscout.memory import require_memory
from lmscout.pruning.calibration import CalibrationConfig, chunks_of
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.evaluator import KEPT_SHARE
from lmscout.pruning.families import Family, family_of, unit_maps
from lmscout.pruning.importance import FROM_MOMENTS
from lmscout.pruning.latency import Latency, measure_latency
from lmscout.pruning.moments import BATCH_TOKENS
from lmscout.pruning.recovery.run import estimate_training

_FLOAT, _DOUBLE = 4, 8  # bytes
_TIMED_TOKENS = 2048
_REPEATS = 3


@dataclass(frozen=True)
class Recovering:
    """What a recovery would take.

    Attributes:
        name: "elastic" or "winners".
        trainings: how many there are, one after the other.
        steps: of each.
        memory: bytes while one is under way.
        seconds: of all of them, where nothing is cut.
    """

    name: str
    trainings: int
    steps: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        device: on which it was timed, and would run.
        parameters: of the dense model.
        weights: bytes of them in memory.
        importance: bytes while units are ordered, the weights among them.
        calibrating: bytes while moments are collected.
        measuring: bytes while pairs are measured.
        pair: seconds of a pair that shares nothing with the one before it, by size.
        pairs: how many.
        total: seconds of all pairs.  A run is faster: plans that begin alike share, and hopeless
            ones are dropped early.
        recovery: what trainings take, in the order in which they are made; none where nothing is
            recovered.
    """

    device: str
    parameters: int
    weights: int
    importance: int
    calibrating: int
    measuring: int
    pair: dict[float, float]
    pairs: int
    total: float
    recovery: tuple[Recovering, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most."""
        recovering = [one.memory for one in self.recovery]
        return max(self.importance, self.calibrating, self.measuring, *recovering)

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {**asdict(self), "pair": {repr(float(keep)): one for keep, one in self.pair.items()}}


def estimate(
    config: PreTrainedConfig,
    request: PruneConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Estimate:
    """Foretell memory and seconds of a run.

    Args:
        config: of the dense model.
        request: what is wanted.
        dtype: of the weights in memory.
        device: on which it would run.

    Raises:
        LmscoutError: models of this type are not known, or read less than a window.
    """
    family = family_of(config)
    calibration = request.calibration.fitted(config, request.seed)
    weightless = unfilled_model(partial(_from_config, config, dtype), "meta")
    sizes = _Sizes(weightless, family, calibration)
    latency = _time_one_block(config, family, calibration.length, dtype, device)
    pair = {
        keep: _seconds(latency, keep, sizes.depth) * calibration.measured_tokens
        for keep in request.keep
    }
    pairs = 0 if request.objective is not None else request.pairs
    return Estimate(
        str(device),
        parameter_count(sizes.model),
        sizes.weights,
        sizes.importance(),
        sizes.calibrating(),
        sizes.measuring(device),
        pair,
        pairs,
        pairs * float(np.mean(list(pair.values()))),
        tuple(_recovering(config, request, calibration.length, sizes, dtype, device)),
    )


def _recovering(
    config: PreTrainedConfig,
    request: PruneConfig,
    window: int,
    sizes: _Sizes,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Recovering]:
    """All plans first, then the winners, each cut beside the dense model."""
    asked = request.recovery
    for name, settings, trainings, beside in (
        ("elastic", asked.elastic, 1, 0),
        ("winners", asked.winners, len(request.keep), sizes.weights),
    ):
        if settings is not None:
            one = estimate_training(
                sizes.model,
                family_of(config),
                settings,
                window,
                lambda count: _first_blocks(config, count, dtype, device),
            )
            memory = sizes.held + beside + one.learning + one.activations
            yield Recovering(name, trainings, one.steps, memory, trainings * one.seconds)


class _Sizes:
    """Bytes that the stages of a run hold at once."""

    def __init__(self, model: PreTrainedModel, family: Family, settings: CalibrationConfig) -> None:
        self.model, self._settings = model, settings
        self._sublayers = list(family.all_sublayers(model).values())
        self.depth = len(self._sublayers) // 2
        self._width = self._sublayers[0].output.weight.shape[0]
        self._vocabulary = vocabulary_size(model)
        self._each = model.dtype.itemsize
        self.weights = parameter_bytes(model)

    def importance(self) -> int:
        """Hidden states of all blocks, and the gradients of one, for "taylor"."""
        settings = self._settings
        if settings.importance in FROM_MOMENTS:
            return self.calibrating()
        largest = max(
            one.weight.numel() for sublayer in self._sublayers for one in unit_maps(sublayer)
        )
        if settings.importance != "taylor":
            return self.weights + 2 * _DOUBLE * largest
        tokens = settings.gradient_windows * settings.length
        states = tokens * self._width * self._each * (self.depth + 1)
        gradients = self._block() * self._each
        folding = 3 * _FLOAT * largest
        return self.weights + states + gradients + max(folding, self._working(BATCH_TOKENS))

    def calibrating(self) -> int:
        """The hidden state of all text, a Gram matrix, and the factors of those before it."""
        settings = self._settings
        states = settings.moment_tokens * self._width * self._each
        working = self._working(BATCH_TOKENS)
        if not settings.compensate:
            return self.weights + states + working
        gram = max(sublayer.output.weight.shape[1] for sublayer in self._sublayers) ** 2
        return self.weights + states + self._factors() + gram * (_FLOAT + 2 * _DOUBLE) + working

    def measuring(self, device: torch.device) -> int:
        """Hidden states after every step, as far as there is room, and logits of a chunk."""
        tokens = self._settings.measured_tokens
        held = self.held
        states = tokens * self._width * self._each * (2 * self.depth + 1)
        if device.type == "cuda":
            states = min(states, int(KEPT_SHARE * (torch.cuda.mem_get_info(device)[1] - held)))
        chunk = tokens // chunks_of(tokens, device)
        return held + max(states, 0) + self._working(chunk)

    @property
    def held(self) -> int:
        """Weights, and what refits them."""
        return self.weights + self._factors()

    def _factors(self) -> int:
        """Triangular factors and their products with the output projections."""
        if not self._settings.compensate:
            return 0
        return sum(
            _FLOAT * sublayer.output.weight.shape[1] * sum(sublayer.output.weight.shape)
            for sublayer in self._sublayers
        )

    def _block(self) -> int:
        """Numbers in the largest block."""
        each = [
            sum(one.weight.numel() for one in unit_maps(sublayer)) for sublayer in self._sublayers
        ]
        return max(map(sum, zip(each[::2], each[1::2], strict=True)))

    def _working(self, tokens: int) -> int:
        """Logits in two precisions with their probabilities, or what a block computes."""
        logits = tokens * self._vocabulary * (self._each + 2 * _FLOAT)
        widest = max(
            sum(one.weight.shape[0] for one in sublayer.inputs) for sublayer in self._sublayers
        )
        return max(logits, 2 * tokens * widest * self._each)


def _time_one_block(
    config: PreTrainedConfig,
    family: Family,
    window: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Latency:
    """Seconds of a block's steps, and of embedding and head."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        config.get_text_config().vocab_size,
        (max(1, _TIMED_TOKENS // window), window),
        generator=generator,
    )
    if device.type == "cpu":
        sizes = _first_blocks(config, 1, dtype, torch.device("meta"))
        require_memory("timing a block", parameter_bytes(sizes), "use a machine with more memory")
    model = _first_blocks(config, 1, dtype, device)
    return measure_latency(model, family, tokens, repeats=_REPEATS)


def _first_blocks(
    config: PreTrainedConfig, count: int, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model of random weights with so many blocks."""
    few = cast(Any, copy.deepcopy(config))
    few.num_hidden_layers = count
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:count]
    with torch.random.fork_rng(devices=[]), device:
        model = _from_config(few, dtype)
    model.train(mode=False)
    return model


def _from_config(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    return cast(PreTrainedModel, auto.from_config(config, dtype=dtype, trust_remote_code=False))


def _seconds(latency: Latency, keep: float, depth: int) -> float:
    """Seconds a token, of a plan that keeps the same share of every block."""
    steps = sum(
        float(np.interp(keep * curve.units[-1], curve.units, curve.seconds))
        for curve in (*latency.attention, *latency.mlp)
    )
    return (steps * depth + latency.fixed) / (latency.windows * latency.tokens)
