"""Losses from hidden states, a piece of the logits at a time, against the whole at once."""

import pytest
import torch
from torch.nn import functional

from lmscout.evaluation.text import coded
from lmscout.pruning.recovery import training
from lmscout.pruning.recovery.training import divergence_loss, likelihood_loss

VOCABULARY = 11
TOKENS = torch.arange(15).view(3, 5) % VOCABULARY


def given_states(seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, 7, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, 7, generator=generator)
    return hidden, lambda states: states @ weight.T


@pytest.mark.parametrize("pieces", [1, 4])
def test_likelihood_is_that_of_the_next_token(monkeypatch, pieces):
    monkeypatch.setattr(training, "_LOGITS", VOCABULARY * (12 // pieces))
    hidden, head = given_states()
    found = likelihood_loss(head, hidden, TOKENS, VOCABULARY)
    (gradient,) = torch.autograd.grad(found, hidden)
    plain = -torch.stack(
        [
            head(hidden[row, place]).log_softmax(-1)[TOKENS[row, place + 1]]
            for row in range(3)
            for place in range(4)
        ]
    ).mean()
    (expected,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("pieces", [1, 5])
def test_divergence_is_that_from_the_dense_model(monkeypatch, pieces):
    monkeypatch.setattr(training, "_LOGITS", VOCABULARY * (15 // pieces))
    hidden, head = given_states()
    dense_hidden, dense_head = given_states(1)
    found = divergence_loss(head, hidden, dense_head, dense_hidden.detach(), VOCABULARY, TOKENS)
    (gradient,) = torch.autograd.grad(found, hidden)
    theirs, ours = dense_head(dense_hidden).softmax(-1), head(hidden).softmax(-1)
    plain = (theirs * (theirs / ours).log()).sum(-1).mean()
    (expected,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, expected)
    same = divergence_loss(dense_head, dense_hidden, dense_head, dense_hidden, VOCABULARY, TOKENS)
    assert same.item() == pytest.approx(0.0, abs=1e-6)


def test_logits_of_a_whole_batch_are_never_there_at_once(monkeypatch):
    monkeypatch.setattr(training, "_LOGITS", VOCABULARY * 4)
    hidden, head = given_states()
    seen = []

    def watched(states):
        seen.append(len(states))
        return head(states)

    likelihood_loss(watched, hidden, torch.zeros(3, 5, dtype=torch.int64), VOCABULARY).backward()
    assert max(seen) == 4
    assert sum(seen) == 12  # the gradient is computed with the loss


def test_narrow_hidden_states_are_summed_in_float32():
    hidden, _ = given_states()
    weight = torch.randn(VOCABULARY, 7, dtype=torch.bfloat16)
    loss = likelihood_loss(
        lambda states: functional.linear(states, weight),
        hidden.bfloat16(),
        torch.zeros(3, 5, dtype=torch.int64),
        VOCABULARY,
    )
    assert loss.dtype == torch.float32


def test_only_tokens_that_carry_a_loss_count():
    hidden, head = given_states()
    dense_hidden, dense_head = given_states(1)
    learned = torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    learned[1] = False
    masked = coded(TOKENS, learned)
    places = [(row, at) for row in range(3) for at in range(4) if learned[row, at + 1]]
    own = [head(hidden[place]).log_softmax(-1) for place in places]
    plain = [-one[TOKENS[row, at + 1]] for one, (row, at) in zip(own, places, strict=True)]
    found = likelihood_loss(head, hidden, masked, VOCABULARY)
    torch.testing.assert_close(found, torch.stack(plain).mean())
    theirs = [dense_head(dense_hidden[place]).log_softmax(-1) for place in places]
    both = zip(theirs, own, strict=True)
    divergences = [(their.exp() * (their - our)).sum() for their, our in both]
    found = divergence_loss(head, hidden, dense_head, dense_hidden, VOCABULARY, masked)
    torch.testing.assert_close(found, torch.stack(divergences).mean())
    nothing = likelihood_loss(head, hidden, coded(TOKENS, learned & False), VOCABULARY)
    (gradient,) = torch.autograd.grad(nothing, hidden)
    assert nothing.item() == 0.0
    assert not gradient.any()
