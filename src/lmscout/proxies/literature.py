"""The catalog: measures of the literature by name, each with its paper, and lmscout's champions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lmscout.errors import LmscoutError, brief, nearest
from lmscout.proxies import measures
from lmscout.proxies.expression import Expression, simplified
from lmscout.proxies.measures import Reading
from lmscout.proxies.parser import parse, require_short
from lmscout.proxies.primitives import SPEC_LEAVES


@dataclass(frozen=True)
class Entry:
    """A measure of the literature, or a champion: an expression, a function or both."""

    name: str
    paper: str  # title and arXiv number
    definition: str  # in one line
    expression: Expression | None = None
    function: Callable[[Reading], float] | None = None  # sums in float64; it takes precedence
    source: str = ""  # of the exact form, if not the paper; the command that found a champion
    reads: tuple[str, ...] = ()  # tensors that the function reads; empty if it needs the model
    found_on: tuple[str, ...] = ()  # benchmarks on a part of which it was searched


class Champion(NamedTuple):
    """A proxy that the deep search found on the search split of some benchmarks.

    It increases with quality.  A later engine ends with another formula of about the same
    correlation (docs/deep-search.md).
    """

    name: str
    text: str
    command: str
    revision: str  # of lmscout
    found_on: tuple[str, ...]
    split: str  # size of the search split, and correlations on the others


CHAMPIONS = (
    Champion(
        "champion-encoder",
        "(sum(average(logsoftmax(mixer_weight))) - "
        "min(average(logsoftmax(sigmoid(invert(mixer_grad))))) * "
        "sum(average(logsoftmax(mlp_weight)))) * ((sum(average(frobenius(head))) + "
        "sum(total(frobenius(mlp_weight)))) * sum(average(abslog(head)))) * "
        "(sum(average(add(abslog(jacob), jacob))) - sum(average(logsoftmax(weight)))) * "
        "(min(average(logsoftmax(normalize(mixer_grad)))) * "
        "sum(average(logsoftmax(mlp_weight))))",
        "lmscout discover flexibert --space deep --objective spearman --weights 2 "
        "--no-spec-leaves --search 100 --seed 0",
        "d8a39a8",
        ("flexibert",),
        "100 encoders; on the other 400 ρ 0.914; reads no configuration",
    ),
    Champion(
        "champion-decoder",
        "negate(sum(total(mul(div(mlp_grad, std(mlp_weight)), mlp_grad))) * width * "
        "sum(total(sqrt(div(grad, add(grad, weight))))) * (min(total(sqrt(mlp_grad))) - "
        "sum(total(sqrt(div(grad, weight)))) + sum(total(sqrt(weight)))) * "
        "(sum(total(sqrt(mlp_grad))) + sum(total(sqrt(negate(add(div(grad, abs(weight)), "
        "l1(weight))))))))",
        "lmscout discover pico,iso,lts:random_GPT2_wt103 --space deep --objective spearman "
        "--weights 2 --search 40,60,40 --seed 0",
        "d8a39a8",
        ("pico", "iso", "lts:random_GPT2_wt103"),
        "40, 60 and 40 decoders; on the others ρ 0.918 (pico), 0.696 (iso), 0.975 (GPT-2)",
    ),
    Champion(
        "champion",
        "sum(total(abs(mlp_grad))) * sum(total(abslog(div(sub(mixer_grad, "
        "softmax(mixer_grad)), mean(mixer_grad))))) * (sum(total(abs(mixer_weight))) * "
        "sum(total(relu(add(log(add(mlp_grad, mlp_weight)), mlp_weight))))) * "
        "(sum(total(mixer_weight) - total(mlp_weight)) + sum(total(relu(mlp_grad))) + width) "
        "* (sum(total(abs(grad))) * sum(total(square(weight))))",
        "lmscout discover flexibert,pico,iso,lts:random_GPT2_wt103 --space deep --objective "
        "spearman --weights 2 --search 40,40,60,40 --seed 0",
        "d8a39a8",
        ("flexibert", "pico", "iso", "lts:random_GPT2_wt103"),
        "40, 40, 60 and 40 architectures; on the others ρ 0.758 (FlexiBERT), 0.903 (pico), "
        "0.645 (iso), 0.978 (GPT-2)",
    ),
)

_ABDELFATTAH = "Zero-Cost Proxies for Lightweight NAS, arXiv 2101.08134"
_SERIANNI = "Training-free Neural Architecture Search for RNNs and Transformers, arXiv 2305.18915"
_DSS = "Training-free Transformer Architecture Search, arXiv 2203.12217"
_LPZERO = "LPZero: Language Model Zero-cost Proxy Search from Zero, arXiv 2410.04808"

CATALOG: tuple[Entry, ...] = (
    Entry(
        "parameters",
        f"baseline of {_ABDELFATTAH}",
        "number of parameters of the model",
        expression=parse("params"),
        function=measures.parameters,
    ),
    Entry(
        "grad-norm",
        _ABDELFATTAH,
        "sum of the Frobenius norms of the linear layers' gradients",
        expression=parse("sum(total(frobenius(grad)))"),
        function=measures.grad_norm,
        reads=("grad",),
    ),
    Entry(
        "snip",
        "SNIP: Single-shot Network Pruning based on Connection Sensitivity, arXiv 1810.02340",
        "sum of |w g| over the linear layers",
        expression=parse("sum(total(abs(mul(weight, grad))))"),
        function=measures.snip,
        reads=("weight", "grad"),
    ),
    Entry(
        "grasp",
        "Picking Winning Tickets Before Training by Preserving Gradient Flow, arXiv 2002.07376",
        "-sum of w (H g) over the linear layers",
        function=measures.grasp,
    ),
    Entry(
        "fisher",
        "Faster gaze prediction with dense networks and Fisher pruning, arXiv 1801.05787",
        "sum over samples and channels of (sum over positions of act times its gradient)^2",
        function=measures.fisher,
        reads=("act", "act_grad"),
        source=f"as a proxy in {_ABDELFATTAH}",
    ),
    Entry(
        "synflow",
        "Pruning neural networks without any data by iteratively conserving synaptic flow, "
        "arXiv 2006.05467",
        "sum of |w| dR/d|w| in the linearised model fed with ones",
        function=measures.synflow,
    ),
    Entry(
        "logsynflow",
        "FreeREA: Training-Free Evolution-based Architecture Search, arXiv 2207.05135",
        "sum of |w| ln(|dR/d|w|| + 1) in the linearised model fed with ones",
        function=measures.logsynflow,
    ),
    Entry(
        "jacobian-covariance",
        "Neural Architecture Search without Training, arXiv 2006.04647v1",
        "-sum of ln(v + 1e-5) + 1 / (v + 1e-5), v eigenvalues of the samples' correlations",
        function=measures.jacobian_covariance,
        reads=("jacob",),
        source=f"on transformers in {_SERIANNI}",
    ),
    Entry(
        "synaptic-diversity",
        _DSS,
        "sum of nuclear norm of w times nuclear norm of g over the mixers' linear layers",
        function=measures.synaptic_diversity,
        reads=("weight", "grad"),
    ),
    Entry(
        "synaptic-saliency",
        _DSS,
        "sum of |w g| over the MLPs' linear layers",
        expression=parse("sum(total(abs(mul(mlp_weight, mlp_grad))))"),
        function=measures.synaptic_saliency,
        reads=("weight", "grad"),
    ),
    Entry(
        "activation-distance",
        _SERIANNI,
        "sum over pairs of positions of the agreements of their binary activation codes",
        function=measures.activation_distance,
        reads=("act",),
        source="codes of Neural Architecture Search without Training, arXiv 2006.04647",
    ),
    Entry(
        "head-importance",
        "Are Sixteen Heads Really Better than One?, arXiv 1905.10650",
        "sum of |w g| over the mixers' linear layers",
        expression=parse("sum(total(abs(mul(mixer_weight, mixer_grad))))"),
        function=measures.head_importance,
        reads=("weight", "grad"),
        source=f"in the form of {_SERIANNI}",
    ),
    Entry(
        "attention-confidence",
        _SERIANNI,
        "sum over blocks of the mean of the head tensors' maxima over positions",
        function=measures.attention_confidence,
        reads=("head",),
    ),
    Entry(
        "softmax-confidence",
        "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest "
        "Can Be Pruned, arXiv 1905.09418",
        "sum over blocks of the mean of the largest attention weight over the keys",
        function=measures.softmax_confidence,
        reads=("softmax",),
        source=f"as a proxy in {_SERIANNI}, whose code takes the maximum over the heads instead",
    ),
    # The log of a 1000-iteration search on FlexiBERT, kept as a comment beside the genotype
    # that the FlexiBERT runners score and choose with, names these operations in full.  The
    # act half is a constant: the log-softmax of a scalar is 0.
    Entry(
        "lpzero-flexibert",
        _LPZERO,
        "LPZero's champion of the FlexiBERT search; its act half is always 0",
        expression=parse("mean(square(negate(head)) + logsoftmax(frobenius(act)))"),
        source="github.com/pprp/LPZero, lpzero/runner/eval_searched_bert.py and "
        "find_best_bert.py at afe98737: inputs head, act; genotype [[15, 3], [8, 13], 0]",
    ),
    # The genotype that the function scoring the GPT-2 benchmark builds, marked there as the
    # best so far.  The grad half hardly varies with the gradients, which are near zero: their
    # softmax over n rows is near 1/n.
    Entry(
        "lpzero-gpt2",
        _LPZERO,
        "LPZero's champion of the GPT-2 search",
        expression=parse("mean(l1(square(weight)) + square(softmax(grad)))"),
        source="github.com/pprp/LPZero, lpzero/predictor/measures/lpzero.py at 48877572, as "
        "eval_rank_gpt2.py calls it: inputs weight, grad; genotype [[3, 10], [11, 3], 0]",
    ),
    *(
        Entry(
            one.name,
            f"found by lmscout, after {_LPZERO}",
            f"what the deep search found on {one.split}",
            expression=parse(one.text),
            source=f"{one.command} (lmscout at {one.revision})",
            found_on=one.found_on,
        )
        for one in CHAMPIONS
    ),
)

CATALOG_ENTRY: Mapping[str, Entry] = {entry.name: entry for entry in CATALOG}

LITERATURE: Mapping[str, Expression] = {
    entry.name: simplified(entry.expression)
    for entry in CATALOG
    if entry.expression is not None and not entry.found_on
}
"""Catalog name to expression, for every measure of the literature that the language can state.

