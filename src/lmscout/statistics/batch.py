"""The one batch that every architecture of a benchmark reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmscout.architectures import ArchitectureSpec
from lmscout.errors import LmscoutError


@dataclass(frozen=True)
class Batch:
    """Random tokens, uniform over the vocabulary: a proxy of this kind needs no text.

    Attributes:
        size: sequences.
        length: tokens a sequence; cut to the longest that an architecture can read.
        seed: of the draw.
    """

    size: int = 32
    length: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2 or self.length < 2:
            raise LmscoutError(
                f"batch of {self.size} x {self.length} tokens is too small: a batch has at "
                "least 2 sequences of 2 tokens"
            )

    def other(self) -> Batch:
        """A batch of the same size and other tokens."""
        return replace(self, seed=self.seed + 1)

    def tokens(self, spec: ArchitectureSpec) -> Tensor:
        """Tokens for one architecture: [size, length] int64."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.size, min(self.length, spec.max_length))
        return torch.randint(spec.vocabulary, shape, generator=generator)
