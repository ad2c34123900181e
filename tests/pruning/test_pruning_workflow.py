"""Pruning end to end on the built-in model, and what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builtin_model import (
    BRIEF,
    CALIBRATION,
    CONFIG,
    PARAMETERS,
    TINY,
    pruned,
    small_model,
    trials_of,
    two_texts,
)
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

import lmscout
from lmscout.errors import LmscoutError
from lmscout.evaluation import Text, load_model, perplexity, read_origin, read_text
from lmscout.files import as_json
from lmscout.pruning import CalibrationConfig, Plan, calibration, prune
from lmscout.pruning.config import check_request, model_folders
from lmscout.pruning.recovery.run import RecoveryConfig, recovery_file
from lmscout.pruning.recovery.training import RecoverySettings
from lmscout.pruning.study_record import read_recorded

BRIEFLY = replace(CONFIG, pairs=20, calibration=BRIEF)


def briefly(out, config=BRIEFLY, progress=None):
    """Prune the small random model."""
    return pruned(out, config, progress=progress, model=small_model())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and its report text."""
    report_on = two_texts()[1]
    return pruned(tmp_path_factory.mktemp("runs") / "run", report_on=report_on), report_on


@pytest.fixture(scope="module")
def brief_run(tmp_path_factory):
    """A finished run of a small model on little text."""
    return briefly(tmp_path_factory.mktemp("brief") / "run")


def test_every_model_of_the_report_is_of_its_size(run):
    result, _ = run
    (size,) = result.sizes
    by_name = {one.name: one for one in size.models}
    assert result.dense.params == PARAMETERS
    assert result.dense.kept == 1.0
    assert set(by_name) == {
        *("uniform", "uniform_compensated", "uniform_refit", "uniform_protected"),
        *("found", "found_compensated"),
    }
    for name, one in by_name.items():
        assert one.kept == pytest.approx(0.8, abs=0.002), name
    assert by_name["found"].plan == by_name["found_compensated"].plan == size.plan


def test_the_found_and_compensated_model_is_better_than_a_uniform_one(run):
    result, _ = run
    value = {one.name: one.loss_increase for one in result.sizes[0].models}
    assert value["found"] < value["uniform"]
    assert value["uniform_compensated"] < value["uniform"]
    assert value["found"] < value["uniform_refit"]


def test_the_study_records_its_model_and_text(run):
    recorded = read_recorded(run[0].sizes[0].folder)
    assert (recorded.model, recorded.text) == (str(TINY.resolve()), "first")
    assert recorded.calibration == replace(CALIBRATION, window=128, seed=0, quality="kl")
    assert recorded.dtype == torch.float32


@pytest.mark.slow
def test_a_proxy_as_objective_finds_a_model_without_a_pair(tmp_path):
    result = pruned(tmp_path / "run", replace(CONFIG, objective="proxy:snip"))
    values = result.to_json()
    assert values["objective"] == {"name": "snip", "sign": 1}
    assert (result.pairs, result.predictor, result.narrowing_steps) == (0, None, ())
    assert values["sizes"][0]["finalists"][0]["held_out"] is None
    assert "no measurement chose it" in values["sizes"][0]["summary"]
    by_name = {one.name: one for one in result.sizes[0].models}
    assert by_name["found"].plan != by_name["uniform"].plan
    assert by_name["found"].kept == pytest.approx(0.8, abs=0.002)
    load_model(str(result.sizes[0].folder))


