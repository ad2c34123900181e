import json

import pytest


def test_a_benchmark_is_built_checked_and_ranked(lmscout, tokens, tmp_path):
    arguments = ["bench", "build", "nano", "--n", 3, "--tokens", 5 * 64 * 32, "--corpus", tokens]
    arguments += ["--device", "cpu", "--workers", 1, "--out", "mine"]
    code, out, err = lmscout(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("3 architectures, ")
    assert out.endswith("benchmark: mine\ncheck it: lmscout bench check mine\n")
    assert (tmp_path / "mine" / "table.jsonl").read_text().count("\n") == 3 + 2

    code, out, err = lmscout("bench", "check", "mine", "--json", "-")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["n_architectures"], found["n_replicated"]) == (3, 1)

    found = {}
    for name in ("bench:mine", "mine"):
        code, out, err = lmscout("rank", name, "--proxy", "snip", "--workers", 1, "--json", "-")
        assert (code, err) == (0, "")
        found[name] = {one: value for one, value in json.loads(out).items() if one != "seconds"}
    assert found["mine"] == found["bench:mine"]
    judged = found["mine"]
    assert judged["n_architectures"] == 3
    assert judged["metric"] == "negated validation loss after 10,240 tokens"


def test_check_prints_ceiling_baselines_and_verdict(lmscout):
    code, out, err = lmscout("bench", "check", "pico")
    assert (code, err) == (0, "")
    assert "240 architectures, 24 of them trained with several seeds" in out
    for word in ("noise ceiling", "measured again", "parameters", "depth²×width"):
        assert word in out
    assert "This benchmark can distinguish proxies: 3 of 3 conditions hold." in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["bench", "build", "micro", "--out", "x"],
            "unknown space 'micro'; there are pico, iso, nano",
        ),
        (
            ["bench", "build", "nano", "--out", "x", "--corpus", "gone"],
            "gone: cannot be read: No such",
        ),
        (["bench", "build", "nano", "--out", "x", "--corpus", "a", "--text", "b"], "one of them"),
        (["bench", "build", "nano"], "Missing option '--out'"),
        (["bench", "check", "gone"], "gone: no table.jsonl"),
    ],
)
def test_a_slip_is_one_line(lmscout, tmp_path, arguments, said):
    code, out, err = lmscout(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lmscout: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "x").exists()
