"""A Ray cluster of three nodes on this machine, one core each; a fixture for the tests here."""

import os
import time
from contextlib import contextmanager

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lmscout[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@contextmanager
def three_nodes():
    """The address, and a function that kills one of the nodes."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    cluster = Cluster(True, head_node_args={**_NODE, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(**_NODE) for _ in range(2)]
        yield cluster.address, lambda: cluster.remove_node(nodes.pop(), allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


def alive():
    """Number of nodes."""
    return sum(node["Alive"] for node in ray.nodes())


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
