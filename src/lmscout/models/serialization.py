"""A spec from the dict that it wrote of itself."""

from typing import Any

from lmscout.errors import LmscoutError, brief
from lmscout.models.flexibert import FlexibertSpec
from lmscout.models.gpt2 import Gpt2Spec
from lmscout.models.llama import LlamaSpec
from lmscout.models.spec import ArchitectureSpec

SPEC_TYPES: tuple[type[ArchitectureSpec], ...] = (FlexibertSpec, Gpt2Spec, LlamaSpec)


def spec_from_dict(values: dict[str, Any]) -> ArchitectureSpec:
    """The spec of which `ArchitectureSpec.to_dict` gave these values.

    Raises:
        LmscoutError: the kind is unknown, or a field is missing, unknown or out of its range.
    """
    if not isinstance(values, dict):
        raise LmscoutError(
            f"architecture spec: expected an object with fields, not {brief(values)}"
        )
    kind = values.get("kind")
    for spec_type in SPEC_TYPES:
        if spec_type.kind == kind:
            return spec_type.from_dict({k: v for k, v in values.items() if k != "kind"})
    kinds = ", ".join(spec_type.kind for spec_type in SPEC_TYPES)
    raise LmscoutError(f"architecture spec: kind {brief(kind)} is unknown; there are {kinds}")
