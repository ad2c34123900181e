"""Filters that discard an expression by its form, before it is evaluated.

LPZero's rule-based pruning strategy (arXiv 2410.04808) discards unpromising candidates before
they cost anything.  Here the value at one place of a discarded expression depends on shapes alone,
or a shorter expression gives the same or nearly the same.  Three rules discard more: the total of
a softmax and a value divided by itself count rows or elements, which can correlate with quality as
the configuration does; twice a value orders differently under a nonlinear operation such as `exp`;
and a repeated operation changes a little if the formula's epsilon is not small compared with a
spread.  Shorter expressions cover these as well.  The filters by values are in `discovery`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from lmscout.proxies import Expression
from lmscout.proxies.primitives import NUMBER, SPEC_LEAVES, STACKS

Finds = Callable[[Expression, bool], bool]
"""Whether a rule applies to a subtree; the flag says whether it is the whole expression."""

# f(g(x)) is x, or |x|, or x within the domain of g.
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
_INCREASING = frozenset({"exp", "sigmoid"})
_INCREASING_IF_POSITIVE = frozenset({"sqrt", "square", "abs", "relu"})
_FLAT_ON_ONE_NUMBER = frozenset({"normalize", "softmax", "logsoftmax", "minmax", "std"})
_SAME_ON_ONE_NUMBER = frozenset({"mean", "l1", "frobenius"})


@dataclass(frozen=True)
class Rule:
    """A reason to discard an expression."""

    name: str  # in counts
    reason: str  # in one line
    finds: Finds


RULES: list[Rule] = []
"""In the order in which they are tried."""


def _rule(name: str, reason: str) -> Callable[[Finds], Finds]:
    def register(finds: Finds) -> Finds:
        RULES.append(Rule(name, reason, finds))
        return finds

    return register


def first_broken(node: Expression) -> Rule | None:
    """The first rule that applies to a subtree of an expression."""
    return (*RULES, None)[_first(node, True)]


@lru_cache(1 << 13)
def _first(node: Expression, whole: bool) -> int:
    """Place of the first rule that applies to a subtree; their number if none does."""
    own = next((at for at, rule in enumerate(RULES) if rule.finds(node, whole)), len(RULES))
    return min([own, *(_first(one, False) for one in node.operands)])


def never_negative(node: Expression) -> bool:
    """Whether a value is 0 or more for every input."""
    if node.name in _NEVER_NEGATIVE or node.name in SPEC_LEAVES or node.word == NUMBER:
        return True
    if node.name == "softmax":  # the input and the operation
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
    """Whether a value is 0 or less for every input."""
    if node.name == "negate":
        return never_negative(node.operands[0])
    if node.name in _KEEPS_SIGN:
        return never_positive(node.operands[0])
    return node.name == "logsoftmax"


def _under(node: Expression) -> str:
    return node.operands[0].name if node.operands else ""


def _one_number(node: Expression) -> bool:
    """Whether a tensor expression is one number a tensor."""
    if node.word.scalar:
        return True
    return bool(node.operands) and all(_one_number(one) for one in node.operands)


def _on_tensor(node: Expression) -> bool:
    return len(node.operands) == 1 and node.operands[0].type in STACKS


@_rule("cancels", "what is taken from itself, or divided by itself, tells nothing but its size")
def _cancels(node: Expression, _: bool) -> bool:
    return node.name in ("sub", "-", "div", "/") and node.operands[0] == node.operands[1]


@_rule("flat", "the mean of a softmax is 1/n, that of what is normalized 0; a total counts rows")
def _flat(node: Expression, _: bool) -> bool:
    if not _on_tensor(node):
        return False
    if node.name in ("average", "mean", "total"):
        # "softmax" is the operation or the input: rows of either sum to 1
        return _under(node) in ("softmax", "normalize")
    return node.name in _FLAT_ON_ONE_NUMBER and _one_number(node.operands[0])


@_rule("nothing left", "no part of it is positive, so 0 is all that stays")
def _nothing_left(node: Expression, _: bool) -> bool:
    return node.name in ("log", "sqrt", "relu") and never_positive(node.operands[0])


@_rule("inverse pair", "one operation undoes the other")
def _inverse(node: Expression, _: bool) -> bool:
    return len(node.operands) == 1 and (node.name, _under(node)) in _INVERSE


@_rule("repeat", "doing it again changes next to nothing")
def _repeated(node: Expression, _: bool) -> bool:
    if len(node.operands) != 1:
        return False
    if node.name in _IDEMPOTENT and node.name == _under(node):
        return True
    return node.name in ("abs", "relu") and never_negative(node.operands[0])


@_rule("sign lost", "the sign is lost a step later in any case")
def _signless(node: Expression, _: bool) -> bool:
    return node.name in _EVEN and _under(node) in ("abs", "negate")


@_rule("said already", "one number is its own mean; a mean is averaged anyway")
def _redundant_mean(node: Expression, _: bool) -> bool:
    if not _on_tensor(node):
        return False
    if node.type in STACKS:
        return node.name in _SAME_ON_ONE_NUMBER and _one_number(node.operands[0])
    return node.name == "average" and _under(node) == "mean"


@_rule("twice", "twice the same mostly orders as once, and its square has a word")
def _twice(node: Expression, _: bool) -> bool:
    return node.name in ("add", "+", "mul", "*") and node.operands[0] == node.operands[1]


@_rule("order kept", "the last step keeps the order of architectures")
def _order_kept(node: Expression, whole: bool) -> bool:
    if not whole or len(node.operands) != 1 or node.type != node.operands[0].type:
        return False
    if node.name in _INCREASING or node.name == "negate":
        return True
    return node.name in _INCREASING_IF_POSITIVE and never_negative(node.operands[0])


@_rule("reads nothing", "it reads the configuration alone: a baseline, not a proxy")
def _reads_nothing(node: Expression, whole: bool) -> bool:
    return whole and node.leaves <= set(SPEC_LEAVES)
