"""The text, the tokenizer and the small model that lmscout brings."""

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
