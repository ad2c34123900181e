import pytest

from lmscout.discovery import SignedProxy, signed_proxy
from lmscout.errors import LmscoutError


@pytest.mark.parametrize(
    ("text", "name", "sign"),
    [
        ("snip", "snip", 1),
        ("-snip", "snip", -1),
        (" - snip ", "snip", -1),
        ("sum( abs(head)-abs(weight) )", "sum(abs(head) - abs(weight))", 1),
        ("-mean(frobenius(act))", "mean(frobenius(act))", -1),
        ("- sum(total(mul(weight,grad)))", "sum(total(mul(weight, grad)))", -1),
        ("-sum(total(act)) * depth", "sum(total(act)) * depth", -1),
        ("-(sum(total(act)) + depth)", "sum(total(act)) + depth", -1),
        ("-(sum(total(act)) - depth)", "sum(total(act)) - depth", -1),
        ("-(depth + params) * depth", "(depth + params) * depth", -1),
    ],
)
def test_a_proxy_is_read_with_its_sign_and_printed_as_it_is_read(text, name, sign):
    proxy = signed_proxy(text)
    assert proxy == SignedProxy(name, sign)
    assert signed_proxy(str(proxy)) == proxy


def test_a_sign_before_a_sum_is_before_all_of_it():
    assert str(signed_proxy("-snip")) == "-snip"
    assert str(signed_proxy("-sum(total(act)) * depth")) == "-sum(total(act)) * depth"
    assert str(SignedProxy("sum(total(act)) - depth", -1)) == "-(sum(total(act)) - depth)"
    assert str(signed_proxy("sum(total(act)) - depth")) == "sum(total(act)) - depth"


@pytest.mark.parametrize("text", ["-snap", "", "-", "--snip", "-sum(abs(weight)"])
def test_what_is_no_proxy_is_refused(text):
    with pytest.raises(LmscoutError):
        signed_proxy(text)


@pytest.mark.parametrize(
    "text", ["-depth + params", "-(depth) - (params)", "-sum(total(act)) - depth"]
)
def test_a_sign_that_may_be_meant_for_the_first_term_is_refused(text):
    with pytest.raises(LmscoutError, match="lower scores are better; write -\\("):
        signed_proxy(text)
