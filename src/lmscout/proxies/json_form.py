"""The JSON form of a proxy, by the names of its operations.

    {"aggregation": "sum",
     "body": {"operation": "difference",
              "left": {"input": "head", "chain": ["abslog"]},
              "right": {"input": "weight", "chain": ["sqrt"]}}}

A chain lists its operations innermost first; a body may be a single branch.
"""

from collections.abc import Iterable
from typing import Any

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import MAX_OPERATIONS, Binary, Branch, Proxy
from lmscout.proxies.operators import AGGREGATION, BINARY_OPERATION, INPUT, UNARY_OPERATION
from lmscout.proxies.spelling import did_you_mean, shown


def to_json(proxy: Proxy) -> dict[str, Any]:
    """The proxy as nested dicts, lists and names, ready for `json.dumps`."""
    body = proxy.body
    if isinstance(body, Branch):
        return {"aggregation": proxy.aggregation, "body": _branch_to_json(body)}
    return {
        "aggregation": proxy.aggregation,
        "body": {
            "operation": body.operation,
            "left": _branch_to_json(body.left),
            "right": _branch_to_json(body.right),
        },
    }


def from_json(value: object) -> Proxy:
    """Read a proxy from what `json.loads` gives.

    Raises:
        LmscoutError: The value is not that of a proxy; the line names the path.
    """
    proxy = _members("the proxy", value, ("aggregation", "body"))
    aggregation = _name("aggregation", proxy["aggregation"], AGGREGATION)
    body = proxy["body"]
    if isinstance(body, dict) and "input" in body:
        return Proxy(aggregation, _branch_from_json("body", body))
    members = _members("body", body, ("operation", "left", "right"))
    return Proxy(
        aggregation,
        Binary(
            _name("body.operation", members["operation"], BINARY_OPERATION),
            _branch_from_json("body.left", members["left"]),
            _branch_from_json("body.right", members["right"]),
        ),
    )


def _branch_to_json(branch: Branch) -> dict[str, Any]:
    return {"input": branch.input, "chain": list(branch.chain)}


def _branch_from_json(path: str, value: object) -> Branch:
    members = _members(path, value, ("input", "chain"))
    name = _name(f"{path}.input", members["input"], INPUT)
    chain = members["chain"]
    if not isinstance(chain, list) or not 1 <= len(chain) <= MAX_OPERATIONS:
        raise LmscoutError(
            f"proxy JSON, {path}.chain: found {shown(chain)}, "
            f"expected a list of 1 to {MAX_OPERATIONS} operations"
        )
    return Branch(
        name,
        tuple(
            _name(f"{path}.chain[{index}]", operation, UNARY_OPERATION)
            for index, operation in enumerate(chain)
        ),
    )


def _members(path: str, value: object, keys: tuple[str, ...]) -> dict[str, object]:
    expected = f"an object with {', '.join(keys)}"
    if not isinstance(value, dict):
        raise LmscoutError(f"proxy JSON, {path}: found {shown(value)}, expected {expected}")
    for key in keys:
        if key not in value:
            raise LmscoutError(f"proxy JSON, {path}: {key} is missing, expected {expected}")
    for key in value:
        if key not in keys:
            raise LmscoutError(
                f"proxy JSON, {path}: found {shown(key)}, expected {expected}"
                f"{did_you_mean(str(key), keys)}"
            )
    return value


def _name(path: str, value: object, known: Iterable[str]) -> str:
    known = tuple(known)
    if isinstance(value, str) and value in known:
        return value
    guess = did_you_mean(value, known) if isinstance(value, str) else ""
    raise LmscoutError(
        f"proxy JSON, {path}: found {shown(value)}, expected one of {', '.join(known)}{guess}"
    )
