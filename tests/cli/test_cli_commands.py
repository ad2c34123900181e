import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import lmscout as package


def folder_of(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_discover_prints_exactly_one_json_object(lmscout, flexibert_file, tmp_path):
    arguments = ["discover", f"flexibert:{flexibert_file}", "--search", 12, "--seed", 1]
    code, out, err = lmscout(*arguments, "--aggregations", "mean,sum", "--json", "-")
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in lmscout.progress] == ["statistics", "ranking"]
    result = json.loads(out)
    assert result["n_architectures"] == 24
    assert (result["n_search"], result["n_test"]) == (12, 12)
    assert (result["space"], result["n_proxies"]) == ("published", 48_000)
    assert set(result["best"]["test"]["kendall"]) == {"value", "low", "high"}
    assert {"name", "spearman", "kendall"} == set(result["baselines"][0])
    folder = folder_of(tmp_path)
    assert result.items() <= json.loads((folder / "result.json").read_text()).items()
    assert pq.read_metadata(folder / "scores.parquet").num_rows == 48_000


def test_discover_prints_a_table_that_names_the_best_and_the_baselines(
    lmscout, flexibert_file, tmp_path
):
    arguments = ["discover", f"flexibert:{flexibert_file}", "--search", 12]
    given = ("--workers", 1, "--out", "here", "--json", "result.json")
    code, out, err = lmscout(*arguments, *given)
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best"]["proxy"] in out
    for words in ("best proxy", "depth²×width", "24,000 proxies", "baseline", "run folder: here"):
        assert words in out
    assert (tmp_path / "here" / "settings.json").exists()
    assert len(result["top"]) == 10
    for one in result["top"]:  # whole in one line, so that it can be pasted
        shown = f"-{one['proxy']}" if one["sign"] < 0 else one["proxy"]
        assert any(line.endswith(f"  {shown}") for line in out.splitlines())


def test_the_same_seed_gives_the_same_result_at_any_number_of_workers(lmscout, flexibert_file):
    results = []
    for workers in (1, 2):
        code, out, _ = lmscout(
            *("discover", f"flexibert:{flexibert_file}", "--search", 12, "--json", "-"),
            *("--workers", workers, "--out", f"run{workers}"),
            LMSCOUT_CACHE=f"cache{workers}",
        )
        assert code == 0
        results.append({k: v for k, v in json.loads(out).items() if k != "seconds"})
    assert results[0] == results[1]


def test_the_deep_space_is_searched_and_a_deep_proxy_ranked(lmscout, flexibert_file, tmp_path):
    arguments = ["discover", f"flexibert:{flexibert_file}", "--space", "deep", "--search", 12]
    arguments += ["--workers", 1]
    code, out, err = lmscout(*arguments, "--evaluations", 5, "--json", "-", "--out", "run")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["evaluations"] >= 5
    assert len(result["members"]) <= 4
    assert result["proposed"] == result["evaluations"] + sum(result["discarded"].values())
    sizes = [one["size"] for one in result["front"]]
    assert sizes == sorted(set(sizes))
    fitness = [one["fitness"] for one in result["top"]]
    assert 1 <= len(fitness) <= 10
    assert fitness == sorted(set(fitness), reverse=True)
    for batch in (tmp_path / "run" / "evaluations").iterdir():
        assert "proxy" in pq.read_schema(batch).names
    assert result.items() <= json.loads((tmp_path / "run" / "result.json").read_text()).items()
    assert (tmp_path / "run" / "hall_of_fame.csv").read_text().startswith("fitness,size,proxy\n")
    proxy = result["best"]["proxy"]
    ranked = ("rank", f"flexibert:{flexibert_file}", "--workers", 1, "--proxy", proxy)
    code, out, _ = lmscout(*ranked, "--json", "-")
    assert code == 0
    assert json.loads(out)["proxies"][0]["proxy"] == proxy
    code, _, err = lmscout(*arguments, "--out", "run")
    assert code == 2
    assert "evaluations 5, not 600" in err


