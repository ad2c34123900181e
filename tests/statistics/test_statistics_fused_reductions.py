"""The fused reductions against the plain ones: on a GPU, else in Triton's interpreter.

The interpreter runs a kernel in numpy, instruction by instruction, so tensors are small there.
"""

import importlib.util
import itertools
import math
import os

import numpy as np
import pytest
import torch

from lmscout.statistics import unary_means
from lmscout.statistics.fused_pieces import Tile, Tuning, slots_of
from lmscout.statistics.fused_reductions import fused_totals, prepare
from lmscout.statistics.plain_walk import plain_totals
from lmscout.statistics.reductions import has_fused, tensor_totals
from lmscout.statistics.totals import OPERATIONS, means_of_totals

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = Tuning(programs=1000, least=1 << 10)  # many pieces even of small tensors


def cannot_run():
    """Why the kernel cannot run here, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not ON_GPU and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return "no GPU, and Triton's interpreter does not run with numpy 2.4"
    return ""


if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is first imported
# What overflows in numpy, as in a kernel, is found by the kernel and summed carefully.
pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning"
)
runs_kernel = pytest.mark.skipif(bool(cannot_run()), reason=cannot_run())


def normal(*shape, scale=1.0, shift=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)


def causal(length):
    scores = normal(4, length, length)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def small(*shape, scale=0.02, dtype=torch.float32, **rows):
    """Numbers like weights; `rows`, as row_7=0.5, are set, and none of them is looked at ahead."""
    tensor = normal(*shape, scale=scale)
    for row, value in rows.items():
        at = int(row.removeprefix("row_"))
        assert at % 32 >= 4, "the first tile of each quarter decides how a piece is walked"
        tensor[at] = value
    return tensor.to(dtype)


TENSORS = {
    "weights": normal(200, 300, scale=0.02, dtype=torch.bfloat16),
    "rows and columns left over": normal(150, 137),
    "rows two elements aligned": normal(140, 134, scale=0.02, dtype=torch.bfloat16),
    "rows one element aligned": normal(140, 133, scale=0.02, dtype=torch.bfloat16),
    "columns of a transposed tensor": normal(130, 200, dtype=torch.bfloat16).T,
    "half precision": normal(140, 136, dtype=torch.float16),
    "few rows": normal(3, 5, 700, dtype=torch.bfloat16),
    "one row": normal(1, 40, 120, dtype=torch.bfloat16),
    "one column": normal(300),
    "one element": torch.tensor([[-0.3]]),
    "0-dimensional": torch.tensor(0.7),
    "transposed": normal(60, 150).T,
    "strided": normal(300, 200)[::2, 1::3],
    "expanded": normal(1, 7).expand(150, 7),
    "causal probabilities": causal(40),
    "all zero": torch.zeros(140, 130),
    "constant": torch.full((140, 130), 0.1),
    "negative": -normal(140, 130).abs() - 0.01,
    "positive and zero": normal(140, 130).relu(),
    "up to 300": normal(140, 130).clamp(-3, 3) * 100,
    "all near 85": normal(140, 130, shift=85.0),
    "all near -85": normal(140, 130, shift=-85.0),
    "mean >> std": normal(140, 130, scale=1e-3, shift=7.0),
    "tiny": normal(140, 130, scale=1e-12),
    "squares below float32": normal(140, 130, scale=1e-22),
    "huge": normal(140, 130).clamp(-3, 3) * 1e38,
    "one piece unlike the others": torch.cat([normal(130, 130), normal(30, 130) * 1e9]),
    "poles of the reciprocal": torch.tensor([-1e-9, 0.5, -1e-9, 2.0]).repeat(140, 30),
}
# What looks small is added by powers, with products of eight, and has to be walked again where
# it turns out not to be.  Four tiles of four rows are looked at: 128 rows have three without.
SMALL_ONES = {
    "small": small(140, 130),
    "small, bfloat16": small(140, 260, dtype=torch.bfloat16),
    "small, half precision": small(140, 260, dtype=torch.float16),
    "small, two elements aligned": small(140, 134, dtype=torch.bfloat16),
    "small, one element aligned": small(140, 133, dtype=torch.bfloat16),
    "small, strided": small(280, 402)[::2, 1::3],
    "small, few rows": small(8, 5, 300),
    "small, one row": small(1, 40, 150),
    "small, negative": -small(132, 128).abs(),
    "small, positive": small(132, 128).abs(),
    "small, like gradients": small(132, 128, scale=1e-6),
    "small, a zero": small(132, 128, row_9=0.0),
    "small, half of them zero": small(132, 128).relu(),
    "small, a larger one": small(132, 128).index_put(
        (torch.tensor(9), torch.tensor(9)), torch.tensor(0.4)
    ),
    "small, a row of large ones": small(132, 128, row_9=1.5),
    "small, a row beyond e^x": small(132, 128, row_9=90.0),
    "small, a row of tiny ones": small(132, 128, row_9=1e-12, row_10=-1e-12),
    "small, a denormal": small(132, 128, row_9=1e-39),
    "small, a pole": small(132, 128, row_9=-1e-9),
    "small, ever smaller": small(132, 128) * torch.logspace(0, -30, 132)[:, None],
    # Eight of the largest, lifted, overflow when multiplied, but no seven: nothing infinite shows.
    "small, then larger by far": small(
        132, 128, scale=5e-4, row_17=0.144, row_21=0.144, row_25=0.144, row_29=0.144
    ),
    # The largest would be lifted so little that products of eight zeros plus 1e-9 underflow.
    "small, zeros and a larger one": small(132, 128)
    .relu()
    .index_put((torch.tensor(0), torch.tensor(9)), torch.tensor(0.3)),
    # The largest are some thirty times as large as what is looked at.
    "small, then larger": small(132, 128, scale=1e-3, row_9=0.1, row_10=-0.1),
    "small, probabilities": (normal(132, 512) * 2).softmax(-1)[:, :128],
}
TENSORS |= SMALL_ONES


def check(tensor, totals):
    """Compare with the plain walk, each mean to float32's precision of its terms."""
    x = tensor.double()
    got = dict(zip(OPERATIONS, means_of_totals(totals[None])[0], strict=True))
    plain = unary_means(tensor.cpu())
    size = x.abs().mean().item()
    sizes = {  # where terms cancel, a sum rounds in proportion to them
        **dict.fromkeys(("identity", "mean", "meansum", "negate", "relu", "abs", "l1"), size),
        "invert": (tensor.float() + 1e-9).double().reciprocal().abs().mean().item(),
        "log": x.abs().log().nan_to_num(0, 0, 0).abs().mean().item(),
        "logsoftmax": 1 + x.abs().max().item(),
        "minmax": 1.0,
    }
    for name, expected in zip(OPERATIONS, plain, strict=True):
        if not math.isfinite(expected):
            assert got[name] == pytest.approx(expected, nan_ok=True), name
            continue
        scale = sizes.get(name, 0.0)
        scale = max(abs(expected), scale) if math.isfinite(scale) else abs(expected)
        assert got[name] == pytest.approx(expected, abs=1e-5 * scale + 1e-42, rel=0), name


