"""Settings of a recovery training, and its limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lmscout.errors import LmscoutError, brief, check_whole

LORA, DISTILL = "lora", "distill"
METHODS = (LORA, DISTILL)

_LAST_SEED = 2**63 - 1  # that PyTorch's generators take
_MOST = {
    "rank": 2**16,
    "learning_rate": 1e6,
    "batch_tokens": 2**24,
    "steps": 10**8,
    "tokens": 10**13,
    "seconds": 1e9,
}
_WHOLE = ("rank", "batch_tokens", "steps", "tokens")


@dataclass(frozen=True)
class RecoverySettings:
    """How a recovery trains, and for how long.

    Training ends at the first limit that it reaches.  Steps or tokens must be limited, since the
    learning rate falls towards that limit.  With a limit of seconds the rate also falls by the
    clock, so the result then depends on the machine.

    Attributes:
        method: "lora" (the text's next tokens) or "distill" (the dense model's logits).
        rank: rank of the low-rank adapters (LoRA, arXiv 2106.09685).
        learning_rate: highest learning rate, after the warm-up.
        batch_tokens: tokens of a step; at least one window.
        steps: largest number of steps, or None.
        tokens: largest number of tokens over all steps, or None.
        seconds: longest time of training, or None.
        seed: of the order of the text and of the adapters.
        save_seconds: time between checkpoints.
    """

    method: str = DISTILL
    rank: int = 16
    learning_rate: float = 1e-3
    batch_tokens: int = 2_048
    steps: int | None = 300
    tokens: int | None = None
    seconds: float | None = None
    seed: int = 0
    save_seconds: float = 60.0

    def check(self) -> None:
        """Raise LmscoutError for settings out of bounds, or without a limit of steps or tokens."""
        if self.method not in METHODS:
            raise LmscoutError(
                f"unknown recovery {self.method!r}: expected one of {', '.join(METHODS)}"
            )
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value > most:
                raise LmscoutError(
                    f"recovery: {name} is too large (got {brief(value)}, expected at most {most:,})"
                )
            if not value > 0:  # NaN as well
                raise LmscoutError(f"recovery: {name} of {value:g} is not above 0")
            if name in _WHOLE:
                check_whole(f"recovery: {name}", value, 1)
        if not self.save_seconds >= 0:
            raise LmscoutError(f"recovery: save_seconds of {self.save_seconds:g} is not 0 or more")
        if not 0 <= self.seed <= _LAST_SEED:
            raise LmscoutError(
                f"recovery: seed of {brief(self.seed)} is not from 0 to {_LAST_SEED}: give another"
            )
        if self.steps is None and self.tokens is None:
            raise LmscoutError("recovery: give a limit of steps or of tokens")

    def batch(self, window: int) -> int:
        """Windows of a step, for windows of so many tokens."""
        return max(1, self.batch_tokens // window)

    def last_step(self, window: int) -> int:
        """Number of steps that the limits allow; LmscoutError if they do not allow one."""
        limits = [] if self.steps is None else [self.steps]
        if self.tokens is not None:
            each = self.batch(window) * window
            limits.append(self.tokens // each)
            if not limits[-1]:
                raise LmscoutError(
                    f"recovery: {self.tokens} tokens are fewer than one step of {each}: allow more"
                )
        return min(limits)

    def words(self, window: int) -> str:
        """The limits as text."""
        steps, each = self.last_step(window), self.batch(window) * window
        limit = "" if self.seconds is None else f", {self.seconds:g} s at most"
        return f"{self.method}, {steps:,} steps of {each:,} tokens{limit}"

    def identity(self) -> dict[str, str | int | float | None]:
        """The settings that trained weights depend on."""
        settings = asdict(self)
        del settings["save_seconds"]
        return settings
