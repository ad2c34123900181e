"""How a recovery trains, and when it ends."""

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


@dataclass(frozen=True)
class RecoverySettings:
    """What is trained, how fast, and for how long.

    Training ends at the first bound that it meets; one of steps and tokens must be there, since
    the learning rate falls towards it.  A bound of seconds makes the rate fall by the clock where
    that is ahead, so that what comes out then depends on the machine.

    Attributes:
        method: "lora" (the text's own next tokens) or "distill" (the dense model's logits).
        rank: of the low-rank adapters (LoRA, arXiv 2106.09685).
        learning_rate: the highest, after the warm-up.
        batch_tokens: tokens a step; at least one window.
        steps: at most so many; None for no such bound.
        tokens: at most so many, over all steps; None for no such bound.
        seconds: at most so many of training; None for no such bound.
        seed: of the order of the text and of the adapters' start.
        save_seconds: how often a checkpoint is written.
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
        """Refuse what cannot be trained by.

        Raises:
            LmscoutError: the method is unknown, a number is not positive, or there is no bound.
        """
        if self.method not in METHODS:
            raise LmscoutError(
                f"unknown recovery {self.method!r}: expected one of {', '.join(METHODS)}"
            )
        for name in ("rank", "learning_rate", "batch_tokens", "steps", "tokens", "seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if value > (most := _MOST[name]):
                raise LmscoutError(
                    f"recovery: {name} is too large (got {brief(value)}, expected at most {most:,})"
                )
            if not value > 0:  # which a number that is none is not either
                raise LmscoutError(f"recovery: {name} of {value:g} is not above 0")
        for name in ("rank", "batch_tokens", "steps", "tokens"):
            if (value := getattr(self, name)) is not None:
                check_whole(f"recovery: {name}", value, 1)
        if not self.save_seconds >= 0:
            raise LmscoutError(f"recovery: save_seconds of {self.save_seconds:g} is not 0 or more")
        if not 0 <= self.seed <= _LAST_SEED:
            raise LmscoutError(
                f"recovery: seed of {brief(self.seed)} is not from 0 to {_LAST_SEED}: give another"
            )
        if self.steps is None and self.tokens is None:
            raise LmscoutError("recovery: give a bound of steps or of tokens")

    def batch(self, window: int) -> int:
        """Windows of so many tokens a step."""
        return max(1, self.batch_tokens // window)

    def last_step(self, window: int) -> int:
        """How many steps the bounds allow, time aside.

        Raises:
            LmscoutError: not even one.
        """
        bounds = []
        if self.steps is not None:
            bounds.append(self.steps)
        if self.tokens is not None:
            each = self.batch(window) * window
            bounds.append(self.tokens // each)
            if not bounds[-1]:
                raise LmscoutError(
                    f"recovery: {self.tokens} tokens are fewer than one step of {each}: allow more"
                )
        return min(bounds)

    def words(self, window: int) -> str:
        """The bounds in words."""
        steps, each = self.last_step(window), self.batch(window) * window
        limit = "" if self.seconds is None else f", {self.seconds:g} s at most"
        return f"{self.method}, {steps:,} steps of {each:,} tokens{limit}"

    def identity(self) -> dict[str, str | int | float | None]:
        """All of it on which trained weights depend."""
        settings = asdict(self)
        del settings["save_seconds"]
        return settings
