"""`lmscout explain`, as installed."""

import json

import pytest

PROXY = "sum(total(abs(mul(weight, grad))))"


def test_it_prints_exactly_one_json_object(lmscout, flexibert_file, tmp_path):
    arguments = ["explain", "lpzero-flexibert", f"flexibert:{flexibert_file}", "--workers", 1]
    code, out, err = lmscout(*arguments, "--json", "-")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["proxy"], result["n_architectures"]) == ("lpzero-flexibert", 24)
    assert result["tree"].startswith("mean(square(negate(head))")
    assert set(result["spearman"]) == {"value", "low", "high"}
    assert set(result["ahead_of_best_baseline"]) == {"baseline", "value", "low", "high"}
    assert set(result["sensitivity"]) == {
        "other_data",
        "other_weights",
        "inputs",
        "inputs_left_out",
    }
    assert set(result["configuration"]) == {"depth", "width", "params"}
    dead = result["dead_branches"]
    assert "average(logsoftmax(frobenius(act)))" in [one["removed"] for one in dead["dead"]]
    assert dead["shortest"]["proxy"] == "mean(square(head))"
    assert result["surrogate"]["formula"]
    assert r"\sum_{\ell=1}^{L}" in result["latex"]
    compile(result["torch"], "torch", "exec")
    assert not (tmp_path / "runs").exists()


def test_it_shows_tables_and_forms(lmscout, flexibert_file, tmp_path):
    arguments = ["explain", PROXY, f"flexibert:{flexibert_file}", "--workers", 1]
    code, out, err = lmscout(*arguments, "--latex", "--torch", "--json", "told.json")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "told.json").read_text())
    for words in (
        PROXY,
        "the proxy",
        "best configuration baseline",
        "dead branch",
        "other data",
        "other initial weights",
        "ones for grad",
        "formulas of depth, width and params",
        result["surrogate"]["formula"],
        result["latex"],
        result["torch"],
    ):
        assert words in out


def test_forms_follow_from_the_formula_without_a_benchmark(lmscout, tmp_path):
    code, out, err = lmscout("explain", PROXY, "--torch")
    assert (code, err) == (0, "")
    compile(out, "torch", "exec")  # as it is redirected to a file
    code, out, err = lmscout("explain", "snip", "--latex")
    assert (code, err) == (0, "")
    assert out.strip().startswith(r"\sum_{\ell=1}^{L}")
    code, out, err = lmscout("explain", "snip", "--json", "-")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["proxy"], result["tree"]) == ("snip", PROXY)
    assert result["torch"]
    assert result["latex"]
    code, out, _ = lmscout("explain", "snip")
    assert code == 0
    assert PROXY in out.splitlines()
    for option in (("--seed", 1), ("--workers", 2)):
        code, out, err = lmscout("explain", "snip", *option)
        assert (code, out) == (2, "")
        assert f"{option[0]} has nothing to apply to" in err
    assert not list(tmp_path.iterdir())


def test_what_is_no_expression_says_so(lmscout, flexibert_file):
    arguments = ["explain", "synflow", f"flexibert:{flexibert_file}", "--workers", 1]
    code, out, err = lmscout(*arguments, "--torch")
    assert (code, err) == (0, "")
    assert "no branch can be taken out" in out
    assert "it runs the model itself" in out
    assert "LaTeX" not in out
    assert "no PyTorch form" in out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["snap", "FILE"], "did you mean 'snip'"),
        (["params /", "FILE"], "column 9"),
        (["snip", "bert"], "flexibert"),
        (["snip", "FILE", "--json", "nowhere/x.json"], "nowhere"),
        (["max(average(relu(log(softmax))))", "FILE", "--workers", "1"], "the same score"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(lmscout, flexibert_file, arguments, hint):
    named = [f"flexibert:{flexibert_file}" if one == "FILE" else one for one in arguments]
    code, out, err = lmscout("explain", *named)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("lmscout: ")
    assert hint in err
