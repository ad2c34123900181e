import functools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

import tokenizer as maker
from lmscout.builtin import (
    END_OF_DOCUMENT,
    corpus_digest,
    corpus_text,
    documents,
    encode,
    load_tokenizer,
    tiny_folder,
)

FILES = ("tokenizer.json", "tokenizer_config.json")
TEXTS = st.text(st.characters(codec="utf-8"))
RECORD = json.loads((tiny_folder() / "training.json").read_text())


def test_it_has_4096_pieces():
    tokenizer = load_tokenizer()
    assert len(tokenizer) == 4096
    assert sorted(tokenizer.get_vocab().values()) == list(range(4096))
    assert tokenizer.bos_token == tokenizer.eos_token == END_OF_DOCUMENT
    assert tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT) == 0


def test_every_byte_is_a_piece():
    alphabet = ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert set(alphabet) <= load_tokenizer().get_vocab().keys()


@given(TEXTS | st.binary().map(lambda raw: raw.decode("latin-1")))
@example("def f(x):\n\treturn x  # \U0001f40d ﬁ é\r\n\x00\x7f   ")
@example(END_OF_DOCUMENT)
@example(f"a{END_OF_DOCUMENT} b")
@example(" 's 'll a . , !")  # what cleaning up, if it were on, would change
def test_any_text_comes_back(text):
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@functools.cache
def loaded_otherwise():
    file = Tokenizer.from_file(str(tiny_folder() / "tokenizer.json"))
    return file, AutoTokenizer.from_pretrained(tiny_folder())


@given(TEXTS)
def test_it_is_loaded_as_it_was_made(text):
    """Some library classes of a model's type put rules of their own in place of the file's."""
    file, automatic = loaded_otherwise()
    tokens = file.encode(text).ids
    assert load_tokenizer()(text)["input_ids"] == tokens
    assert automatic(text)["input_ids"] == tokens


def test_it_was_learnt_from_such_text():
    tokenizer = load_tokenizer()
    line = "    def __init__(self, name):\n"
    assert len(tokenizer(line)["input_ids"]) < len(line) / 2
    assert len(corpus_text("test")) > 3.3 * len(encode("test"))


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_side_is_its_text_in_tokens(side):
    tokens = encode(side)
    assert tokens.tolist() == load_tokenizer()(corpus_text(side), verbose=False)["input_ids"]
    assert (tokens == 0).sum() == sum(one.side == side for one in documents()) - 1


@pytest.mark.skipif(
    corpus_digest("train") != RECORD["text"]["train_sha256"],
    reason=f"the tokenizer was learnt from the text of Python {RECORD['text']['python']}",
)
@pytest.mark.slow
def test_learning_it_again_writes_the_same_files(tmp_path):
    maker.train([one.text for one in documents() if one.side == "train"]).save_pretrained(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (tiny_folder() / name).read_bytes()
