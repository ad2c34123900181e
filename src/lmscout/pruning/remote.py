"""Copies of a model on workers of a cluster, which measure plans.

The model is sent to the cluster once, as arrays; a text and what plans are compared to on it once
more.  A worker on a CPU has as many threads as this process, so that sums are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.cluster import Cluster, Shared, Worker, connect
from lmscout.evaluation import unfilled_model
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.evaluator import Measurement, Reference, SubnetworkEvaluator, Top
from lmscout.pruning.families import Affine, Family, Place, family_of
from lmscout.pruning.plan import Plan, Shape

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Array:
    """A tensor as bytes, which workers of one machine read from shared memory."""

    data: npt.NDArray[np.uint8]
    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        """The bytes of a tensor."""
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return cls(flat.numpy(), tensor.dtype, tensor.shape)

    @property
    def tensor(self) -> Tensor:
        """A view of the bytes, not to be written to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not writable
            return torch.from_numpy(self.data).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Sent:
    """What a worker needs of a calibrated model."""

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    dtype: torch.dtype
    tensors: Mapping[str, Array]
    factors: Mapping[Place, tuple[Array, Array]] | None  # of the compensation
    threads: int
    device: str  # its kind

    @classmethod
    def of(cls, model: PreTrainedModel, compensation: Compensation | None) -> Sent:
        """A model and its compensation."""
        factors = None
        if compensation is not None:
            factors = {
                place: (Array.of(factor), Array.of(product))
                for place, (factor, product) in compensation.factors.items()
            }
        return cls(
            type(model),
            model.config,
            model.dtype,
            {name: Array.of(tensor) for name, tensor in tensors_of(model).items()},
            factors,
            torch.get_num_threads(),
            model.device.type,
        )


@dataclass(frozen=True)
class MeasuredText:
    """Tokens on which plans are measured, and what plans are compared to."""

    windows: npt.NDArray[np.int64]  # [windows, T]
    quality: str
    chunks: int
    references: tuple[Reference, ...]


class Copy:
    """The dense model on a worker, with an evaluator of the text that was measured on last."""

    def __init__(self, sent: Sent) -> None:
        torch.set_num_threads(sent.threads)
        device = torch.device(sent.device)
        tensors = {name: array.tensor for name, array in sent.tensors.items()}
        self._model = filled(sent.model_class, sent.config, sent.dtype, tensors, device)
        self._family = family_of(sent.config)
        self._compensation = None
        if sent.factors is not None:
            factors = {
                place: (factor.tensor, product.tensor)
                for place, (factor, product) in sent.factors.items()
            }
            outputs = outputs_of(self._model, self._family)
            self._compensation = Compensation.of_factors(outputs, factors, device)
        self._text = ""

    def measure(self, text: Shared, plan: Plan, limits: Sequence[float]) -> Measurement:
        """Measure a plan, see `SubnetworkEvaluator.measure`."""
        if self._text != text.key:
            on: MeasuredText = text.get()
            self._evaluator = SubnetworkEvaluator(
                self._model,
                self._family,
                torch.tensor(on.windows),
                compensation=self._compensation,
                quality=on.quality,
                chunks=on.chunks,
                references=on.references,
            )
            self._text = text.key
        (measurement,) = self._evaluator.measure([plan], [limits])
        return measurement


@dataclass(frozen=True)
class RemoteCopies:
    """Workers with a copy of the model each."""

    cluster: Cluster
    workers: tuple[Worker, ...]

    @classmethod
    def begin(cls, address: str, device: torch.device) -> RemoteCopies:
        """Start workers on all machines with room; LmscoutError if there is none.

        They import what they need, which takes seconds, before the model is sent.
        """
        cluster = connect(address)
        gpus, cpus = int(device.type != "cpu"), torch.get_num_threads()
        return cls(cluster, tuple(cluster.workers(Copy, cpus=cpus, gpus=gpus)))

    def send(self, model: PreTrainedModel, compensation: Compensation | None) -> None:
        """Send the calibrated model."""
        sent = self.cluster.share(Sent.of(model, compensation))
        for worker in self.workers:
            worker.give(sent)

    def evaluators(
        self, local: SubnetworkEvaluator, windows: Tensor, quality: str
    ) -> list[RemoteEvaluator]:
        """Evaluators that compare plans to what one here compares them to."""
        references = tuple(
            (nll, top and Top(top.log_probabilities.cpu(), top.tokens.cpu()))
            for nll, top in local.references
        )
        on = MeasuredText(windows.cpu().numpy(), quality, len(references), references)
        text = self.cluster.share(on)
        return [RemoteEvaluator(local, worker, text) for worker in self.workers]


class RemoteEvaluator:
    """Measures plans on one worker, as the evaluator here would."""

    def __init__(self, local: SubnetworkEvaluator, worker: Worker, text: Shared) -> None:
        self.shape: Shape = local.shape
        self.references = local.references
        self.tokens, self.dense_nll = local.tokens, local.dense_nll
        self._worker, self._text = worker, text

    def ready(self, seconds: float) -> bool:
        """Whether the worker runs, after waiting for at most so long."""
        return self._worker.ready(seconds)

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans; `WorkerLostError` if the worker ends meanwhile."""
        for plan, most in zip(plans, repeat(()) if limits is None else limits, strict=False):
            yield self._worker.call("measure", self._text, plan, tuple(most))


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers of a model, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def filled(
    model_class: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> PreTrainedModel:
    """A model on a device with these tensors, without a temporary copy on theirs."""
    make = partial(model_class._from_config, config, dtype=dtype)
    model: Any = unfilled_model(make, device)
    for name, target in tensors_of(model).items():
        target.data = target.data.to(tensors[name].dtype)
        target.copy_(tensors[name])
    return cast(PreTrainedModel, model.eval())


def outputs_of(model: PreTrainedModel, family: Family) -> dict[Place, Affine]:
    """The output projection of every sublayer."""
    return {place: one.output for place, one in family.all_sublayers(model).items()}
