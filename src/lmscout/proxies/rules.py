"""Filters that discard an expression by its form alone, before it is evaluated.

LPZero's rule-based pruning strategy (arXiv 2410.04808) discards unpromising candidates before
they cost anything.  Here every rule has a name, a reason and a test, and looks at one place of an
expression: what it discards there depends on shapes alone, or a shorter expression gives the same
or nearly the same.  Three rules discard more than that: the total of a softmax and a value divided
by itself count rows or elements, which can correlate with quality as the configuration does; twice
a value orders differently under a nonlinear word such as `exp`; and a repeated operation changes a
little where the formula's epsilon is not small beside a spread.  Shorter expressions cover these
as well.  The filters that need values are in `discovery`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmscout.proxies import Expression, walk
from lmscout.proxies.primitives import NUMBER, SPEC_LEAVES, STACKS

# f(g(x)) is x, or |x|, or what g alone leaves of x.
_INVERSE = frozenset(
    {
        ("log", "exp"),
        ("abslog", "exp"),
        ("exp", "abslog"),
        ("negate", "negate"),
        ("invert", "invert"),
        ("sqrt", "square"),
        ("square", "sqrt"),
    }
)
_IDEMPOTENT = frozenset({"abs", "relu", "minmax", "normalize"})
_EVEN = frozenset({"abs", "square", "abslog", "frobenius", "l1"})  # f(-x) is f(x)
_NEVER_NEGATIVE = frozenset(
    {"abs", "square", "exp", "relu", "sqrt", "sigmoid", "minmax", "frobenius", "l1", "std"}
)
_KEEPS_SIGN = frozenset({"average", "total", "mean", "sum", "max", "min"})
_ALWAYS_RISING = frozenset({"exp", "sigmoid"})
_RISING_WHERE_POSITIVE = frozenset({"sqrt", "square", "abs", "relu"})
_FLAT_ON_ONE_NUMBER = frozenset({"normalize", "softmax", "logsoftmax", "minmax", "std"})
_SAME_ON_ONE_NUMBER = frozenset({"mean", "l1", "frobenius"})


@dataclass(frozen=True)
class Rule:
    """One reason to discard an expression.

    Attributes:
        name: As it is counted.
        reason: Why what it finds is discarded.
        finds: Whether it applies at a subtree, and a flag whether that is the whole expression.
    """

    name: str
    reason: str
    finds: Callable[[Expression, bool], bool]


def first_broken(node: Expression) -> Rule | None:
    """The first rule, in the order of the table, that some place of an expression breaks."""
    places = [(one, not path) for path, one in walk(node)]
    for rule in RULES:
        if any(rule.finds(one, whole) for one, whole in places):
            return rule
    return None


def never_negative(node: Expression) -> bool:
    """Whether a value is known to be 0 or more, whatever is read."""
    if node.name in _NEVER_NEGATIVE or node.name in SPEC_LEAVES or node.word == NUMBER:
        return True
    if node.name == "softmax":  # the input and the operation alike
        return True
    if node.name in _KEEPS_SIGN or node.name == "invert":
        return never_negative(node.operands[0])
    if node.name in ("add", "mul", "div", "+", "*", "/"):
        left, right = node.operands
        if left == right and node.name in ("mul", "*"):
            return True
        return never_negative(left) and never_negative(right)
    return False


def never_positive(node: Expression) -> bool:
    """Whether a value is known to be 0 or less, whatever is read."""
    if node.name == "logsoftmax":
        return True
    if node.name == "negate":
        return never_negative(node.operands[0])
    if node.name in _KEEPS_SIGN:
        return never_positive(node.operands[0])
    return False


def _under(node: Expression) -> str:
    return node.operands[0].name if node.operands else ""


def _inverse(node: Expression, _: bool) -> bool:
    return len(node.operands) == 1 and (node.name, _under(node)) in _INVERSE


def _repeated(node: Expression, _: bool) -> bool:
    if len(node.operands) != 1:
        return False
    if node.name in _IDEMPOTENT and node.name == _under(node):
        return True
    return node.name in ("abs", "relu") and never_negative(node.operands[0])


def _signless(node: Expression, _: bool) -> bool:
    return node.name in _EVEN and _under(node) in ("abs", "negate")


def _nothing_left(node: Expression, _: bool) -> bool:
    return node.name in ("log", "sqrt", "relu") and never_positive(node.operands[0])


def _flat(node: Expression, _: bool) -> bool:
    if len(node.operands) != 1 or node.operands[0].type not in STACKS:
        return False
    if node.name in ("average", "mean", "total"):
        # "softmax" is the operation or the input: rows of either sum to 1
        return _under(node) == "softmax" or (_under(node) == "normalize")
    return node.name in _FLAT_ON_ONE_NUMBER and _one_number(node.operands[0])


def _one_number(node: Expression) -> bool:
    """Whether a tensor expression is one number a tensor."""
    if node.word.scalar:
        return True
    return bool(node.operands) and all(_one_number(one) for one in node.operands)


def _said_already(node: Expression, _: bool) -> bool:
    if len(node.operands) != 1 or node.operands[0].type not in STACKS:
        return False
    operand = node.operands[0]
    if node.type in STACKS:
        return node.name in _SAME_ON_ONE_NUMBER and _one_number(operand)
    return node.name == "average" and operand.name == "mean"


def _cancels(node: Expression, _: bool) -> bool:
    return node.name in ("sub", "-", "div", "/") and node.operands[0] == node.operands[1]


def _twice(node: Expression, _: bool) -> bool:
    return node.name in ("add", "+", "mul", "*") and node.operands[0] == node.operands[1]


def _order_kept(node: Expression, whole: bool) -> bool:
    if not whole or len(node.operands) != 1 or node.type != node.operands[0].type:
        return False
    if node.name in _ALWAYS_RISING or node.name == "negate":
        return True
    return node.name in _RISING_WHERE_POSITIVE and never_negative(node.operands[0])


def _unread(node: Expression, whole: bool) -> bool:
    return whole and node.leaves <= set(SPEC_LEAVES)


RULES: tuple[Rule, ...] = (
    Rule(
        "cancels",
        "what is taken from itself, or divided by itself, tells nothing but its size",
        _cancels,
    ),
    Rule(
        "flat",
        "the mean of a softmax is 1/n, that of what is normalized 0; a total counts rows",
        _flat,
    ),
    Rule("nothing left", "no part of it is positive, so 0 is all that stays", _nothing_left),
    Rule("inverse pair", "one operation undoes the other", _inverse),
    Rule("repeat", "doing it again changes next to nothing", _repeated),
    Rule("sign lost", "the sign is lost a step later in any case", _signless),
    Rule("said already", "one number is its own mean; a mean is averaged anyway", _said_already),
    Rule("twice", "twice the same mostly orders as once, and its square has a word", _twice),
    Rule("order kept", "the last step keeps the order of architectures", _order_kept),
    Rule("reads nothing", "it reads the configuration alone: a baseline, not a proxy", _unread),
)
