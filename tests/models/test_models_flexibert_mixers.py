"""Each mixer against a definition in plain NumPy, one head and one position at a time."""

import numpy as np
import pytest
import scipy.fft
import torch

from lmscout.models.flexibert import MIXERS, Attention
from lmscout.models.layers import draw_weights

WIDTH = 8


def array(tensor):
    return tensor.detach().numpy()


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def made(mixer, heads, length=7):
    module = MIXERS[mixer](WIDTH, heads).double()
    draw_weights(module, seed=3, std=0.7)
    with torch.no_grad():
        # Biases away from 0, so that a forgotten one shows.
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    hidden = torch.randn(2, length, WIDTH, dtype=torch.float64)
    return module, hidden


def linear(layer, values):
    result = values @ array(layer.weight).T
    return result if layer.bias is None else result + array(layer.bias)


def attention(query, key, value, heads):
    """Context [T, heads, size] of one sequence."""
    size = query.shape[1] // heads
    context = np.zeros((len(query), heads, size))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for position in range(len(query)):
            scores = key[:, part] @ query[position, part] / np.sqrt(size)
            context[position, head] = softmax(scores) @ value[:, part]
    return context


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mixer", ["SDP", "WMA"])
def test_attention(mixer, heads):
    module, hidden = made(mixer, heads)
    for sequence, mixed in zip(array(hidden), array(module(hidden)), strict=True):
        query = linear(module.query, sequence)
        if mixer == "WMA":
            query = linear(module.weight, query)
        key, value = linear(module.key, sequence), linear(module.value, sequence)
        expected = attention(query, key, value, heads).reshape(len(sequence), WIDTH)
        np.testing.assert_allclose(mixed, expected, atol=1e-12)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("kernel", [5, 9])
@pytest.mark.parametrize("length", [1, 7, 12])
def test_span_convolution(kernel, heads, length):
    module, hidden = made(f"DSC{kernel}", heads, length)
    half, size, reach = heads // 2, WIDTH // heads, kernel // 2
    depthwise, pointwise = array(module.depthwise.weight), array(module.pointwise.weight)
    for sequence, mixed in zip(array(hidden), array(module(hidden)), strict=True):
        query, key = linear(module.query, sequence), linear(module.key, sequence)
        context = attention(query, key, linear(module.value, sequence), half)
        values = linear(module.convolved, sequence)
        expected = np.zeros((length, heads, size))
        expected[:, :half] = context
        for position in range(length):
            span = np.zeros(WIDTH)
            for offset in range(kernel):
                neighbour = position + offset - reach
                if 0 <= neighbour < length:
                    span += depthwise[:, 0, offset] * sequence[neighbour]
            span = pointwise[:, :, 0] @ span + array(module.span_bias)[:, 0]
            kernels = linear(module.to_kernel, span * query[position]).reshape(half, kernel)
            for head in range(half):
                weights = softmax(kernels[head])
                for offset in range(kernel):
                    neighbour = position + offset - reach
                    if 0 <= neighbour < length:
                        part = values[neighbour, head * size : (head + 1) * size]
                        expected[position, half + head] += weights[offset] * part
        np.testing.assert_allclose(mixed, expected.reshape(length, WIDTH), atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("mixer", "transform"),
    [
        ("DFT", lambda head: np.fft.fft2(head).real),
        ("DCT", lambda head: scipy.fft.dctn(head, type=2)),
    ],
)
def test_transforms(mixer, transform, heads):
    module, hidden = made(mixer, heads)
    size = WIDTH // heads
    for sequence, mixed in zip(array(hidden), array(module(hidden)), strict=True):
        features = linear(module.mixing, sequence)
        parts = [transform(features[:, h * size : (h + 1) * size]) for h in range(heads)]
        np.testing.assert_allclose(mixed, np.concatenate(parts, axis=1), atol=1e-11)


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_probe_points_see_probabilities_or_a_spectrum(mixer):
    module, hidden = made(mixer, 4)
    seen = []
    point = module.softmax if isinstance(module, Attention) else module.spectrum
    point.register_forward_hook(lambda _module, _args, output: seen.append(output))
    module(hidden)
    (output,) = seen
    if mixer in ("DFT", "DCT"):
        assert output.shape == (2, 4, 7, WIDTH // 4)
    else:
        assert output.shape == (2, 2 if mixer.startswith("DSC") else 4, 7, 7)
        torch.testing.assert_close(output.sum(-1), torch.ones_like(output.sum(-1)))
