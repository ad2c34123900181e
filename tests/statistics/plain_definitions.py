"""The twenty operations as plain formulas in float64, and tensors that try them."""

import math

import numpy as np
import pytest
import torch

from lmscout.statistics import OPERATIONS

EPS = 1e-9
LARGEST = float(np.finfo(np.float32).max)


def plain(tensor):
    """Each operation's elements in float64, from the formulas of the published space."""
    x32 = tensor.float().numpy()
    x = x32.astype(np.float64)
    # What a float32 shift rounds to decides where the reciprocal has its pole.
    shifted = (x32 + np.float32(EPS)).astype(np.float64)
    columns = x.reshape(len(x) if x.ndim else 1, -1)
    top = columns.max(axis=0)
    powers = np.exp(columns - top)
    centre = x.sum() / x.size
    spread = math.sqrt(((x - centre) ** 2).sum() / (x.size - 1)) if x.size > 1 else 0.0
    with np.errstate(over="ignore"):
        exp, square = np.exp(x), x**2
        sigmoid = 1 / (1 + np.exp(-x))
    return {
        "log": np.log(np.where(x > 0, x, 1)),
        "abslog": np.log(np.where(x == 0, 1, np.abs(x))),
        "abs": np.abs(x),
        "square": np.where(square > LARGEST, np.inf, square),
        "exp": np.where(exp > LARGEST, np.inf, exp),
        "normalize": (x - centre) / (spread + EPS),
        "relu": np.maximum(x, 0),
        "invert": np.where(shifted == 0, 0, 1 / np.where(shifted == 0, 1, shifted)),
        "frobenius": np.sqrt((x**2).sum()),
        "meansum": centre,
        "l1": np.abs(x).sum() / x.size,
        "softmax": powers / powers.sum(axis=0),
        "sigmoid": sigmoid,
        "logsoftmax": columns - top - np.log(powers.sum(axis=0)),
        "sqrt": np.sqrt(np.maximum(x, 0)),
        "negate": -x,
        "minmax": (x - x.min()) / (x.max() - x.min() + EPS),
        "mean": centre,
        "std": spread,
        "identity": x,
    }


def check_means(tensor, means):
    """Compare the twenty means with the plain definition, to float32's precision of the terms."""
    x = tensor.double()
    size = x.abs().mean().item()
    absolute = {
        # A sum rounds in proportion to its terms, whatever they cancel to.
        **dict.fromkeys(("meansum", "mean", "identity", "negate"), 1e-6 * size),
        "minmax": 1e-6,
        "logsoftmax": 1e-6 * (1 + x.abs().max().item()),
        # PyTorch's float32 sigmoid is 0 on some CPUs where e^x is no normal number.
        "sigmoid": 1e-5 * x.sigmoid().mean().item() + 1.2e-38,
    }
    got = dict(zip(OPERATIONS, means, strict=True))
    for name, elements in plain(tensor).items():
        if name == "normalize":  # centred: the mean is 0, and not what rounding leaves of it
            assert got[name] == 0.0
            continue
        expected = np.mean(elements)
        tolerance = 1e-5 * np.mean(np.abs(elements)) + 1e-42
        if name in absolute:
            tolerance = absolute[name]
        assert got[name] == pytest.approx(expected, abs=tolerance, rel=0), name


def normal(*shape, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator) * scale + shift


def causal(length=24):
    scores = normal(3, 2, length, length)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


TENSORS = {
    "weights": normal(40, 30, scale=0.02),
    "1-D": normal(57),
    "3-D": normal(5, 6, 7),
    "4-D": normal(3, 4, 5, 6),
    "one row": normal(1, 50),
    "one column": normal(50, 1),
    "one element": torch.tensor([[-0.3]]),
    "0-dimensional": torch.tensor(0.7),
    "0-dimensional, large": torch.tensor(512.3),
    "two elements": torch.tensor([2.0, -3.0]),
    "zeros among normals": normal(30, 30) * (normal(30, 30) > 0.5),
    "all zero": torch.zeros(4, 5),
    "negative": -normal(20, 20).abs() - 0.01,
    "negative and zero": -normal(20, 20).relu(),
    "positive": normal(20, 20).abs() + 0.01,
    "positive and zero": normal(20, 20).relu(),
    "probabilities": normal(6, 8, 9).softmax(-1),
    "causal probabilities": causal(),
    "up to 300": normal(40, 40).clamp(-3, 3) * 100,
    "all near 85": normal(64, 8, shift=85.0),
    "all 59, many rows": torch.full((4000,), 59.0),
    "far below zero": normal(30, 30, shift=-25.0),
    "all near -85": normal(30, 30, shift=-85.0),
    "tiny": normal(30, 30, scale=1e-12),
    "squares below float32": normal(30, 30, scale=1e-22),
    "squares beyond float32": normal(30, 30, scale=1e25),
    "huge": normal(30, 30).clamp(-3, 3) * 1e38,
    "tiny to large": normal(30, 30) * 10.0 ** (4 * normal(30, 30)).clamp(-9, 9),
    "mean >> std": normal(40, 40, scale=1e-3, shift=7.0),
    "mean >>> std": normal(40, 40, scale=1.0, shift=1e6),
    "negative mean >> std": normal(40, 40, scale=1e-3, shift=-20.0),
    "constant": torch.full((33, 3), 0.1),
    "constant but for one bit": torch.full((1000,), 0.1).index_fill_(
        0, torch.tensor([3]), float(np.nextafter(np.float32(0.1), np.float32(1)))
    ),
    "poles of the reciprocal": torch.tensor([-1e-9, 0.5, -1e-9, 2.0, -0.25, 0.0]),
    "only a pole": torch.tensor([-1e-9]),
    "float64": normal(20, 20).double() * math.pi,
    "bfloat16": normal(20, 20).bfloat16(),
    "float16": normal(20, 20).half(),
    "transposed": normal(20, 31).T,
    "permuted heads": normal(4, 6, 3, 5).transpose(1, 2),
    "strided": normal(40, 40)[::3, 1::2],
    "expanded": normal(1, 7).expand(5, 7),
}
