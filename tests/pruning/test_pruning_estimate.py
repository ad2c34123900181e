"""What a run would take: sizes against counted ones, and seconds that follow the sizes."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_language_models import COMMON, CONFIGS, random_model, random_windows
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
)

from lmscout.errors import LmscoutError
from lmscout.evaluation import parameter_bytes, parameter_count
from lmscout.pruning import estimate as estimate_module
from lmscout.pruning.calibration import CalibrationConfig
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.estimate import estimate, estimate_training
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.recovery.elastic import ElasticAdapter, plan_loss
from lmscout.pruning.recovery.run import RecoveryConfig
from lmscout.pruning.recovery.training import METHODS, RecoverySettings

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
    request = PruneConfig(keep=(0.8, 0.5), calibration=CalibrationConfig(window=64))
    found = estimate(model.config, request, dtype=torch.float32, device=CPU)
    assert found.parameters == parameter_count(model)
    assert found.weights == parameter_bytes(model)
    assert found.weights < min(found.importance, found.calibrating, found.measuring)
    stages = found.importance, found.calibrating, found.measuring, found.refitting
    assert found.peak == max(stages)
    without = replace(request, refit="none")
    assert found.ordering > 0 < found.refit
    unfitted = estimate(model.config, without, dtype=torch.float32, device=CPU)
    assert unfitted.refitting == unfitted.refit == 0
    assert 0 < found.pair[0.5] <= found.pair[0.8]
    assert found.total == pytest.approx(200 * (found.pair[0.5] + found.pair[0.8]) / 2)


def test_what_compensation_takes_is_in_the_memory_and_an_objective_measures_no_pair():
    model = random_model("llama")
    plain, compensated = (
        estimate(
            model.config,
            PruneConfig(
                objective="proxy:snip",
                calibration=CalibrationConfig(compensate=compensate, window=64),
            ),
            dtype=torch.float32,
            device=CPU,
        )
        for compensate in (False, True)
    )
    parts = [*(layer.self_attn.o_proj for layer in model.model.layers)]
    parts += [layer.mlp.down_proj for layer in model.model.layers]
    factors = 4 * sum(one.in_features * (one.in_features + one.out_features) for one in parts)
    assert compensated.measuring - plain.measuring == factors
    assert compensated.pairs == 0
    assert compensated.total == 0


@pytest.mark.parametrize(("units", "moments"), [("experts", 0), ("channels", 4)])
def test_experts_are_estimated_by_what_orders_their_units(units, moments):
    config = MixtralConfig(**COMMON, num_local_experts=4)
    plain, compensated = (
        estimate(
            config,
            PruneConfig(
                keep=(0.5,),
                units=units,
                refit="none",
                calibration=CalibrationConfig(compensate=compensate, window=64),
            ),
            dtype=torch.float32,
            device=CPU,
        )
        for compensate in (False, True)
    )
    factors = 3 * (32 * (32 + 32) + moments * 48 * (32 + 48))
    assert compensated.measuring - plain.measuring == 4 * factors
    assert compensated.pair[0.5] > 0


def test_a_window_longer_than_the_model_reads_is_refused_as_a_run_would():
    asked = PruneConfig(calibration=CalibrationConfig(window=65))
    with pytest.raises(LmscoutError, match="the model reads 64"):
        estimate(random_model("gpt2").config, asked, dtype=torch.float32, device=CPU)


def test_without_a_window_it_is_what_the_model_attends_over():
    sliding = MistralConfig(**COMMON, head_dim=8, sliding_window=24)
    short = random_model("gpt2").config
    long = LlamaConfig(**{**COMMON, "max_position_embeddings": 512})
    some_layers = Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=20, max_window_layers=1
    )
    no_layer = Qwen2Config(**COMMON, use_sliding_window=False, sliding_window=20)
    for config, window in (
        (sliding, 24),
        (short, 64),
        (long, 128),
        (some_layers, 20),
        (no_layer, 64),
        (Phi3Config(**COMMON, pad_token_id=0, sliding_window=16), 16),
        (MixtralConfig(**COMMON, sliding_window=12), 12),
    ):
        assert CalibrationConfig().fitted(config, 3) == CalibrationConfig(window=window, seed=3)
    with pytest.raises(LmscoutError, match="attention slides over 24: give a window of 24 or less"):
        CalibrationConfig(window=25).fitted(sliding, 0)
    assert CalibrationConfig(seed=5).fitted(long, 3).seed == 5


def test_tokens_and_windows_are_divided_as_they_are_by_default():
    config = random_model("gpt2").config
    by_windows = CalibrationConfig(windows=370).fitted(config, 0)
    by_tokens = CalibrationConfig().of_tokens(370 * 64).fitted(config, 0)
    assert by_windows == by_tokens
    assert by_tokens.tokens == 370 * 64 == 32 * 740
    assert (by_tokens.measured_tokens, by_tokens.final_tokens) == (32 * 90, 32 * 150)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_step_keeps_is_estimated_from_two_blocks(name, method):
    """Against a step on the whole model, which has three."""
    model = random_model(name).requires_grad_(False)
    settings = RecoverySettings(method, rank=3, steps=20, batch_tokens=48)
    family = family_of(model.config)

    def few_blocks(count):
        few = copy.deepcopy(CONFIGS[name])
        few.num_hidden_layers = count
        return AutoModelForCausalLM.from_config(few, dtype=torch.float32)

    seconds, memory = estimate_training(model, family, settings, 16, few_blocks)
    adapter = ElasticAdapter(model, family, rank=3, seed=0)
    own = [*model.parameters(), *adapter.weights.values()]
    held = {one.untyped_storage().data_ptr() for one in own}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in held:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = plan_loss(
            adapter,
            shape_of(family.all_parts(model)).dense,
            random_windows(3, 16),
            method,
        )
    assert loss.requires_grad
    trained = 16 * sum(one.numel() for one in adapter.weights.values())
    assert memory - trained == sum(kept.values()) > 0
    limited, _ = estimate_training(model, family, replace(settings, seconds=1e-6), 16, few_blocks)
    assert limited == 1e-6 < seconds


def test_recovery_is_in_time_and_memory_as_far_as_it_is_asked_for():
    model = random_model("llama")
    settings = RecoverySettings(rank=2, steps=10, batch_tokens=128)
    calibration = CalibrationConfig(window=64, measured_tokens=128, moment_tokens=128)
    for recovery, expected in (
        (RecoveryConfig(), []),
        (RecoveryConfig(winners=settings), [("winners", 2)]),
        (RecoveryConfig(settings, settings), [("elastic", 1), ("winners", 2)]),
    ):
        request = PruneConfig(keep=(0.8, 0.5), calibration=calibration, recovery=recovery)
        found = estimate(model.config, request, dtype=torch.float32, device=CPU)
        assert [(one.name, one.trainings) for one in found.recovery] == expected
        for one in found.recovery:
            assert one.steps == 10
            assert one.seconds > 0
            assert found.peak >= one.memory > found.weights * (1 + (one.name == "winners"))


def test_seven_billion_parameters_are_estimated_from_their_sizes(monkeypatch):
    """Nothing of that size is made: only the timing of a block is left out here."""
    settings = CalibrationConfig(compensate=False, measured_tokens=32_768)
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
    monkeypatch.setattr(estimate_module, "_time_closed_form", lambda *_: (1.0, 1.0))
    found = estimate(
        SEVEN_BILLION, PruneConfig(calibration=settings), dtype=torch.bfloat16, device=CPU
    )
    assert found.parameters == 6_738_415_616
    assert found.weights == 2 * found.parameters
    states = 65 * 32_768 * 4096 * 2  # entering, and after each of 64 steps
    assert found.measuring > found.weights + states
    assert found.peak < 34 * 2**30  # 31.3 GiB were measured on a GPU
