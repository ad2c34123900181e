"""Base of the results of commands: dataclasses that become tables, text, JSON, and back."""

from __future__ import annotations

import html
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from lmscout.errors import LmscoutError, brief, public
from lmscout.files import as_json, write_file
from lmscout.reading import read_json

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

Path_ = str | os.PathLike[str]
_SHORT = 40  # characters of a text that `repr` shows

SCHEMA = 1
"""Version of the JSON of results; others are refused."""

FIELDS = "fields"
"""Entry of a run's result.json that holds `Result.to_dict`."""

# Errors of constructing a result from edited JSON.
_DAMAGE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class SavedAs:
    """Annotation of a dataclass field with a JSON form of its own; None stays None."""

    write: Callable[[Any], object]  # converts the value to JSON data
    read: Callable[[Any], object]  # converts it back


class NotSaved:
    """Annotation of a dataclass field that is not saved and is loaded as its default."""


class Result:
    """Base of the dataclasses that hold the result of a command.

    Results are equal if they are saved alike: arrays by value, numbers that are not finite as one.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # In the class itself, so that `dataclass` leaves them: its own fail on arrays.
        cls.__eq__, cls.__hash__ = Result.__eq__, Result.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(as_json(self.to_dict()))

    def summary(self) -> str:
        """The result as the command line prints it, without colours."""
        # By name, since the command line imports this module.
        text: str = import_module("lmscout.cli.console").summary(self)
        return text

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `to_frame`: column name -> value."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def to_frame(self) -> pandas.DataFrame:
        """The main table of the result."""
        import pandas

        return pandas.DataFrame(self.rows())

    def plot(self) -> go.Figure:
        """The figure that a reader wants first, see `lmscout.plots`; LmscoutError without one."""
        return import_module("lmscout.plots").plot(self)

    @public
    def save_report(self, path: Path_) -> None:
        """Write the result as one HTML file with figures and tables, see `lmscout.report`.

        LmscoutError if the file cannot be written.
        """
        import_module("lmscout.reports").save_report(self, path)

    def _repr_html_(self) -> str:
        """The result in a notebook: one line, the table, and the figure."""
        try:
            drawn = import_module("lmscout.plots.style").embedded(self.plot())
        except LmscoutError:  # nothing that can be drawn
            drawn = ""
        return f"<p>{html.escape(repr(self))}</p>{self.to_frame()._repr_html_()}{drawn}"

    def __repr__(self) -> str:
        """One line: the class, and its numbers and short texts."""
        shown = ", ".join(
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)  # type: ignore[arg-type]
            if isinstance(getattr(self, one.name), str | int | float)
            and len(str(getattr(self, one.name))) <= _SHORT
        )
        return f"{type(self).__name__}({shown})"

    def to_json(self) -> dict[str, object]:
        """The result as ``--json`` prints it: every field by name as JSON data."""
        fields: dict[str, object] = _written(self)
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Every field by name as JSON data; numbers that are not finite are None."""
        return {"schema": SCHEMA, **_written(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Construct the result from the values of `to_dict`.

        LmscoutError if they have another schema, or a field is missing or of another type.
        """
        schema = values.get("schema") if isinstance(values, Mapping) else None
        if schema != SCHEMA:
            raise LmscoutError(f"result of schema {brief(schema)}, expected {SCHEMA}")
        try:
            found: Self = _read(cls, values)
        except _DAMAGE as error:
            raise LmscoutError(f"damaged result ({type(error).__name__}: {error})") from error
        return found

    @public
    def save(self, path: Path_) -> None:
        """Write the result as JSON; LmscoutError if the file cannot be written."""
        write_file(Path(path), as_json(self.to_dict()))

    @classmethod
    @public
    def load(cls, path: Path_) -> Self:
        """Read a result that `save` wrote, or a run's ``result.json``.

        LmscoutError if the file cannot be read, or holds no such result.
        """
        values = saved_values(read_json(Path(path), surrogates=True))
        try:
            return cls.from_dict(values)
        except LmscoutError as error:
            raise LmscoutError(f"{path}: {error}") from error


def named(one: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object by name."""
    return {name: getattr(one, name) for name in names}


def saved_values(read: Any) -> Any:
    """The values of `Result.to_dict` in the JSON that `Result.save` or a run wrote."""
    return read[FIELDS] if isinstance(read, dict) and FIELDS in read else read


def has_fields_of(kind: type, names: set[str]) -> bool:
    """Whether saved values with these names may be of a class of results.

    A field with a default may be missing: results of earlier versions do not have it.
    """
    saved = _saved_fields(kind)
    return names <= set(saved) and names >= set(saved) - _optional(kind)


def _written(value: Any) -> Any:  # noqa: PLR0911 - one per type
    """A value as JSON data."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for name, (_, form) in _saved_fields(type(value)).items():
            own = getattr(value, name)
            plain[name] = _written(own if form is None or own is None else form.write(own))
        return plain
    if isinstance(value, np.ndarray | np.generic):
        return _written(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a {type(value).__name__} has no form as JSON: {value!r}")


def _read(kind: Any, value: Any) -> Any:  # noqa: PLR0911 - one per type
    """A value of a type from JSON data."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        (kind,) = (one for one in parts if one is not type(None))
        return _read(kind, value)
    if isinstance(kind, type) and is_dataclass(kind):
        plain = _checked(value, dict)
        return kind(
            **{
                name: _read_field(own, form, plain[name])
                for name, (own, form) in _saved_fields(kind).items()
                if name in plain or name not in _optional(kind)
            }
        )
    if origin is tuple:
        items = _checked(value, list)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_read(parts[0], one) for one in items)
        return tuple(_read(part, one) for part, one in zip(parts, items, strict=True))
    if origin is np.ndarray:
        (scalar,) = get_args(parts[1])
        return np.array([np.nan if one is None else one for one in value], scalar)
    if origin in (dict, Mapping):
        return {name: _read(parts[1], one) for name, one in _checked(value, dict).items()}
    if origin in (list, Sequence):
        return [_read(parts[0], one) for one in _checked(value, list)]
    if kind is float:
        return math.nan if value is None else float(_checked(value, float | int))
    if kind is Path:
        return Path(_checked(value, str))
    return _checked(value, kind) if kind in (int, str, bool) else value


def _read_field(kind: Any, form: SavedAs | None, value: Any) -> Any:
    if form is None:
        return _read(kind, value)
    if value is None and types.NoneType not in get_args(kind):
        raise TypeError("null stands where a value has to be")
    return None if value is None else form.read(value)


@cache
def _saved_fields(kind: type) -> dict[str, tuple[Any, SavedAs | None]]:
    """Saved fields of a dataclass: name -> (type, own form)."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, tuple[Any, SavedAs | None]] = {}
    for one in fields(kind):
        hint = hints[one.name]
        hint, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if NotSaved not in notes:
            found[one.name] = hint, next((n for n in notes if isinstance(n, SavedAs)), None)
    return found


@cache
def _optional(kind: type) -> set[str]:
    """Names of the fields of a dataclass that have a default."""
    given = (MISSING, MISSING)
    return {one.name for one in fields(kind) if (one.default, one.default_factory) != given}


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.40} is no {getattr(kind, '__name__', kind)}")
    return value
