"""A benchmark by the name that a user gives it: found, downloaded, read.

Published files are in the user's directories, else in the cache, else upstream.  A download is
atomic, and its files are exactly the pinned ones.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from lmscout.benchmarks.benchmark import Benchmark
from lmscout.benchmarks.built import OWN, SHIPPED, TABLE, read_built
from lmscout.benchmarks.flexibert import read_flexibert
from lmscout.benchmarks.lts import METRIC, read_lts
from lmscout.benchmarks.space import SPACES, SUFFIX, Space, load_space
from lmscout.errors import LmscoutError, brief
from lmscout.files import atomic_folder
from lmscout.reading import MIB, MOST_STRUCTURED, expanded
from lmscout.runs import SETTINGS

LTS_METRICS = {"random_GPT2_wt103": "negated WikiText-103 validation perplexity"}
"""The metric of the published folders, by name."""

ACCEPTED = (
    "pico, iso, DIR or bench:DIR, flexibert, flexibert:PATH, lts:random_GPT2_wt103, lts:NAME or "
    "lts:PATH"
)

DATA_VARIABLE = "LMSCOUT_DATA"
CACHE_VARIABLE = "LMSCOUT_CACHE"
TIMEOUT_SECONDS = 30  # without a byte
MOST_SECONDS = 600  # for a file
MOST_DOWNLOAD = MOST_STRUCTURED
_CHUNK = 2**16
THREADS = 8
FLEXIBERT_FILE = "BERT_benchmark.json"


class UnknownBenchmarkError(LmscoutError):
    """A name that is no benchmark's."""


def load(name: str) -> Benchmark:
    """Load a benchmark, see `lmscout.load_benchmark`.

    What follows ``lts:`` is a path if it has a separator in it or is a directory, else the name of
    a LiteTransformerSearch folder.  UnknownBenchmarkError if the name is no benchmark's;
    LmscoutError if it cannot be found or read.
    """
    kind, colon, rest = name.partition(":")
    if name in SHIPPED or (name.startswith(OWN) and rest):
        return read_built(name)
    if kind == "flexibert" and bool(colon) == bool(rest):
        return read_flexibert(expanded(rest) if rest else find_flexibert(), name)
    if kind == "lts" and rest:
        path = expanded(rest)
        if os.sep in rest or "/" in rest or os.path.isdir(path):
            return read_lts(path, name)
        return read_lts(find_lts(rest), name, LTS_METRICS.get(rest, METRIC))
    folder = os.path.expanduser(name)
    if name and any(os.path.isfile(os.path.join(folder, one)) for one in (TABLE, SETTINGS)):
        return read_built(OWN + name)
    raise UnknownBenchmarkError(f"unknown benchmark {brief(name)}; it can be {ACCEPTED}")


def load_space_or_benchmark(name: str) -> Space | Benchmark:
    """A space by its name or its file, or else a benchmark; LmscoutError if it is neither.

    ``pico`` and ``iso`` name both; here they are the spaces.
    """
    if name in {space.name for space in SPACES}:
        return load_space(name)
    try:
        return load(name)
    except UnknownBenchmarkError:
        if name.endswith(SUFFIX):
            return load_space(name)
        spaces = ", ".join(space.name for space in SPACES)
        raise LmscoutError(
            f"unknown space {brief(name)}; there are the spaces {spaces} and FILE{SUFFIX}, and the "
            f"benchmarks {ACCEPTED}"
        ) from None


def content_digest(root: Path, files: Iterable[str]) -> str:
    """SHA-256 of a file; of several, over each one's path, length and bytes, by path."""
    paths = sorted(files)
    if len(paths) == 1:
        return hashlib.sha256((root / paths[0]).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for path in paths:
        content = (root / path).read_bytes()
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def download(url: str, files: tuple[str, ...], sha256: str, destination: Path) -> None:
    """Fetch files of a URL, which ends in a slash, into a new folder.

    It appears only when it is complete and verified: `sha256` is the files' `content_digest`.
    LmscoutError if the folder cannot be written, or the files are not the pinned ones, or too
    large; OSError or http.client.HTTPException if they cannot be fetched.
    """
    remedy = "remove what is there, or set LMSCOUT_CACHE to another folder"
    try:
        with atomic_folder(destination, name=f"cache folder {destination}", remedy=remedy) as draft:
            _fetch_all(url, files, draft)
            found = content_digest(draft, files)
            if found != sha256:
                raise LmscoutError(
                    f"{url}: its files are not what was published (SHA-256 {found}, expected "
                    f"{sha256}); nothing was kept"
                )
    except LmscoutError:
        # Another process may have been first; its files have been verified as well.
        if not all((destination / file).exists() for file in files):
            raise


def _fetch_all(url: str, files: tuple[str, ...], folder: Path) -> None:
    with ThreadPoolExecutor(min(THREADS, len(files))) as pool:
        fetches = [pool.submit(_fetch, url + file, folder / file) for file in files]
        try:
            for fetch in fetches:
                fetch.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch(url: str, path: Path) -> None:
    ends = time.monotonic() + MOST_SECONDS
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        announced, content = response.length, bytearray()
        while chunk := response.read(_CHUNK):  # the announced length may be wrong
            content += chunk
            if len(content) > MOST_DOWNLOAD:
                raise LmscoutError(
                    f"{url}: serves more than {MOST_DOWNLOAD // MIB} MiB, which is not what was "
                    "published; nothing was kept"
                )
            if time.monotonic() > ends:
                raise TimeoutError(f"not complete after {MOST_SECONDS} seconds")
    if announced is not None and len(content) < announced:
        raise http.client.IncompleteRead(bytes(content), announced - len(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def describe(error: OSError | http.client.HTTPException) -> str:
    """Why a fetch failed, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Published:
    """Files that upstream serves, and their digest."""

    folder: str  # below a data directory
    files: tuple[str, ...]  # their paths below that folder
    url: str  # the address of the folder upstream, ending in a slash
    sha256: str  # their `content_digest`


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
    )
}


def find_flexibert(url: str = FLEXIBERT.url) -> Path:
    """The file of the FlexiBERT benchmark, downloaded into the cache if it was not found.

    LmscoutError if it cannot be downloaded from the folder `url`, or not to the cache directory.
    """
    wanted = f"{FLEXIBERT.folder}/{FLEXIBERT_FILE}"
    return _present(wanted) or _fetched(FLEXIBERT, url) / FLEXIBERT_FILE


def find_lts(name: str, url: str | None = None) -> Path:
    """The LiteTransformerSearch folder of upstream's name, downloaded if it was not found.

    LmscoutError if it cannot be downloaded from `url` (upstream's if None) or to the cache.
    """
    wanted = f"lts/{name}"
    if present := _present(wanted):
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
    given = ", ".join(map(str, _data_directories())) or "not set"
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
