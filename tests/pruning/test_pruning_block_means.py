"""The means of a trained model's blocks, against transformers' own pass seen by plain hooks."""

import weakref

import numpy as np
import pytest
import torch
from tiny_language_models import random_model, random_windows

from lmscout.builtin.tiny import tiny_folder
from lmscout.evaluation import load_model
from lmscout.proxies.primitives import UNARY, reduce
from lmscout.pruning.families import family_of
from lmscout.pruning.judging import block_means
from lmscout.pruning.judging.block_means import read_block_means
from lmscout.statistics import INPUT_NAMES, OPERATIONS


def plain_tensors(model, windows):
    """(input, block) -> tensors of a LLaMA, from the model's own forward and backward."""
    kept, entering, handles = {}, {}, []

    def keep(name, number):
        def hook(_, __, output):
            kept.setdefault((name, number), []).append(output)

        return hook

    def enter(number):
        def hook(_, arguments):
            if not arguments[0].requires_grad:
                arguments[0].requires_grad_()
            entering[number] = arguments[0]

        return hook

    for number, block in enumerate(model.model.layers):
        handles.append(block.register_forward_pre_hook(enter(number)))
        handles.append(block.mlp.act_fn.register_forward_hook(keep("act", number)))
        for name in ("q_proj", "k_proj", "v_proj"):
            projection = getattr(block.self_attn, name)
            handles.append(projection.register_forward_hook(keep("head", number)))
    model.set_attn_implementation("eager")
    output = model(windows, labels=windows, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    for number, block in enumerate(model.model.layers):
        weights = [one for one in block.parameters() if one.dim() == 2]
        kept["weight", number], kept["softmax", number] = weights, [output.attentions[number]]
        *gradients, hidden = torch.autograd.grad(
            output.loss, [*weights, entering[number]], retain_graph=True
        )
        kept["grad", number], kept["jacob", number] = gradients, [hidden]
    return kept


def assert_means(got, tensors):
    assert len(tensors) == got.shape[0] * got.shape[2]
    for (name, block), some in tensors.items():
        for column, operation in enumerate(UNARY):
            value = got[INPUT_NAMES.index(name), column, block]
            if operation.name == "normalize":
                assert value == 0.0
                continue
            if operation.name == "invert" and name != "weight":
                continue  # decided by the elements nearest to 0, where two passes differ
            expected = np.mean([reduce((operation.name,), one) for one in some])
            elements = [operation.formula(one.detach()).double().abs() for one in some]
            # What cancels agrees as far as the two ways to compute the same tensor do.
            tolerance = 3e-4 * np.mean([one.mean().item() for one in elements]) + 1e-12
            assert value == pytest.approx(expected, abs=tolerance), (name, block, operation.name)


def test_means_of_a_grouped_query_model_are_those_of_its_own_pass():
    model, windows = random_model("llama"), random_windows()
    got = read_block_means(model, family_of(model.config), windows)
    assert got.shape == (6, 20, 3)
    assert_means(got, plain_tensors(model, windows))
    assert all(one.grad is None and one.requires_grad for one in model.parameters())


def test_means_of_lmscout_tiny_are_those_of_its_own_pass():
    model = load_model(str(tiny_folder())).model
    vocabulary = model.config.vocab_size
    windows = torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))
    got = read_block_means(model, family_of(model.config), windows)
    assert_means(got, plain_tensors(model, windows))


def test_a_models_own_dtype_is_read_and_kept():
    model, windows = random_model("llama"), random_windows()
    single = read_block_means(model, family_of(model.config), windows)
    model = model.to(torch.bfloat16)
    half = read_block_means(model, family_of(model.config), windows)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    for name in ("weight", "act", "head", "softmax", "grad"):
        row = INPUT_NAMES.index(name)
        for operation in ("l1", "square", "sigmoid", "std"):
            column = OPERATIONS.index(operation)
            assert half[row, column] == pytest.approx(single[row, column], rel=0.05)


def test_one_gradient_of_a_weight_is_alive_at_a_time(monkeypatch):
    model, windows = random_model("llama"), random_windows()
    gradients, alive = [], []

    def watch(tensors):
        if len(tensors) == 2 and tensors[0].shape == tensors[1].shape:  # a weight, its gradient
            gradients.append(weakref.ref(tensors[1]))
            alive.append(sum(one() is not None for one in gradients))
        return totals(tensors)

    totals = block_means.tensor_totals
    monkeypatch.setattr(block_means, "tensor_totals", watch)
    read_block_means(model, family_of(model.config), windows)
    assert alive == [1] * 7 * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_means_that_the_cpu_gives():
    model, windows = random_model("llama"), random_windows()
    family = family_of(model.config)
    plain = read_block_means(model, family, windows)
    fused = read_block_means(model.cuda(), family, windows)
    rows = [index for index, name in enumerate(OPERATIONS) if name != "invert"]
    np.testing.assert_allclose(fused[:, rows], plain[:, rows], rtol=1e-2, atol=1e-3)
