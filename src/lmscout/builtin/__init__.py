"""What lmscout brings along: a text, a tokenizer, and a small model trained on the text."""

from lmscout.builtin.corpus import (
    END_OF_DOCUMENT,
    SIDES,
    Document,
    corpus_digest,
    corpus_text,
    documents,
    side_of,
)
from lmscout.builtin.tiny import encode, load_tokenizer, tiny_folder

__all__ = [
    "END_OF_DOCUMENT",
    "SIDES",
    "Document",
    "corpus_digest",
    "corpus_text",
    "documents",
    "encode",
    "load_tokenizer",
    "side_of",
    "tiny_folder",
]
