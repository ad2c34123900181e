"""What an architecture is: a spec that counts and builds, and a model that can be read.

A spec is a frozen dataclass.  It knows its parameter counts without building anything, and
builds an untrained model from a seed.  The model names the modules at which the six inputs of
a proxy are read; it computes no statistic itself.
"""

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lmscout.errors import LmscoutError, brief
from lmscout.memory import require_memory

MOST_BLOCKS = 512
MOST_VOCABULARY = 2**22
MOST = {"width": 2**16, "embedding_width": 2**16, "vocabulary": MOST_VOCABULARY, "stack": 64}
"""The largest sizes, by field; of a field that is not named, `MOST_OTHER`."""
MOST_OTHER = 2**20
MOST_NUMBER = 1e12
"""Of a standard deviation, an epsilon, or the base of rotary frequencies."""

_FLOAT = 4  # bytes
_PASS = 1024  # tokens of a batch, about


@dataclass(frozen=True)
class ProbePoints:
    """Where the six inputs of a proxy can be read in one block, as modules of the model.

    Attributes:
        block: the block; its first positional argument is the hidden state (``jacob``).
        act: modules whose output is the MLP's activation (``act``), one instance for each
            stacked layer, so that a hook sees every one of them.
        head: the query, key and value projections, or the mixing projection where there is
            no attention (``head``).
        softmax: modules whose output is attention probabilities (``softmax``).
        spectrum: modules whose output becomes probabilities only through a softmax over its
            last axis: the mixers that transform instead of attending (``softmax``).
        linear: every linear layer of the block (``weight`` and ``grad``).
        mlp: those of `linear` that belong to the MLP; the others mix tokens.
        gate: those of `act` whose output multiplies another path instead of being passed on.

    A block without attention has no `head`, `softmax` or mixing layer; one without an MLP has
    no `act` and no `mlp`.
    """

    block: nn.Module
    act: tuple[nn.Module, ...]
    head: tuple[nn.Linear, ...]
    softmax: tuple[nn.Module, ...]
    spectrum: tuple[nn.Module, ...]
    linear: tuple[nn.Linear, ...]
    mlp: tuple[nn.Linear, ...]
    gate: tuple[nn.Module, ...] = ()


class LanguageModel(nn.Module, ABC):
    """A model as a spec builds it: tokens to hidden state, through blocks, to a loss.

    Attributes:
        blocks: the transformer layers, in the order in which the hidden state passes them.
        max_length: how many positions a sequence may have.
    """

    blocks: nn.ModuleList
    max_length: int

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to the hidden state ``[B, T, width]`` that enters block 0."""

    @abstractmethod
    def encode(self, hidden: Tensor) -> Tensor:
        """Hidden state ``[B, T, width]`` through the blocks and the final norm, same shape."""

    @abstractmethod
    def loss(self, tokens: Tensor) -> Tensor:
        """The scalar whose gradient the proxies read, for tokens ``[B, T]`` (int64)."""

    @abstractmethod
    def probe_points(self) -> tuple[ProbePoints, ...]:
        """Where the inputs are read, one entry a block."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to the last hidden state ``[B, T, width]``."""
        return self.encode(self.embed(tokens))

    def check_length(self, tokens: Tensor) -> None:
        """Raise LmscoutError where the sequences are longer than the model has positions."""
        if tokens.shape[1] > self.max_length:
            raise LmscoutError(
                f"sequences of {tokens.shape[1]} tokens are too long: this architecture has "
                f"{self.max_length} positions; use shorter sequences"
            )

    def next_token_states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden states that predict a token, and the tokens that they predict.

        Args:
            tokens: ``[B, T]``, int64.

        Returns:
            ``[B · (T - 1), width]`` and ``[B · (T - 1)]``.

        Raises:
            LmscoutError: a sequence has no next token, or more tokens than positions.
        """
        if tokens.shape[1] < 2:
            raise LmscoutError("next-token cross-entropy needs sequences of at least 2 tokens")
        return self(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec(ABC):
    """An architecture, whole: enough to count its parameters and to build it.

    Attributes:
        width: size of the hidden state.
        vocabulary: number of tokens.
        max_length: number of positions.
    """

    kind: ClassVar[str]
    causal: ClassVar[bool]

    width: int
    vocabulary: int
    max_length: int

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def parameters(self) -> int:
        """Number of parameters of the whole model as built; a tied tensor counts once."""

    @abstractmethod
    def body_parameters(self) -> int:
        """Number of parameters of the blocks and the final norm alone."""

    @abstractmethod
    def build(self, seed: int) -> LanguageModel:
        """The untrained model in eval mode, its weights drawn from the seed.

        The same seed gives the same bits; PyTorch's global generator is not touched.
        """

    def pass_bytes(self) -> int:
        """Bytes that one forward and one backward pass takes, at least: weights, gradients, logits.

        Positions that are computed instead of learned count as well.
        """
        logits = 2 * _PASS * self.vocabulary if self.causal else 0
        rotary = 0 if self.kind != "llama" else 2 * self.max_length * self.width
        return _FLOAT * (2 * self.parameters() + logits + rotary)

    def require_memory(self) -> None:
        """Refuse an architecture whose pass does not fit, before any of it is built.

        Raises:
            LmscoutError: it does not; says how many parameters it has.
        """
        require_memory(
            f"{self.kind} architecture of {self.parameters():,} parameters (depth {self.depth}, "
            f"width {self.width})",
            self.pass_bytes(),
            "use a smaller one, or a machine with more memory",
        )

    def to_dict(self) -> dict[str, object]:
        """The spec as JSON-able values, under ``kind`` and the names of its fields."""
        return {"kind": self.kind, **_plain(self)}

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> "ArchitectureSpec":
        """The spec from what `to_dict` gave, less ``kind``.

        Raises:
            LmscoutError: a field is missing, unknown or out of its range.
        """


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def require_positive(owner: str, **values: object) -> None:
    """Raise LmscoutError, naming the field, unless every value is a whole number above 0.

    Sizes that no architecture has, as `MOST` says, are refused as well.
    """
    for field, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LmscoutError(
                f"{owner}: {field} must be a whole number above 0, not {brief(value)}"
            )
        require_at_most(owner, field, value)


def require_at_most(owner: str, field: str, value: int) -> None:
    """Raise LmscoutError, naming the field, where a size is larger than any architecture's."""
    most = MOST.get(field, MOST_VOCABULARY if field.startswith("cutoffs") else MOST_OTHER)
    if value > most:
        raise LmscoutError(
            f"{owner}: {field} is too large (got {brief(value)}, expected at most {most:,})"
        )


