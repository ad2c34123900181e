import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import RECIPE, SPACE, text
from torch.nn import functional

from lmscout.benchmarks import training
from lmscout.benchmarks.build import devices_of
from lmscout.benchmarks.space import sample
from lmscout.benchmarks.training import Recipe, TokenData, train, validation_loss, window_starts
from lmscout.errors import LmscoutError

SPECS = sample(SPACE, 4, 0)
GPT2, LLAMA = SPECS[0], SPECS[1]
by_family = pytest.mark.parametrize("spec", [GPT2, LLAMA], ids=["GPT-2", "LLaMA"])


def plain_training(spec, seed, data, recipe):
    """AdamW by its definition, on plain attention, with every loss as the definition has it."""
    model = spec.build(seed)
    weights = list(model.parameters())
    means = [torch.zeros_like(w) for w in weights]
    squares = [torch.zeros_like(w) for w in weights]
    starts = window_starts(len(data.train), recipe, seed)
    assert recipe.steps == 12
    found = []
    for step in range(recipe.steps):
        rows = [data.train[begin : begin + recipe.length] for begin in starts[step].tolist()]
        gradients = torch.autograd.grad(model.loss(torch.stack(rows)), weights)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        shrunk = min(1.0, recipe.clip / (norm + 1e-6))
        rate = recipe.rate(step)
        with torch.no_grad():
            for weight, gradient, mean, square in zip(
                weights, gradients, means, squares, strict=True
            ):
                if weight.dim() > 1:
                    weight.mul_(1 - rate * recipe.weight_decay)
                mean.mul_(recipe.beta1).add_((1 - recipe.beta1) * shrunk * gradient)
                square.mul_(recipe.beta2).add_((1 - recipe.beta2) * (shrunk * gradient) ** 2)
                root = (square / (1 - recipe.beta2 ** (step + 1))).sqrt() + 1e-8
                weight.sub_(rate * mean / (1 - recipe.beta1 ** (step + 1)) / root)
            if step + 1 in (2, 4, 7, 9, 12):
                held_out = data.validation[: recipe.held_out]
                whole = len(held_out) // recipe.length
                each = [
                    model.loss(held_out[None, n * recipe.length : (n + 1) * recipe.length])
                    for n in range(whole)
                ]
                found.append(float(torch.stack(each).double().mean()))
    return found


@by_family
def test_training_follows_the_definition_of_its_recipe(spec):
    data = text()
    trained = train(spec, 3, data, RECIPE, "cpu")
    expected = plain_training(spec, 3, data, RECIPE)
    assert len(expected) == 5
    assert trained.validation_loss == pytest.approx(expected, rel=1e-4)
    assert trained.seconds > 0


@by_family
def test_a_predictable_text_is_fitted(spec):
    data = text()
    recipe = replace(RECIPE, tokens=200 * 64)
    losses = train(spec, 0, data, recipe, "cpu").validation_loss
    assert losses[-1] < losses[0] - 0.3
    assert losses[-1] < 0.75 * math.log(32)  # what a fifth of random tokens leave is 0.2 log 32


def test_the_same_seed_gives_the_same_bits_whatever_was_trained_before():
    data = text()
    first = train(LLAMA, 1, data, RECIPE, "cpu")
    other = train(LLAMA, 2, data, RECIPE, "cpu")
    train(GPT2, 1, data, RECIPE, "cpu")
    torch.manual_seed(99)
    torch.rand(7)
    again = train(LLAMA, 1, data, RECIPE, "cpu")
    assert again.validation_loss == first.validation_loss
    assert other.validation_loss != first.validation_loss


def test_training_leaves_torch_as_it_was():
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_rng_state().tolist(),
    )
    train(GPT2, 0, text(), RECIPE, "cpu")
    after = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_rng_state().tolist(),
    )
    assert after == before


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    recipe = Recipe(tokens=100 * 64, sequences=4, length=16, learning_rate=0.5, warm_up=0.1)
    assert recipe.steps == 100
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert rates[99] == pytest.approx(0.25 * (1 + math.cos(math.pi * 89 / 90)))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert recipe.measured_after() == (20, 40, 60, 80, 100)


