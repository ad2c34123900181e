"""A proxy as a judge of plans: its score of any number of subnetworks, with nothing measured.

Which side of a proxy is better cannot be learnt where nothing is measured.  It follows from
what needs no measuring: the dense model is better than what is left of it, and as a rule the
more is left the better.  So a judge takes its proxy with the sign with which scores of plans of
all sizes rise with the share that they keep.
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
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, kept_shares
from lmscout.pruning.plan import unit_parameters as parameters_of_units
from lmscout.pruning.prefix_tables import BlockTable, Place, read_trained, tabulate, widened
from lmscout.statistics.deep_values import number_value, raised_value
from lmscout.statistics.single_pass import INPUT_NAMES

PREFIX = "proxy:"
WINDOWS = 16  # of calibration text, on which a judge reads the model
_SIGNS = {"+": 1, "-": -1}
_DRAWN = 500  # plans of all sizes by which a sign is found
_TELLING = 0.1  # the least rank correlation with the kept share by which it is taken
_MEANS_OVER_TENSORS = ("attention-confidence", "softmax-confidence")
_NOWHERE = 1e300  # the rise of a plan that has no score


@dataclass(frozen=True)
class Asked:
    """A proxy as a user asks for it.

    Attributes:
        name: its name in the catalog, or its text as given.
        sign: 1 or -1 where one was given, else 0.
        proxy: a tree, or a catalog entry whose function reads tensors one by one.
    """

    name: str
    sign: int
    proxy: Expression | Entry


def asked_proxy(text: str) -> Asked:
    """Read what stands after ``--judge`` or ``--feature``.

    Args:
        text: ``proxy:`` and a catalog name or an expression, with or without ``+`` or ``-``
            before it.

    Raises:
        LmscoutError: it is none, or one that cannot judge subnetworks.
    """
    if not text.startswith(PREFIX):
        raise LmscoutError(
            f"judge {text!r}: write {PREFIX} and a proxy, such as {PREFIX}snip or "
            f"'{PREFIX}sum(average(abs(mul(weight, grad))))'"
        )
    bare = text.removeprefix(PREFIX).strip()
    sign = _SIGNS.get(bare[:1], 0)
    name = bare[1:].strip() if sign else bare
    found = resolve(name)
    tree = as_expression(found)
    if tree is not None:
        return Asked(name, sign, tree)
    assert isinstance(found, Entry)
    if not found.reads or found.reads == ("jacob",):
        why = "runs the model again" if not found.reads else "reads what enters the first block"
        raise LmscoutError(
            f"judge {name}: this proxy {why}, and cannot tell subnetworks apart; give an "
            "expression, or another of the catalog"
        )
    return Asked(name, sign, found)


@dataclass(frozen=True)
class ProxyReport:
    """What judged.

    Attributes:
        name: of the proxy.
        sign: 1 where a higher score is better, -1 where a lower one is.
    """

    name: str
    sign: int

    @property
    def words(self) -> str:
        """What objectives, and which side of it is better."""
        side = "higher" if self.sign > 0 else "lower"
        return f"{self.name}, {side} is better"

    def to_json(self) -> dict[str, object]:
        """What objectives, and its sign."""
        return {"proxy": self.name, "sign": self.sign}


class ProxyObjective:
    """Scores plans of one model; made by `compute_objectives`."""

    def __init__(self, asked: Asked, shape: Shape, score: Callable[[Rows], Floats]) -> None:
        """Find out which side is better, unless that was said.

        Args:
            asked: the proxy.
            shape: of the dense model.
            score: of plans, [n, 2L] to [n].

        Raises:
            LmscoutError: neither side is: scores do not follow size.
        """
        self.name, self._score = asked.name, score
        self.sign = asked.sign or _sign(asked.name, shape, score)

    @property
    def report(self) -> ProxyReport:
        """What objectives, as it is reported."""
        return ProxyReport(self.name, self.sign)

    def scores(self, rows: Rows) -> Floats:
        """Scores of plans [n, 2L], higher is better, [n]; NaN where a plan has none."""
        return self.sign * self._score(rows)

    def loss_increases(self, rows: Rows) -> Floats:
        """What a search takes for rises, [n]: lower is better, the unit is the proxy's own."""
        scores = self.scores(rows)
        return np.where(np.isfinite(scores), -scores, _NOWHERE)


