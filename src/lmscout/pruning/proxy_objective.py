"""Proxies as objectives: scores of any number of subnetworks without measurements.

Without measurements the better side of a proxy is unknown.  The dense model is better than its
subnetworks, and larger ones are usually better than smaller ones; so a proxy gets the sign with
which its scores of plans of all sizes increase with the share that they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import parameter_count
from lmscout.metrics import spearman
from lmscout.proxies import Entry, Expression, Reading, as_expression, resolve, walk
from lmscout.proxies.primitives import NUMBER, REDUCTIONS, SPEC_LEAVES
from lmscout.pruning.families import ATTENTION, Family
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, kept_shares, unit_parameters
from lmscout.pruning.prefix_tables import BlockTable, Place, tabulate, visit_tensors
from lmscout.statistics.deep_values import number_value, raised_value
from lmscout.statistics.single_pass import INPUT_NAMES

PREFIX = "proxy:"
WINDOWS = 16  # of calibration text in the pass
_SIGNS = {"+": 1, "-": -1}
_DRAWN = 500  # plans of all sizes that determine a sign
_LEAST_AGREEMENT = 0.1  # |ρ| with the kept share below which the sign is unknown
_MEANS_OVER_TENSORS = ("attention-confidence", "softmax-confidence")
_NO_SCORE = 1e300  # loss increase of a plan without a score

Score = Callable[[Rows], Floats]  # plans [n, 2L] -> scores [n]


@dataclass(frozen=True)
class SignedProxy:
    """A proxy as given with ``--objective`` or ``--feature``: in the catalog, or a text."""

    name: str
    sign: int  # 1 or -1 if given, else 0
    proxy: Expression | Entry  # an entry has a function of single tensors


def parse_proxy(text: str) -> SignedProxy:
    """Parse ``proxy:`` and a catalog name or an expression, with an optional ``+`` or ``-``.

    Raises:
        LmscoutError: the proxy is unknown, or cannot score subnetworks.
    """
    if not text.startswith(PREFIX):
        raise LmscoutError(
            f"objective {text!r}: write {PREFIX} and a proxy, such as {PREFIX}snip or "
            f"'{PREFIX}sum(average(abs(mul(weight, grad))))'"
        )
    bare = text.removeprefix(PREFIX).strip()
    sign = _SIGNS.get(bare[:1], 0)
    name = bare[1:].strip() if sign else bare
    entry = resolve(name)
    tree = as_expression(entry)
    if tree is not None:
        return SignedProxy(name, sign, tree)
    assert isinstance(entry, Entry)
    if not entry.reads or entry.reads == ("jacob",):
        why = "runs the model again" if not entry.reads else "uses the input of the first block"
        raise LmscoutError(
            f"objective {name}: this proxy {why}, and cannot distinguish subnetworks; give an "
            "expression, or another of the catalog"
        )
    return SignedProxy(name, sign, entry)


@dataclass(frozen=True)
class ProxyReport:
    """The proxy of a search; its sign is 1 if a higher score is better, -1 if a lower one is."""

    name: str
    sign: int

    @property
    def words(self) -> str:
        """The proxy and its better side."""
        return f"{self.name}, {'higher' if self.sign > 0 else 'lower'} is better"


class ProxyObjective:
    """Scores plans of one model; made by `compute_objectives`."""

    def __init__(self, proxy: SignedProxy, shape: Shape, score: Score) -> None:
        """Find the sign by scores of plans [n, 2L], unless given; LmscoutError if unknown."""
        self.name, self._score = proxy.name, score
        self.sign = proxy.sign
        if not self.sign:
            agreement = size_agreement(shape, score)
            if not abs(agreement) >= _LEAST_AGREEMENT:
                raise LmscoutError(
                    f"objective {self.name}: its scores of subnetworks do not follow how much they "
                    f"keep (ρ {agreement:.2f}), so its better side is unknown: give it, by + or - "
                    "before the proxy"
                )
            self.sign = 1 if agreement > 0 else -1

    @property
    def report(self) -> ProxyReport:
        """The proxy and its sign."""
        return ProxyReport(self.name, self.sign)

    def scores(self, rows: Rows) -> Floats:
        """Scores of plans [n, 2L], higher is better, [n]; NaN if undefined."""
        return self.sign * self._score(rows)

    def loss_increases(self, rows: Rows) -> Floats:
        """Negated scores in place of loss increases, [n], in the proxy's own unit."""
        scores = self.scores(rows)
        return np.where(np.isfinite(scores), -scores, _NO_SCORE)


