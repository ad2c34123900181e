"""Plans measured on several devices at once, each with a copy of the model.

What a plan is worth does not depend on where it is measured, and what comes out does not
depend on how many devices there are: limits are known before a list of plans is begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import repeat
from threading import Lock
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lmscout.evaluation import unfilled_model
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.subnetwork import Measurement, Reference, SubnetworkEvaluator


class ParallelEvaluator:
    """As many evaluators of one model and one text, each on a device of its own."""

    def __init__(self, evaluators: Sequence[SubnetworkEvaluator]) -> None:
        """Take the evaluators, one a device, all with the same text."""
        self._evaluators = tuple(evaluators)
        # Each keeps its thread: PyTorch makes a thread's cuBLAS handles when it first multiplies,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]

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
        """Measure plans, as `SubnetworkEvaluator.measure`; in the same order, as they are done.

        Each device begins with a run of neighbours of its own, as these begin alike; one that
        is done takes from the end of the longest run that is left.
        """
        every = list(zip(plans, repeat(()) if limits is None else limits, strict=False))
        runs = _Runs(len(every), len(self._evaluators))
        answers: list[Future[Measurement]] = [Future() for _ in every]

        def work(number: int) -> None:
            while (place := runs.take(number)) is not None:
                plan, most = every[place]
                try:
                    (measured,) = self._evaluators[number].measure([plan], [most])
                except BaseException as error:
                    answers[place].set_exception(error)
                    runs.stop()
                    raise
                answers[place].set_result(measured)

        workers = [thread.submit(work, number) for number, thread in enumerate(self._threads)]
        try:
            for answer in answers:
                while not answer.done():
                    for worker in workers:
                        if worker.done():
                            worker.result()  # what stopped it
                    try:
                        answer.exception(timeout=1)
                    except TimeoutError:
                        continue
                yield answer.result()
        finally:
            runs.stop()  # where nobody wants the rest
            wait(workers)


class _Runs:
    """Places of a list, a run of neighbours for each worker."""

    def __init__(self, count: int, workers: int) -> None:
        ends = [count * number // workers for number in range(workers + 1)]
        self._runs = [deque(range(*ends[number : number + 2])) for number in range(workers)]
        self._lock = Lock()

    def take(self, worker: int) -> int | None:
        """The next place for a worker; None where there is none left."""
        with self._lock:
            if self._runs[worker]:
                return self._runs[worker].popleft()
            longest = max(self._runs, key=len)
            return longest.pop() if longest else None

    def stop(self) -> None:
        """Nothing more is to be taken."""
        with self._lock:
            for run in self._runs:
                run.clear()


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
