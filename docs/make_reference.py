"""Write docs/proxies.md, the reference of the proxy language, from the tables in the code.

Run `make reference` after a change to an operation, an aggregation, an input or the catalog; a
test compares the committed page with what this script would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lmscout import proxies
from lmscout.discovery.filters import VALUE_RULES
from lmscout.errors import LmscoutError
from lmscout.proxies import CATALOG, Entry, expression, format_expression
from lmscout.proxies.primitives import (
    AGGREGATIONS,
    BINARY,
    INPUTS,
    PRIMITIVES,
    STACKS,
    UNARY,
    UNARY_OPERATION,
    BinaryOperation,
    UnaryOperation,
)
from lmscout.proxies.rules import RULES

PAGE = Path(__file__).parent / "proxies.md"

EXAMPLE = "sum(abslog(head) - sqrt(weight))"
SLIP = "sum(abslgo(head) - sqrt(weight))"
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})(v\d+)?")


def reference() -> str:
    """The whole page."""
    return (
        "\n\n".join(
            (
                "<!-- Written by docs/make_reference.py from the tables in src/lmscout/proxies: "
                "change those, then run `make reference`. -->",
                "# The proxy language",
                _INTRODUCTION,
                "## Grammar",
                f"```text\n{_grammar()}\n```",
                _AFTER_GRAMMAR.format(slip=_slip()),
                "## Inputs",
                _INPUTS,
                _table(
                    ("input", "tensors of a block"),
                    ((_code(one.name), one.definition) for one in INPUTS),
                ),
                "## Unary operations",
                _UNARY,
                _table(
                    ("operation", "definition", "guard", "gives", "in LPZero's code"),
                    (
                        (
                            _code(one.name),
                            _code(one.definition),
                            one.guard,
                            "a number" if one.scalar else "a tensor",
                            _code(one.upstream),
                        )
                        for one in UNARY
                    ),
                ),
                f"Source of all of them: {_sources(UNARY)}.",
                "## Binary operations",
                _BINARY,
                _table(
                    ("sign", "name in tables", "definition"),
                    ((_code(one.symbol), _code(one.name), one.definition) for one in BINARY),
                ),
                f"Source: {_sources(BINARY)}.",
                "## Aggregations",
                _table(
                    ("aggregation", "definition", "source"),
                    (
                        (_code(one.name), one.definition, _linked(one.source))
                        for one in AGGREGATIONS
                    ),
                ),
                "Around `@`, which sums over blocks itself, an aggregation has no effect: "
                "`mean(abs(act) @ std(head))` is `sum(abs(act) * std(head))`.",
                "## Other forms",
                _other_forms(),
                "## Spaces",
                _spaces(),
                "## The deep space",
                _DEEP,
                _table(
                    ("stack", "its tensors"),
                    (
                        (name, ", ".join(_code(leaf) for leaf in leaves))
                        for name, leaves in STACKS.items()
                    ),
                ),
                _DEEP_WORDS,
                _table(
                    ("word", "takes", "gives", "definition"),
                    (
                        (_code(one.name), ", ".join(one.takes), one.gives, one.definition)
                        for one in PRIMITIVES
                        if one.takes and (one.name not in UNARY_OPERATION or one.aggregates)
                    ),
                ),
                _DEEP_RULES,
                _table(
                    ("rule", "why what it finds is discarded"),
                    (
                        *((rule.name, rule.reason) for rule in RULES),
                        *VALUE_RULES.items(),
                    ),
                ),
                "## Catalog",
                _CATALOG,
                _table(
                    ("name", "what it computes", "as an expression", "paper"),
                    (
                        (
                            _code(one.name),
                            one.definition,
                            _expression(one),
                            _paper(one),
                        )
                        for one in CATALOG
                    ),
                ),
            )
        )
        + "\n"
    )


def _expression(entry: Entry) -> str:
    return _code(format_expression(entry.expression)) if entry.expression else ""


_INTRODUCTION = """\
A *zero-cost proxy* is a formula over what one forward and one backward pass through an
untrained model leave behind. In lmscout it is a short expression:

```text
sum(abslog(head) - sqrt(weight))
```

