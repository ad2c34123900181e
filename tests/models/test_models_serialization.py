import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_strategies import specs

from lmscout.errors import LmscoutError
from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec, spec_from_dict

FLEXIBERT = FlexibertSpec(
    width=8, blocks=(FlexibertBlock(mixer="SDP", heads=2, feed_forward=4, stack=1),)
)
GPT2 = Gpt2Spec(width=8, heads=(2,), inner=(5,), embedding_width=8)
LLAMA = LlamaSpec(width=8, heads=(2,), key_value_heads=(1,), inner=(5,), vocabulary=9, max_length=4)

numbers = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.just(10**400)
anything = st.recursive(
    numbers | st.text(max_size=3) | st.sampled_from(["SDP", "DSC"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def replaced(values, value):
    """Values of a spec with another one in one of the fields, its first block's among them."""
    for field in values:
        yield {**values, field: value}
    if values["kind"] == "flexibert":
        first, *others = values["blocks"]
        for field in first:
            yield {**values, "blocks": [{**first, field: value}, *others]}


@settings(deadline=None, max_examples=200)
@given(spec=specs, value=numbers | anything)
def test_whatever_stands_in_a_field_makes_a_sound_spec_or_one_line(spec, value):
    for values in replaced(spec.to_dict(), value):
        found, refusal = None, ""
        try:
            found = spec_from_dict(values)
        except LmscoutError as error:
            refusal = str(error)
        if found is None:
            assert refusal
            assert "\n" not in refusal
            continue
        assert spec_from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
        assert hash(found) == hash(spec_from_dict(found.to_dict()))
        assert found.parameters() > 0
        for name in ("weight_std", "projection_std", "rope_theta", "norm_epsilon"):
            assert getattr(found, name, 1.0) > 0


@settings(deadline=None)
@given(spec=specs)
def test_a_spec_survives_json(spec):
    values = spec.to_dict()
    assert values["kind"] == type(spec).kind
    text = json.dumps(values)
    assert json.loads(text) == values
    again = spec_from_dict(json.loads(text))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "kind None is unknown; there are flexibert, gpt2, llama"),
        ({**GPT2.to_dict(), "kind": "mamba"}, "kind 'mamba' is unknown"),
        ({**GPT2.to_dict(), "colour": 1}, "unknown field 'colour'"),
        ({**GPT2.to_dict(), "heads": [3]}, r"heads\[0\] is 3"),
        ({**GPT2.to_dict(), "heads": 5}, r"heads must be a list \(in Python a tuple\), not 5"),
        ({**GPT2.to_dict(), "inner": None}, "inner must be a list .* not None"),
        ({**GPT2.to_dict(), "cutoffs": None}, "cutoffs must be a list .* not None"),
        ({**GPT2.to_dict(), "cutoffs": ["9"]}, r"cutoffs\[0\] must be a whole number above 0"),
        ({**GPT2.to_dict(), "tied": True}, "tied must be a list .* not True"),
        ({**GPT2.to_dict(), "tied": [1]}, r"tied\[0\] must be true or false, not 1"),
        ({**GPT2.to_dict(), "weight_std": "x"}, "weight_std must be a number above 0, not 'x'"),
        ({**GPT2.to_dict(), "weight_std": -0.1}, "weight_std must be a number above 0, not -0.1"),
        ({**GPT2.to_dict(), "projection_std": 0}, "projection_std must be a number above 0, not 0"),
        ({**LLAMA.to_dict(), "rope_theta": 10**30}, "rope_theta is too large .*at most 1e\\+12"),
        ({**LLAMA.to_dict(), "rope_theta": -1}, "rope_theta must be a number above 0, not -1"),
        ({**LLAMA.to_dict(), "norm_epsilon": True}, "norm_epsilon must be a number above 0"),
        ({**LLAMA.to_dict(), "tied": [True]}, "tied must be true or false, not "),
        ({**LLAMA.to_dict(), "key_value_heads": 1}, "key_value_heads must be a list"),
        ([], r"expected an object with fields, not \[\]"),
        ({"kind": "gpt2", "width": 8}, "GPT-2 spec: field 'heads' is missing"),
        ({"kind": "flexibert", "blocks": []}, "field 'width' is missing"),
        ({"kind": "flexibert", "width": 8}, "field 'blocks' is missing"),
        ({**FLEXIBERT.to_dict(), "blocks": "SDP"}, "blocks must be a list .* not 'SDP'"),
        ({**FLEXIBERT.to_dict(), "blocks": [7]}, r"blocks\[0\]: expected an object"),
        (
            {**FLEXIBERT.to_dict(), "blocks": [{"mixer": "SDP", "heads": 2}]},
            r"blocks\[0\]: field 'feed_forward' is missing",
        ),
    ],
)
def test_values_that_are_no_spec_are_refused_in_one_line(values, said):
    with pytest.raises(LmscoutError, match=said) as caught:
        spec_from_dict(values)
    assert "\n" not in str(caught.value)
