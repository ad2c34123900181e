import json

import pytest
from architecture_strategies import specs
from hypothesis import given, settings

from lmscout.architectures import FlexibertBlock, FlexibertSpec, Gpt2Spec, spec_from_dict
from lmscout.errors import LmscoutError

FLEXIBERT = FlexibertSpec(
    width=8, blocks=(FlexibertBlock(mixer="SDP", heads=2, feed_forward=4, stack=1),)
)
GPT2 = Gpt2Spec(width=8, heads=(2,), inner=(5,), embedding_width=8)


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
        ({"kind": "gpt2", "width": 8}, "GPT-2 spec: field 'heads' is missing"),
        ({"kind": "flexibert", "blocks": []}, "field 'width' is missing"),
        ({"kind": "flexibert", "width": 8}, "blocks is empty"),
        ({**FLEXIBERT.to_dict(), "blocks": "SDP"}, "blocks must be a list, not 'SDP'"),
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
