"""Chats and folders as texts: how they are read, rendered, and which tokens carry a loss."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lmscout.builtin import tiny_folder
from lmscout.errors import LmscoutError
from lmscout.evaluation import read_text, tokenize_windows
from lmscout.evaluation.text import coded, rendered, without_codes

CHATS = [
    [("system", "Be brief."), ("user", "What is 2 + 2?"), ("assistant", "4")],
    [("user", "Hello"), ("assistant", "Hi, you."), ("user", "Bye"), ("assistant", "See you.")],
]
TURN = "{{ '<' + message['role'] + '>' }}"
BODY = "{{ message['content'] + '</s>\n' }}"
PLAIN = (
    "{% for message in messages %}" + TURN + BODY + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}" + TURN + "{% if message['role'] == 'assistant' %}"
    "{% generation %}" + BODY + "{% endgeneration %}{% else %}" + BODY + "{% endif %}{% endfor %}"
)
TEXT = "".join(f"<{role}>{content}</s>\n" for chat in CHATS for role, content in chat)
LEARNED = "".join(
    f"{content}</s>\n" for chat in CHATS for role, content in chat if role == "assistant"
)


def objects(chat):
    return [{"role": role, "content": content} for role, content in chat]


def with_template(template):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.chat_template = template
    return tokenizer


def json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def chats(tmp_path):
    return json_lines(tmp_path / "chats.jsonl", [{"messages": objects(one)} for one in CHATS])


def test_chats_are_read_alike_from_json_lines_parquet_and_a_folder(tmp_path, chats):
    rows = [{"messages": objects(one), "id": 3} for one in CHATS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chats.parquet")
    (tmp_path / "folder" / "b").mkdir(parents=True)
    for name, row in (("a.jsonl", rows[0]), ("b/c.jsonl", rows[1])):
        json_lines(tmp_path / "folder" / name, [row])
    found = [
        read_text(f"{tmp_path}/{name}")
        for name in ("chats.jsonl#messages", "chats.parquet#messages", "folder/#messages")
    ]
    assert {one.chats for one in found} == {tuple(tuple(one) for one in CHATS)}
    assert len({one.sha256 for one in found}) == 1
    assert read_text(str(chats)).chats == found[0].chats  # the only field


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_tokens_of_assistant_turns_carry_the_loss(chats, template):
    tokenizer, text = with_template(template), read_text(str(chats))
    tokens, learned = rendered(tokenizer, text.chats, text.source, masks=True)
    assert tokenizer.decode(tokens) == TEXT
    assert tokenizer.decode(tokens[learned]) == LEARNED
    same, every = rendered(tokenizer, text.chats, text.source)
    assert torch.equal(same, tokens)
    assert every.all()
    assert torch.equal(
        tokenize_windows(tokenizer, text, 5).flatten(), tokens[: len(tokens) // 5 * 5]
    )
    assert torch.equal(rendered(tokenizer, text.chats, text.source, limit=7)[0], tokens[:7])


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=20)), max_size=5
)


@settings(max_examples=40)
@given(TURNS)
def test_both_ways_of_finding_assistant_tokens_agree(turns):
    chat = (("user", "start"), *turns, ("assistant", "end"))
    found = [rendered(TOKENIZERS[one], [chat], "x", masks=True) for one in (PLAIN, MARKED)]
    assert torch.equal(found[0][0], found[1][0])
    tokenizer = TOKENIZERS[PLAIN]
    texts = [tokenizer.decode(tokens[learned]) for tokens, learned in found]
    own = "".join(f"{content}</s>\n" for role, content in chat if role == "assistant")
    assert texts[0] == texts[1]
    # the first token of a turn may begin with the last character of the prompt before it
    assert texts[0].replace(">", "") == own.replace(">", "")


TOKENIZERS = {one: with_template(one) for one in (PLAIN, MARKED)}


@given(st.lists(st.tuples(st.integers(0, 2**31), st.booleans()), min_size=1))
def test_coded_tokens_are_decoded(pairs):
    tokens, learned = (torch.tensor(one) for one in zip(*pairs, strict=True))
    assert torch.equal(without_codes(coded(tokens, learned)), tokens)
    assert torch.equal(coded(tokens, learned) >= 0, learned)


STRIPS = (
    "{% for message in messages %}{{ message['role'] }}"
    "{% if loop.last %}{{ message['content'] }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "chat", "said"),
    [
        (None, CHATS[0], "chats need a chat template, and the model's tokenizer has none"),
        ("{{ raise_exception('no tool') }}", CHATS[0], "the chat template refuses it .no tool"),
        (STRIPS, CHATS[1], "renders turn 2 otherwise once others follow"),
        (PLAIN, [("user", "Hello")], "no chat has a turn of the role assistant"),
        (MARKED, [("user", "Hello")], "no chat has a turn of the role assistant"),
    ],
)
def test_what_a_template_cannot_render_is_one_line(template, chat, said):
    with pytest.raises(LmscoutError, match=said) as refused:
        rendered(with_template(template), [tuple(chat)], "chats.jsonl#messages", masks=True)
    assert str(refused.value).startswith("chats.jsonl#messages")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user"}]}, "line 2: message 1 has no role and content of text"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2: message 1 has no role"),
        ({"messages": [{"role": "user", "content": "x"}, 3]}, "line 2: message 2 has no role"),
        ({"messages": []}, "line 2: has no text in field 'messages'"),
        ({"messages": "plain"}, "holds texts and chats, of mixed types"),
        ({"turns": objects(CHATS[0])}, "in field 'messages'; .* of chats turns: name one"),
    ],
)
def test_a_row_that_is_no_chat_is_told_by_its_line(tmp_path, row, said):
    path = json_lines(tmp_path / "x.jsonl", [{"messages": objects(CHATS[0])}, row])
    with pytest.raises(LmscoutError, match=said) as refused:
        read_text(f"{path}#messages")
    assert "\n" not in str(refused.value)


def test_the_files_of_a_folder_are_joined_by_name(tmp_path):
    folder = tmp_path / "a#b"
    (folder / "two").mkdir(parents=True)
    for name, content in (("b.txt", "second"), ("a.md", "first"), ("two/c.txt", "third")):
        (folder / name).write_text(content)
    (folder / ".hidden").write_text("\0")
    assert read_text(f"{folder}/").content == "first\n\nsecond\n\nthird"
    assert read_text(str(folder)).content == read_text(f"{folder}/").content
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        json_lines(rows / name, [{"body": name, "title": "x"}])
    assert read_text(f"{rows}/#body").content == "a.jsonl\n\nb.jsonl"


def test_a_folder_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("plain")
    json_lines(tmp_path / "mixed" / "b.jsonl", [{"text": "x"}])
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text("plain")
    for source, said in (
        ("empty/", "is an empty directory"),
        ("mixed/", r"mixed types, JSON lines \(b.jsonl\) and text \(a.txt\)"),
        ("plain/#body", "a.txt is plain text without fields; leave out #body"),
    ):
        with pytest.raises(LmscoutError, match=said) as refused:
            read_text(f"{tmp_path}/{source}")
        assert "\n" not in str(refused.value)
