import json
import os
import signal
import subprocess
import sys
import time

from forked import errors
from transformers import AutoModelForCausalLM

import lmscout as public
from lmscout.models import spec_from_dict

SEARCH = ("design", "nano", "--max-params", "200k", "--evaluations", 20, "--workers", 1)

# Whoever runs the tests in the background may have had us ignore interrupts.
INTERRUPTIBLE = """
import signal
from lmscout.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def test_design_finds_an_architecture_and_writes_its_spec(lmscout, tmp_path):
    code, out, err = lmscout(
        *SEARCH, "--proxy", "snip", "--out", "spec.json", "--json", "result.json"
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    spec = spec_from_dict(result["spec"])
    assert json.loads((tmp_path / "spec.json").read_text()) == result["spec"]
    assert spec.parameters() == result["params"] <= 200_000
    assert (spec.depth, spec.width) == (result["depth"], result["width"])
    assert (result["space"], result["proxy"], result["sign"]) == ("nano", "snip", 1)
    assert (result["n_scored"], result["max_params"]) == (20, 200_000)
    assert f"{result['params']:,} parameters" in out
    assert f"snip: score {result['score']:.6g}" in out
    for words in (
        "nano within 200,000 parameters: 20 architectures evaluated",
        "MLP width",
        "spec: sp",
    ):
        assert words in out


def test_design_writes_a_folder_that_transformers_loads(lmscout, tmp_path):
    command = (*SEARCH, "--proxy", "parameters", "--out", "new")
    code, out, err = lmscout(*command, "--json", "a")
    assert (code, err) == (0, "")
    assert out.endswith("for AutoModelForCausalLM after lmscout.register(): new\n")
    written = {one: one.stat().st_mtime_ns for one in (tmp_path / "new").iterdir()}
    code, again, err = lmscout(*command, "--workers", 2, "--json", "b")
    assert (code, again) == (0, out)
    assert "holds a finished run with these settings" in err
    assert (tmp_path / "b").read_text() == (tmp_path / "a").read_text()
    for more, said in (
        (("--max-params", "100k"), "max_params 200000, not 100000"),
        (("--max-latency", 50), "max_latency none, not 50"),
        (("--proxy", "-parameters"), "proxy parameters, not -parameters"),
        (("--seed", 1), "seed 0, not 1"),
    ):
        code, out, err = lmscout(*command, *more)
        assert (code, out) == (2, "")
        assert err.startswith(f"lmscout: run folder new holds a run with {said}")
        assert err.count("\n") == 1
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "new").iterdir()} == written
    spec = json.loads((tmp_path / "a").read_text())["spec"]
    assert json.loads((tmp_path / "new" / "spec.json").read_text()) == spec
    public.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert model.num_parameters() == spec_from_dict(spec).parameters()


def test_an_encoder_has_a_spec_but_no_model(lmscout, flexibert_file, tmp_path):
    code, out, err = lmscout(
        *("design", f"flexibert:{flexibert_file}", "--max-params", "5M", "--evaluations", 3),
        *("--proxy", "parameters", "--workers", 1, "--out", "new"),
    )
    assert (code, err) == (0, "")
    assert "no class for flexibert, so there is no model): new" in out
    names = sorted(one.name for one in (tmp_path / "new").iterdir())
    assert names == ["result.json", "settings.json", "spec.json"]


def test_design_averages_over_weights(lmscout, flexibert_file, tmp_path):
    where = f"flexibert:{flexibert_file}"
    code, out, err = lmscout(
        *("design", where, "--max-params", "5M", "--evaluations", 3, "--workers", 1),
        *("--proxy", "snip", "--weights", 2, "--json", "result.json"),
    )
    assert (code, err) == (0, "")
    assert "3 drawn with 2 draws of weights" in " ".join(out.split())
    assert json.loads((tmp_path / "result.json").read_text())["weights"] == 2
    code, out, _ = lmscout(
        *("design", "nano", "--max-params", "200k", "--evaluations", 3, "--workers", 1),
        *("--proxy", "snip", "--weights", 2),
    )
    assert code == 0
    assert "3 architectures evaluated with 2 draws of weights" in " ".join(out.split())
    assert "--max-params 200000 --weights 2" in " ".join(out.split())


def test_several_limits_and_several_architectures_are_shown(lmscout, tmp_path):
    code, out, err = lmscout(
        *(*SEARCH, "--proxy", "snip", "--max-macs", "20k", "--max-latency", 1000),
        *("--weights", 2, "--evaluations", 6, "--json", "result.json"),
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    limits = {name: result[name] for name in ("max_params", "max_macs", "max_latency")}
    assert limits == {"max_params": 200_000, "max_macs": 20_000, "max_latency": 1000}
    assert "nano within 200,000 parameters and 20,000 multiply-adds and 1,000 ms: 6 arch" in out
    assert "--max-params 200000 --max-macs 20000 --max-latency 1000.0 --weights 2" in out
    assert len(result["choices"]) == 5
    assert result["choices"][0]["spec"] == result["spec"]
    for one in result["choices"]:
        assert f"{one['score']:.6g} " in out
        assert f" {one['chance']:.0%} " in out
        assert one["params"] <= 200_000
        assert one["macs"] <= 20_000
        assert 0 < one["latency"] <= 1000


def test_a_benchmark_needs_no_limit(lmscout, tmp_path):
    code, out, err = lmscout(
        *("design", "iso", "--on-benchmark", "--proxy", "depth", "--evaluations", 300),
        *("--weights", 2, "--workers", 1, "--json", "result.json"),
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["n_within"], result["n_drawn"], result["max_params"]) == (200, 200, None)
    assert out.startswith("iso: 200 architectures, 200 drawn")
    for one in result["choices"]:  # as deep as any other: sure, and no better than a baseline
        assert (one["score"], one["standard_error"]) == (one["depth"], 0)
        assert one["depth"] >= 22
        assert one["architecture"] in out
    by_depth = next(one for one in result["baselines"] if one["name"] == "depth")
    assert by_depth["rank"] == result["pick"]["rank"]
    assert "Its selection is as good as" in out or "worse than" in out


def test_design_on_a_benchmark_tells_the_truth(lmscout, flexibert_file, tmp_path):
    where = f"flexibert:{flexibert_file}"
    code, out, err = lmscout(
        *("design", where, "--max-params", "5M", "--evaluations", 8, "--workers", 1),
        *("--proxy", "-snip", "--json", "result.json"),
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["benchmark"], result["n_drawn"]) == (where, 8)
    assert (result["proxy"], result["sign"], result["pick"]["name"]) == ("snip", -1, "-snip")
    assert result["params"] <= 5_000_000
    pick = result["pick"]
    assert set(pick) == {"name", "rank", "top", "regret", "n_tied", "random_trials"}
    assert 1 <= pick["rank"] <= result["n_within"]
    assert pick["n_tied"] > 1  # of equal architectures with qualities of their own
    assert 0 < pick["regret"] <= 1.2 + result["best_quality"] - result["quality"]
    names = [one["name"] for one in result["baselines"]]
    assert names == ["parameters", "body-parameters", "depth", "width", "depth²×width"]
    assert result["at_random"]["rank"] == (result["n_within"] + 1) / 2
    for words in (
        f"of {result['n_within']}",
        *names,
        "one at random",
        "the best drawn",
        "baseline, ",
        f"architecture {result['architecture']}",
        f"the first drawn of {pick['n_tied']} tied ones",
        "feed forward",
    ):
        assert words in out


def test_pico_is_a_benchmark_where_the_option_says_so(lmscout):
    code, out, err = lmscout(
        *("design", "pico", "--on-benchmark", "--max-params", "400k", "--proxy", "parameters"),
        *("--evaluations", 3, "--workers", 1, "--json", "-"),
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["benchmark"] == "pico"


def test_user_errors_are_one_line_and_exit_code_2(lmscout, tmp_path):
    proxy, limit = ("--proxy", "snip"), ("--max-params", "200k")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    for arguments, hint in (
        (["picoo", *proxy, *limit], "the spaces pico, iso, nano and FILE.json, and the"),
        (["nano", *proxy, "--max-params", "10k"], "the smallest has 66,736"),
        (["nano", *limit, "--proxy", "-snap"], "did you mean 'snip'"),
        (["nano", *proxy, "--max-params", "3X"], "--max-params 3X"),
        (["nano", *proxy], "give --max-params, --max-macs or --max-latency"),
        (["nano", *proxy, "--max-macs", "1k"], "the smallest has 1,680 multiply-adds"),
        (["nano", *proxy, "--max-macs", "3X"], "--max-macs 3X"),
        (["nano", *proxy, "--max-latency", "nan"], "max_latency: no number of milliseconds"),
        (["nano", *proxy, *limit, "--max-macs", "1k"], "the least of each is 66,736 parameters"),
        (["nano", *proxy, *limit, "--out", "missing/spec.json"], "--out missing/spec.json"),
        (["nano", *proxy, *limit, "--out", "folder.json"], "is a folder"),
        (["nano", *proxy, *limit, "--out", "other"], "run folder other is not empty"),
        (["nano", *proxy, *limit, "--out", "other/file"], "run folder other/file is not empty"),
    ):
        code, out, err = lmscout("design", *arguments)
        assert code == 2, (arguments, out, err)
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("lmscout: ")
        assert hint in err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder.json", "other"]
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_control_c_is_one_line_that_says_how_to_go_on(tmp_path):
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            INTERRUPTIBLE,
            *map(str, SEARCH),
            "--proxy",
            "snip",
            "--evaluations",
            "400",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"LMSCOUT_CACHE": str(tmp_path)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("statistics/design-*.safetensors")):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert errors(err) == (
        "lmscout: interrupted; the same command continues where this one stopped\n"
    )
