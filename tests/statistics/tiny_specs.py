"""Architectures small enough to build and read in a millisecond, one of every kind."""

from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec, TransformerXlSpec
from lmscout.models.flexibert import MIXERS


def flexibert(*mixers, width=16, heads=2, feed_forward=24, stack=1):
    return FlexibertSpec(
        width=width,
        blocks=tuple(
            FlexibertBlock(mixer=mixer, heads=heads, feed_forward=feed_forward, stack=stack)
            for mixer in mixers
        ),
        embedding_width=8,
        vocabulary=50,
        max_length=12,
    )


def gpt2(heads=(2, 4), inner=(24, 40), width=16, kind=Gpt2Spec):
    return kind(
        width=width,
        heads=heads,
        inner=inner,
        embedding_width=8,
        vocabulary=50,
        max_length=12,
    )


def llama(heads=(2, 4), key_value_heads=(1, 4), inner=(24, 40), width=16):
    return LlamaSpec(
        width=width,
        heads=heads,
        key_value_heads=key_value_heads,
        inner=inner,
        vocabulary=50,
        max_length=12,
    )


# Every mixer first and second; one stacks activations; some lack attention or an MLP.
EVERY_KIND = {
    **{mixer: flexibert(mixer, "SDP" if mixer != "SDP" else "DFT") for mixer in MIXERS},
    "stacked": flexibert("WMA", "DCT", stack=3),
    "GPT-2": gpt2(),
    "GPT-2 halves": gpt2(heads=(2, 0, 4), inner=(0, 24, 40)),
    "LLaMA": llama(),
    "LLaMA halves": llama(heads=(4, 2, 0), key_value_heads=(2, 2, 0), inner=(0, 24, 40)),
    "Transformer-XL": gpt2(kind=TransformerXlSpec),
    "Transformer-XL halves": gpt2(heads=(2, 0, 4), inner=(0, 24, 40), kind=TransformerXlSpec),
}
