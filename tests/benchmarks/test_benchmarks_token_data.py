import pytest
import torch
from safetensors.torch import save_file

from lmscout.benchmarks.training import TokenData, builtin_tokens, stored_tokens, text_tokens
from lmscout.builtin import encode, load_tokenizer
from lmscout.errors import LmscoutError


@pytest.mark.slow
def test_the_builtin_text_says_what_it_is_of():
    data = builtin_tokens()
    assert torch.equal(data.train, encode("train"))
    assert torch.equal(data.validation, encode("validation"))
    assert set(data.made_of) == {"python", "train_sha256", "validation_sha256"}


def test_stored_tokens_are_those_that_were_stored(tmp_path):
    data = TokenData(
        torch.arange(900), torch.arange(70) * 2, {"python": "3.0", "train_sha256": "a"}
    )
    file = tmp_path / "tokens.safetensors"
    small = {"train": data.train.to(torch.int16), "validation": data.validation.to(torch.int16)}
    metadata = {**data.made_of, "test_sha256": "of no interest"}
    save_file({**small, "test": torch.zeros(3)}, file, metadata=metadata)
    again = stored_tokens(file)
    assert torch.equal(again.train, data.train)
    assert torch.equal(again.validation, data.validation)
    assert again.train.dtype == again.validation.dtype == torch.int64
    assert again.describe() == data.describe()


def test_another_token_is_another_digest():
    first = TokenData(torch.tensor([1, 2, 3]), torch.tensor([4]), {})
    changed = TokenData(torch.tensor([1, 2, 4]), torch.tensor([4]), {})
    moved = TokenData(torch.tensor([1, 2]), torch.tensor([3, 4]), {})
    digests = {data.describe()["tokens_sha256"] for data in (first, changed, moved)}
    assert len(digests) == 3
    assert first.describe()["train_tokens"] == 3


def test_of_texts_the_last_twentieth_of_each_validates(tmp_path):
    texts = {"a.txt": "one two three " * 200, "b.txt": "def f(x):\n    return x\n" * 90}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
    data = text_tokens([tmp_path / name for name in texts])
    tokenizer = load_tokenizer()
    train, validation = [], []
    for content in texts.values():
        tokens = tokenizer(content).input_ids
        held_out = len(tokens) // 20
        assert held_out > 0
        train += tokens[:-held_out]
        validation += tokens[-held_out:]
    assert data.train.tolist() == train
    assert data.validation.tolist() == validation
    assert set(data.made_of) == set(texts)


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(LmscoutError, match=r"gone\.txt: cannot be read"):
        text_tokens([tmp_path / "gone.txt"])
    for name, content, said in (
        ("gone", None, "gone: cannot be read: No such file"),
        ("text", b"no safetensors at all", "is no safetensors file"),
        ("empty", b"", "is no safetensors file"),
        ("header", b"\2\0\0\0\0\0\0\0[]", "is no safetensors file"),
    ):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(LmscoutError, match=said) as caught:
            stored_tokens(file)
        assert "\n" not in str(caught.value)
    save_file({"train": torch.arange(3)}, tmp_path / "half")
    with pytest.raises(LmscoutError, match="tensors train and validation"):
        stored_tokens(tmp_path / "half")
    save_file({"train": torch.rand(3), "validation": torch.arange(3)}, tmp_path / "reals")
    with pytest.raises(LmscoutError, match="vector of whole numbers"):
        stored_tokens(tmp_path / "reals")
