"""The six token mixers of the FlexiBERT search space, with their parameter counts.

The space is Tuli et al.'s (arXiv 2205.11656); the form of every mixer, down to what the
Fourier and cosine mixers leave out, follows the PyTorch models with which Serianni and Kalita
(arXiv 2305.18915) measured their benchmark.  ConvBERT's span-based mixing is Jiang et al.'s
(arXiv 2008.02496).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lmscout.architectures.layers import Conv1d, Linear, merge_heads, split_heads

# Published as (operation type, parameter): (SA, SDP), (SA, WMA), (LT, DFT), (LT, DCT),
# (DSC, 5), (DSC, 9).
MIXERS = ("SDP", "WMA", "DFT", "DCT", "DSC5", "DSC9")

# A convolving mixer keeps half of the heads for attention; the other half convolve.
CONVOLUTION_HEAD_RATIO = 2
KERNELS = (("DSC5", 5), ("DSC9", 9))


class Mixer(nn.Module, ABC):
    """Mixes tokens: hidden state ``[B, T, width]`` to ``[B, T, width]``.

    Attributes:
        residual: whether the block adds an output projection, a residual connection and a
            LayerNorm after the mixer.
    """

    residual: bool = True

    @abstractmethod
    def head(self) -> tuple[nn.Linear, ...]:
        """The projections that make queries, keys and values, or what is transformed."""

    def softmax_points(self) -> tuple[nn.Module, ...]:
        """Modules that put out attention probabilities ``[B, heads, T, T]``."""
        return ()

    def spectrum_points(self) -> tuple[nn.Module, ...]:
        """Modules that put out a transform ``[B, heads, T, size]`` instead of probabilities."""
        return ()


class Attention(Mixer):
    """Multi-head attention over all positions; ``inner`` is the width of all heads together."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, inner)
        self.key = Linear(width, inner)
        self.value = Linear(width, inner)
        self.softmax = nn.Softmax(dim=-1)

    def head(self) -> tuple[nn.Linear, ...]:
        """Query, key and value."""
        return self.query, self.key, self.value

    def softmax_points(self) -> tuple[nn.Module, ...]:
        """The one attention softmax."""
        return (self.softmax,)

    def attend(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Queries ``[B, T, inner]`` over the hidden state: context ``[B, heads, T, size]``."""
        queries = split_heads(query, self.heads)
        keys = split_heads(self.key(hidden), self.heads)
        values = split_heads(self.value(hidden), self.heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        context: Tensor = self.softmax(scores) @ values
        return context


class ScaledDotProduct(Attention):
    """SDP: softmax(q·k / √size) (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.query(hidden), hidden))


class WeightedMultiplicative(Attention):
    """WMA: softmax(qW·k / √size), with one more matrix W between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.weight = Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.weight(self.query(hidden)), hidden))


class SpanConvolution(Attention):
    """DSC: half of the heads attend, the others convolve with a kernel made for each position.

    The kernel of a position is a softmax over ``kernel`` numbers, computed from the product of
    the query with a separable convolution of the hidden state around it.
    """

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        attention_heads = heads // CONVOLUTION_HEAD_RATIO
        inner = attention_heads * (width // heads)
        super().__init__(width, inner, attention_heads)
        self.kernel = kernel
        self.depthwise = Conv1d(width, width, kernel, groups=width, padding=kernel // 2, bias=False)
        self.pointwise = Conv1d(width, inner, 1, bias=False)
        self.span_bias = nn.Parameter(torch.empty(inner, 1))
        self.to_kernel = Linear(inner, attention_heads * kernel)
        self.convolved = Linear(width, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        query = self.query(hidden)
        context = self.attend(query, hidden).transpose(1, 2)
        return torch.cat([context, self._convolve(query, hidden)], dim=2).flatten(2)

    def _convolve(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Queries ``[B, T, inner]`` and the hidden state to ``[B, T, heads, size]``."""
        span = self.pointwise(self.depthwise(hidden.transpose(1, 2))) + self.span_bias
        kernels = self.to_kernel(span.transpose(1, 2) * query)
        kernels = kernels.view(*kernels.shape[:2], self.heads, self.kernel).softmax(dim=-1)
        reach = self.kernel // 2
        padded = nn.functional.pad(self.convolved(hidden), (0, 0, reach, reach))
        neighbours = padded.unfold(1, self.kernel, 1)
        per_head = neighbours.reshape(*kernels.shape[:3], -1, self.kernel)
        convolved: Tensor = per_head @ kernels.unsqueeze(-1)
        return convolved.squeeze(-1)


class Transform(Mixer):
    """A fixed transform over positions and over the features of each head.

    Upstream's measuring code follows these mixers with no output projection, no residual
    connection and no LayerNorm; its recorded parameter counts confirm it.
    """

    residual = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixing = Linear(width, width)
        self.spectrum = nn.Identity()

    @abstractmethod
    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""

    def head(self) -> tuple[nn.Linear, ...]:
        """The one projection before the transform."""
        return (self.mixing,)

    def spectrum_points(self) -> tuple[nn.Module, ...]:
        """The transformed heads."""
        return (self.spectrum,)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        features = split_heads(self.mixing(hidden), self.heads)
        return merge_heads(self.spectrum(self.transform(features)))


class Fourier(Transform):
    """DFT: the real part of the two-dimensional Fourier transform (arXiv 2105.03824)."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        real: Tensor = torch.fft.fft2(features).real
        return real


class Cosine(Transform):
    """DCT: the two-dimensional cosine transform of type II, not normalised."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        length, size = features.shape[-2:]
        return _cosines(length, features) @ features @ _cosines(size, features).T


def _cosines(size: int, like: Tensor) -> Tensor:
    """The matrix ``[size, size]`` of 2·cos(π·k·(2n + 1) / 2N), rows k and columns n."""
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    angles = index[:, None] * (2 * index + 1) * (math.pi / (2 * size))
    return (2 * angles.cos()).to(like.dtype)


def build_mixer(mixer: str, width: int, heads: int) -> Mixer:
    """The mixer of that name (one of `MIXERS`), its tensors not yet drawn."""
    if mixer == "SDP":
        return ScaledDotProduct(width, heads)
    if mixer == "WMA":
        return WeightedMultiplicative(width, heads)
    if mixer == "DFT":
        return Fourier(width, heads)
    if mixer == "DCT":
        return Cosine(width, heads)
    return SpanConvolution(width, heads, dict(KERNELS)[mixer])


def mixer_parameters(mixer: str, width: int, heads: int) -> int:
    """Parameters of the mixer, with the output projection and LayerNorm that follow it."""
    if mixer in ("DFT", "DCT"):
        return _linear(width, width)
    after = _linear(width, width) + 2 * width
    if mixer in ("SDP", "WMA"):
        between = width * width if mixer == "WMA" else 0
        return 3 * _linear(width, width) + between + after
    kernel = dict(KERNELS)[mixer]
    attention_heads = heads // CONVOLUTION_HEAD_RATIO
    inner = attention_heads * (width // heads)
    separable = width * kernel + width * inner + inner
    to_kernel = _linear(inner, attention_heads * kernel)
    return 4 * _linear(width, inner) + separable + to_kernel + after


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