def test_five_points_come_at_equal_distances_and_the_last_at_the_end():
    recipe = Recipe(tokens=13 * 64, sequences=4, length=16)
    assert recipe.measured_after() == (2, 5, 7, 10, 13)
    with pytest.raises(LmscoutError, match=r"256 tokens are too few: at least 5 steps .* 320"):
        Recipe(tokens=256, sequences=4, length=16)
    for name, wrong, said in (
        ("sequences", 0, "too small"),
        ("length", 1, "too small"),
        ("tokens", 1e6, "no whole number"),
        ("held_out", 0, "too small"),
        ("learning_rate", math.nan, "not above 0"),
        ("clip", 0, "not above 0"),
        ("warm_up", 1.0, "not from 0 to below 1"),
        ("weight_decay", -0.1, "not from 0 to below inf"),
    ):
        with pytest.raises(LmscoutError, match=f"{name} of .* {said}"):
            Recipe(**{name: wrong})


def test_an_epoch_reads_every_window_once_and_each_in_an_order_of_its_own():
    recipe = Recipe(tokens=40 * 64, sequences=4, length=16)
    starts = window_starts(1000, recipe, 0)
    assert starts.shape == (40, 4)
    count = 1000 // 16 - 1
    epochs = starts.flatten().split(count)
    assert len(epochs) == 3
    cuts = set()
    for epoch in epochs[:2]:
        ordered = epoch.sort().values
        assert torch.equal(ordered.diff(), torch.full((count - 1,), 16))
        assert 0 <= int(ordered[0]) < 16
        assert int(ordered[-1]) + 16 <= 1000
        cuts.add(int(ordered[0]))
    assert len(cuts) == 2
    assert torch.equal(starts, window_starts(1000, recipe, 0))
    assert not torch.equal(starts, window_starts(1000, recipe, 1))


def test_validation_weighs_every_window_alike(monkeypatch):
    model = LLAMA.build(0)
    tokens = text().validation[:170]  # ten windows and a rest
    monkeypatch.setattr(training, "EVALUATED", 4)  # 4, 4 and 2 of them at once
    windows = tokens[:160].view(10, 16)
    logits = model.head(model(windows))[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert validation_loss(model, tokens, 16) == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_that_is_not_finite_is_none():
    wild = replace(RECIPE, learning_rate=1e30, clip=1e30)
    losses = train(GPT2, 0, text(), wild, "cpu").validation_loss
    assert len(losses) == 5
    assert losses[-1] is None


def test_too_few_tokens_are_refused():
    data = text()
    with pytest.raises(LmscoutError, match="20 tokens to train on are too few: at least 32"):
        train(GPT2, 0, TokenData(data.train[:20], data.validation, {}), RECIPE, "cpu")
    with pytest.raises(LmscoutError, match="9 tokens to validate on are too few: at least 16"):
        train(GPT2, 0, TokenData(data.train, data.validation[:9], {}), RECIPE, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured steps need a CUDA device")
@by_family
def test_a_captured_step_trains_as_an_eager_one(spec, monkeypatch):
    data = text()
    captured = train(spec, 0, data, RECIPE, "cuda:0").validation_loss
    for device in devices_of("cuda"):
        assert train(spec, 0, data, RECIPE, device).validation_loss == captured
    monkeypatch.setattr(training, "EAGER_STEPS", 10**9)
    eager = train(spec, 0, data, RECIPE, "cuda:0").validation_loss
    assert captured == pytest.approx(eager, rel=1e-3)
    assert captured == pytest.approx(train(spec, 0, data, RECIPE, "cpu").validation_loss, rel=0.02)


@given(tokens=st.integers(41_000, 10**7), length=st.sampled_from([32, 128]))
def test_all_validations_cost_at_most_as_much_as_the_training(tokens, length):
    tokens = max(tokens, 5 * 64 * length)
    recipe = Recipe.of_tokens(tokens, length)
    assert training.POINTS * recipe.held_out <= 3 * tokens
    assert length <= recipe.held_out <= Recipe.held_out
    assert (recipe == Recipe(tokens=tokens, length=length)) == (tokens >= 218_454)


def test_the_recipe_of_shipped_benchmarks_is_the_default():
    assert Recipe.of_tokens(None, 128) == Recipe.of_tokens(4_500_000, 128) == Recipe()
    assert Recipe.of_tokens(10_240, 32).held_out == 6_144
