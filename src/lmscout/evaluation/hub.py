"""What comes from the Hugging Face Hub: a model's files, and the text of a data set."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lmscout.errors import LmscoutError
from lmscout.evaluation.origin import CARD
from lmscout.evaluation.quiet import first_line, quiet
from lmscout.reading import MIB, MOST_TEXT

HUB = "hub:"

_ADDRESS = re.compile(r"(?P<name>[^:#]+?)(:(?P<split>[^#]+))?(#(?P<field>.+))?")
_BLANK_LINE = "\n\n"
# Weights by transformers' own names only: many repositories hold the same weights again under
# other ones, and pickled.
_MODEL_FILES = (
    "*.json",
    "model.safetensors",
    "model-*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
    CARD,
)
_ELSEWHERE = ("*/*",)  # folders hold exports to other runtimes


@dataclass(frozen=True)
class HubAddress:
    """`hub:NAME[/CONFIG][:SPLIT][#FIELD]`, taken apart.

    Attributes:
        name: `OWNER/NAME`, or `NAME` alone for a data set without an owner.
        config: of a data set that has several; written only after `OWNER/NAME`.
        split: as the datasets library writes it; None where the data set has only one.
        field: the column that holds the text; None for `text`, or for the only one of strings.
    """

    name: str
    config: str | None
    split: str | None
    field: str | None


def parse_address(source: str) -> HubAddress:
    """Take a data set's address apart.

    Raises:
        LmscoutError: it is malformed.
    """
    match = _ADDRESS.fullmatch(source.removeprefix(HUB))
    parts = match["name"].split("/") if match else []
    if not match or not all(parts) or len(parts) > 3:
        raise LmscoutError(
            f"{source}: is not the address of a data set; write hub:OWNER/NAME/CONFIG:SPLIT#FIELD, "
            "as hub:Salesforce/wikitext/wikitext-2-raw-v1:test#text"
        )
    return HubAddress(
        "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, match["split"], match["field"]
    )


def dataset_text(source: str) -> str:
    """The rows of a Hub data set, joined by blank lines.

    Args:
        source: `hub:NAME[/CONFIG][:SPLIT][#FIELD]`.

    Returns:
        One text.

    Raises:
        LmscoutError: the datasets library is not installed, the Hub cannot be reached, or it
            has no such data set, configuration, split or field.
    """
    address = parse_address(source)
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise LmscoutError(
            f"{source}: data sets of the Hub are read by the datasets library, which is not "
            "installed; pip install 'lmscout[hub]'"
        ) from None
    try:
        with quiet():
            if not sys.stderr.isatty():
                datasets.utils.disable_progress_bars()
            data = datasets.load_dataset(address.name, address.config, split=address.split)
    except Exception as error:  # the library passes on whatever its file formats and network raise
        raise LmscoutError(
            f"{source}: cannot be had from the Hub ({first_line(error)}); check the address and "
            "the network, or give a file"
        ) from error
    if address.split is None:
        data = _only_split(source, data)
    return _joined(source, data[_field(source, address, data)])


def _joined(source: str, rows: Iterable[str | None]) -> str:
    """Rows joined by blank lines, no more of them than a text may have."""
    kept, size = [], 0
    for row in rows:
        kept.append(row or "")
        size += len(kept[-1]) + len(_BLANK_LINE)
        if size > MOST_TEXT:
            raise LmscoutError(
                f"{source}: is too large (more than {MOST_TEXT // MIB} MiB); name a smaller split, "
                f"as {HUB}NAME:train[:1%]"
            )
    return _BLANK_LINE.join(kept)


def _only_split(source: str, splits: Any) -> Any:
    if len(splits) != 1:
        raise LmscoutError(
            f"{source}: has the splits {', '.join(map(str, splits))}; name one, as {HUB}NAME:SPLIT"
        )
    return next(iter(splits.values()))


def _field(source: str, address: HubAddress, data: Any) -> str:
    strings = [
        str(name)
        for name, feature in data.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if (address.field or "text") in strings:
        return address.field or "text"
    if address.field is None and len(strings) == 1:
        return strings[0]
    raise LmscoutError(
        f"{source}: its columns of strings are {', '.join(strings) or 'none'}; name one, as "
        f"{HUB}NAME:SPLIT#FIELD"
    )


def fetch_model(name: str, *, weights: bool = True) -> Path:
    """The folder of a model of the Hub, downloaded unless the Hub's cache has it.

    Pickled weights are not downloaded.

    Args:
        name: `OWNER/NAME`, or `NAME` alone.
        weights: False for the configuration alone.

    Returns:
        The folder in the Hub's own cache.

    Raises:
        LmscoutError: there is no such model, it may not be had, or the Hub cannot be reached.
    """
    try:
        with quiet():
            folder = snapshot_download(
                name,
                allow_patterns=list(_MODEL_FILES) if weights else ["config.json"],
                ignore_patterns=list(_ELSEWHERE),
            )
    except GatedRepoError:
        raise LmscoutError(
            f"{name}: the Hub gives this model only to whom its owners let; ask on its page, then "
            "log in by hf auth login"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise LmscoutError(
            f"{name}: neither a folder here nor a model of the Hub; check the spelling (a private "
            "model needs hf auth login)"
        ) from None
    except LocalEntryNotFoundError:
        raise LmscoutError(
            f"{name}: is no folder here, and the Hub cannot be reached (offline?) nor does its "
            "cache have it; give a folder that exists, or connect"
        ) from None
    except Exception as error:  # the network's own errors come through as they are
        raise LmscoutError(
            f"{name}: is no folder here, and fetching it from the Hub failed ({first_line(error)})"
        ) from error
    return Path(folder)
