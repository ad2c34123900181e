"""What a run would take: sizes against counted ones, and seconds that follow the sizes."""

import pytest
import torch
from tiny_language_models import CONFIGS, random_model
from transformers import LlamaConfig

from lmscout.evaluation import parameter_bytes, parameter_count
from lmscout.pruning import estimate as estimate_module
from lmscout.pruning.calibration import CalibrationSettings
from lmscout.pruning.estimate import estimate
from lmscout.pruning.request import Request

CPU = torch.device("cpu")
SEVEN_BILLION = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_counted_without_a_model(name):
    model = random_model(name)
    found = estimate(model.config, Request(keep=(0.8, 0.5)), dtype=torch.float32, device=CPU)
    assert found.parameters == parameter_count(model)
    assert found.weights == parameter_bytes(model)
    assert found.weights < min(found.importance, found.calibrating, found.measuring)
    assert found.peak == max(found.importance, found.calibrating, found.measuring)
    assert 0 < found.pair[0.5] <= found.pair[0.8]
    assert found.total == pytest.approx(200 * (found.pair[0.5] + found.pair[0.8]) / 2)


def test_what_compensation_takes_is_in_the_memory_and_a_judge_measures_no_pair():
    model = random_model("llama")
    plain, refitted = (
        estimate(
            model.config,
            Request(judge="proxy:snip", calibration=CalibrationSettings(compensate=compensate)),
            dtype=torch.float32,
            device=CPU,
        )
        for compensate in (False, True)
    )
    parts = [*(layer.self_attn.o_proj for layer in model.model.layers)]
    parts += [layer.mlp.down_proj for layer in model.model.layers]
    factors = 4 * sum(one.in_features * (one.in_features + one.out_features) for one in parts)
    assert refitted.measuring - plain.measuring == factors
    assert refitted.pairs == 0
    assert refitted.total == 0


def test_seven_billion_parameters_are_foretold_from_their_sizes(monkeypatch):
    """Nothing of that size is made: only the timing of a block is left out here."""
    settings = CalibrationSettings(compensate=False, measured_tokens=32_768)
    small = LlamaConfig(
        **{
            **SEVEN_BILLION.to_dict(),
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "vocab_size": 99,
        }
    )
    timed = estimate_module._time_one_block
    monkeypatch.setattr(estimate_module, "_time_one_block", lambda _, *rest: timed(small, *rest))
    found = estimate(SEVEN_BILLION, Request(calibration=settings), dtype=torch.bfloat16, device=CPU)
    assert found.parameters == 6_738_415_616
    assert found.weights == 2 * found.parameters
    states = 65 * 32_768 * 4096 * 2  # entering, and after each of 64 steps
    assert found.measuring > found.weights + states
    assert found.peak < 34 * 2**30  # 31.3 GiB were measured on a GPU
