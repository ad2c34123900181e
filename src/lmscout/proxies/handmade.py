"""Human-designed proxies that the language cannot say, as functions of one reading.

The language reduces every tensor to a number before anything is joined, so it has no product
of a weight with its own gradient, no maximum along one axis, no eigenvalue, and averages over
a block's tensors where these sum over them.  Everything here sums over blocks in float64, and
a NaN in what it reads makes the score NaN.  The functions only look; those that need a pass
of their own are in `passes`.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lmscout.proxies.reading import Reading

COVARIANCE_OFFSET = 1e-5
"""What Mellor et al. add to an eigenvalue before its logarithm and its inverse."""


def parameters(reading: Reading) -> float:
    """Number of parameters of the model: the baseline of baselines."""
    return float(reading.parameters)


def grad_norm(reading: Reading) -> float:
    """Sum of the Frobenius norms of the gradients of all linear layers.

    Abdelfattah et al., arXiv 2101.08134.  (The expression `sum(frobenius(grad))` takes the
    mean over a block's layers instead of the sum, so blocks of many layers weigh less.)
    """
    return _total(gradient.double().norm() for _, gradient, _ in _layers(reading))


def snip(reading: Reading) -> float:
    """Sum of |w * dL/dw| over all linear layers: connection sensitivity.

    Lee et al., arXiv 1810.02340.
    """
    return _total(_saliency(weight, gradient) for weight, gradient, _ in _layers(reading))


def synaptic_saliency(reading: Reading) -> float:
    """Sum of |w * dL/dw| over the linear layers of the MLPs.

    Zhou et al. (DSS), arXiv 2203.12217.
    """
    return _total(
        _saliency(weight, gradient) for weight, gradient, mixes in _layers(reading) if not mixes
    )


def head_importance(reading: Reading) -> float:
    """Sum of |w * dL/dw| over the linear layers of the mixers.

    Michel et al., arXiv 1905.10650, in the form of Serianni and Kalita, arXiv 2305.18915.
    """
    return _total(
        _saliency(weight, gradient) for weight, gradient, mixes in _layers(reading) if mixes
    )


def synaptic_diversity(reading: Reading) -> float:
    """Sum of the nuclear norm of w times that of dL/dw over the linear layers of the mixers.

    Zhou et al. (DSS), arXiv 2203.12217.
    """
    return _total(
        _nuclear_norm(weight) * _nuclear_norm(gradient)
        for weight, gradient, mixes in _layers(reading)
        if mixes
    )


def fisher(reading: Reading) -> float:
    """Sum over samples and channels of (sum over positions of a * dL/da)^2, for every act a.

    Theis et al., arXiv 1801.05787, as a proxy in Abdelfattah et al., arXiv 2101.08134; their
    constant 1 / (2 B) is left out.  The last axis holds the channels, the first the samples.
    """

    def of_one(activation: Tensor, gradient: Tensor) -> Tensor:
        product = activation.double() * gradient.double()
        return product.flatten(1, -2).sum(dim=1).square().sum()

    return _total(
        of_one(activation, gradient)
        for activations, gradients in zip(reading.inputs["act"], reading.act_grad, strict=True)
        for activation, gradient in zip(activations, gradients, strict=True)
    )


def jacobian_covariance(reading: Reading) -> float:
    """-sum(ln(v + k) + 1 / (v + k)), v the eigenvalues of the samples' Jacobian correlations.

    The rows that are correlated are the gradients with respect to the hidden state that
    enters block 0, one flattened row a sample; k is 1e-5.  Mellor et al., arXiv 2006.04647v1;
    on transformers Serianni and Kalita, arXiv 2305.18915.
    """
    rows = reading.inputs["jacob"][0][0].flatten(1).double().cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant row correlates as NaN
        correlations = np.atleast_2d(np.corrcoef(rows))
    if not np.isfinite(correlations).all():
        return math.nan
    values = np.linalg.eigvalsh(correlations) + COVARIANCE_OFFSET
    return -float(np.sum(np.log(values) + 1.0 / values))


def activation_distance(reading: Reading) -> float:
    """Sum over pairs of positions of the number of units on which their binary codes agree.

    The code of a position is which units of an act tensor are positive there; ordered pairs,
    a position with itself included: the sum of x x^T + (1 - x)(1 - x)^T.  The first sample of
    the batch alone, as in Serianni and Kalita, arXiv 2305.18915; the codes are Mellor et
    al.'s, arXiv 2006.04647.
    """

    def of_one(activation: Tensor) -> Tensor:
        # A unit that is on at p of n positions agrees on p^2 + (n - p)^2 pairs.
        first = activation[0].flatten(0, -2)
        if not bool(torch.isfinite(first).all()):
            return torch.tensor(math.nan)
        on = (first > 0).sum(dim=0).double()
        return (on.square() + (first.shape[0] - on).square()).sum()

    return _total(of_one(one) for block in reading.inputs["act"] for one in block)


def attention_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean of the head tensors' maxima over positions.

    A head tensor is [B, T, width]: the maximum is over T, then the mean over the rest and
    over the block's tensors; a block without any adds nothing.  Serianni and Kalita, arXiv
    2305.18915.
    """
    return _confidence(reading, "head", lambda tensor: tensor.amax(dim=1))


def softmax_confidence(reading: Reading) -> float:
    """Sum over blocks of the mean, over queries and heads, of the largest attention weight.

    Voita et al., arXiv 1905.09418: the maximum is over the keys, the last axis.  (The code
    beside arXiv 2305.18915 takes the second axis, which is that of the heads.)
    """
    return _confidence(reading, "softmax", lambda tensor: tensor.amax(dim=-1))


def _layers(reading: Reading) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Weight, gradient and whether it mixes, of every linear layer of every block."""
    for weights, gradients, mixing in zip(
        reading.inputs["weight"], reading.inputs["grad"], reading.mixing, strict=True
    ):
        yield from zip(weights, gradients, mixing, strict=True)


def _saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.double() * gradient.double()).abs().sum()


def _nuclear_norm(matrix: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):  # a decomposition of it would not converge
        return torch.tensor(math.nan, dtype=torch.float64)
    values: Tensor = torch.linalg.svdvals(matrix.detach())
    return values.double().sum()


def _confidence(reading: Reading, name: str, maxima: Callable[[Tensor], Tensor]) -> float:
    blocks = reading.inputs[name]
    return math.fsum(
        _total(maxima(one).double().mean() for one in block) / len(block)
        for block in blocks
        if block
    )


def _total(terms: Iterator[Tensor]) -> float:
    with torch.no_grad():
        return math.fsum(float(term) for term in terms)