def test_the_saved_model_is_the_one_reported_and_generates(run):
    result, report_on = run
    (size,) = result.sizes
    loaded = load_model(str(size.folder))
    assert loaded.saved_dtype == torch.float16  # as the dense model is saved
    found = next(one for one in size.models if one.name == "found")
    again = perplexity(loaded.model, loaded.tokenizer, report_on, "llm-pruner", limit_tokens=2_000)
    assert again.value == pytest.approx(found.perplexity.value, rel=1e-6)
    assert sum(p.numel() for p in loaded.model.parameters()) == found.params
    tokens = loaded.tokenizer("def __init__(self", return_tensors="pt")
    made = loaded.model.generate(**tokens, max_new_tokens=4, do_sample=False)
    plain = tokens["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            following = loaded.model(plain, use_cache=False).logits[:, -1].argmax(-1)
        plain = torch.cat([plain, following[:, None]], dim=1)
    assert torch.equal(made, plain)


def test_the_card_and_the_record_hold_settings_and_measurements(run):
    result, report_on = run
    (size,) = result.sizes
    found = next(one for one in size.models if one.name == "found")
    card = (size.folder / "README.md").read_text()
    assert f"| dense | {PARAMETERS:,} | {result.dense.perplexity.value:.2f} |" in card
    assert f"| **found (this model)** | {found.params:,} | {found.perplexity.value:.2f} |" in card
    assert (
        f"windows of 128 tokens, stride 128, special tokens once; {found.perplexity.tokens:,}"
        in card
    )
    assert "24 architecture-accuracy pairs were measured (of at most 24)" in card
    assert "[lmscout](https://pypi.org/project/lmscout/)" in card
    assert card.index("## Citation") < card.index("https://arxiv.org/abs/2309.09507")
    record = json.loads((size.folder / "lmscout.json").read_text())
    assert record["settings"]["pairs"] == record["measured"]["pairs"] == 24
    measured = record["measured"]["perplexity"]
    assert measured["dense"]["perplexity"] == result.dense.perplexity.value
    assert measured["found"]["tokens"] == found.perplexity.tokens
    assert str(TINY.parent) not in card + json.dumps(record)
    origin = read_origin(str(TINY), TINY)
    assert record["base_model"] == (origin.name or origin.source)
    assert record["schema"] == 1
    stock = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    loaded = load_model(str(TINY))
    dense = perplexity(stock, loaded.tokenizer, report_on, "llm-pruner", limit_tokens=2_000)
    assert result.dense.perplexity.value == pytest.approx(dense.value, rel=1e-4)


def test_close_shares_have_folders_of_their_own():
    folders = model_folders((0.8, 0.8000001, 0.80000011), Path("run"))
    assert [one.name for one in folders] == ["keep-0.8", "keep-0.8000001", "keep-0.80000011"]
    files = {recovery_file(Path("run"), share) for share in (0.8, 0.8000001, 0.80000011)}
    assert len(files) == 3


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float32", "has no finite perplexity"),
        ("float16", "float16 holds numbers up to 6.55e"),
    ],
)
def test_a_model_without_a_loss_is_refused_before_pairs_are_measured(tmp_path, dtype, message):
    loaded = load_model(str(TINY))
    seen = set()
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(1e5)
    with pytest.raises(LmscoutError, match=message):
        prune(
            *(loaded, two_texts()[0], replace(CONFIG, dtype=dtype), tmp_path / "out"),
            report_on=two_texts()[1],
            progress=lambda stage, *_: seen.add(stage),
        )
    assert "measuring pairs" not in seen
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_saved_is_refused_before_pairs_are_measured(tmp_path):
    loaded = load_model(str(TINY))
    loaded.model.generation_config = GenerationConfig(do_sample=False, temperature=0.7)
    with pytest.raises(LmscoutError, match=r"generation_config\.json is refused .*temperature"):
        prune(loaded, two_texts()[0], CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_as_its_configuration_says_is_refused(tmp_path):
    loaded = load_model(str(TINY))
    loaded.model.config.rms_norm_eps = 0.1
    with pytest.raises(LmscoutError, match="computes otherwise than its configuration describes"):
        prune(loaded, two_texts()[0], CONFIG, tmp_path / "out", report_on=two_texts()[1])


def test_the_json_holds_all_fields_and_their_comparisons(run):
    result, _ = run
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["schema"] == 1
    assert set(plain) >= {"of", "dense", "sizes", "predictor", "pairs", "study", "seconds"}
    (size,) = plain["sizes"]
    assert [one["name"] for one in size["models"]] == [
        *("uniform", "uniform_compensated", "uniform_refit", "uniform_protected"),
        *("found", "found_compensated"),
    ]
    found = size["models"][4]
    assert found["measurement"]["protocol"]["window"] == 128
    assert found["perplexity"] == result.sizes[0].models[4].perplexity.value
    assert plain["predictor"]["pairs"] == 24
    assert Plan(*map(tuple, size["plan"].values())) == result.plan
    assert size["finalists"][0]["plan"] == size["plan"]
    refit = [one["refit"] for one in size["finalists"]]
    count = len(refit) - refit.count(None)
    assert count in (3, 4)  # with the plan without pairs
    assert refit[:count] == sorted(refit[:count])
    held_out = [one["held_out"] for one in size["finalists"]]
    assert sorted(held_out[:count])[:3] == sorted(held_out)[:3]
    assert held_out[count:] == sorted(held_out[count:])
    assert {one["baseline"] for one in size["comparisons"]} >= {"uniform", "uniform_protected"}


def test_the_plan_without_pairs_is_refit_beside_the_finalists(brief_run, tmp_path):
    alone = briefly(tmp_path / "run", replace(BRIEFLY, pairs=0))
    (only,) = alone.sizes[0].finalists
    (beside,) = (one for one in brief_run.sizes[0].finalists if one.plan == only.plan)
    assert beside.refit == pytest.approx(only.refit, rel=1e-6)


def test_the_study_holds_every_pair_once_for_optunas_own_tools(run):
    result, _ = run
    trials = trials_of(result.study)
    plans = [tuple(trial.params.values()) for trial in trials]
    assert len(plans) == len(set(plans)) == result.pairs == 24
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc lists open files")
def test_a_run_closes_its_study(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        briefly(out, progress=interrupted("searching", 1))
    names = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not any(one.resolve().is_relative_to(out) for one in names if one.exists())


def test_a_finished_run_is_not_overwritten(run):
    result, _ = run
    before = {path: path.stat().st_mtime_ns for path in result.sizes[0].folder.iterdir()}
    again = pruned(result.sizes[0].folder, report_on=run[1])
    assert again.to_dict() == result.to_dict()
    assert json.loads(as_json(again.to_json())) == json.loads(as_json(result.to_json()))
    with pytest.raises(LmscoutError, match="holds a run with report second, not none"):
        pruned(result.sizes[0].folder)
    assert {path: path.stat().st_mtime_ns for path in result.sizes[0].folder.iterdir()} == before


def interrupted(at, after):
    """A progress that stops a run in a stage, when so much of it is done."""

    def advance(stage, done, _):
        if (stage, done) == (at, after):
            raise KeyboardInterrupt

    return advance


def test_stopped_between_two_models_a_run_goes_on_with_the_second(tmp_path):
    out = tmp_path / "run"
    config = replace(BRIEFLY, keep=(0.9, 0.7), pairs=0)
    with pytest.raises(KeyboardInterrupt):
        briefly(out, config, progress=interrupted("saving", 1))
    first, second = out / "keep-0.9", out / "keep-0.7"
    assert not second.exists()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    with pytest.raises(LmscoutError, match=r"another dtype \(float16, in this run float32\)"):
        briefly(out, replace(config, dtype="float32"))
    record = first / "lmscout.json"
    whole = record.read_text()
    record.write_text(json.dumps({**json.loads(whole), "plan": {}}))
    with pytest.raises(LmscoutError, match="a finished model with another plan: name"):
        briefly(out, config)
    assert not second.exists()
    record.write_text(whole)
    os.utime(record, ns=(before[record], before[record]))
    result = briefly(out, config)
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    for size in result.sizes:
        assert json.loads((size.folder / "lmscout.json").read_text())["plan"] == size.plan.as_dict()
        load_model(str(size.folder))
    assert briefly(out, config).to_dict() == result.to_dict()


def test_a_study_continues_in_the_chunks_in_which_it_was_begun(tmp_path, monkeypatch):
    """As one that is begun on an accelerator and continued on a CPU."""
    settings = replace(BRIEF, measured_tokens=1280, final_tokens=1024)
    begun = replace(CONFIG, pairs=24, calibration=settings)
    monkeypatch.setattr(calibration, "_CHUNK", 128)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        briefly(out, begun, progress=interrupted("measuring finalists", 3))
    monkeypatch.setattr(calibration, "_CHUNK", 1500)
    result = briefly(out, replace(begun, pairs=30))
    for study, chunks in (("lmscout", 10), ("lmscout-finalists", 8)):
        trials = trials_of(result.study, study)
        whole = [one for one in trials if one.state.name == "COMPLETE"]
        assert {len(one.intermediate_values) for one in whole} == {chunks}
    assert "nats/token, the next of" in result.sizes[0].words


def test_a_finished_model_of_other_settings_is_refused_before_any_work(tmp_path):
    """Without a study in the folder: it may be kept elsewhere."""
    config = replace(CONFIG, keep=(0.9, 0.7))
    folder = tmp_path / "keep-0.9"
    shutil.copytree(TINY, folder)
    record = folder / "lmscout.json"
    record.write_text(json.dumps({"shape": "any", "settings": config.note(0.9)}))
    check_request(config, two_texts()[0], None, tmp_path)
    for wrong, message in (
        ({"seed": 1}, r"another seed \(0, in this run 1\)"),
        ({"shape": "uniform"}, r"another shape \(any, in this run uniform\)"),
        ({"keep": (0.9,)}, "holds no run to continue"),
    ):
        with pytest.raises(LmscoutError, match=message):
            check_request(replace(config, **wrong), two_texts()[0], None, tmp_path)
    record.write_text("{")
    with pytest.raises(LmscoutError, match=r"lmscout\.json cannot be read"):
        check_request(config, two_texts()[0], None, tmp_path)


def test_several_sizes_share_one_study(brief_run, tmp_path):
    """Further sizes on the study of a run measure no pair anew."""
    config = replace(BRIEFLY, keep=(0.9, 0.7), storage=brief_run.study)
    result = briefly(tmp_path / "run", config)
    assert [size.folder.name for size in result.sizes] == ["keep-0.9", "keep-0.7"]
    assert result.pairs == 20
    for size in result.sizes:
        found = next(one for one in size.models if one.name == "found")
        assert found.kept == pytest.approx(size.keep, abs=0.002)
        saved = load_model(str(size.folder)).model
        assert sum(p.numel() for p in saved.parameters()) == found.params
    assert len(result.to_json()["sizes"]) == 2


def test_without_compensation_weights_are_those_of_the_dense_model_at_fewer_multiply_adds(tmp_path):
    settings = replace(BRIEF, compensate=False)
    config = replace(CONFIG, keep=(0.7,), pairs=20, calibration=settings, dtype="float32")
    config = replace(config, refit="none", of="multiply-adds")
    (size,) = briefly(tmp_path / "run", config).sizes
    assert all(0.65 < one.cost <= 0.7 + 1e-9 for one in size.models)
    saved = AutoModelForCausalLM.from_pretrained(size.folder, dtype=torch.float32)
    dense = small_model()
    columns = {
        column.numpy().tobytes()
        for layer in dense.model.layers
        for column in layer.mlp.down_proj.weight.detach().T
    }
    for layer in saved.model.layers:
        for column in layer.mlp.down_proj.weight.detach().T:
            assert column.numpy().tobytes() in columns


@pytest.mark.slow
@pytest.mark.parametrize("of", ["memory", "latency"])
def test_other_measures_of_size_are_met(tmp_path, of):
    result = briefly(tmp_path / "run", replace(BRIEFLY, of=of))
    for one in result.sizes[0].models:
        assert one.cost <= 0.8 + 1e-9, one.name
        assert one.cost > 0.75, one.name


def test_a_uniform_shape_is_a_plain_llama(tmp_path):
    result = briefly(tmp_path / "run", replace(BRIEFLY, shape="uniform", pairs=24))
    (size,) = result.sizes
    config = json.loads((size.folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not list(size.folder.glob("*.py"))
    found = next(one for one in size.models if one.name == "found")
    assert found.kept <= 0.8 + 1e-6
    assert found.kept > 0.78
    record = json.loads((size.folder / "lmscout.json").read_text())
    assert (record["settings"]["pairs"], record["measured"]["pairs"]) == (24, result.pairs)
    said = f"{result.pairs} architecture-accuracy pairs were measured (of at most 24)"
    assert said in (size.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"importance": "luck"}, "unknown importance 'luck'"),
        ({"quality": "luck"}, "unknown quality 'luck'"),
        ({"window": 1}, "window of 1 is too small"),
        ({"window": 64.0}, "CalibrationConfig: window is of type float"),
        ({"measured_tokens": 0}, "measured_tokens of 0 is too small"),
        ({"final_tokens": 0}, "final_tokens of 0 is too small"),
        ({"moment_tokens": -1}, "moment_tokens of -1 is too small"),
        ({"gradient_windows": 0}, "gradient_windows of 0 is too small"),
        ({"windows": 2}, "windows of 2 is too small"),
        ({"seed": 2**63}, "seed of 9223372036854775808 is too large"),
    ],
)
def test_settings_of_calibration_that_are_none_are_refused_at_once(setting, said):
    with pytest.raises(LmscoutError, match=said):
        CalibrationConfig(**setting)


def test_what_cannot_be_done_is_refused_before_any_work(tmp_path):
    calibration, report_on = two_texts()
    out = tmp_path / "out"
    for wrong, message in (
        ({"keep": (1.2,)}, r"keep of 1\.2 is not a share"),
        ({"keep": (0.0,)}, "keep of 0 is not a share"),
        ({"keep": (float("nan"),)}, "keep of nan is not a share"),
        ({"keep": (0.8, 0.8)}, "each once"),
        ({"shape": "round"}, "unknown shape 'round': expected one of any, uniform"),
        ({"of": "weight"}, "unknown measure 'weight'"),
        ({"protocol": "none"}, "none"),
        (
            {"dtype": "float99"},
            "unknown dtype 'float99': expected one of float32, bfloat16",
        ),
        ({"dtype": torch.float16}, "PruneConfig: dtype is of type dtype .expected str"),
        ({"seed": -1}, "seed of -1 is too small: give 0 or more"),
        ({"seed": 2**63}, "seed of 9223372036854775808 is too large: give 9223372036854775807"),
        ({"channel_multiple": 0}, "channel_multiple of 0 is too small: give 1 or more"),
        ({"pairs": 19}, "19 pairs are too few for a predictor: measure at least 20"),
        ({"report_tokens": 0}, "report_tokens of 0 is too small: give 1 or more"),
        (
            {"recovery": RecoveryConfig(elastic=RecoverySettings(seed=-1))},
            "recovery: seed of -1 is too small",
        ),
    ):
        with pytest.raises(LmscoutError, match=message):
            check_request(replace(CONFIG, **wrong), calibration, report_on, out)
    check_request(replace(CONFIG, objective="proxy:snip", pairs=0), calibration, report_on, out)
    with pytest.raises(LmscoutError, match="are the same"):
        check_request(CONFIG, calibration, Text("again", calibration.content, "c"), out)
    again = Text("again", report_on.content, "c")
    with pytest.raises(LmscoutError, match="recovery text again and report text second are"):
        check_request(CONFIG, calibration, report_on, out, again)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    with pytest.raises(LmscoutError, match="not empty"):
        check_request(CONFIG, calibration, None, full)
    with pytest.raises(LmscoutError, match="not empty"):
        check_request(CONFIG, calibration, None, full / "mine")


def test_what_the_model_cannot_do_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    loaded = load_model(str(TINY))
    with pytest.raises(LmscoutError, match="nearest that can be met"):
        prune(loaded, two_texts()[0], replace(CONFIG, keep=(0.02,)), out)
    with pytest.raises(LmscoutError, match="fewer than one window"):
        prune(loaded, Text("short", "a word", "c"), CONFIG, out)
    with pytest.raises(LmscoutError, match="give a longer text"):
        prune(loaded, Text("short", two_texts()[0].content[:1500], "c"), CONFIG, out)
    long = replace(CONFIG, calibration=replace(CALIBRATION, window=1024))
    with pytest.raises(LmscoutError, match="window: 1024 tokens are too many, the model reads 256"):
        prune(loaded, two_texts()[0], long, out)
    slip = replace(CONFIG, protocol="sliding-1024")
    seen = []
    for config, report_on, message in (
        (slip, two_texts()[1], "sliding-1024: the model reads 256 tokens"),
        (CONFIG, Text("brief", "a word", "c"), "brief: .* are fewer than one window of 128"),
    ):
        with pytest.raises(LmscoutError, match=message):
            prune(
                *(loaded, two_texts()[0], config, out),
                report_on=report_on,
                progress=lambda stage, done, _: seen.append((stage, done)),
            )
    assert not any(done for _, done in seen)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, vocab_size=4_000)
    other = replace(loaded, model=GPT2LMHeadModel(config).eval())
    with pytest.raises(LmscoutError, match="first: the tokenizer makes token"):
        prune(other, two_texts()[0], CONFIG, out)
    with torch.no_grad():
        loaded.model.model.layers[2].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(LmscoutError, match=r"not finite|is nan|is inf"):
        prune(loaded, two_texts()[0], CONFIG, out)
    assert not out.exists()


