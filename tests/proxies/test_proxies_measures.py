import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_transformer import TinyTransformer, batch, read

from lmscout.proxies import measures


@pytest.fixture(scope="module")
def reading():
    return read(TinyTransformer(), batch())


def arrays(blocks):
    return [[one.double().numpy() for one in block] for block in blocks]


def layers(reading):
    """(weight, gradient, in the mixer) of every linear layer, distinguished by their order."""
    found = []
    for weights, gradients in zip(
        arrays(reading.inputs["weight"]), arrays(reading.inputs["grad"]), strict=True
    ):
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            found.append((weight, gradient, index < 4))
    return found


def plain_saliency(weight, gradient):
    return sum(
        abs(w * g) for w, g in zip(weight.ravel().tolist(), gradient.ravel().tolist(), strict=True)
    )


def plain_nuclear(matrix):
    # Singular values are the square roots of the eigenvalues of the Gram matrix.
    return np.sqrt(np.abs(np.linalg.eigvalsh(matrix @ matrix.T))).sum()


def test_the_reading_is_that_of_two_blocks_of_six_and_eight_layers(reading):
    assert [len(block) for block in reading.linears] == [6, 8]
    assert len(layers(reading)) == 14


def test_parameters(reading):
    count = sum(one.numel() for one in reading.model.parameters())
    assert measures.parameters(reading) == count > 1000


def test_grad_norm(reading):
    want = sum(
        math.sqrt(sum(g * g for g in gradient.ravel())) for _, gradient, _ in layers(reading)
    )
    assert measures.grad_norm(reading) == pytest.approx(want, rel=1e-12)


def test_snip_is_the_sum_of_synaptic_saliency_and_head_importance(reading):
    mixers = sum(plain_saliency(w, g) for w, g, mixes in layers(reading) if mixes)
    mlps = sum(plain_saliency(w, g) for w, g, mixes in layers(reading) if not mixes)
    assert measures.head_importance(reading) == pytest.approx(mixers, rel=1e-12)
    assert measures.synaptic_saliency(reading) == pytest.approx(mlps, rel=1e-12)
    assert measures.snip(reading) == pytest.approx(mixers + mlps, rel=1e-12)


def test_synaptic_diversity(reading):
    want = sum(plain_nuclear(w) * plain_nuclear(g) for w, g, mixes in layers(reading) if mixes)
    assert measures.synaptic_diversity(reading) == pytest.approx(want, rel=1e-4)


def test_fisher(reading):
    want = 0.0
    for activations, gradients in zip(reading.inputs["act"], reading.act_grad, strict=True):
        for activation, gradient in zip(activations, gradients, strict=True):
            samples, positions, channels = activation.shape
            for b in range(samples):
                for c in range(channels):
                    inner = sum(
                        float(activation[b, t, c]) * float(gradient[b, t, c])
                        for t in range(positions)
                    )
                    want += inner**2
    assert want > 0
    assert measures.fisher(reading) == pytest.approx(want, rel=1e-10)


def test_jacobian_covariance(reading):
    rows = [row.ravel() for row in reading.inputs["jacob"][0][0].double().numpy()]
    centred = [row - row.mean() for row in rows]
    correlations = [[a @ b / math.sqrt((a @ a) * (b @ b)) for b in centred] for a in centred]
    values = np.linalg.eigvals(np.array(correlations)).real + 1e-5
    want = -sum(math.log(value) + 1 / value for value in values)
    assert measures.jacobian_covariance(reading) == pytest.approx(want, rel=1e-9)


def test_activation_distance(reading):
    want = 0
    for block in reading.inputs["act"]:
        for activation in block:
            codes = [[value > 0 for value in row] for row in activation[0].tolist()]
            for one in codes:
                for other in codes:
                    want += sum(a == b for a, b in zip(one, other, strict=True))
    assert measures.activation_distance(reading) == want


def test_attention_confidence(reading):
    want = 0.0
    for block in reading.inputs["head"]:
        per_tensor = []
        for head in block:
            samples, _, width = head.shape
            maxima = [float(max(head[b, :, c])) for b in range(samples) for c in range(width)]
            per_tensor.append(sum(maxima) / len(maxima))
        want += sum(per_tensor) / 3
    assert measures.attention_confidence(reading) == pytest.approx(want, rel=1e-12)


def test_softmax_confidence_is_over_the_keys(reading):
    want = 0.0
    for (attention,) in reading.inputs["softmax"]:
        maxima = [max(row) for row in attention.flatten(0, 2).tolist()]
        want += sum(maxima) / len(maxima)
    assert measures.softmax_confidence(reading) == pytest.approx(want, rel=1e-12)
    assert 0 < want < 2  # probabilities, one mean a block


@pytest.mark.parametrize(
    ("function", "name"),
    [(measures.attention_confidence, "head"), (measures.softmax_confidence, "softmax")],
)
def test_a_block_without_attention_adds_nothing_to_a_confidence(reading, function, name):
    first, second = reading.inputs[name]

    def of(*blocks):
        return function(dataclasses.replace(reading, inputs={**reading.inputs, name: blocks}))

    assert of(first, (), second) == function(reading)
    assert of((), first) == of(first) != function(reading)


def replaced(reading, name, block, index, tensor):
    blocks = [list(one) for one in reading.inputs[name]]
    blocks[block][index] = tensor
    inputs = dict(reading.inputs) | {name: tuple(tuple(one) for one in blocks)}
    return dataclasses.replace(reading, inputs=inputs)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (measures.grad_norm, "grad"),
        (measures.snip, "grad"),
        (measures.snip, "weight"),
        (measures.head_importance, "grad"),
        (measures.synaptic_diversity, "grad"),
        (measures.synaptic_diversity, "weight"),
        (measures.fisher, "act"),
        (measures.jacobian_covariance, "jacob"),
        (measures.activation_distance, "act"),
        (measures.attention_confidence, "head"),
        (measures.softmax_confidence, "softmax"),
    ],
)
def test_a_nan_in_what_is_read_makes_the_score_nan(reading, function, name):
    broken = reading.inputs[name][0][0].clone()
    broken.view(-1)[0] = math.nan
    assert math.isfinite(function(reading))
    assert math.isnan(function(replaced(reading, name, 0, 0, broken)))


def test_jacobian_covariance_of_one_sample_and_of_a_constant_row(reading):
    jacob = reading.inputs["jacob"][0][0]
    alone = replaced(reading, "jacob", 0, 0, jacob[:1])
    want = -(math.log(1 + 1e-5) + 1 / (1 + 1e-5))
    assert measures.jacobian_covariance(alone) == pytest.approx(want)
    constant = replaced(reading, "jacob", 0, 0, torch.ones_like(jacob))
    assert math.isnan(measures.jacobian_covariance(constant))