Searches may start from them.  Champions are left out: another split's search data may be this
split's test data."""

# An expression without a parenthesis: a number or a leaf of the configuration, and signs.
_BARE = re.compile(rf"\s*({'|'.join(SPEC_LEAVES)}|[0-9.]+)\s*([-+*/]|$)")


def has_seen(name: str, benchmark: str) -> bool:
    """Whether a proxy of the catalog was searched on a part of a benchmark of that name.

    Its correlations there are optimistic.
    """
    entry = CATALOG_ENTRY.get(name)
    return entry is not None and benchmark in entry.found_on


def resolve(text: str) -> Entry | Expression:
    """The catalog entry of a name, or the expression of a text.

    An expression is text with a parenthesis, or one that begins with a number or with a leaf that
    reads the configuration, such as `params / depth`.

    Raises:
        LmscoutError: There is no such entry, or the expression is malformed.
    """
    require_short(text)
    if "(" in text or _BARE.match(text):
        return parse(text)
    name = text.strip()
    if name.startswith("-"):
        raise LmscoutError(
            f"{brief(name)}: only rank and design accept a minus sign (lower scores are better); "
            "give the proxy without it"
        )
    if name not in CATALOG_ENTRY:
        guess = nearest(name, CATALOG_ENTRY)
        raise LmscoutError(
            f"unknown proxy {brief(name)}{f' (did you mean {guess!r}?)' if guess else ''}: give "
            f"an expression such as sum(abs(weight)), or one of {', '.join(CATALOG_ENTRY)}"
        )
    return CATALOG_ENTRY[name]


def as_expression(proxy: Entry | Expression) -> Expression | None:
    """A proxy in the form of `simplified`; None if the language cannot state it."""
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    return None if expression is None else simplified(expression)
