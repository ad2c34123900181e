"""A tokenizer as GGUF's metadata: pieces, their types, merges or scores, special tokens, template.

llama.cpp has two kinds of BPE.  `gpt2` works on bytes, merges in the order of a list, and splits
text first by one of the regular expressions that are built in under a name.  `llama` is that of
SentencePiece: it joins the two pieces whose union has the highest score, without splitting first.
"""

from __future__ import annotations

import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from lmscout.errors import LmscoutError, brief

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPLITS = {
    (_GPT2,): "gpt-2",
    ("digits", _GPT2): "smollm",
    (_WORDS + r"|\p{N}{1,3}" + _TAIL,): "llama-bpe",
    (_WORDS + r"|\p{N}" + _TAIL,): "qwen2",
}
"""What splits text before the merges -> llama.cpp's name of it."""
_UNUSED = "[PAD{}]"  # names of rows of the embedding without a token


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, source: str
) -> None:
    """Add a tokenizer's entries to a file's metadata, for as many tokens as the embedding has rows.

    Raises:
        LmscoutError: llama.cpp has no tokenizer of this kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(source, "has no tokenizer.json")
    parts: dict[str, Any] = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise _refused(source, f"its tokenizer is of type {model['type']}")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    names = {number: name for name, number in vocabulary.items()}
    if max(names) >= rows:
        raise _refused(source, f"its tokenizer has token {max(names)}, the embedding {rows} rows")
    added = {one["id"]: one for one in parts["added_tokens"]}
    in_bytes = not model.get("byte_fallback")
    tokens, types = [], []
    for number in range(rows):
        name = names.get(number)
        tokens.append(_UNUSED.format(number) if name is None else name)
        types.append(_type(name, added.get(number), model, in_bytes))
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    if in_bytes:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(parts, source))
        writer.add_token_merges(merges)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_spaces(parts, source))
        writer.add_token_scores(_scores(tokens, merges))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _type(
    name: str | None, added: dict[str, Any] | None, model: dict[str, Any], in_bytes: bool
) -> gguf.TokenType:
    if name is None:
        return gguf.TokenType.UNUSED
    if not in_bytes and name == model.get("unk_token"):
        return gguf.TokenType.UNKNOWN
    if added is not None:
        return gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if not in_bytes and len(name) == len("<0x00>") and name.startswith("<0x"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _split(parts: dict[str, Any], source: str) -> str:
    """llama.cpp's name of what splits text before the merges."""
    first = parts["pre_tokenizer"] or {}
    steps = first["pretokenizers"] if first.get("type") == "Sequence" else [first]
    found: list[str] = []
    for step in steps:
        if step.get("type") == "Digits" and step["individual_digits"]:
            found.append("digits")
        elif step.get("type") == "Split" and step["behavior"] == "Isolated":
            found.append(step["pattern"].get("Regex", ""))
        elif step.get("type") == "ByteLevel" and not step["add_prefix_space"]:
            found += [_GPT2] * step["use_regex"]
        else:
            found.append(brief(step))
    normalizer = parts["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        found.append(brief(normalizer))
    if tuple(found) not in _SPLITS:
        raise _refused(source, f"its tokenizer splits text by {brief(' and '.join(found))}")
    return _SPLITS[tuple(found)]


def _spaces(parts: dict[str, Any], source: str) -> bool:
    """Whether a tokenizer in SentencePiece's manner puts a space before the text."""
    steps: list[dict[str, Any]] = []
    for part in (parts["normalizer"], parts["pre_tokenizer"]):
        nested = part or {}
        steps += nested.get("normalizers") or nested.get("pretokenizers") or [nested]
    kinds = {one["type"]: one for one in steps if one}
    unknown = kinds.keys() - {"Prepend", "Replace", "Metaspace"}
    if unknown or not kinds:
        raise _refused(source, f"its tokenizer prepares text by {min(unknown, default='nothing')}")
    if "Metaspace" in kinds:
        return bool(kinds["Metaspace"]["prepend_scheme"] != "never")
    return "Prepend" in kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece's scores: minus the place of the first merge that makes a piece."""
    place: dict[str, int] = {}
    for number, merge in enumerate(merges, 1):
        place.setdefault(merge.replace(" ", ""), number)
    return [-float(place.get(token, 0)) for token in tokens]


def _add_special(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    ids: Any = tokenizer
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(ids, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    plain, framed = (ids("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = len(framed) > len(plain) and framed[0] == ids.bos_token_id
    writer.add_add_bos_token(start)
    writer.add_add_eos_token(len(framed) - start > len(plain) and framed[-1] == ids.eos_token_id)
    if isinstance(tokenizer.chat_template, str | dict):
        writer.add_chat_template(
            tokenizer.chat_template
            if isinstance(tokenizer.chat_template, str)
            else [
                {"name": name, "template": text} for name, text in tokenizer.chat_template.items()
            ]
        )


def _refused(source: str, why: str) -> LmscoutError:
    return LmscoutError(
        f"{source}: cannot be written as GGUF: {why}, which llama.cpp has no tokenizer for; serve "
        "the folder with transformers or vLLM instead"
    )