def compute_objectives(
    proxies: Sequence[SignedProxy],
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    tokens: Tensor,
) -> list[ProxyObjective]:
    """Make objectives of proxies; all trees share one pass of the dense model, see `visit_tensors`.

    Of calibration tokens [B, T] the first `WINDOWS` rows are used.

    Raises:
        LmscoutError: the loss is not finite, or the better side of a proxy is unknown.
    """
    tokens = tokens[:WINDOWS]
    trees = [one.proxy for one in proxies if isinstance(one.proxy, Expression)]
    nodes = (node for tree in trees for _, node in walk(tree))
    reductions = dict.fromkeys(node for node in nodes if node.name in REDUCTIONS)
    tables = tabulate(model, family, shape, tokens, reductions) if reductions else {}
    width = family.all_parts(model)[0].mlp.output.weight.shape[0]
    leaves = partial(_leaf_values, shape, width, parameter_count(model))
    objectives = []
    for one in proxies:
        if isinstance(one.proxy, Expression):
            score: Score = partial(_scores, one.proxy, tables, leaves)
        else:
            table = _function_table(one.proxy, model, family, shape, tokens)
            score = partial(_summed, table)
        objectives.append(ProxyObjective(one, shape, score))
    return objectives


def size_agreement(shape: Shape, score: Score) -> float:
    """Spearman's ρ of scores with the kept share, over plans of all sizes and the dense one."""
    rng = np.random.default_rng(0)
    units = dense_row(shape)
    least = rng.uniform(0.1, 1.0, (_DRAWN, 1))
    shares = rng.uniform(least, 1.0, (_DRAWN, len(units)))
    rows = np.concatenate([units[None], np.maximum(1, np.rint(shares * units)).astype(np.int64)])
    return float(spearman(score(rows), kept_shares(shape, rows)))


def _leaf_values(
    shape: Shape, width: int, parameters: int, leaf: str, rows: Rows, exists: Tensor
) -> Tensor:
    """Values [n] of a leaf; `params` counts norms and output biases of dropped blocks."""
    if leaf == "depth":
        return exists.sum(-1).double()
    if leaf == "width":
        return torch.full((len(rows),), float(width), dtype=torch.float64)
    cut = (dense_row(shape) - rows) @ unit_parameters(shape)
    return torch.from_numpy(parameters - cut).double()


def _scores(
    tree: Expression,
    tables: Mapping[Expression, BlockTable],
    leaves: Callable[[str, Rows, Tensor], Tensor],
    rows: Rows,
) -> Floats:
    """Scores of plans [n, 2L] by a tree, [n]."""
    exists = torch.from_numpy((rows > 0).reshape(len(rows), 2, -1).any(axis=1))
    known: dict[Expression, Tensor] = {}

    def value(node: Expression) -> Tensor:
        if node not in known:
            if node.word == NUMBER:
                known[node] = number_value(node).expand(len(rows))
            elif node.name in SPEC_LEAVES:
                known[node] = leaves(node.name, rows, exists)
            elif node.name in REDUCTIONS:
                known[node] = torch.from_numpy(tables[node].block_values(rows))
            else:
                known[node] = raised_value(node, tuple(map(value, node.operands)), exists)
        return known[node]

    return np.asarray(value(tree).numpy(), np.float64)


def _summed(table: BlockTable, rows: Rows) -> Floats:
    """Sum over blocks, the aggregation of catalog functions."""
    return np.asarray(table.block_values(rows).sum(axis=1))


def _function_table(
    entry: Entry, model: PreTrainedModel, family: Family, shape: Shape, tokens: Tensor
) -> BlockTable:
    """Values of a catalog function by its definition, tensor by tensor."""
    function = entry.function
    assert function is not None
    none: tuple[tuple[Tensor, ...], ...] = ((),)
    linears: tuple[tuple[nn.Linear, ...], ...] = ((),)

    def value(place: Place, count: int) -> float:
        kept = {name: ((tensor,),) for name, tensor in place.first(count).items()}
        return function(
            Reading(
                model=model,
                tokens=tokens,
                inputs={name: kept.get(name, none) for name in INPUT_NAMES},
                act_grad=kept.get("act_grad", none),
                linears=linears,
                mixing=((place.kind == ATTENTION,),) if place.stack == "linear" else ((),),
                parameters=0,
            )
        )

    table = BlockTable(shape, mean=entry.name in _MEANS_OVER_TENSORS, definition=value)

    def visit(place: Place) -> None:
        if set(entry.reads) <= place.tensors.keys():
            table.add(place, None)

    visit_tensors(model, family, tokens, visit)
    return table
