"""Architectures: specs that count their parameters, and the untrained models they build."""

from lmscout.architectures.flexibert import FlexibertBlock, FlexibertSpec
from lmscout.architectures.gpt2 import Gpt2Spec
from lmscout.architectures.llama import LlamaSpec
from lmscout.architectures.serialization import spec_from_dict
from lmscout.architectures.spec import ArchitectureSpec, LanguageModel, ProbePoints

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
