"""Calibration text in portions, and each in as many walks through the model as memory asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmscout.pruning.subnetworks.activations import parts_of


class Walk:
    """Windows that go through the model together, with what the last plan made of them."""

    def __init__(self, first: int, windows: Tensor) -> None:
        self.first = first  # predicted tokens of the portion before these windows
        self.windows = windows
        self.targets = windows[:, 1:].flatten()
        self.forget()

    def forget(self) -> None:
        """Let go of the hidden states."""
        self.context: object = None
        self.states: list[Tensor] = []  # entering step 0, and after every so many steps
        self.steps: list[int] = []


@dataclass(frozen=True)
class Top:
    """The dense model's likeliest tokens and their log-probabilities, [tokens, top] each."""

    log_probabilities: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Top:
        """The same on a device."""
        return Top(self.log_probabilities.to(device), self.tokens.to(device))

    def of(self, walk: Walk) -> Top:
        """Those of a part of the portion."""
        part = slice(walk.first, walk.first + walk.targets.numel())
        return Top(self.log_probabilities[part], self.tokens[part])


class Portion:
    """One part of the text, in as many walks as memory asks for."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows
        self.tokens = windows[:, 1:].numel()
        self.dense_nll = 0.0
        self.top: Top | None = None
        self._split(len(windows))

    def halve(self) -> bool:
        """Half as many windows at once, from now on; False where it is a single one already."""
        largest = max(len(walk.windows) for walk in self.walks)
        if largest > 1:
            self._split(largest // 2)
        return largest > 1

    def forget(self) -> None:
        """Let go of hidden states."""
        for walk in self.walks:
            walk.forget()

    def _split(self, size: int) -> None:
        each = self.windows.shape[1] - 1
        self.walks = [
            Walk(place * size * each, part)
            for place, part in enumerate(parts_of(self.windows, size))
        ]
