from hypothesis import strategies as st

from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec, LlamaSpec, TransformerXlSpec
from lmscout.models.flexibert import MIXERS

sizes = st.integers(1, 9)

flexibert_blocks = st.builds(
    FlexibertBlock,
    mixer=st.sampled_from(list(MIXERS)),
    heads=st.sampled_from([2, 4]),
    feed_forward=sizes,
    stack=st.integers(1, 3),
)

flexibert_specs = st.builds(
    FlexibertSpec,
    blocks=st.lists(flexibert_blocks, min_size=1, max_size=3).map(tuple),
    width=st.sampled_from([4, 8, 12]),
    embedding_width=st.sampled_from([4, 8]),
    vocabulary=st.integers(2, 20),
    max_length=sizes,
)


@st.composite
def gpt2_specs(draw, kind=Gpt2Spec, **fields):
    clusters = draw(st.integers(1, 3))
    vocabulary = draw(st.integers(clusters + 3, 20))
    cutoffs = draw(
        st.lists(
            st.integers(1, vocabulary - 1),
            min_size=clusters - 1,
            max_size=clusters - 1,
            unique=True,
        )
    )
    heads, inner = draw(sublayers(st.sampled_from([1, 2, 4])))
    return kind(
        **{name: draw(values) for name, values in fields.items()},
        width=draw(st.sampled_from([4, 8])),
        heads=heads,
        inner=inner,
        embedding_width=draw(st.sampled_from([4, 8])),
        divisor=draw(st.sampled_from([1, 2])),
        cutoffs=tuple(sorted(cutoffs)),
        tied=tuple(draw(st.booleans()) for _ in range(clusters)),
        vocabulary=vocabulary,
        max_length=draw(st.integers(2, 9)),
    )


@st.composite
def sublayers(draw, heads):
    """Heads and MLP widths of some blocks, of which each may lack one of the two."""
    blocks = []
    for _ in range(draw(st.integers(1, 3))):
        lost = draw(st.sampled_from(["neither", "neither", "attention", "mlp"]))
        blocks.append(
            (
                0 if lost == "attention" else draw(heads),
                0 if lost == "mlp" else draw(sizes),
            )
        )
    return tuple(h for h, _ in blocks), tuple(i for _, i in blocks)


@st.composite
def llama_specs(draw):
    heads, inner = draw(sublayers(st.sampled_from([1, 2, 4])))
    return LlamaSpec(
        width=8,
        heads=heads,
        key_value_heads=tuple(
            draw(st.sampled_from([k for k in (1, 2, 4) if h % k == 0])) if h else 0 for h in heads
        ),
        inner=inner,
        vocabulary=draw(st.integers(2, 20)),
        max_length=draw(st.integers(2, 9)),
        tied=draw(st.booleans()),
    )


def transformer_xl_specs():
    return gpt2_specs(TransformerXlSpec, pre_norm=st.booleans())


specs = st.one_of(flexibert_specs, gpt2_specs(), llama_specs(), transformer_xl_specs())
