"""Architecture specs, which count parameters and build models, and models with probe points.

A spec is a frozen dataclass.  The annotations of its fields give their types and ranges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, cast, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from lmscout.errors import LmscoutError, brief
from lmscout.memory import require_memory

MOST_BLOCKS = 512
MOST_WIDTH = 2**16
MOST_VOCABULARY = 2**22
MOST_SIZE = 2**20
"""Of any other size."""

_FLOAT = 4  # bytes
_TOKENS = 1024  # of a batch, about


@dataclass(frozen=True)
class Bounds:
    """Annotation of a field: numbers above 0.

    Attributes:
        most: the largest.
        absent: whether 0 is allowed, for a block without the part.
    """

    most: float
    absent: bool = False


Size = Annotated[int, Bounds(MOST_SIZE)]
Width = Annotated[int, Bounds(MOST_WIDTH)]
Vocabulary = Annotated[int, Bounds(MOST_VOCABULARY)]
PerBlock = tuple[Annotated[int, Bounds(MOST_SIZE, absent=True)], ...]
Positive = Annotated[float, Bounds(1e12)]


@dataclass(frozen=True)
class ProbePoints:
    """Modules of one block at which the six inputs of a proxy are read.

    A block without attention has no `head`, `softmax` or mixing layer; one without an MLP has
    no `act` and no `mlp`.

    Attributes:
        block: the block; its first positional argument is the hidden state (``jacob``).
        act: modules whose output is the MLP's activation (``act``), one for each stacked layer.
        head: the query, key and value projections, or the mixing projection where there is
            no attention (``head``).
        softmax: modules whose output is attention probabilities (``softmax``).
        spectrum: Fourier and cosine mixers, whose output becomes probabilities through a softmax
            over its last axis (``softmax``).
        linear: every linear layer of the block (``weight`` and ``grad``).
        mlp: those of `linear` that belong to the MLP; the others mix tokens.
        gate: those of `act` whose output multiplies another path.
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
        blocks: the transformer layers, in order; each has a method `probe_points`.
        norm: the norm after the last block.
        max_length: positions of a sequence.
    """

    blocks: nn.ModuleList
    norm: nn.Module
    max_length: int

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to the hidden state ``[B, T, width]`` that enters block 0."""

    @abstractmethod
    def loss(self, tokens: Tensor) -> Tensor:
        """The scalar whose gradient the proxies read, for tokens ``[B, T]`` (int64)."""

    def encode(self, hidden: Tensor) -> Tensor:
        """Hidden state ``[B, T, width]`` through the blocks and the final norm, same shape."""
        for block in self.blocks:
            hidden = block(hidden)
        normed: Tensor = self.norm(hidden)
        return normed

    def probe_points(self) -> tuple[ProbePoints, ...]:
        """Where the inputs are read, one entry a block."""
        blocks: Any = self.blocks
        return tuple(block.probe_points() for block in blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to the last hidden state ``[B, T, width]``."""
        return self.encode(self.embed(tokens))

    def check_length(self, tokens: Tensor) -> None:
        """Raise LmscoutError if the sequences are longer than the model has positions."""
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
    """An architecture: all that is needed to count its parameters and to build it.

    Attributes:
        width: size of the hidden state.
        vocabulary: number of tokens.
        max_length: number of positions.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    """Name of the kind in messages."""
    causal: ClassVar[bool]

    width: Width
    vocabulary: Vocabulary
    max_length: Size

    def check_fields(self) -> None:
        """Raise LmscoutError unless every field has the type and range of its annotation."""
        _check(self, self.title)
        if self.depth > MOST_BLOCKS:
            raise self.error(
                f"has too many blocks (got {self.depth:,}, expected at most {MOST_BLOCKS})"
            )

    def error(self, problem: str) -> LmscoutError:
        """The error that names this kind of spec and a problem."""
        return LmscoutError(f"{self.title}: {problem}")

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def parameters(self) -> int:
        """Number of parameters of the model as built; a tied tensor counts once."""

    @abstractmethod
    def body_parameters(self) -> int:
        """Number of parameters of the blocks and the final norm."""

    @abstractmethod
    def build(self, seed: int) -> LanguageModel:
        """The untrained model in eval mode, its weights drawn from the seed.

        The same seed gives the same bits; PyTorch's global generator is not touched.

        Raises:
            LmscoutError: one pass does not fit into memory.
        """

    def pass_bytes(self) -> int:
        """Least bytes of one forward and one backward pass: weights, gradients, logits."""
        logits = 2 * _TOKENS * self.vocabulary if self.causal else 0
        return _FLOAT * (2 * self.parameters() + logits)

    def require_memory(self) -> None:
        """Raise LmscoutError if a pass does not fit into memory, before anything is built."""
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
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The spec from the values of `to_dict`, less ``kind``.

        Raises:
            LmscoutError: a field is missing, unknown or out of range.
        """
        spec: Self = _read(cast(type, cls), values, cls.title)
        return spec


def linear_parameters(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with a bias."""
    return (inputs + 1) * outputs


def linear_layers(module: nn.Module) -> tuple[nn.Linear, ...]:
    """The linear layers in a module, in the order of registration."""
    return tuple(layer for layer in module.modules() if isinstance(layer, nn.Linear))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@cache
def _hints(kind: Hashable) -> dict[str, tuple[Any, Any]]:
    """The fields of a dataclass: name -> its type and its bounds, or those of its items."""
    spec_type: Any = kind
    hints = get_type_hints(spec_type, include_extras=True)
    return {field.name: _split(hints[field.name]) for field in fields(spec_type)}


def _split(hint: Any) -> tuple[Any, Any]:
    """(type, bounds); for a tuple ``(tuple, (type, bounds) of its items)``."""
    if get_origin(hint) is tuple:
        return tuple, _split(get_args(hint)[0])
    kind, *bounds = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return kind, bounds[0] if bounds else None


def _read(kind: type, values: object, where: str) -> Any:
    """A dataclass from a dict of plain values; lists become tuples."""
    if not isinstance(values, dict):
        raise LmscoutError(f"{where}: expected an object with fields, not {brief(values)}")
    known, given = _hints(kind), {}
    for name, value in values.items():
        if name not in known:
            raise LmscoutError(f"{where}: unknown field {brief(name)}; it has {', '.join(known)}")
        given[name] = value
        outer, item = known[name]
        if outer is tuple and isinstance(value, list):
            nested = is_dataclass(item[0])
            given[name] = tuple(
                _read(item[0], one, f"{where}: {name}[{index}]") if nested else one
                for index, one in enumerate(value)
            )
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise LmscoutError(f"{where}: field {field.name!r} is missing")
    return kind(**given)


def _check(value: Any, where: str) -> None:
    """Check every field of a dataclass against its annotation."""
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        _check_value(getattr(value, name), hint, f"{where}: {name}")


def _check_value(value: Any, hint: tuple[Any, Any], where: str) -> None:
    kind, inner = hint
    if kind is tuple:
        if not isinstance(value, tuple):
            raise LmscoutError(f"{where} must be a list (in Python a tuple), not {brief(value)}")
        for index, item in enumerate(value):
            _check_value(item, inner, f"{where}[{index}]")
    elif kind is bool:
        if not isinstance(value, bool):
            raise LmscoutError(f"{where} must be true or false, not {brief(value)}")
    elif inner is not None:
        _check_number(value, kind, inner, where)
    elif not isinstance(value, kind):
        raise LmscoutError(f"{where} must be a {kind.__name__}, not {brief(value)}")
    elif is_dataclass(kind):
        _check(value, where)


def _check_number(value: Any, kind: type, bounds: Bounds, where: str) -> None:
    numbers: Any = int if kind is int else (int, float)
    is_number = isinstance(value, numbers) and not isinstance(value, bool)
    if not is_number or not (value > 0 or (bounds.absent and value == 0)):
        expected = "a number" if kind is float else "a whole number"
        absent = ", or 0 where the block has none," if bounds.absent else ","
        raise LmscoutError(f"{where} must be {expected} above 0{absent} not {brief(value)}")
    if value > bounds.most:
        most = f"{bounds.most:g}" if kind is float else f"{bounds.most:,}"
        raise LmscoutError(f"{where} is too large (got {brief(value)}, expected at most {most})")
