import pytest
import torch
from tiny_specs import EVERY_KIND, flexibert, gpt2

from lmscout.errors import LmscoutError
from lmscout.statistics import Batch


def test_tokens_are_of_the_vocabulary_and_of_the_shape():
    tokens = Batch(size=64, length=10).tokens(gpt2())
    assert (tokens.shape, tokens.dtype) == ((64, 10), torch.int64)
    assert set(tokens.flatten().tolist()) == set(range(50))


def test_a_batch_is_cut_to_what_an_architecture_can_read():
    for spec in EVERY_KIND.values():
        assert Batch(size=3, length=200).tokens(spec).shape == (3, spec.max_length)


def test_the_same_seed_draws_the_same_tokens_and_moves_no_other_generator():
    before = torch.get_rng_state()
    batch = Batch(size=4, length=8, seed=5)
    assert torch.equal(batch.tokens(gpt2()), batch.tokens(flexibert("SDP")))
    assert not torch.equal(batch.tokens(gpt2()), Batch(4, 8, seed=6).tokens(gpt2()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (0, 8), (-3, 4)])
def test_a_batch_too_small_is_refused_in_one_line(shape):
    with pytest.raises(LmscoutError, match="too small") as raised:
        Batch(*shape)
    assert "\n" not in str(raised.value)
