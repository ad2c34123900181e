"""The plain definition, in torch, of each unary operation on a finite, non-empty tensor.

These are the formulas that everything faster is checked against, so they are written for
reading.  Each is pure: it never modifies its input.  (LPZero's own code wrote into its
input, so that one operation changed what the next one read.)  An elementwise formula works
in the tensor's own precision; sums accumulate in float64 and are rounded back to it once.
The rule for tensors that hold a NaN or an infinity is the same for all of them and lives in
one place, `operators.UnaryOperation.apply`.
"""

import torch
from torch import Tensor

EPSILON = 1e-9
"""What keeps a denominator from zero, as in LPZero."""


def log(x: Tensor) -> Tensor:
    """Natural logarithm where x > 0, else 0."""
    positive = x > 0
    return torch.log(torch.where(positive, x, 1.0))


def abslog(x: Tensor) -> Tensor:
    """Natural logarithm of |x|, 0 where x = 0."""
    return torch.log(torch.where(x == 0, 1.0, x.abs()))


def absolute(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


def square(x: Tensor) -> Tensor:
    """The square of x."""
    return x * x


def exp(x: Tensor) -> Tensor:
    """The exponential of x; overflows to infinity."""
    return torch.exp(x)


def normalize(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-9)."""
    return (x - mean(x)) / (std(x) + EPSILON)


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0."""
    return torch.relu(x)


def invert(x: Tensor) -> Tensor:
    """1 / (x + 1e-9), 0 where that denominator is 0."""
    shifted = x + EPSILON
    pole = shifted == 0
    return torch.where(pole, 0.0, 1.0 / torch.where(pole, 1.0, shifted))


def frobenius(x: Tensor) -> Tensor:
    """Square root of the sum of squares."""
    return x.double().square().sum().sqrt().to(x.dtype)


def meansum(x: Tensor) -> Tensor:
    """Sum of the elements divided by their number."""
    return (x.sum(dtype=torch.float64) / x.numel()).to(x.dtype)


def l1(x: Tensor) -> Tensor:
    """Sum of the absolute elements divided by their number."""
    return (x.abs().sum(dtype=torch.float64) / x.numel()).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the first axis; 1 for a scalar."""
    return torch.softmax(x, dim=0)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


def logsoftmax(x: Tensor) -> Tensor:
    """Logarithm of the softmax over the first axis; 0 for a scalar."""
    return torch.log_softmax(x, dim=0)


def sqrt(x: Tensor) -> Tensor:
    """Square root of the larger of x and 0."""
    return torch.sqrt(x.clamp(min=0))


def negate(x: Tensor) -> Tensor:
    """-x."""
    return -x


def minmax(x: Tensor) -> Tensor:
    """(x - min) / (max - min + 1e-9)."""
    low, high = x.amin(), x.amax()
    return (x - low) / (high - low + EPSILON)


def mean(x: Tensor) -> Tensor:
    """Arithmetic mean."""
    return x.mean(dtype=torch.float64).to(x.dtype)


def std(x: Tensor) -> Tensor:
    """Unbiased standard deviation; 0 for one element, where it is not defined."""
    if x.numel() == 1:
        return torch.zeros((), dtype=x.dtype, device=x.device)
    return x.double().std(correction=1).to(x.dtype)


def identity(x: Tensor) -> Tensor:
    """X itself."""
    return x
