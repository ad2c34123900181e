"""Recovery of a cut model by peft's adapters, and of the winner within a run."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from real_models import STORIES, needs_the_real_model, two_texts
from tiny_language_models import random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, perplexity
from lmscout.pruning import CalibrationConfig, Plan, PruneConfig, Pruning, cut, prune
from lmscout.pruning.recovery.run import RecoveryConfig, add_adapters, recover, recovery_file
from lmscout.pruning.recovery.training import RecoverySettings

PLAN = Plan((1, 0, 2), (30, 48, 0))
SETTINGS = RecoverySettings(rank=4, batch_tokens=96, steps=20, learning_rate=1e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "distill"])
def test_a_cut_model_is_better_on_its_text_and_plain_again(tmp_path, name, method):
    dense, tokens = random_model(name), random_windows()
    before = {key: one.clone() for key, one in dense.state_dict().items()}
    small = cut(dense, PLAN)
    names = dict(small.named_parameters()).keys()
    settings = replace(SETTINGS, method=method)
    recovered, done = recover(small, dense, tokens, settings, tmp_path / "x", {})
    assert done.last < done.first
    assert dict(recovered.named_parameters()).keys() == names
    assert all(one.requires_grad for one in recovered.parameters())
    assert not recovered.training
    assert all(torch.equal(one, before[key]) for key, one in dense.state_dict().items())
    assert all(one.grad is None for one in dense.parameters())

    def worse(model):
        with torch.no_grad():
            if method == "lora":
                return model(tokens, labels=tokens).loss.item()
            theirs = dense(tokens).logits.log_softmax(-1)
            ours = model(tokens).logits.log_softmax(-1)
            return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()

    assert worse(recovered) < worse(cut(dense, PLAN))
    # what was trained is merged again from the file, without training
    again, same = recover(cut(dense, PLAN), dense, tokens, settings, tmp_path / "x", {})
    assert same == done
    for key, one in recovered.state_dict().items():
        assert torch.equal(one, again.state_dict()[key]), key


def test_adapters_are_on_every_matrix_of_the_blocks_and_on_nothing_else():
    small = cut(random_model("llama-bias"), PLAN)
    _, adapters = add_adapters(small, rank=2, seed=0)
    assert len(adapters) == 2 * (2 * 4 + 2 * 3)
    assert not any("lm_head" in name or "embed" in name for name in adapters)


def test_half_precision_keeps_its_dtype_with_wide_adapters(tmp_path):
    dense = random_model("llama").to(torch.bfloat16)
    small = cut(dense, PLAN)
    _, adapters = add_adapters(cut(dense, PLAN), 2, 0)
    assert {one.dtype for one in adapters.values()} == {torch.float32}
    tokens = random_windows()
    recovered, done = recover(small, dense, tokens, replace(SETTINGS, steps=4), tmp_path / "x", {})
    assert {one.dtype for one in recovered.parameters()} == {torch.bfloat16}
    assert done.steps == 4


def test_a_seed_makes_adapters_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = (
        add_adapters(cut(random_model("llama"), PLAN), 2, seed)[1] for seed in (0, 0, 1)
    )
    torch.random.set_rng_state(before)
    first = next(iter(one))
    assert torch.equal(one[first], same[first])
    assert not torch.equal(one[first], other[first])


def test_without_peft_the_extra_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    request = RecoveryConfig(winners=SETTINGS)
    with pytest.raises(LmscoutError, match=r"pip install 'lmscout\[recover\]'"):
        request.check(tmp_path, 128, (0.8,), "parameters")
    RecoveryConfig(elastic=SETTINGS).check(tmp_path, 128, (0.8,), "parameters")  # needs none


def test_elastic_recovery_needs_a_size_that_is_counted(tmp_path):
    with pytest.raises(LmscoutError, match="latency"):
        RecoveryConfig(elastic=SETTINGS).check(tmp_path, 128, (0.8,), "latency")


CALIBRATION = CalibrationConfig(
    measured_tokens=1500, final_tokens=1500, moment_tokens=2000, gradient_windows=4
)
REQUEST = PruneConfig(
    pairs=20,
    calibration=CALIBRATION,
    recovery=RecoveryConfig(
        replace(SETTINGS, method="lora", steps=6, batch_tokens=512),
        replace(SETTINGS, steps=6, batch_tokens=512),
    ),
)


def texts():
    """Enough to calibrate on, and little to report on."""
    calibration, report_on = two_texts(30_000)
    return calibration, replace(report_on, content=report_on.content[:6_000])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    calibration, report_on = texts()
    return prune(load_model(str(STORIES)), calibration, REQUEST, out, report_on=report_on)


@needs_the_real_model
def test_the_saved_model_is_the_recovered_one(run):
    (size,) = run.sizes
    rows = {one.name: one for one in size.models}
    assert rows["found_recovered"].params == rows["found"].params
    assert rows["found_recovered"].perplexity.value < rows["found"].perplexity.value
    loaded = load_model(str(size.folder))
    assert loaded.saved_dtype == torch.float16  # as the dense model is saved
    again = perplexity(loaded.model, loaded.tokenizer, texts()[1], "llm-pruner")
    assert again.value == pytest.approx(rows["found_recovered"].perplexity.value, rel=1e-6)
    record = json.loads((size.folder / "lmscout.json").read_text())
    assert record["settings"]["recovered"]["method"] == "lora"
    assert record["settings"]["elastic"]["method"] == "distill"


@needs_the_real_model
def test_the_outcome_says_what_was_trained_and_what_it_changed(run):
    given = load_model(str(STORIES))
    plain = perplexity(given.model, given.tokenizer, texts()[1], "llm-pruner")
    assert run.dense.perplexity.value == pytest.approx(plain.value, rel=1e-3)
    said = json.loads(json.dumps(run.to_json(), allow_nan=False))
    saved = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert Pruning.from_dict(saved).to_dict() == run.to_dict()
    assert said["sizes"][0]["recovery"]["steps"] == said["elastic"]["trained"]["steps"] == 6
    assert said["dense_elastic"]["perplexity"] != said["dense"]["perplexity"]
    (order,) = said["elastic"]["orders"]
    assert order["keep"] == 0.8
    assert -1 <= order["kendall"] <= 1
    assert {"recovering", "recovering all plans"} <= said["seconds"].keys()


@needs_the_real_model
def test_adapters_stay_where_the_ledger_depends_on_them_alone(run):
    out = run.sizes[0].folder
    assert not recovery_file(out, 0.8).exists()
    assert recovery_file(out, "elastic").exists()


@needs_the_real_model
def test_an_adapter_of_other_settings_is_refused_before_any_work(run, tmp_path):
    shutil.copytree(run.sizes[0].folder / "recovery", tmp_path / "run" / "recovery")
    other = replace(REQUEST.recovery, elastic=replace(REQUEST.recovery.elastic, rank=8))
    with pytest.raises(LmscoutError, match="rank = 4, this run has 8: its adapter does not fit"):
        prune(
            load_model(str(STORIES)),
            texts()[0],
            replace(REQUEST, recovery=other),
            tmp_path / "run",
        )