@runs_kernel
@pytest.mark.parametrize("name", TENSORS)
def test_means_are_those_of_the_plain_walk(name):
    tensor = TENSORS[name].to(DEVICE)
    tuning = SMALL if name in ("weights", "rows and columns left over") else Tuning()
    check(tensor, fused_totals([tensor], tuning)[0].cpu().numpy())


@runs_kernel
@pytest.mark.parametrize("slots", [2, 4] if ON_GPU else [4])
@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize("rows", [3, 4, 8, 12, 18, 21, 36])
def test_a_column_may_have_any_number_of_steps(rows, scale, slots):
    # None, one, fewer than are under way at once, and more, with rows left over or without;
    # three columns in a piece, two of them whole.
    kinds = [torch.float32, *([torch.bfloat16] if ON_GPU else [])]
    for kind, columns in itertools.product(kinds, [1100, 1098] if ON_GPU else [1100]):
        tensor = normal(rows, columns, scale=scale, dtype=kind).to(DEVICE)
        tuning = Tuning(least=1 << 18, slots=slots)
        check(tensor, fused_totals([tensor], tuning)[0].cpu().numpy())


@runs_kernel
def test_what_is_equal_by_definition_is_equal_to_the_bit():
    def of(name):
        totals = fused_totals([TENSORS[name].to(DEVICE)]).cpu().numpy()
        return dict(zip(OPERATIONS, means_of_totals(totals)[0], strict=True))

    for positive in map(of, ("positive and zero", "small, positive", "small, half of them zero")):
        assert positive["relu"] == positive["abs"] == positive["identity"]
        assert positive["log"] == positive["abslog"]
    for negative in map(of, ("negative", "small, negative")):
        assert negative["relu"] == negative["log"] == negative["sqrt"] == 0.0
        assert negative["abs"] == negative["negate"]
    constant = of("constant")
    assert constant["std"] == constant["minmax"] == 0.0
    assert constant["mean"] == TENSORS["constant"][0, 0].item()


