"""Architectures small enough to build and read in a millisecond, one of every kind."""

from lmscout.architectures import FlexibertBlock, FlexibertSpec, Gpt2Spec
from lmscout.architectures.flexibert_mixers import MIXERS


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


def gpt2(heads=(2, 4), inner=(24, 40), width=16):
    return Gpt2Spec(
        width=width,
        heads=heads,
        inner=inner,
        embedding_width=8,
        vocabulary=50,
        max_length=12,
    )


# Every mixer first and second; the last stacks activations.
EVERY_KIND = {
    **{mixer: flexibert(mixer, "SDP" if mixer != "SDP" else "DFT") for mixer in MIXERS},
    "stacked": flexibert("WMA", "DCT", stack=3),
    "GPT-2": gpt2(),
}