def compute_objectives(
    asked: Sequence[Asked],
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    tokens: Tensor,
) -> list[ProxyObjective]:
    """Read a model once, and judge its plans by proxies.

    Args:
        asked: the proxies.
        model: the dense model, its units in final order; left as it was found.
        family: its family.
        shape: its units.
        tokens: [B, T] int64 of calibration text; `WINDOWS` rows are read.

    Raises:
        LmscoutError: the loss is not finite, or a proxy's better side cannot be told.
    """
    tokens = tokens[:WINDOWS]
    trees = [one.proxy for one in asked if isinstance(one.proxy, Expression)]
    reductions = dict.fromkeys(
        node for tree in trees for _, node in walk(tree) if node.name in REDUCTIONS
    )
    tables: Mapping[Expression, BlockTable] = {}
    if reductions:
        tables = tabulate(model, family, shape, tokens, reductions)
    configuration = _Configuration(model, family, shape)
    objectives = []
    for one in asked:
        if isinstance(one.proxy, Expression):
            score = partial(_scores, one.proxy, tables, configuration)
        else:
            score = partial(_summed, _function_table(one.proxy, model, family, shape, tokens))
        objectives.append(ProxyObjective(one, shape, score))
    return objectives


def size_agreement(shape: Shape, score: Callable[[Rows], Floats]) -> float:
    """Spearman's ρ of scores with the kept share, over plans of all sizes and the dense one."""
    rng = np.random.default_rng(0)
    units = dense_row(shape)
    least = rng.uniform(0.1, 1.0, (_DRAWN, 1))
    shares = rng.uniform(least, 1.0, (_DRAWN, len(units)))
    rows = np.concatenate([units[None], np.maximum(1, np.rint(shares * units)).astype(np.int64)])
    return float(spearman(score(rows), kept_shares(shape, rows)))


def _sign(name: str, shape: Shape, score: Callable[[Rows], Floats]) -> int:
    agreement = size_agreement(shape, score)
    if not abs(agreement) >= _TELLING:
        raise LmscoutError(
            f"judge {name}: its scores of subnetworks do not follow how much they keep "
            f"(ρ {agreement:.2f}), so its better side cannot be told: say it, by + or - before it"
        )
    return 1 if agreement > 0 else -1


class _Configuration:
    """What leaves read of the configuration of plans."""

    def __init__(self, model: PreTrainedModel, family: Family, shape: Shape) -> None:
        self._shape = shape
        self._width = family.parts(family.blocks(model)[0]).mlp.output.weight.shape[0]
        self._parameters = parameter_count(model)

    def of(self, leaf: str, rows: Rows, exists: Tensor) -> Tensor:
        """A leaf's values, [n]; `params` counts norms and output biases of what is dropped."""
        if leaf == "depth":
            return exists.sum(-1).double()
        if leaf == "width":
            return torch.full((len(rows),), float(self._width), dtype=torch.float64)
        gone = (dense_row(self._shape) - rows) @ parameters_of_units(self._shape)
        return torch.from_numpy(self._parameters - gone).double()


def _scores(
    tree: Expression,
    tables: Mapping[Expression, BlockTable],
    configuration: _Configuration,
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
                known[node] = configuration.of(node.name, rows, exists)
            elif node.name in REDUCTIONS:
                known[node] = torch.from_numpy(tables[node].block_values(rows))
            else:
                known[node] = raised_value(node, tuple(map(value, node.operands)), exists)
        return known[node]

    return np.asarray(value(tree).numpy(), np.float64)


def _summed(table: BlockTable, rows: Rows) -> Floats:
    """Functions of the catalog add up over blocks."""
    return np.asarray(table.block_values(rows).sum(axis=1))


def _function_table(
    entry: Entry, model: PreTrainedModel, family: Family, shape: Shape, tokens: Tensor
) -> BlockTable:
    """A function of the catalog by its definition, tensor by tensor."""
    function = entry.function
    assert function is not None

    def value(place: Place, count: int) -> float:
        tensors = widened(place.first(count))
        kept = {name: ((tensor,),) for name, tensor in tensors.items()}
        none: tuple[tuple[Tensor, ...], ...] = ((),)
        linears: tuple[tuple[nn.Linear, ...], ...] = ((),)
        return function(
            Reading(
                model=model,  # type: ignore[arg-type]
                tokens=tokens,
                inputs={name: kept.get(name, none) for name in INPUT_NAMES},
                act_grad=kept.get("act_grad", none),
                linears=linears,
                mixing=((place.kind == ATTENTION,),) if place.stack == "linear" else ((),),
                parameters=0,
            )
        )

    table = BlockTable(shape, mean=entry.name in _MEANS_OVER_TENSORS, by_definition=value)

    def see(place: Place) -> None:
        if set(entry.reads) <= place.tensors.keys():
            table.add(place, None)

    read_trained(model, family, tokens, see)
    return table
