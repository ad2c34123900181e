"""The real models and texts that tests of pruning use, and why they may be missing."""

import gzip
import os
from pathlib import Path

import pytest

from lmscout.evaluation import Text

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODELS = Path(os.environ.get("LMSCOUT_MODELS") or SHARED / "models")
DATA = Path((os.environ.get("LMSCOUT_DATA") or str(SHARED / "data")).split(os.pathsep)[0])
STORIES = MODELS / "stories260K"
VALID = DATA / "text" / "wikitext2.valid.tokens.gz"

needs_the_real_model = pytest.mark.skipif(
    not (STORIES.is_dir() and VALID.is_file()),
    reason="needs the model stories260K and WikiText-2; see LMSCOUT_MODELS and LMSCOUT_DATA",
)


def two_texts(characters=60_000):
    """Two texts without a line in common."""
    with gzip.open(VALID, "rt") as stream:
        words = stream.read(2 * characters)
    return (
        Text("first", words[:characters], "a"),
        Text("second", words[characters:], "b"),
    )
