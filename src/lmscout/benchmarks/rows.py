"""Rows of files that people write: checked, or refused in one line."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lmscout.errors import LmscoutError, brief
from lmscout.proxies.spelling import did_you_mean


class Row(BaseModel):
    """A part of a file; numbers are numbers, not text, and what is not asked for is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


RowT = TypeVar("RowT", bound=Row)


def checked(row: type[RowT], values: Any, where: str) -> RowT:
    """The values as a row of that type.

    Args:
        row: the type.
        values: what the file holds.
        where: the file, and the row in it.

    Raises:
        LmscoutError: a field is missing, unknown or of the wrong kind; names the first such one.
    """
    try:
        return row.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        if first["type"] == "extra_forbidden":
            raise LmscoutError(
                f"{where}: unknown field {field[:60]}{did_you_mean(field, row.model_fields)}"
            ) from None
        got = "" if first["type"] == "missing" else f", not {brief(first['input'])}"
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise LmscoutError(f"{where}: {field}: {message}{got}") from None
