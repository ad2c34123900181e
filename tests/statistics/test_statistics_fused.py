"""The totals of the GPU kernel against plain formulas: on a GPU, else in Triton's interpreter.

The interpreter runs a kernel in numpy, instruction by instruction, so tensors are small there.
"""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from plain_definitions import TENSORS, check_means, normal
from tiny_specs import EVERY_KIND

from lmscout.proxies import CATALOG
from lmscout.statistics import OPERATIONS, Batch, Workers, chain_means, collect, score_proxies
from lmscout.statistics.collect import Build
from lmscout.statistics.fused import fused_totals
from lmscout.statistics.reductions import means_of_totals, plain_totals

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
runs_kernel = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
on_gpu = pytest.mark.skipif(not ON_GPU, reason="no GPU")
# In the interpreter numpy warns of what is not finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Several pieces down, across and both, ends of tiles, and one row or column.
LARGE = {
    "two pieces down": normal(257, 130, scale=0.02),
    "two pieces across": normal(3, 4200),
    "both": normal(140, 300) * 3,
    "a long vector": normal(17000),
    "one long row": normal(1, 17000),
    "a long row of each head": normal(2, 70, 130).softmax(-1),
    "large columns": normal(300, 140).clamp(-3, 3) * 190,
}
# Those that the kernel leaves to the plain walk.
LEFT = {"float64", "squares beyond float32", "huge", "mean >>> std", "tiny to large"}


def totals_of(*tensors):
    return fused_totals([tensor.to(DEVICE) for tensor in tensors])


def means_of(totals):
    return means_of_totals(np.array([totals]))[0]


@runs_kernel
@pytest.mark.parametrize("name", [*TENSORS, *LARGE])
def test_means_are_the_plain_definitions(name):
    tensor = {**TENSORS, **LARGE}[name]
    (totals,) = totals_of(tensor)
    assert (totals is None) == (name in LEFT)
    if totals is not None:
        check_means(tensor, means_of(totals))
        walked = plain_totals(tensor)
        assert (totals[0], totals[1]) == walked[:2]
        assert totals[2:4] == pytest.approx(walked[2:4], rel=1e-7)


@runs_kernel
@settings(max_examples=30, deadline=None)
@given(
    values=arrays(
        np.float32,
        array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=6),
        elements=st.one_of(
            st.floats(-600, 600, width=32),
            st.floats(-1, 1, width=32),
            st.sampled_from([0.0, -0.0, 1.0, -1e-9, 1e-12, -1e-12, 88.7, 88.8]).map(np.float32),
        ),
    ),
)
def test_any_finite_tensor(values):
    tensor = torch.from_numpy(np.array(values))
    check_means(tensor, means_of(totals_of(tensor)[0]))


@runs_kernel
def test_tensors_of_several_kinds_come_back_in_order():
    names = ["weights", "float64", "4-D", "bfloat16", "all near 85", "huge", "float16"]
    names += ["all near -85", "far below zero", "tiny", "transposed"]
    tensors = [TENSORS[name] for name in names]
    together = totals_of(*tensors)
    assert together == [totals_of(tensor)[0] for tensor in tensors]
    assert [one is None for one in together] == [name in LEFT for name in names]


@runs_kernel
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (139, 129)])
def test_what_is_not_finite_or_empty_is_left_to_the_plain_walk(bad, place):
    tensor = normal(140, 130)
    tensor[place] = bad
    left, sound, empty = totals_of(tensor, normal(140, 130), torch.empty(0, 3))
    assert left is None
    assert empty is None
    check_means(normal(140, 130), means_of(sound))


@runs_kernel
def test_what_is_equal_by_definition_is_equal_to_the_bit():
    def of(tensor):
        return dict(zip(OPERATIONS, means_of(totals_of(tensor)[0]), strict=True))

    for positive in map(of, (normal(140, 130).abs() + 0.01, normal(140, 130).relu())):
        assert positive["relu"] == positive["abs"] == positive["identity"]
        assert positive["log"] == positive["abslog"]
    negative = of(-normal(140, 130).abs() - 0.01)
    assert negative["relu"] == negative["log"] == negative["sqrt"] == 0.0
    assert negative["abs"] == negative["negate"]
    constant = of(torch.full((140, 130), 0.1))
    assert constant["std"] == constant["minmax"] == 0.0
    assert constant["mean"] == torch.tensor(0.1).item()
    row = of(normal(1, 9000))
    assert (row["softmax"], row["logsoftmax"]) == (1.0, 0.0)


def test_without_triton_everything_is_left_to_the_plain_walk():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from lmscout.statistics.fused import fused_totals\n"
        "print(fused_totals([torch.ones(3), torch.zeros(0)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[None, None]"


@on_gpu
def test_chains_on_a_gpu_are_those_on_a_cpu():
    chains = [(first, second) for first in OPERATIONS for second in OPERATIONS]
    for tensor in (TENSORS["weights"], TENSORS["up to 300"], TENSORS["causal probabilities"]):
        expected = chain_means(tensor, chains)
        got = chain_means(tensor.cuda(), chains)
        finite = np.isfinite(expected)
        assert np.array_equal(np.isfinite(got), finite)
        apart = np.abs(got - expected)[finite]
        assert np.median(apart / (np.abs(expected[finite]) + 1e-6)) < 1e-6
        assert np.array_equal(got, chain_means(tensor.cuda(), chains), equal_nan=True)


@on_gpu
def test_weights_drawn_on_a_gpu_are_those_of_a_cpu():
    for spec in EVERY_KIND.values():
        expected, model = spec.build(3), Build(3, Batch(3, 6), "cuda")(spec)[0]
        pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
        for (name, one), other in pairs:
            assert one.is_cuda, name
            torch.testing.assert_close(one.cpu(), other, rtol=3e-7, atol=0.0)
        assert all(buffer.is_cuda for buffer in model.buffers())


@on_gpu
def test_statistics_of_architectures_on_a_gpu_are_those_on_a_cpu(tmp_path):
    specs, batch = list(EVERY_KIND.values()), Batch(size=3, length=6)
    chains = [("abs",), ("std",), ("sigmoid",), ("abs", "sqrt"), ("frobenius", "log")]
    names = [entry.name for entry in CATALOG]
    found = {}
    for device in ("cpu", "cuda"):
        at = {"folder": tmp_path, "name": "all", "batch": batch}
        at["workers"] = Workers(1, device=device)
        values = collect(specs, chains, **at).values
        found[device] = values, np.stack(list(score_proxies(specs, names, **at).values()))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    at = {"folder": tmp_path / "shared", "name": "all", "batch": batch}
    at["workers"] = Workers(3, device="cuda")  # processes that share the GPU
    assert collect(specs, chains, **at).values.tobytes() == found["cuda"][0].tobytes()
    shared = np.stack(list(score_proxies(specs, names, **at).values()))
    assert shared.tobytes() == found["cuda"][1].tobytes()
    for on_cpu, on_cuda in zip(found["cpu"], found["cuda"], strict=True):
        np.testing.assert_allclose(on_cuda, on_cpu, rtol=2e-3, atol=1e-6)
