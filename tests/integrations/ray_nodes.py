"""A Ray cluster of three nodes on this machine, one core each; a fixture for the tests here."""

import os
import time
from contextlib import contextmanager

import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lmscout[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@contextmanager
def three_nodes():
    """The address, and a function that kills one of the nodes."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    cluster = Cluster()
    try:
        _add(cluster, include_dashboard=False)
        nodes = [_add(cluster) for _ in range(2)]
        yield cluster.address, lambda: cluster.remove_node(nodes.pop(), allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _add(cluster, **options):
    """Another node; Ray waits 30 s for it, which a busy machine may need for other work."""
    here = psutil.Process()
    for tries_left in (2, 1, 0):
        before = set(here.children())
        try:
            return cluster.add_node(**_NODE, **options)
        except Exception as error:
            if "timed out during startup" not in str(error) or not tries_left:
                raise
            for process in set(here.children()) - before:
                process.kill()


def alive():
    """Number of nodes."""
    return sum(node["Alive"] for node in ray.nodes())


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