def require_numbers(owner: str, **values: object) -> None:
    """Raise LmscoutError, naming the field, unless every value is above 0, up to `MOST_NUMBER`."""
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise LmscoutError(f"{owner}: {field} must be a number above 0, not {brief(value)}")
        if value > MOST_NUMBER:
            raise LmscoutError(
                f"{owner}: {field} is too large (got {brief(value)}, expected at most "
                f"{MOST_NUMBER:g})"
            )


def require_tuples(owner: str, **values: object) -> None:
    """Raise LmscoutError, naming the field, unless every value is a tuple: in JSON a list."""
    for field, value in values.items():
        if not isinstance(value, tuple):
            raise LmscoutError(
                f"{owner}: {field} must be a list (in Python a tuple), not {brief(value)}"
            )


def require_truths(owner: str, **values: object) -> None:
    """Raise LmscoutError, naming the field, unless every value is true or false."""
    for field, value in values.items():
        if not isinstance(value, bool):
            raise LmscoutError(f"{owner}: {field} must be true or false, not {brief(value)}")


def require_blocks(owner: str, width: int, heads: tuple[int, ...], inner: tuple[int, ...]) -> None:
    """Raise LmscoutError unless every block has heads that divide the width, or an MLP, or both.

    Args:
        owner: what the error says that it is about.
        width: size of the hidden state.
        heads: of each block; 0 where it has no attention.
        inner: of each block; 0 where it has no MLP.
    """
    require_tuples(owner, heads=heads, inner=inner)
    if not heads or len(heads) != len(inner):
        raise LmscoutError(
            f"{owner}: heads has {len(heads)} entries and inner {len(inner)}; "
            "both need one for each block"
        )
    require_depth(owner, len(heads))
    for index, (n_heads, n_inner) in enumerate(zip(heads, inner, strict=True)):
        for field, value in (("heads", n_heads), ("inner", n_inner)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise LmscoutError(
                    f"{owner}: {field}[{index}] must be a whole number above 0, or 0 where the "
                    f"block has none, not {brief(value)}"
                )
            require_at_most(owner, f"{field}[{index}]", value)
        if n_heads == n_inner == 0:
            raise LmscoutError(
                f"{owner}: heads[{index}] and inner[{index}] are both 0; a block has attention, "
                "an MLP or both"
            )
        if n_heads and width % n_heads:
            raise LmscoutError(
                f"{owner}: heads[{index}] is {n_heads}, which does not divide width {width}"
            )


def require_depth(owner: str, blocks: int) -> None:
    """Raise LmscoutError where there are more blocks than any architecture has."""
    if blocks > MOST_BLOCKS:
        raise LmscoutError(
            f"{owner}: has too many blocks (got {blocks:,}, expected at most {MOST_BLOCKS})"
        )


def require_fields(owner: str, cls: type, values: object) -> dict[str, Any]:
    """The values, once they are known to be a dict with exactly the fields that `cls` takes.

    Raises:
        LmscoutError: not a dict, or a field is unknown, or one without a default is missing.
    """
    if not isinstance(values, dict):
        raise LmscoutError(f"{owner}: expected an object with fields, not {brief(values)}")
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise LmscoutError(f"{owner}: unknown field {brief(name)}; it has {', '.join(known)}")
    for field in fields(cls):
        if field.default is MISSING and field.name not in values:
            raise LmscoutError(f"{owner}: field {field.name!r} is missing")
    return values