@runs_kernel
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_a_tensor_that_is_not_finite_has_no_means(bad, scale):
    tensor = normal(140, 130, scale=scale)
    tensor[70, 100] = bad
    sound = normal(140, 130)
    means = means_of_totals(fused_totals([tensor.to(DEVICE), sound.to(DEVICE)]).cpu().numpy())
    assert np.isnan(means[0]).all()
    assert np.isfinite(means[1]).all()


@runs_kernel
@pytest.mark.parametrize("largest", [0.03, 0.1, 0.15, 0.25, 0.5, 1.0])
def test_sums_of_powers_are_used_only_where_they_are_exact(largest):
    x = torch.linspace(0.3 * largest, largest, 128 * 128).reshape(128, 128)
    totals = fused_totals([x.to(DEVICE)]).cpu().numpy()
    got = dict(zip(OPERATIONS, means_of_totals(totals)[0], strict=True))
    x = x.double()
    assert got["exp"] == pytest.approx(x.exp().mean().item(), rel=3e-7)
    assert got["sigmoid"] == pytest.approx(x.sigmoid().mean().item(), rel=3e-7)
    expected = x.log_softmax(0).mean().item()
    assert got["logsoftmax"] == pytest.approx(expected, rel=3e-7)


@runs_kernel
@pytest.mark.skipif(ON_GPU, reason="only the interpreter's functions can be watched")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small", "walk small quads"),  # the quads are the edges
        ("small, like gradients", "walk small quads"),
        ("small, a zero", "walk small quads"),
        ("small, half of them zero", "walk small quads"),
        ("small, a larger one", "walk small quads"),
        ("small, a row of large ones", "walk small quads walk quads"),
        ("small, a row beyond e^x", "walk small quads walk quads carefully"),
        ("small, zeros and a larger one", "walk small quads"),
        ("small, then larger", "walk small quads"),
        ("small, probabilities", "walk small quads"),
        ("small, then larger by far", "walk small quads walk quads"),
        ("rows and columns left over", "walk quads"),
        ("all zero", "walk quads"),
        ("tiny", "walk quads"),
    ],
)
def test_a_piece_is_walked_no_more_than_it_has_to_be(name, expected, monkeypatch):
    from lmscout.statistics import fused_kernel, fused_stripes

    walks = []

    def watch(module, function, word):
        walk = getattr(module, function)

        def watched(*arguments):
            if walks[-1:] != [word]:
                walks.append(word)
            return walk(*arguments)

        monkeypatch.setattr(module, function, watched)

    watch(fused_kernel, "walk_stripes", "walk")
    watch(fused_stripes, "add_small", "small")
    watch(fused_stripes, "add_quads", "quads")
    watch(fused_kernel, "walk_carefully", "carefully")
    fused_totals([TENSORS[name]], Tuning(least=1 << 18))  # a single piece
    assert walks == expected.split()


