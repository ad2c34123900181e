import re

import pytest
from hypothesis import given, settings
from proxy_strategies import proxies

from lmscout.proxies.expression import branches
from lmscout.proxies.latex import to_latex
from lmscout.proxies.operators import INPUT, UNARY_OPERATION
from lmscout.proxies.text import parse


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (
            "sum(frobenius(grad))",
            r"\sum_{\ell=1}^{L}\left(\left\langle \left\lVert G_{\ell}\right\rVert_{F} "
            r"\right\rangle\right)",
        ),
        (
            "mean(abs(act) - square(negate(head)))",
            r"\frac{1}{L}\sum_{\ell=1}^{L}\left(\left\langle \left|A_{\ell}\right| \right\rangle "
            r"- \left\langle \left(-\left(H_{\ell}\right)\right)^{2} \right\rangle\right)",
        ),
        (
            "max(std(weight) @ identity(softmax))",
            r"\sum_{\ell=1}^{L} \left\langle \operatorname{std}\left(W_{\ell}\right) \right\rangle "
            r"\cdot \left\langle S_{\ell} \right\rangle",
        ),
    ],
)
def test_latex_is_what_it_says(text, latex):
    assert to_latex(parse(text)) == latex


@given(proxies())
@settings(max_examples=100)
def test_latex_is_balanced_and_complete(proxy):
    latex = to_latex(proxy)
    assert "#" not in latex
    assert len(re.findall(r"\\left\b", latex)) == len(re.findall(r"\\right\b", latex))
    depth = 0
    for character in latex:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    for branch in branches(proxy):
        assert INPUT[branch.input].latex in latex
        for name in branch.chain:
            assert UNARY_OPERATION[name].latex.split("#1")[0] in latex
