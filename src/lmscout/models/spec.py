"""Architecture specs, which count parameters and build models, and models with probe points.

A spec is a frozen dataclass.  The annotations of its fields give their types and ranges.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from lmscout.errors import LmscoutError, brief
from lmscout.memory import require_memory

SPEC = "spec.json"
"""File of a spec in a folder."""
MOST_BLOCKS = 512
MOST_WIDTH = 2**16
MOST_VOCABULARY = 2**22
MOST_SIZE = 2**20
"""Of any other size."""

_FLOAT = 4  # bytes
_TOKENS = 1024  # of a batch, about


CHECKED = ConfigDict(extra="forbid", revalidate_instances="always")
"""Of specs: blocks within them are checked too."""
_EXPECTED = {"tuple_type": "a list (in Python a tuple)", "bool_type": "true or false"}


def above_zero(kind: type, most: float, *, absent: bool = False) -> PlainValidator:
    """Annotation of a field: a number above 0, or 0 for a block without the part if `absent`."""
    kinds = int if kind is int else int | float
    expected = "a whole number above 0" if kind is int else "a number above 0"
    expected += ", or 0 where the block has none," if absent else ","

    def check(value: Any) -> Any:
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not number or not (value > 0 or (absent and value == 0)):
            raise ValueError(f"must be {expected} not {brief(value)}")
        if value > most:
            bound = f"{most:,}" if kind is int else f"{most:g}"
            raise ValueError(f"is too large (got {brief(value)}, expected at most {bound})")
        return value

    return PlainValidator(check)


Size = Annotated[int, above_zero(int, MOST_SIZE)]
Width = Annotated[int, above_zero(int, MOST_WIDTH)]
Vocabulary = Annotated[int, above_zero(int, MOST_VOCABULARY)]
PerBlock = tuple[Annotated[int, above_zero(int, MOST_SIZE, absent=True)], ...]
Positive = Annotated[float, above_zero(float, 1e12)]


@dataclasses.dataclass(frozen=True)
class ProbePoints:
    """Modules of one block at which the six inputs of a proxy are read.

    A block without attention has no `head`, `softmax` or mixing layer; one without an MLP has
    no `act` and no `mlp`.
    """

    block: nn.Module  # the block; its first positional argument is the hidden state (``jacob``)
    # modules whose output is the MLP's activation (``act``), one for each stacked layer
    act: tuple[nn.Module, ...]
    # the query, key and value projections, or the mixing projection where there is no attention
    # (``head``)
    head: tuple[nn.Linear, ...]
    softmax: tuple[nn.Module, ...]  # modules whose output is attention probabilities (``softmax``)
    # Fourier and cosine mixers, whose output becomes probabilities through a softmax over its last
    # axis (``softmax``)
    spectrum: tuple[nn.Module, ...]
    linear: tuple[nn.Linear, ...]  # every linear layer of the block (``weight`` and ``grad``)
    mlp: tuple[nn.Linear, ...]  # those of `linear` that belong to the MLP; the others mix tokens
    gate: tuple[nn.Module, ...] = ()  # those of `act` whose output multiplies another path


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
        return self.norm(hidden)

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

        Tokens ``[B, T]``, int64, to ``[B · (T - 1), width]`` and ``[B · (T - 1)]``.

        Raises:
            LmscoutError: a sequence has no next token, or more tokens than positions.
        """
        if tokens.shape[1] < 2:
            raise LmscoutError("next-token cross-entropy needs sequences of at least 2 tokens")
        return self(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ArchitectureSpec(ABC):
    """An architecture: all that is needed to count its parameters and to build it."""

    kind: ClassVar[str]
    title: ClassVar[str]
    """Name of the kind in messages."""
    causal: ClassVar[bool]

    width: Width  # size of the hidden state
    vocabulary: Vocabulary  # number of tokens
    max_length: Size  # number of positions

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            spec = handler(values)
        except ValidationError as error:
            raise LmscoutError(f"{cls.title}{_first_problem(error)}") from None
        if spec.depth > MOST_BLOCKS:
            raise spec.error(
                f"has too many blocks (got {spec.depth:,}, expected at most {MOST_BLOCKS})"
            )
        return spec

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
    def multiply_adds(self) -> int:
        """Multiply-adds of a token in the blocks, on average in a sequence of `max_length`.

        Products of matrices are counted, also in attention; biases, norms, activations and
        products of single elements are not.
        """

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

    def require_memory(self, width: int = _FLOAT) -> None:
        """Raise LmscoutError if a pass in numbers of so many bytes does not fit into memory."""
        require_memory(
            f"{self.kind} architecture of {self.parameters():,} parameters (depth {self.depth}, "
            f"width {self.width})",
            self.pass_bytes() * width // _FLOAT,
            "use a smaller one, or a machine with more memory",
        )

    def to_dict(self) -> dict[str, object]:
        """The spec as JSON-able values, under ``kind`` and the names of its fields."""
        return {"kind": self.kind, **to_jsonable_python(dataclasses.asdict(self))}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The spec from the values of `to_dict`, less ``kind``.

        Raises:
            LmscoutError: a field is missing, unknown or out of range.
        """
        return cls(**values)


def linear_parameters(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with a bias."""
    return (inputs + 1) * outputs


def linear_layers(module: nn.Module) -> tuple[nn.Linear, ...]:
    """The linear layers in a module, in the order of registration."""
    return tuple(layer for layer in module.modules() if isinstance(layer, nn.Linear))


def _first_problem(error: ValidationError) -> str:
    """The place in a spec, and what is wrong there."""
    first = error.errors(include_url=False)[0]
    kind, given = first["type"], brief(first["input"])
    *above, name = (f"[{one}]" if isinstance(one, int) else f": {one}" for one in first["loc"])
    outer = "".join(above)
    where = f"{outer}{name}"
    if kind == "missing":
        return f"{outer}: field {first['loc'][-1]!r} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{outer}: unknown field {brief(first['loc'][-1])}"
    if kind == "value_error":
        return f"{where} {first['ctx']['error']}"
    if kind == "dataclass_type":
        return f"{where}: expected an object with fields, not {given}"
    return f"{where} must be {_EXPECTED.get(kind, 'text')}, not {given}"