Read it from the inside. `head` is an *input*: some tensors of every block. `abslog` is a *unary
operation*, applied to each of these tensors; the mean over the result's elements, and then over
the block's tensors, is one number a block. `-` is a *binary operation* that joins two such
numbers, block by block. `sum` is the *aggregation* over blocks, and gives the score of the
architecture."""

_DEEP = """\
The published form above is a part of a larger language, which joins whole tensors before anything
is reduced, as in `sum(total(abs(mul(weight, grad)))) / params`. Expressions have three types. A
*tensor* belongs to a stack, whose tensors have one shape, place by place; a *block value* is one
number a block; a *score* is one number an architecture. Where a block value is expected and a
tensor is given, its average is taken: `sum(abs(head) - sqrt(weight))` is short for
`sum(average(abs(head)) - average(sqrt(weight)))`. `lmscout discover BENCHMARK --space deep`
searches the whole language; every command that takes a proxy takes any expression, and
`lmscout explain` gives it in LaTeX and as a module that needs PyTorch alone."""

_DEEP_WORDS = """\
`depth`, `width` and `params` are scores (`--no-spec-leaves` does without them). The unary
operations above act on tensors (searches draw all but `identity` and `meansum`); those that act
element by element (`abs`, `abslog`, `exp`, `invert`, `log`, `negate`, `relu`, `sigmoid`, `sqrt`,
`square`) act on block values and scores, too. A number such as `0.5`, without a sign or an
exponent, is a score that is the same for every architecture; searches draw none, but what they
find may have a [correction](deep-search.md#why-the-product-has-a-fitted-correction). The rest:"""

_DEEP_RULES = """\
Rules discard a candidate before it is evaluated, the first ones by its tree alone, the others by
its values on a few architectures; every search counts what fell to which."""

_AFTER_GRAMMAR = """\
Signs bind as in arithmetic and from left to right. `mean` is an aggregation and an operation,
`softmax` an operation and an input; the types decide which is meant. An expression has at most 256
words. Text is tokenized and compared with the tables below, and never evaluated. An error names
the column:

```text
{slip}
```"""

_INPUTS = """\
One batch of random tokens, one forward and one backward through the model as its seed drew it,
in eval mode. How the pass is made, batch and loss included, is in
[architecture.md](architecture.md)."""

_UNARY = """\
x is a tensor of n elements. Operations nest, innermost first, as in `l1(square(weight))`. One
rule holds for all of them: a tensor that is empty, or holds a NaN or an infinity, has no value,
and neither has a score that reads it. What is reduced to a block value is the mean of the
result. So after one step some operations agree (`mean`, `meansum` and `identity`; `l1` and
`abs`), `normalize` is 0, and `softmax` is one over the length of the first axis."""

_BINARY = """\
They join two block values. `@` joins all of them at once, to the score itself."""

_CATALOG = """\
The measures of the literature, by the names that `lmscout rank --proxy` takes. Where the language
can state one, its expression is given; most of them are scored by a function of the model, which
sums in double precision. w is a weight matrix and g its gradient."""


def _grammar() -> str:
    """The grammar as the parser's own docstring gives it: its indented part."""
    lines = inspect.cleandoc(expression.__doc__ or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def _slip() -> str:
    try:
        proxies.parse(SLIP)
    except LmscoutError as error:
        return str(error)
    raise AssertionError(f"{SLIP} is a proxy")


def _other_forms() -> str:
    proxy = proxies.parse(EXAMPLE)
    return (
        "As LaTeX (`proxies.to_latex`), angle brackets for the mean over elements and tensors:\n\n"
        f"```latex\n{proxies.to_latex(proxy)}\n```"
    )


def _spaces() -> str:
    rows = []
    for name, make in proxies.SPACES.items():
        space = make(("mean",))
        rows.append((_code(name), str(len(space.chains[0])), f"{space.size:,}"))
    pairs = len(proxies.published().pairs)
    return (
        "A space joins branches on two different inputs by every binary operation; its size is "
        f"{pairs} pairs of inputs × chains of operations on the left × on the right × "
        f"{len(BINARY)} binary operations × the chosen aggregations.\n\n"
        + _table(("space", "operations a side", "proxies an aggregation"), rows)
    )


def _paper(entry: Entry) -> str:
    return _linked(f"{entry.paper} ({entry.source})" if entry.source else entry.paper)


def _sources(operations: Iterable[UnaryOperation | BinaryOperation]) -> str:
    return _linked("; ".join(dict.fromkeys(operation.source for operation in operations)))


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _linked(text: str) -> str:
    return _ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1\2)", text)


def main() -> None:
    """Write the page."""
    PAGE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
