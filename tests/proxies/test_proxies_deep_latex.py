import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscout.proxies.deep import WORDS, parse
from lmscout.proxies.deep.growing import Grammar, seedling
from lmscout.proxies.deep.latex import to_latex


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (
            "sum(total(abs(mul(weight, grad)))) / params",
            r"\frac{\sum_{\ell=1}^{L}\left(\sum_{i}\left(\left|W_{\ell} \odot G_{\ell}\right|"
            r"\right)_{i}\right)}{P}",
        ),
        (
            "max(average(act_grad)) * depth",
            r"\max_{\ell}\left(\left\langle \nabla A_{\ell} \right\rangle\right) \cdot L",
        ),
        (
            "mean(average(div(sub(mlp_weight, std(mlp_grad)), exp(mlp_grad))))",
            r"\frac{1}{L}\sum_{\ell=1}^{L}\left(\left\langle \left(W^{\mathrm{MLP}}_{\ell} - "
            r"\operatorname{std}\left(G^{\mathrm{MLP}}_{\ell}\right)\right) \oslash "
            r"\exp\left(G^{\mathrm{MLP}}_{\ell}\right) \right\rangle\right)",
        ),
    ],
)
def test_latex_is_what_it_says(text, latex):
    assert to_latex(parse(text)) == latex


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("depth - width - params", "L - d - P"),
        ("depth - (width - params)", r"L - \left(d - P\right)"),
        ("depth + (width + params)", r"L + \left(d + P\right)"),
        ("(depth + width) * params", r"\left(L + d\right) \cdot P"),
        ("depth + width * params", r"L + d \cdot P"),
        ("depth * (width / params)", r"L \cdot \frac{d}{P}"),
        ("(depth + width) / (params - width)", r"\frac{L + d}{P - d}"),
        ("depth - negate(width)", r"L - \left(-\left(d\right)\right)"),
        ("square(depth + width)", r"\left(L + d\right)^{2}"),
        ("0.25 * (depth - 2)", r"0.25 \cdot \left(L - 2\right)"),
    ],
)
def test_brackets_are_where_arithmetic_needs_them(text, latex):
    assert to_latex(parse(text)) == latex


def test_every_word_has_a_form():
    for word in WORDS:
        operand = {"tensor": "weight", "block": "average(weight)", "score": "depth"}
        inside = ", ".join(operand[one] for one in word.takes)
        if word.name in "+-*/":
            text = f" {word.name} ".join(operand[one] for one in word.takes)
        else:
            text = f"{word.name}({inside})" if inside else word.name
        latex = to_latex(parse(text))
        assert latex
        assert "#" not in latex


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_latex_is_balanced(seed):
    latex = to_latex(seedling(Grammar(), np.random.default_rng(seed)))
    assert "#" not in latex
    assert len(re.findall(r"\\left\b", latex)) == len(re.findall(r"\\right\b", latex))
    depth = 0
    for character in latex:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
