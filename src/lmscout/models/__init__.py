"""Architectures: specs that count their parameters, and the untrained models they build."""

from typing import Any

from lmscout.errors import LmscoutError, brief
from lmscout.models.flexibert import FlexibertBlock, FlexibertSpec
from lmscout.models.llama import LlamaSpec
from lmscout.models.lts import Gpt2Spec, TransformerXlSpec
from lmscout.models.spec import ArchitectureSpec, LanguageModel, ProbePoints

__all__ = [
    "ArchitectureSpec",
    "FlexibertBlock",
    "FlexibertSpec",
    "Gpt2Spec",
    "LanguageModel",
    "LlamaSpec",
    "ProbePoints",
    "TransformerXlSpec",
    "spec_from_dict",
]

_FAMILIES: dict[str, type[ArchitectureSpec]] = {
    family.kind: family for family in (FlexibertSpec, Gpt2Spec, LlamaSpec, TransformerXlSpec)
}


def spec_from_dict(values: dict[str, Any]) -> ArchitectureSpec:
    """The spec whose `to_dict` gave these values.

    Raises:
        LmscoutError: the kind is unknown, or a field is missing, unknown or out of range.
    """
    if not isinstance(values, dict):
        raise LmscoutError(
            f"architecture spec: expected an object with fields, not {brief(values)}"
        )
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise LmscoutError(
            f"architecture spec: kind {brief(kind)} is unknown; there are {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind].from_dict({k: v for k, v in values.items() if k != "kind"})
