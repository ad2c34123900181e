"""Architectures: specs that count their parameters, and the untrained models they build."""

from lmscout.models.flexibert import FlexibertBlock, FlexibertSpec
from lmscout.models.gpt2 import Gpt2Spec
from lmscout.models.llama import LlamaSpec
from lmscout.models.serialization import spec_from_dict
from lmscout.models.spec import ArchitectureSpec, LanguageModel, ProbePoints

__all__ = [
    "ArchitectureSpec",
    "FlexibertBlock",
    "FlexibertSpec",
    "Gpt2Spec",
    "LanguageModel",
    "LlamaSpec",
    "ProbePoints",
    "spec_from_dict",
]