def test_rank_prints_exactly_one_json_object(lmscout, flexibert_file, tmp_path):
    code, out, err = lmscout(
        *("rank", f"flexibert:{flexibert_file}", "--workers", 1, "--json", "-"),
        *("--proxy", "sum( abslog(head)-sqrt(weight) )", "--proxy", "-snip"),
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    names = [one["proxy"] for one in result["proxies"]]
    assert names == ["sum(abslog(head) - sqrt(weight))", "-snip"]
    for one in result["proxies"]:
        assert set(one) >= {"spearman", "kendall", "within_cell", "given_params"}
        assert one["spearman"]["low"] <= one["spearman"]["value"] <= one["spearman"]["high"]
    assert result["baselines"][0]["proxy"] == "parameters"
    table = pq.read_table(folder_of(tmp_path) / "scores.parquet")
    assert table.column_names == ["architecture", "quality", *names]


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_works_with_standard_output_closed(tmp_path, closed):
    command = f"{sys.executable} -m lmscout explain snip --json forms.json {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "forms.json").exists()


def on_a_terminal(lmscout, arguments, columns):
    """What a terminal of so many columns shows of a command's standard output."""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown = []

    def read():
        with suppress(OSError):  # the other end is closed: so a terminal ends
            while True:
                shown.append(os.read(screen, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    code, _, err = lmscout(*arguments, stdout=os.ttyname(end), TERM="dumb")
    os.close(end)
    reader.join()
    os.close(screen)
    assert code == 0, err
    return b"".join(shown).decode().replace("\r", "")


def test_eighty_columns_show_names_whole_and_formulas_to_their_end(
    lmscout, flexibert_file, monkeypatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    formula = "sum(abslog(exp(head)) - sqrt(frobenius(weight)))"
    asked = ("rank", f"flexibert:{flexibert_file}", "--proxy", "snip", "--proxy", formula)
    asked += ("--workers", "1")
    shown = on_a_terminal(lmscout, asked, 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown.replace(" … ", "")  # of an interval
    assert "body-parameters" in shown
    first = [line.split("  ")[0] for line in shown.splitlines()]
    assert formula.replace(" ", "") in "".join(first).replace(" ", "")
    wide = on_a_terminal(lmscout, asked, 120)
    for heading in ("ρ", "95 %", "τ", "cell", "size", "tenth"):  # the same columns
        assert heading in shown
        assert heading in wide


def test_rank_shows_the_whole_catalog(lmscout, flexibert_file):
    code, out, err = lmscout("rank", f"flexibert:{flexibert_file}", "--workers", 1)
    assert (code, err) == (0, "")
    for name in ("parameters", "grasp", "synflow", "softmax-confidence", "lpzero-gpt2", "depth"):
        assert name in out


def test_version_and_help(installed_lmscout):
    assert installed_lmscout("--version")[:2] == (0, package.__version__ + "\n")
    as_module = [sys.executable, "-m", "lmscout", "--version"]
    assert subprocess.check_output(as_module, text=True) == package.__version__ + "\n"
    for arguments in ((), ("--help",)):
        code, out, err = installed_lmscout(*arguments)
        assert (code, err) == (0, "")
        assert "discover" in out
        assert "rank" in out


def bad_lines(folder, flexibert_file):
    """Arguments with a user error, and a part of its message."""
    truncated = folder / "truncated.json"
    truncated.write_text(flexibert_file.read_text()[:700])
    rows = json.loads(flexibert_file.read_text())
    rows[3]["scores"]["glue"] = float("nan")
    not_a_number = folder / "nan.json"
    not_a_number.write_text(json.dumps(rows))
    tagged = folder / "tagged"
    (tagged / "config_0" / "j0").mkdir(parents=True)
    (tagged / "config_0" / "j0" / "model_config.yaml").write_text("!!python/name:os.system x\n")
    (tagged / "ppl_summary.yaml").write_text("config_0_j0: {valid_ppl: 30.0}\n")
    lacking = folder / "lacking"
    (lacking / "config_0" / "j0").mkdir(parents=True)
    (lacking / "config_0" / "j0" / "model_config.yaml").write_text("n_layer: 2\n")
    full = folder / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    few = folder / "few.json"
    few.write_text(json.dumps(json.loads(flexibert_file.read_text())[:6]))
    slip = folder / "slip.json"
    slip.write_text(
        '{"family": ["llama"], "depths": [2], "widths": [8], "head_sizes": [4], "expansions": [2], '
        '"vocabulary": 8, "max_length": 8}'
    )
    run = folder / "run"
    run.mkdir()
    (run / "settings.json").write_text('{"command": "discover"}')
    good = f"flexibert:{flexibert_file}"
    return [
        (["rank", good, "--proxy", "snap"], "did you mean 'snip'"),
        (["rank", good, "--proxy", "sum(abs(weight)"], "column 16"),
        (["discover", f"flexibert:{truncated}"], "truncated.json"),
        (["discover", f"lts:{tagged}"], "model_config.yaml"),
        (["discover", f"lts:{lacking}"], "ppl_summary.yaml"),
        (["discover", f"flexibert:{not_a_number}"], "nan.json"),
        (["discover", good, "--search", 24], "at most 19"),
        (["discover", good, "--space", "publised"], "did you mean 'published'"),
        (["discover", good, "--aggregations", "mean,median"], "mean, sum, max, min"),
        (["discover", good, "--search", "many"], "--n-search many: no number"),
        (["discover", good, "--engine", "random"], "--engine is not for --space published"),
        (["discover", good, "--no-correction"], "give --space deep"),
        (["discover", good, "--space", "deep", "--aggregations", "max"], "--aggregations"),
        (["discover", good, "--space", "deep", "--model", "here"], "published or two-op"),
        (["discover", good, "--seed", -1], "--seed"),
        (["design", good, "--proxy", "snip", "--max-params", "9M", "--seed", -1], "--seed"),
        (["rank", good, "--proxy", "9" * 400 + " * depth"], "400 digits"),
        (["rank", good, "--proxy", "-depth + params"], "-(depth + params)"),
        (["explain", "-snip", good], "No such option"),
        (["explain", "--", "-snip", good], "without it"),
        (["rank", good, "--backend", "dask"], "dask is not installed"),
        (["rank", good, "--backend", "multiprocessing"], "there are dask, loky, sequential"),
        (["rank", good, "--json", "/proc/result.json"], "/proc/result.json cannot be written"),
        (["discover", good, "--space", "foo"], "published, two-op, deep"),
        (["discover", "pico,flexibert"], "several at once are for --space deep"),
        (["discover", f"flexibert:{few}"], "at least 10"),
        (["bench", "build", slip, "--out", folder / "built"], "did you mean 'families'"),
        (["bench", "build", "nano", "--out", run], "holds a run of lmscout discover"),
        (["discover", good, "--space", "deep", "--engine", "annealing"], "genetic"),
        (["discover", good, "--space", "deep", "--objective", "r2"], "kendall"),
        (["discover", good, "--space", "deep", "--search", 24], "at most 19"),
        (["discover", f"{good},{good}", "--space", "deep", "--search", "9,9,9"], "one for each"),
        (["discover", good, "--space", "deep", "--engine", "exhaustive", "--searches", 2], "1"),
        (["rank", good, "--proxy", "sum(total(mul(weight, act)))"], "of one stack"),
        (["discover", good, "--serch", 12], "--search"),
        (["discover", good, "--out", full], "name another folder"),
        (["discover", good, "--json", folder / "nowhere" / "x.json"], "nowhere"),
        (["discover", good, "--backend", "lokey", "--search", 12], "lokey"),
        (["discover", good, "--workers", 0, "--search", 12], "workers"),
        (["discover", good, "--device", "gpu", "--search", 12], "'gpu' cannot be used"),
        (["discover", good, "--space", "deep", "--device", "meta"], "'meta'"),
        (["discover", "study:here", "--device", "cuda"], "device cuda: not for study:RUN"),
        (["rank", good, "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["explain", "snip", good, "--device", "cuda:0,cuda:1"], "cuda:0,cuda:1"),
        (["design", "nano", "--proxy", "snip", "--max-params", "9M", "--device", "x"], "'x'"),
        (["discover", "bert"], "flexibert"),
        (["discover"], "BENCHMARK"),
        (["discovr"], "discover"),
    ]


def test_user_errors_are_one_line_and_exit_code_2(lmscout, flexibert_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for arguments, hint in bad_lines(folder, flexibert_file):
        code, out, err = lmscout(*arguments)
        assert code == 2, (arguments, out, err)
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("lmscout: ")
        assert hint in err


def test_as_a_shell_starts_it_a_slip_is_one_line_too(installed_lmscout, tmp_path):
    arguments = ["prune", tmp_path, "--calibration", "no.txt", "--keep", "0.8", "--out", "run"]
    code, out, err = installed_lmscout(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lmscout: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["file/cache", "/proc/lmscout"])
def test_a_cache_that_cannot_be_written_is_one_line(lmscout, flexibert_file, tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    code, out, err = lmscout(
        *("discover", f"flexibert:{flexibert_file}", "--search", 12),
        LMSCOUT_CACHE=str(tmp_path / where) if where[0] != "/" else where,
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "LMSCOUT_CACHE" in err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_benchmark_that_is_nowhere_says_where_it_was_looked_for(lmscout, tmp_path):
    code, out, err = lmscout(
        "discover", "flexibert", LMSCOUT_DATA=str(tmp_path), LMSCOUT_CACHE=str(tmp_path / "cache")
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for words in ("flexibert/BERT_benchmark.json", str(tmp_path), "https://", "LMSCOUT_DATA"):
        assert words in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_one_line(lmscout, flexibert_file):
    arguments = ("rank", f"flexibert:{flexibert_file}", "--proxy", "depth", "--json", "-")
    code, _, err = lmscout(*arguments, stdout="/dev/full")
    assert (code, err.count("\n")) == (2, 1), err
    assert "No space left on device" in err


def test_a_name_with_brackets_is_shown_as_it_is(lmscout, flexibert_file, tmp_path):
    (tmp_path / "a[").mkdir()
    (tmp_path / "a[" / "b].json").write_text(flexibert_file.read_text())
    code, out, err = lmscout("rank", "flexibert:a[/b].json", "--proxy", "depth")
    assert (code, err) == (0, "")
    assert "a[/b].json: 24 architectures" in out
