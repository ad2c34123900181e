"""Plans measured on several devices at once, each with a copy of the model.

What a plan is worth does not depend on where it is measured, and what comes out does not
depend on how many devices there are: limits are known before a list of plans is begun.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import repeat
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lmscout.evaluation import unfilled_model
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.subnetwork import Evaluator, Measurement, Reference
from lmscout.pruning.subnetworks.workload import Workload, measured_by


class ParallelEvaluator:
    """As many evaluators of one model and one text, each on a device of its own."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        """Take the evaluators, one a device, all with the same text."""
        self._evaluators = tuple(evaluators)
        # Each keeps its thread: PyTorch makes a thread's cuBLAS handles when it first multiplies,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]
        self._end = weakref.finalize(self, _shut_down, self._threads)

    def close(self) -> None:
        """End the threads; also done when nothing refers to this any more."""
        self._end()

    @property
    def shape(self) -> Shape:
        """Units of the dense model."""
        return self._evaluators[0].shape

    @property
    def tokens(self) -> int:
        """Predicted tokens of a complete measurement."""
        return self._evaluators[0].tokens

    @property
    def dense_nll(self) -> float:
        """Negative log-likelihood of the dense model, in nats a token."""
        return self._evaluators[0].dense_nll

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, portion by portion."""
        return self._evaluators[0].references

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans, as `SubnetworkEvaluator.measure`; in the same order, as they are done."""
        tasks = list(zip(plans, repeat(()) if limits is None else limits, strict=False))
        early: dict[int, Measurement] = {}
        with self.workload() as work:
            work.add(tasks)
            for place in range(len(tasks)):
                while place not in early:
                    if (done := work.take()) is not None:
                        early[done.place] = done.measured
                yield early.pop(place)

    def workload(self) -> AbstractContextManager[Workload]:
        """Plans that are measured as they are added, while the block lasts."""
        return measured_by(self._evaluators, self._threads)


def _shut_down(threads: Sequence[ThreadPoolExecutor]) -> None:
    for thread in threads:
        thread.shutdown(wait=False, cancel_futures=True)


@torch.no_grad()
def replica(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy of a model on another device; on its own device nothing is copied meanwhile."""
    model_class: Any = type(model)
    make = partial(model_class._from_config, model.config, dtype=model.dtype)
    other: Any = unfilled_model(make, device)
    sources = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, target in targets.items():
        target.data = target.data.to(sources[name].dtype)
        target.copy_(sources[name])
    return cast(PreTrainedModel, other.eval())
