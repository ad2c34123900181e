"""Proxies of the literature as trees of the deep language."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lmscout.proxies.catalog import CATALOG, Entry
from lmscout.proxies.deep.nodes import Node
from lmscout.proxies.deep.text import parse
from lmscout.proxies.expression import Branch, Proxy

_SIGN = {"sum": "+", "difference": "-", "product": "*", "matrix_product": "*"}
_ON_TENSORS = {"meansum": "mean"}  # one operation by two names


def deepened(proxy: Proxy) -> Node:
    """A proxy of the published form as a tree with the same scores.

    After a matrix product, which is a sum over blocks already, the aggregation falls away.
    """
    body = proxy.body
    if isinstance(body, Branch):
        return Node(proxy.aggregation, (as_block_value(body),))
    operands = as_block_value(body.left), as_block_value(body.right)
    aggregation = "sum" if body.operation == "matrix_product" else proxy.aggregation
    return Node(aggregation, (Node(_SIGN[body.operation], operands),))


def as_block_value(branch: Branch) -> Node:
    """A branch as a tree with the same block values."""
    node = Node(branch.input)
    for name in branch.chain:
        if name != "identity":
            node = Node(_ON_TENSORS.get(name, name), (node,))
    return Node("average", (node,))


_TEXTS = {
    "parameters": "params",
    "grad-norm": "sum(total(frobenius(grad)))",
    "snip": "sum(total(abs(mul(weight, grad))))",
    "synaptic-saliency": "sum(total(abs(mul(mlp_weight, mlp_grad))))",
    "head-importance": "sum(total(abs(mul(mixer_weight, mixer_grad))))",
}

MEMBERS: Mapping[str, Node] = MappingProxyType(
    {
        **{name: parse(text) for name, text in _TEXTS.items()},
        **{one.name: deepened(one.proxy) for one in CATALOG if one.proxy is not None},
    }
)
"""Catalog name to tree, for every proxy of the literature that the deep language can say.

The others look along one axis alone (fisher, activation-distance, the two confidences), at
eigenvalues (jacobian-covariance, synaptic-diversity), or run the model once more.  lmscout's
champions are not among them: a search that began with one would begin with what its benchmark's
test split may have been part of."""


def as_tree(proxy: Entry | Proxy | Node) -> Node | None:
    """The tree with a proxy's scores; None where the deep language cannot say it."""
    if isinstance(proxy, Node):
        return proxy
    if isinstance(proxy, Entry) and proxy.tree is not None:
        return proxy.tree
    return deepened(proxy) if isinstance(proxy, Proxy) else MEMBERS.get(proxy.name)
