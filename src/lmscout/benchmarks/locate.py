"""Where benchmark files are: the user's directories, then the cache, then upstream."""

import http.client
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from lmscout.benchmarks.download import describe, download
from lmscout.errors import LmscoutError

DATA_VARIABLE = "LMSCOUT_DATA"
CACHE_VARIABLE = "LMSCOUT_CACHE"


@dataclass(frozen=True)
class Published:
    """Files that upstream serves, and the bytes they must have.

    Attributes:
        folder: where they lie below a data directory.
        files: their paths below that folder.
        url: the address of the folder upstream, ending in a slash.
        sha256: their `content_digest`.
    """

    folder: str
    files: tuple[str, ...]
    url: str
    sha256: str


FLEXIBERT_FILE = "BERT_benchmark.json"

FLEXIBERT = Published(
    folder="flexibert",
    files=(FLEXIBERT_FILE,),
    url=(
        "https://raw.githubusercontent.com/aaronserianni/training-free-nas/"
        "2d76e01b9586cad7340e8268dadba3056efd070b/data/"
    ),
    sha256="fa2ff7198dcd71e0b8021ed2ace1c221672c33cc56931b6dff31fda3d044784f",
)

LTS: dict[str, Published] = {
    "random_GPT2_wt103": Published(
        folder="lts/random_GPT2_wt103",
        files=(
            *(f"config_{i}/j{j}/model_config.yaml" for i in range(20) for j in range(10)),
            "params_summary.yaml",
            "ppl_summary.yaml",
        ),
        url=(
            "https://raw.githubusercontent.com/microsoft/archai/neurips-lts/"
            "archai/nlp/nas/saved_logs/random_GPT2_wt103/"
        ),
        sha256="74fff8bb05a726c257ca61f320cd5ed251d5962d471c2d76820952615385e860",
    ),
}


def find_flexibert(url: str = FLEXIBERT.url) -> Path:
    """The file of the FlexiBERT benchmark, downloaded into the cache if it is nowhere.

    Args:
        url: the folder to download from.

    Raises:
        LmscoutError: it is nowhere and cannot be downloaded, or not to the cache directory.
    """
    wanted = f"{FLEXIBERT.folder}/{FLEXIBERT_FILE}"
    return _present(wanted) or _fetched(FLEXIBERT, url) / FLEXIBERT_FILE


def find_lts(name: str, url: str | None = None) -> Path:
    """The LiteTransformerSearch folder of that name, downloaded if it is nowhere.

    Args:
        name: upstream's name of the folder.
        url: the folder to download from; upstream's if None.

    Raises:
        LmscoutError: it is nowhere and cannot be downloaded, or not to the cache directory.
    """
    wanted = f"lts/{name}"
    present = _present(wanted)
    if present:
        return present
    if name not in LTS:
        raise LmscoutError(
            f"{wanted} was not found in {_searched()}, and only {', '.join(LTS)} can be "
            f"downloaded; put the folder in a directory named in {DATA_VARIABLE}, or give its path"
        )
    return _fetched(LTS[name], url or LTS[name].url)


def cache_directory() -> Path:
    """Where downloads are kept: LMSCOUT_CACHE, or else the user's cache directory."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("lmscout"))


def _data_directories() -> list[Path]:
    return [Path(item) for item in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if item]


def _present(wanted: str) -> Path | None:
    candidates = (directory / wanted for directory in [*_data_directories(), cache_directory()])
    # Unlike Path.exists, this takes a directory that may not be entered as one without it.
    return next((path for path in candidates if os.path.exists(path)), None)


def _searched() -> str:
    directories = [str(directory) for directory in _data_directories()]
    given = ", ".join(directories) if directories else "not set"
    return f"{DATA_VARIABLE} ({given}) or the cache ({cache_directory()})"


def _fetched(published: Published, url: str) -> Path:
    destination = cache_directory() / published.folder
    try:
        download(url, published.files, published.sha256, destination)
    except (OSError, http.client.HTTPException) as error:
        single = published.files[0] if len(published.files) == 1 else ""
        wanted = f"{published.folder}/{single}".rstrip("/")
        raise LmscoutError(
            f"{wanted} was not found in {_searched()}, and downloading {url}{single} failed "
            f"({describe(error)}); fetch it by hand and name the directory that holds {wanted} "
            f"in {DATA_VARIABLE}"
        ) from None
    return destination
