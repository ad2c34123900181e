"""Plans added while others are measured: each is measured once, by an idle device."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.cluster import WorkerLostError
from lmscout.errors import LmscoutError
from lmscout.pruning.devices import (
    ATTEMPTS,
    DeviceQueue,
    RemoteEvaluator,
    Schedule,
    SerialQueue,
)
from lmscout.pruning.evaluator import Measurement
from lmscout.pruning.plan import Plan


def task(number):
    return Plan((number,), (1,)), (float(number),)


class Numbers:
    """A device for which a plan rises by its number; it may be held up, or fail."""

    def __init__(self, held=(), broken=None):
        self.seen, self.free, self.held, self.broken = [], threading.Event(), held, broken

    def measure(self, plans, limits=None):
        for plan, most in zip(plans, limits or itertools.repeat(()), strict=False):
            (number,) = plan.attention
            self.seen.append(number)
            if number in self.held:
                assert self.free.wait(30)
            if number == self.broken:
                raise LmscoutError(f"plan {number} does not fit")
            yield Measurement(((10, number + most[0]),), True)


@contextmanager
def devices_queue(*devices):
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(1) as other,
        closing(DeviceQueue(devices, [one, other][: len(devices)])) as work,
    ):
        yield work


def serial(device):
    return closing(SerialQueue(device))


def taken(work, count):
    return {
        done.number: done.measurement.loss_increase for done in (work.take() for _ in range(count))
    }


@pytest.mark.parametrize("begin", [serial, devices_queue])
def test_what_is_added_is_measured_in_order_with_its_own_limits(begin):
    device = Numbers()
    with begin(device) as work:
        work.add([task(number) for number in range(3)])
        assert taken(work, 2) == {0: 0, 1: 2}
        work.add([])
        work.add([task(number) for number in range(3, 6)])
        assert taken(work, 4) == {place: 2 * place for place in range(2, 6)}
    assert device.seen == list(range(6))


@pytest.mark.parametrize("begin", [serial, devices_queue])
def test_an_error_comes_out_where_it_is_waited_for(begin):
    device = Numbers(broken=1)
    with begin(device) as work:
        work.add([task(number) for number in range(4)])
        assert taken(work, 1) == {0: 0}
        with pytest.raises(LmscoutError, match="plan 1 does not fit"):
            work.take()
    assert device.seen == [0, 1]


def test_devices_go_on_with_what_is_added_while_they_work():
    slow, quick = Numbers(held=[0]), Numbers(held=[2])
    with devices_queue(slow, quick) as work:
        work.add([task(number) for number in range(4)])
        while not (slow.seen and quick.seen):  # each has begun with its own run
            time.sleep(0.001)
        quick.free.set()
        assert taken(work, 3).keys() == {2, 3, 1}
        work.add([task(number) for number in range(4, 6)])
        assert taken(work, 2).keys() == {5, 4}
        slow.free.set()
        assert taken(work, 1).keys() == {0}
    assert quick.seen == [2, 3, 1, 5, 4]  # its own run before that of the other
    assert slow.seen == [0]


def test_who_waits_can_be_woken_and_the_end_waits_for_what_is_under_way():
    device = Numbers(held=[0])
    with devices_queue(device) as work:
        work.add([task(number) for number in range(3)])
        threading.Timer(0.05, work.wake).start()
        assert work.take() is None
        threading.Timer(0.05, device.free.set).start()
    assert device.free.is_set()
    assert device.seen == [0]


@given(
    added=st.lists(st.integers(0, 9), max_size=5),
    order=st.lists(st.integers(0, 2), max_size=60),
)
def test_every_place_is_taken_once_and_own_runs_are_neighbours(added, order):
    schedule = Schedule(3)
    for count in added:
        schedule.add(count)
    taken = {device: [] for device in range(3)}
    for device in [*order, *[0, 1, 2] * sum(added)]:
        place = schedule._next(device)
        if place is not None:
            taken[device].append(place)
    assert sorted(itertools.chain(*taken.values())) == list(range(sum(added)))


def test_what_was_added_first_is_done_first_but_for_a_last_plan():
    schedule = Schedule(2)
    schedule.add(6)  # 0 1 2, and 3 4 5
    schedule.add(4)  # 6 7, and 8 9
    assert [schedule.take(0) for _ in range(3)] == [0, 1, 2]
    assert [schedule.take(0) for _ in range(2)] == [5, 4]  # 3 is left to the other
    assert [schedule.take(0) for _ in range(2)] == [6, 7]
    assert schedule.take(1) == 3
    assert [schedule.take(0) for _ in range(2)] == [9, 8]
    schedule.close()
    assert schedule.take(0) is schedule.take(1) is None


class Mortal:
    """A worker of a cluster that ends when it measures certain plans, and may come back."""

    shape = references = None  # as if of the model here

    def __init__(self, fatal=(), returns=True, after=()):
        self.fatal, self.returns, self.alive, self.seen = set(fatal), returns, True, []
        self.after = after  # workers that have to be lost before

    def ready(self, seconds):
        if not self.alive:
            time.sleep(0.01)
            self.alive = self.returns
        return self.alive

    def call(self, method, text, plan, limits):
        (number,) = plan.attention
        while any(one.alive for one in self.after):
            time.sleep(0.001)
        self.seen.append(number)
        if number in self.fatal:
            self.alive = False
            raise WorkerLostError
        return Measurement(((10, number + limits[0]),), True)


def on_workers(*workers):
    return devices_queue(*(RemoteEvaluator(one, one, None) for one in workers))


def test_plans_of_a_worker_that_is_lost_are_measured_by_another():
    lost = Mortal(fatal=[1], returns=False)
    other = Mortal(after=[lost])
    with on_workers(lost, other) as work:
        for first in (0, 6):  # what is added later waits for nobody, either
            work.add([task(number) for number in range(first, first + 6)])
        assert taken(work, 12) == {number: 2 * number for number in range(12)}
        work.add([task(12)])
        assert taken(work, 1) == {12: 24}
    assert lost.seen == [0, 1]
    assert sorted(other.seen) == list(range(1, 13))


def test_a_worker_that_comes_back_measures_again():
    worker = Mortal(fatal=[1])
    with on_workers(worker) as work:
        work.add([task(number) for number in range(3)])
        assert taken(work, 1) == {0: 0}
        while worker.seen != [0, 1]:
            time.sleep(0.001)
        worker.fatal.clear()
        assert taken(work, 2) == {1: 2, 2: 4}


def test_a_plan_that_ends_every_worker_ends_the_run():
    workers = [Mortal(fatal=[1]), Mortal(fatal=[1])]
    with on_workers(*workers) as work:
        work.add([task(1)])
        with pytest.raises(LmscoutError, match=f"ended its worker in the cluster {ATTEMPTS} times"):
            work.take()
    assert sum(len(one.seen) for one in workers) == ATTEMPTS


@given(
    added=st.lists(st.integers(0, 9), max_size=5),
    order=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60),
)
def test_whoever_leaves_every_place_is_done_once(added, order):
    schedule = Schedule(3)
    done, rest = [], list(added)
    for device, leaves in order:
        if rest:
            schedule.add(rest.pop())
        place = schedule._next(device)
        if leaves:
            schedule.leave(device, [] if place is None else [place])
        elif place is not None:
            schedule._present.add(device)
            done.append(place)
    while rest:
        schedule.add(rest.pop())
    schedule.leave(0)
    schedule.leave(2)
    while (place := schedule._next(1)) is not None:
        done.append(place)
    assert sorted(done) == list(range(sum(added)))
