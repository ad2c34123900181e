"""Fetching published files: all of them and exactly as pinned, or nothing."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmscout.errors import LmscoutError
from lmscout.files import atomic_folder
from lmscout.reading import MIB, MOST_STRUCTURED

TIMEOUT_SECONDS = 30  # without a byte
MOST_SECONDS = 600  # for a file
MOST_DOWNLOAD = MOST_STRUCTURED
_CHUNK = 2**16
THREADS = 8


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
    """Fetch files into a folder, which appears only when it is complete and verified.

    Args:
        url: where the files lie, ending in a slash.
        files: their paths below `url` and, the same, below `destination`.
        sha256: the `content_digest` that they must have.
        destination: the folder to make, in a folder that need not exist.

    Raises:
        LmscoutError: the folder cannot be written, or the files are not the pinned ones, or too
            large.
        OSError, http.client.HTTPException: the files cannot be fetched.
    """
    remedy = "remove what is there, or set LMSCOUT_CACHE to another folder"
    try:
        with atomic_folder(destination, name=f"cache folder {destination}", remedy=remedy) as draft:
            _fetch_all(url, files, draft)
            found = content_digest(draft, files)
            if found != sha256:
                raise LmscoutError(
                    f"{url}: what it serves is not what was published (SHA-256 {found}, expected "
                    f"{sha256}); nothing was kept"
                )
    except LmscoutError:
        # Another process may have been first; what it put there has been verified as well.
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
        while chunk := response.read(_CHUNK):  # whatever length the server announces
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