def test_a_study_of_other_settings_is_refused(brief_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(brief_run.sizes[0].folder, out)
    (out / "config.json").unlink()
    other = replace(BRIEFLY, calibration=replace(BRIEF, measured_tokens=2000))
    with pytest.raises(LmscoutError, match="holds a run with measured_tokens 640, not 2000"):
        briefly(out, other)
    with pytest.raises(LmscoutError, match="report_tokens"):
        briefly(brief_run.sizes[0].folder, replace(BRIEFLY, report_tokens=500))
    again = briefly(out, BRIEFLY)  # and the run itself can be ended again
    assert (again.pairs, again.plan) == (brief_run.pairs, brief_run.plan)


def command(out, text):
    lmscout = Path(sys.executable).with_name("lmscout")
    return [
        *(str(lmscout), "prune", str(TINY), "--calibration", str(text), "--pairs", "80"),
        *("--keep", "0.8", "--out", str(out), "--json", "-"),
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(two_texts()[0].content)
    started = time.monotonic()
    whole = subprocess.run(
        command(tmp_path / "whole", text), capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - started
    expected = json.loads(whole.stdout)
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(
            command(tmp_path / "killed", text),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.2, 0.7) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # where it was faster than the signal, it is opened again
        (tmp_path / "killed" / "config.json").unlink(missing_ok=True)
    last = subprocess.run(
        command(tmp_path / "killed", text), capture_output=True, text=True, check=True
    )
    got = json.loads(last.stdout)
    for name in ("plan", "finalists"):
        assert got["sizes"][0][name] == expected["sizes"][0][name]
    assert got["predictor"] == expected["predictor"]
    trials = [
        [(trial.params, trial.value, trial.state) for trial in trials_of(one["study"])]
        for one in (expected, got)
    ]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 80


TEMPLATE = (
    "{% for one in messages %}{{ '<' + one['role'] + '>' + one['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_chats_calibrate_as_they_are_rendered_and_recovery_learns_assistant_turns(tmp_path):
    folder, file = tmp_path / "model", tmp_path / "chats.jsonl"
    shutil.copytree(TINY, folder)
    source = str(file)
    rng = random.Random(0)
    chats = []
    for part in two_texts()[0].content[:9_000].split("\n\n"):
        noise = "".join(rng.choices("qxzjkvw#", k=len(part)))
        chats.append([{"role": "user", "content": noise}, {"role": "assistant", "content": part}])
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    options = {"calibration": f"{source}#messages", "progress": False}
    recovery = RecoveryConfig.of("lora", steps=3, batch=256)
    little = replace(CALIBRATION, measured_tokens=500, final_tokens=500, moment_tokens=1000)
    config = replace(CONFIG, pairs=0, refit="none", recovery=recovery, calibration=little)
    with pytest.raises(LmscoutError, match=r"chats.jsonl#messages: chats need a chat template"):
        lmscout.prune(str(folder), out=tmp_path / "run", config=config, **options)
    assert not (tmp_path / "run").exists()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    result = lmscout.prune(str(folder), out=tmp_path / "run", config=config, **options)
    trained = result.sizes[0].recovery
    loaded = load_model(str(folder))
    whole = perplexity(
        loaded.model, loaded.tokenizer, read_text(f"{source}#messages"), "llm-pruner"
    )
    assert trained.first < whole.nll - 1  # half of the text is noise, which nothing is learnt of
