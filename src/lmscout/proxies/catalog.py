"""The proxies of the literature by name, each with its paper, and lmscout's own champions.

An entry is an expression where the language can say the proxy, a deep expression where it is a
champion, and a function of a `Reading` where neither can say it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lmscout.errors import LmscoutError
from lmscout.proxies import handmade, passes
from lmscout.proxies.champions import CHAMPIONS
from lmscout.proxies.deep.nodes import Node
from lmscout.proxies.deep.text import parse as parse_deep
from lmscout.proxies.deep.words import SPEC_LEAVES, WORDS
from lmscout.proxies.expression import Binary, Branch, Proxy
from lmscout.proxies.operators import AGGREGATION, INPUT, UNARY_OPERATION
from lmscout.proxies.reading import Reading
from lmscout.proxies.spelling import nearest, shown
from lmscout.proxies.text import parse, require_short


@dataclass(frozen=True)
class Entry:
    """A proxy of the literature, or one that lmscout found.

    Attributes:
        name: Its name here.
        paper: Where it was published: title and arXiv number.
        definition: What it computes, in one line.
        proxy: The proxy as an expression, or None.
        function: The proxy as a function, where it is no expression, or None.
        tree: The proxy as a deep expression, where lmscout found it, or None.
        source: Where exactly it was taken from, if not from the paper's text; the command that
            found it.
        found_on: Benchmarks of which the search saw a part, by name.
        reads: Of a function that reads tensors alone, and not the model: which ones, "act_grad"
            among them.
    """

    name: str
    paper: str
    definition: str
    proxy: Proxy | None = None
    function: Callable[[Reading], float] | None = None
    tree: Node | None = None
    source: str = ""
    reads: tuple[str, ...] = ()
    found_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        forms = (self.proxy, self.function, self.tree)
        if sum(form is not None for form in forms) != 1:
            raise LmscoutError(
                f"catalog entry {self.name}: give an expression, a function or a deep expression"
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
        function=handmade.parameters,
    ),
    Entry(
        "grad-norm",
        _ABDELFATTAH,
        "sum of the Frobenius norms of the linear layers' gradients",
        function=handmade.grad_norm,
        reads=("grad",),
    ),
    Entry(
        "snip",
        "SNIP: Single-shot Network Pruning based on Connection Sensitivity, arXiv 1810.02340",
        "sum of |w g| over the linear layers",
        function=handmade.snip,
        reads=("weight", "grad"),
    ),
    Entry(
        "grasp",
        "Picking Winning Tickets Before Training by Preserving Gradient Flow, arXiv 2002.07376",
        "-sum of w (H g) over the linear layers",
        function=passes.grasp,
    ),
    Entry(
        "fisher",
        "Faster gaze prediction with dense networks and Fisher pruning, arXiv 1801.05787",
        "sum over samples and channels of (sum over positions of act times its gradient)^2",
        function=handmade.fisher,
        reads=("act", "act_grad"),
        source=f"as a proxy in {_ABDELFATTAH}",
    ),
    Entry(
        "synflow",
        "Pruning neural networks without any data by iteratively conserving synaptic flow, "
        "arXiv 2006.05467",
        "sum of |w| dR/d|w| in the linearised model fed with ones",
        function=passes.synflow,
    ),
    Entry(
        "logsynflow",
        "FreeREA: Training-Free Evolution-based Architecture Search, arXiv 2207.05135",
        "sum of |w| ln(|dR/d|w|| + 1) in the linearised model fed with ones",
        function=passes.logsynflow,
    ),
    Entry(
        "jacobian-covariance",
        "Neural Architecture Search without Training, arXiv 2006.04647v1",
        "-sum of ln(v + 1e-5) + 1 / (v + 1e-5), v eigenvalues of the samples' correlations",
        function=handmade.jacobian_covariance,
        reads=("jacob",),
        source=f"on transformers in {_SERIANNI}",
    ),
    Entry(
        "synaptic-diversity",
        _DSS,
        "sum of nuclear norm of w times nuclear norm of g over the mixers' linear layers",
        function=handmade.synaptic_diversity,
        reads=("weight", "grad"),
    ),
    Entry(
        "synaptic-saliency",
        _DSS,
        "sum of |w g| over the MLPs' linear layers",
        function=handmade.synaptic_saliency,
        reads=("weight", "grad"),
    ),
    Entry(
        "activation-distance",
        _SERIANNI,
        "sum over pairs of positions of the agreements of their binary activation codes",
        function=handmade.activation_distance,
        reads=("act",),
        source="codes of Neural Architecture Search without Training, arXiv 2006.04647",
    ),
    Entry(
        "head-importance",
        "Are Sixteen Heads Really Better than One?, arXiv 1905.10650",
        "sum of |w g| over the mixers' linear layers",
        function=handmade.head_importance,
        reads=("weight", "grad"),
        source=f"in the form of {_SERIANNI}",
    ),
    Entry(
        "attention-confidence",
        _SERIANNI,
        "sum over blocks of the mean of the head tensors' maxima over positions",
        function=handmade.attention_confidence,
        reads=("head",),
    ),
    Entry(
        "softmax-confidence",
        "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest "
        "Can Be Pruned, arXiv 1905.09418",
        "sum over blocks of the mean of the largest attention weight over the keys",
        function=handmade.softmax_confidence,
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
        proxy=Proxy(
            "mean",
            Binary(
                "sum",
                Branch("head", ("negate", "square")),
                Branch("act", ("frobenius", "logsoftmax")),
            ),
        ),
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
        proxy=Proxy(
            "mean",
            Binary(
                "sum",
                Branch("weight", ("square", "l1")),
                Branch("grad", ("softmax", "square")),
            ),
        ),
        source="github.com/pprp/LPZero, lpzero/predictor/measures/lpzero.py at 48877572, as "
        "eval_rank_gpt2.py calls it: inputs weight, grad; genotype [[3, 10], [11, 3], 0]",
    ),
    *(
        Entry(
            one.name,
            f"found by lmscout, after {_LPZERO}",
            f"what the deep search found on {one.saw}",
            tree=parse_deep(one.text),
            source=f"{one.command} (lmscout at {one.revision})",
            found_on=one.found_on,
        )
        for one in CHAMPIONS
    ),
)

# Words and signs that tell a deep proxy from a published one, for the error that helps.
_DEEP_ALONE = {word.name for word in WORDS} - {*INPUT, *UNARY_OPERATION, *AGGREGATION, *"+-*"}
_DEEP_ALONE |= {"/", ","}
_CONFIGURATION = re.compile(rf"\s*({'|'.join(SPEC_LEAVES)}|[0-9.]+)\s*([-+*/]|$)")

CATALOG_ENTRY: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in CATALOG})


def has_seen(name: str, benchmark: str) -> bool:
    """Whether the search that found a proxy saw a part of a benchmark.

    There its figures flatter it.

    Args:
        name: of a proxy; one that is not in the catalog has seen nothing.
        benchmark: its name.
    """
    entry = CATALOG_ENTRY.get(name)
    return entry is not None and benchmark in entry.found_on


def resolve(text: str) -> Entry | Proxy | Node:
    """The catalog entry of a name, or the proxy of an expression.

    An expression is text with a parenthesis, or one that begins with a number or with a leaf that
    reads the configuration, such as `params / depth`.  It is of the published form if it can be,
    else of the deep space.

    Raises:
        LmscoutError: There is no such entry, or the expression is malformed.
    """
    require_short(text)
    if "(" in text:
        try:
            return parse(text)
        except LmscoutError:
            words = set(re.findall(r"\w+|[^\w\s]", text))
            if not words & _DEEP_ALONE and not any(one.isdigit() for one in words):
                raise
        return parse_deep(text)
    if _CONFIGURATION.match(text):
        return parse_deep(text)
    name = text.strip()
    if name.startswith("-"):
        raise LmscoutError(
            f"{shown(name)}: the minus sign that says that lower scores are better is read by rank "
            "and design; give the proxy without it"
        )
    if name not in CATALOG_ENTRY:
        guess = nearest(name, CATALOG_ENTRY)
        raise LmscoutError(
            f"unknown proxy {shown(name)}{f' (did you mean {guess!r}?)' if guess else ''}: give "
            f"an expression such as sum(abs(weight)), or one of {', '.join(CATALOG_ENTRY)}"
        )
    return CATALOG_ENTRY[name]
