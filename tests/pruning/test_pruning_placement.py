"""A model whose blocks are on several devices is pruned as on one."""

from dataclasses import replace

import pytest
import torch
from builtin_model import two_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from simulated_devices import Simulated, SimulatedDevices
from tiny_language_models import COMMON, random_model, random_windows
from transformers import Gemma3TextConfig, LlamaConfig, MixtralConfig, Phi3Config

import lmscout
from lmscout.builtin import tiny_folder
from lmscout.evaluation import devices_of, load_model, model_windows, parameter_bytes
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.config import PruneConfig
from lmscout.pruning.estimate import MemoryPart, estimate
from lmscout.pruning.evaluator import SubnetworkEvaluator
from lmscout.pruning.families import family_of
from lmscout.pruning.placement import block_devices, homes, place, spread
from lmscout.pruning.plan import Plan
from lmscout.pruning.prefix_tables import visit_tensors
from lmscout.pruning.recovery.elastic import ElasticAdapter, plan_loss
from lmscout.pruning.recovery.run import add_adapters
from lmscout.testing import random_model as model_of

ONE, TWO = torch.device("cpu:1"), torch.device("cpu:2")
SETTINGS = CalibrationConfig(measured_tokens=160, final_tokens=160, moment_tokens=320)
MODELS = {
    **{name: lambda name=name: random_model(name) for name in ("llama", "llama-bias", "gpt2")},
    "gemma3": lambda: model_of(
        Gemma3TextConfig(
            **COMMON,
            head_dim=8,
            sliding_window=32,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "phi3": lambda: model_of(Phi3Config(**COMMON, pad_token_id=0)),
    "mixtral": lambda: model_of(
        MixtralConfig(**COMMON, num_local_experts=5, num_experts_per_tok=2)
    ),
}


def share_of(units, *shares):
    """A plan that keeps these shares of the sublayers, in the order of computation."""
    both = zip(units.groups, units.channels, strict=True)
    kept = [round(share * one) for share, one in zip(shares, sum(both, ()), strict=True)]
    return Plan(tuple(kept[::2]), tuple(kept[1::2]))


def plans_of(units):
    return [
        share_of(units, *shares)
        for shares in (
            (1, 0.5, 0.5, 1, 0.5, 0.4),
            (1, 0.5, 0.5, 0, 1, 0.4),
            (1, 1, 1, 1, 0, 0),
            (0.5, 1, 0, 0, 0, 0),
            (0, 0, 0.5, 1, 1, 0.5),
        )
    ]


def everything(model, in_host=False):
    """What a run computes: trajectories of plans, of a refit model, and the refit weights."""
    calibrated = calibrate(model, random_windows(40), SETTINGS, in_host=in_host)
    plans = plans_of(calibrated.shape)
    measured = calibrated.evaluator(calibrated.measured).measure(plans)
    trajectories = [one.trajectory for one in measured]
    refit = calibrated.subnetwork(plans[1], "refit")
    trajectories.append(calibrated.measured_held_out(refit).trajectory)
    without_first = calibrated.subnetwork(plans[-1], "compensated")
    trajectories.append(calibrated.measured_held_out(without_first).trajectory)
    saved = calibrated.subnetwork(plans[1], "refit", device="cpu")
    if in_host:
        assert all(one.device.type == "cpu" for one in saved.parameters())
        for pair in calibrated.compensation.factors.values():
            assert {one.device for one in pair} == {torch.device("cpu")}
    weights = {
        name: (one.held if isinstance(one, Simulated) else one).clone()
        for name, one in saved.state_dict().items()
    }
    return trajectories, weights, block_devices(refit, calibrated.family)


@pytest.mark.parametrize("name", MODELS)
def test_order_pairs_and_refit_weights_are_the_same_on_two_devices(name):
    trajectories, weights, _ = everything(MODELS[name]())
    with SimulatedDevices():
        model = MODELS[name]()
        place(model, family_of(model.config), [ONE, TWO, TWO])
        found = everything(model, in_host=name == "llama")
    assert found[0] == trajectories
    assert weights.keys() == found[1].keys()
    for key, one in weights.items():
        assert torch.equal(one, found[1][key]), key
    assert found[2] == [ONE, TWO, TWO]


def of_gradients(model):
    """Losses of recovery and their gradients, divergences, and values that proxies use."""
    family, windows = family_of(model.config), random_windows(6)
    values = []
    visit_tensors(
        model, family, windows, lambda one: values.extend(map(total, one.tensors.values()))
    )
    evaluator = SubnetworkEvaluator(model, family, windows, quality="kl")
    plans = plans_of(evaluator.shape)
    values += [one.loss_increase for one in evaluator.measure(plans)]
    adapter = ElasticAdapter(model, family, 2, 0)
    for method in ("lora", "distill"):
        loss = plan_loss(adapter, plans[0], windows.to(model.device), method)
        loss.backward()
        values.append(loss.item())
    return values + [total(one.grad) for one in adapter.weights.values() if one.grad is not None]


def total(tensor):
    return tensor.double().sum().item()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_for_recovery_and_proxies_are_the_same_on_two_devices(name):
    expected = of_gradients(random_model(name))
    with SimulatedDevices():
        model = random_model(name)
        found = of_gradients(place(model, family_of(model.config), [ONE, ONE, TWO]))
    assert found == expected


class DrawingOnCpu(SimulatedDevices):
    """Refuses random numbers of another device's generator, which differ from the CPU's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in function.tags:
            assert args[0].device == torch.device("cpu"), f"{function} on {args[0].device}"
        return super().__torch_dispatch__(function, types, args, kwargs)


def test_adapters_of_recovery_begin_with_the_same_numbers_on_two_devices():
    _, alone = add_adapters(random_model("llama"), 2, 3)
    with SimulatedDevices():
        model = random_model("llama")
        place(model, family_of(model.config), [ONE, TWO, TWO])
    with DrawingOnCpu():
        _, adapters = add_adapters(model, 2, 3)
        with pytest.raises(AssertionError, match="uniform_"):
            next(iter(adapters.values())).data.uniform_()
    assert {one.device for one in adapters.values()} == {ONE, TWO}
    assert adapters.keys() == alone.keys()
    for name, one in alone.items():
        assert torch.equal(one, adapters[name].data.held), name


def test_the_simulated_devices_refuse_what_is_on_two():
    with SimulatedDevices():
        on_one, on_two = (torch.ones(2).to(device) for device in (ONE, TWO))
        with pytest.raises(AssertionError, match="add"):
            on_one + on_two
        assert (on_one + on_two.to(ONE)).device == ONE


@settings(max_examples=20)
@given(
    blocks=st.integers(1, 7),
    devices=st.integers(1, 4),
    vocabulary=st.sampled_from([8, 64, 2_000]),
    tied=st.booleans(),
)
def test_blocks_are_contiguous_ranges_of_about_equal_bytes(blocks, devices, vocabulary, tied):
    changes = {"num_hidden_layers": blocks, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = model_of(LlamaConfig(**{**COMMON, **changes}))
    family, names = family_of(model.config), [torch.device("cuda", one) for one in range(devices)]
    found = spread(model, family, names)
    assert found == sorted(found, key=names.index)
    largest = max(sum(one.nbytes for one in block.parameters()) for block in family.blocks(model))
    held = dict.fromkeys(found, 0)
    for tensor, home in homes(model, family, found):
        held[home] += tensor.nbytes
    ends = 2 * model.get_input_embeddings().weight.nbytes
    whole = sum(held.values())
    assert max(held.values()) <= whole / devices + largest + ends + 1_000
    parts = [
        MemoryPart(model, PruneConfig(), found, one, in_host=in_host)
        for in_host in (False, True)
        for one in held
    ]
    parameters = sum(one.nbytes for one in model.parameters())
    assert sum(one.weights for one in parts) == 2 * parameters
    assert sum(one.depth for one in parts) == 2 * blocks
    for with_factors, without in zip(parts, parts[len(held) :], strict=False):
        assert without.held < with_factors.held


def test_a_run_on_two_devices_saves_the_weights_of_one(tmp_path):
    """On the CPU, whose devices share their memory."""
    little = CalibrationConfig(
        window=32, measured_tokens=320, final_tokens=320, moment_tokens=640, gradient_windows=4
    )
    config = PruneConfig(pairs=0, calibration=little)
    source, text, out = str(tiny_folder()), two_texts()[0], tmp_path / "out"
    on_two = {"device": "cpu:0+cpu:1", "progress": False}
    pruned = lmscout.prune(source, calibration=text, out=out, config=config, **on_two)
    (size,) = pruned.sizes
    loaded = load_model(source)
    windows = model_windows(loaded.model, loaded.tokenizer, text, 32)
    calibrated = calibrate(loaded.model, windows, little)
    alone = calibrated.subnetwork(size.plan, "refit", dtype=loaded.saved_dtype)
    expected = alone.state_dict()
    saved = load_file(size.folder / "model.safetensors")
    assert 0 < len(saved) <= len(expected)
    for name, one in saved.items():
        assert torch.equal(one, expected[name]), name


def test_an_estimate_says_what_each_device_holds():
    model = random_model("llama-bias")
    first, *others = devices_of("cpu:0+cpu:1")
    request = PruneConfig(calibration=CalibrationConfig(window=32, moment_tokens=320), pairs=0)
    split = replace(request, devices=tuple(others), split=True)
    whole, found = (
        estimate(model.config, one, dtype=torch.float32, device=first) for one in (request, split)
    )
    assert whole.parts == ()
    assert [(one.device, one.blocks) for one in found.parts] == [("cpu:0", 2), ("cpu:1", 1)]
    assert sum(one.weights for one in found.parts) == parameter_bytes(model) == whole.weights
    assert found.peak == max(one.peak for one in found.parts) < whole.peak
    copied = replace(request, devices=tuple(others))
    assert estimate(model.config, copied, dtype=torch.float32, device=first).parts == ()
