"""Hostile variants of valid examples: structure-aware changes of JSON, and changes of bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]


NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    *(0, 1, -1, 2, 3, 7, 2**15, 2**31, 2**53 + 1, 2**63, 10**9, 10**18, 10**30, -(10**9)),
    *(0.0, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "1e5", "\0", "\ud800"),
    *("../x", "/etc/passwd", "~nobody/x", "\x1b[2J", "a" * 10**5),
)  # fmt: skip

NASTY_JSON = (
    *("[]", "{}", "[[]]", "[1]", "[0, 0, 0]", "[1000000000]", '["x"]', "[null]", '{"a": 1}'),
    *('{"": {}}', '{"kind": "llama"}', "[" * 70 + "]" * 70, "[" * 300 + "]" * 300),
)

_MOST_PLACES = 20_000  # that a change may begin from

FRAGMENTS = (
    *(b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b"-" + b"9" * 200, b"1e999", b"NaN"),
    *(b"Infinity", b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\n", b"\r\n", b"\xc3", b"\\ud800"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"#", b"%", b"\t"),
    b"\xe2\x80\xa8",
)  # fmt: skip

YAML_FRAGMENTS = (
    b"a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
    b"c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
    b"e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\n",
    b"a: &a [*a]\n",
    b"a: &a {x: 1}\nb: {<<: [*a, *a], <<: *a}\n",
    b"x: !!python/object/apply:os.system ['true']\n",
    b"x: !!int ''\n",
    b"x: !!float 'a'\n",
    b"x: !!timestamp 'a'\n",
    b"x: !!binary 'a'\n",
    b"x: 1:1:1:1:1:1:1:1:1\n",
    b"? [a, b]\n: 1\n",
    b"? {a: b}\n: 1\n",
    b"--- 1\n--- 2\n",
    b"%YAML 9.9\n---\n",
    b"x: 0x" + b"f" * 5_000 + b"\n",
    b"x: 2001-99-99\n",
    b"x: " + b"[" * 100_000,
    b"- " * 50_000,
    b"? " * 50_000,
)


def mutate_bytes(content: bytes, rng: Random, fragments: tuple[bytes, ...] = FRAGMENTS) -> bytes:
    """Flip, cut, remove, repeat and insert bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 8, 64, 512))
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 16))
        elif kind == 3:
            changed[at:at] = rng.choice(fragments)
        elif kind == 4 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutate_json(content: bytes, rng: Random) -> bytes:
    """Exchange values of a JSON text, or of one of several lines; sometimes its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    lines = content.splitlines(keepends=True)
    try:
        value, line = json.loads(content), None
    except ValueError:
        line = rng.randrange(len(lines))
        value = json.loads(lines[line])
    value = mutate_value(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.05:  # a name twice
        text = text.replace("{", '{"id": 1, "id": 2, ', 1)
    if rng.random() < 0.05:  # a number without end
        text = text.replace("1", "1" * 5_000, 1)
    if line is None:
        return text.encode()
    lines[line] = text.encode() + b"\n"
    return b"".join(lines)


def mutate_value(value: Any, rng: Random) -> Any:
    """A JSON value with one to four places changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if len(places) > _MOST_PLACES:
            return value
        if not places or rng.random() < 0.02:
            return _nasty(rng)
        container, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container += [container[key]] * rng.choice((1, 2, 600))
        elif kind == 2 and isinstance(container[key], list):
            container[key] = container[key] * rng.choice((0, 2, 300))
        elif kind == 3 and isinstance(container, dict):
            container[rng.choice(("x", "", "kind", "\ud800", "id"))] = container.pop(key)
        elif kind == 4 and isinstance(container[key], int):
            container[key] = container[key] + rng.choice((-2, -1, 1, 2))
        elif kind == 5:
            other, name = rng.choice(places)
            try:
                container[key] = json.loads(json.dumps(other[name]))
            except (KeyError, IndexError):  # what was removed before
                continue
        else:
            container[key] = _nasty(rng)
    return value


def mutate_safetensors(content: bytes, rng: Random) -> bytes:
    """Change the header of a safetensors file, its length, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(content[:2000], rng) + content[2000:]
    (length,) = struct.unpack("<Q", content[:8])
    value = json.loads(content[8 : 8 + length])
    metadata = value.get("__metadata__", {})
    inner = [name for name, text in metadata.items() if text.startswith("{")]
    if inner and rng.random() < 0.5:  # JSON within JSON
        metadata[inner[0]] = mutate_json(metadata[inner[0]].encode(), rng).decode(
            "utf-8", "replace"
        )
    else:
        value = mutate_value(value, rng)
    header = json.dumps(value).encode()
    length_field = rng.choice((len(header),) * 8 + (0, 1, 2**31, 2**63, len(content)))
    return struct.pack("<Q", length_field) + header + content[8 + length :]


def mutate_yaml(content: bytes, rng: Random) -> bytes:
    """Change a YAML file through its values, which JSON can write, or through its bytes."""
    import yaml

    kind = rng.random()
    if kind < 0.2:
        return mutate_bytes(content, rng, FRAGMENTS + YAML_FRAGMENTS)
    if kind < 0.35:
        return content + rng.choice(YAML_FRAGMENTS)
    value = mutate_value(yaml.safe_load(content), rng)
    try:
        if rng.random() < 0.5:
            return str(yaml.safe_dump(value)).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        pass
    return json.dumps(value).encode()


def mutate_words(content: bytes, rng: Random, words: tuple[str, ...]) -> bytes:
    """Exchange, insert, remove and repeat the words and signs of an expression."""
    import re

    if rng.random() < 0.1:
        return mutate_bytes(content, rng)
    parts = re.findall(r"\w+|[^\w\s]", content.decode("utf-8", "replace"))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(parts) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            parts[at : at + 1] = [rng.choice(words)]
        elif kind == 1:
            parts[at:at] = [rng.choice(words)]
        elif kind == 2:
            del parts[at : at + rng.choice((1, 1, 2, 4))]
        elif kind == 3:
            parts[at:at] = parts[at : at + 8] * rng.choice((1, 2, 40))
        else:
            times = rng.choice((2, 70, 300, 20_000))
            parts[:] = [rng.choice(words), "("] * times + parts + [")"] * times
    return rng.choice((" ", "")).join(parts).encode("utf-8", "replace")


def _nasty(rng: Random) -> Any:
    """A value that is made anew, since it may be changed further."""
    number = rng.randrange(len(NASTY) + len(NASTY_JSON))
    return NASTY[number] if number < len(NASTY) else json.loads(NASTY_JSON[number - len(NASTY)])


def _places(value: Any) -> Any:
    """Every container with every key of it, without recursion."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = (
            list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        )
        for key in keys:
            yield one, key
            waiting.append(one[key])