@runs_kernel
def test_tensors_of_several_kinds_come_back_in_order():
    names = ("weights", "one row", "half precision", "few rows", "rows and columns left over")
    tensors = [TENSORS[name].to(DEVICE) for name in names]
    totals = fused_totals(tensors).cpu().numpy()
    for tensor, row in zip(tensors, totals, strict=True):
        check(tensor, row)


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
def test_large_tensors_on_a_gpu_are_reduced_fused_and_always_alike():
    tensors = [
        normal(4096, 11008, scale=0.02, dtype=torch.bfloat16).cuda(),
        normal(1, 2048, 5504, dtype=torch.bfloat16).cuda(),
        causal(1024).bfloat16().cuda(),
        (normal(1000, 1003) * 100).cuda(),
    ]
    assert has_fused(tensors)
    totals = tensor_totals(tensors)
    assert totals.is_cuda
    for tensor, row in zip(tensors, totals.cpu().numpy(), strict=True):
        check(tensor, row)
    assert torch.equal(totals, tensor_totals(tensors))


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_bfloat16_is_taken_apart_exactly(scale):
    # Triton's interpreter misreads a bfloat16 below 2^-126, so that this is for a GPU.
    for tiny in (0.0, 1e-39, -1e-39):
        tensor = small(300, 520, scale=scale, row_9=tiny, dtype=torch.bfloat16).to(DEVICE)
        check(tensor, fused_totals([tensor])[0].cpu().numpy())


def test_the_plain_walk_takes_what_the_kernel_does_not():
    assert not has_fused([normal(3, 4)])
    tensors = [normal(3, 4).double(), normal(5)]
    expected = np.array([plain_totals(tensor) for tensor in tensors])
    assert np.array_equal(tensor_totals(tensors).numpy(), expected)


@pytest.mark.parametrize(
    "shape",
    [
        *((1,), (5,), (4096, 4096), (4096, 11008), (32000, 4096), (8806, 4096), (4096, 8806)),
        *((200, 7), (1, 2048, 11008), (16, 128, 11008), (3, 5, 700), (32, 2048, 2048)),
        (1, 4, 33, 33),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pieces_cover_a_tensor_once(shape, dtype):
    tensor = torch.empty(1, dtype=dtype).expand(shape) if len(shape) == 2 else None
    if tensor is None:
        tensor = torch.empty(shape, dtype=dtype)
    ((_, launch),) = prepare([tensor], Tuning(programs=660))
    row = dict(zip(FIELDS, launch.table[0].tolist(), strict=False))
    assert row["pieces"] == row["parts"] * row["stripes"] <= 5000
    assert row["pieces"] == launch.sums.shape[1]
    assert len(launch.stripe_logs) == row["stripes"]
    covered = 0
    for part in range(row["parts"]):
        top = part * row["height"]
        bottom = min(top + row["height"], row["rows"])
        assert top < bottom
        covered += (bottom - top) * row["columns"]
    left = (row["stripes"] - 1) * row["width"]
    assert left < row["columns"] <= left + row["width"]
    assert covered == row["rows"] * row["columns"]
    # Only a vector made into a matrix has a last row that is short.
    missing = covered - tensor.numel()
    assert missing == 0 or (row["axis"] == 1 and 0 < missing < row["columns"])
    assert row["parts"] == 1 or row["width"] == launch.tile.width
    needed = row["parts"] * row["columns"] if row["parts"] > 1 and row["axis"] > 1 else 0
    assert needed <= launch.parts.shape[1] < needed + 4


@pytest.mark.parametrize(
    ("dtype", "vector", "warps", "slots", "expected"),
    [
        (torch.bfloat16, 4, 4, 4, 4),
        (torch.bfloat16, 1, 4, 4, 0),  # two bytes cannot be copied so
        (torch.float32, 1, 4, 4, 4),
        (torch.float32, 4, 4, 8, 4),  # 8 KiB a step
        (torch.float32, 4, 8, 4, 2),
        (torch.float32, 4, 16, 4, 0),
        (torch.bfloat16, 4, 4, 0, 0),
    ],
)
def test_steps_under_way_fit_into_shared_memory(dtype, vector, warps, slots, expected):
    tile = Tile(dtype, 1, 32 * warps, vector, True)
    assert slots_of(tile, Tuning(warps=warps, slots=slots)) == expected


FIELDS = (
    *("pointer", "rows", "columns", "down", "right", "n", "first", "pieces", "parts", "height"),
    *("width", "parts_at", "axis", "first_stripe", "stripes"),
)
