"""Damage: to values of any depth, to text, to bytes; and names that a file system takes and a program may not."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

MISSING = object()
VALUES: tuple[Any, ...] = (
    None,
    "x",
    "1",
    "",
    "\ud800",
    "\0",
    "a" * 5000,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**30,
    -(10**30),
    2**31,
    2**63,
    2**64,
    1e308,
    -1,
    0,
    1,
    0.5,
    1.5,
    -0.0,
    1e-300,
    65536,
    100_000_000,
    True,
    False,
    [],
    {},
    [[]],
    ["x"],
    [None],
    [1, 2],
    [0] * 3,
    [float("nan")] * 2,
    {"a": 1},
    {"counts": "1", "size": [1, 1]},
    {"counts": [1, 2, 3], "size": [0, 0]},
    MISSING,
)
NUMBERS = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1" * 5000,
    "-0",
    "1E5",
    "0x10",
    "01",
    "1.",
    "1_0",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7", "cp037")


def pick(random: np.random.Generator, values: Sequence[Any]) -> Any:
    """Return one of the values as it is; NumPy would make an array of them."""
    return values[int(random.integers(len(values)))]


def mutated(content: Any, random: np.random.Generator) -> tuple[str, Any]:
    """Return a copy in which one to three values are others, missing, doubled or swapped, and what was done."""
    changed = copy.deepcopy(content)
    said = [
        _mutate(changed, random) for _ in range(1 + int(random.integers(4) == 0) * int(random.integers(1, 3)))
    ]
    return "; ".join(said), changed


def _mutate(content: Any, random: np.random.Generator) -> str:
    places = list(_places(content))
    if not places:
        return "nothing to change"
    place = pick(random, places)
    owner = content
    for key in place[:-1]:
        owner = owner[key]
    key, where = place[-1], ".".join(map(str, place))
    kind = int(random.integers(10))
    if kind == 0 and isinstance(owner, list):
        owner.append(copy.deepcopy(owner[key]))
        return f"{where} twice"
    if kind == 1:
        other = pick(random, places)
        owner[key] = copy.deepcopy(_at(content, other))
        return f"{where} as {'.'.join(map(str, other))}"
    if kind == 2 and isinstance(owner[key], str):
        owner[key] = damaged_word(owner[key], random)
        return f"{where} = {owner[key][:40]!r}"
    if kind == 3 and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
        owner[key] = owner[key] * pick(random, (-1, 0.5, 1000, 10**12, 1 + 1e-9))
        return f"{where} = {owner[key]}"
    value = pick(random, VALUES)
    if value is MISSING:
        del owner[key]
        return f"{where} missing"
    owner[key] = copy.deepcopy(value)
    return f"{where} = {str(value)[:40]}"


def _at(content: Any, place: tuple) -> Any:
    for key in place:
        content = content[key]
    return content


def _places(content: Any, above: tuple = ()) -> Iterator[tuple]:
    items: Any = ()
    if isinstance(content, list):
        items = enumerate(content[:64])
    elif isinstance(content, dict):
        items = content.items()
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key))


def damaged_word(word: str, random: np.random.Generator) -> str:
    """Return a text with one character changed, gone or added, or cut."""
    at = int(random.integers(len(word) + 1))
    other = pick(random, ("", "\0", "\n", "~", "p", "/", "\ud83d", "é", "0", "`", "\x7f"))
    return pick(random, (word[:at] + other + word[at + 1 :], word[:at] + other + word[at:], word[:at]))


def damaged_json(content: Any, random: np.random.Generator) -> tuple[str, bytes]:
    """Return a document's bytes, damaged in its values, its text or its bytes."""
    kind = int(random.integers(10))
    if kind < 6:
        said, changed = mutated(content, random)
        return said, _dumped(changed)
    return damaged_text(_dumped(content).decode(), random)


def _dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def damaged_text(text: str, random: np.random.Generator) -> tuple[str, bytes]:
    """Return a JSON document as bytes: another encoding, cut, nested, with numbers of other forms."""
    kind = int(random.integers(9))
    if kind == 0:
        encoding = pick(random, ENCODINGS)
        return encoding, text.encode(encoding, "replace")
    if kind == 1:
        return "cut", text.encode()[: int(random.integers(len(text)))]
    if kind == 2:
        depth = pick(random, (100, 1000, 100_000))
        opening, closing = pick(random, (("[", "]"), ('{"a":', "}")))
        nested = opening * depth + "1" + closing * depth
        return f"{depth} deep", pick(
            random, (nested, nested[: depth * len(opening)], _replaced(text, nested, random))
        ).encode()
    if kind == 3:
        number = pick(random, NUMBERS)
        return f"a number {number[:20]}", _replaced(text, number, random).encode()
    if kind == 4:
        return "other bytes", pick(
            random, (b"", b"\0" * 100, b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"0", b'""', b"[]", b"{}")
        )
    if kind == 5:
        return "every key twice", text.replace("{", '{"id": null, "format": 3, ', 3).encode()
    if kind == 6:
        return "text after it", text.encode() + pick(random, (b"\n{}", b"\0", b",", b"]" * 9, b" " * 100_000))
    return damaged_bytes(text.encode(), random)


def _replaced(text: str, value: str, random: np.random.Generator) -> str:
    """Put a value in place of one number of a JSON text."""
    import re

    numbers = list(re.finditer(r"(?<=[\[ :])-?\d+(?:\.\d+)?(?=[,\]} ])", text))
    if not numbers:
        return value
    found = pick(random, numbers)
    return text[: found.start()] + value + text[found.end() :]


def damaged_bytes(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """Return bytes with some flipped, cut off, doubled, moved or put in."""
    kind, size = int(random.integers(8)), max(1, len(data))
    at = int(random.integers(size))
    length = int(random.integers(1, 1 + min(64, size)))
    if kind < 4:
        changed = bytearray(data)
        for _ in range(2 ** int(random.integers(5)) if changed else 0):
            changed[int(random.integers(size))] ^= int(random.integers(1, 256))
        return "bytes flipped", bytes(changed)
    if kind == 4:
        return "cut", data[:at]
    if kind == 5:
        return "bytes put in", data[:at] + random.bytes(length) + data[at:]
    if kind == 6:
        return "bytes gone", data[:at] + data[at + length :]
    return "bytes of one value", data[:at] + bytes([pick(random, (0, 255, 127, 128))]) * length + data[
        at + length :
    ]


NAMES: tuple[bytes, ...] = (
    b"a b.png",
    b"-o.png",
    b"--help",
    b"--model=x.png",
    b"\xff\xfe.png",
    b"caf\xe9.png",
    "é.png".encode(),
    "日本語.png".encode(),
    "\U0001f600.png".encode(),
    b"new\nline.png",
    b"tab\t.png",
    b"\x1b[31mred.png",
    b"\x07bell.png",
    b"[bold]x.png",
    b"[a-z].png",
    b"*.png",
    b"?.png",
    b"{0}.png",
    b"%s%n.png",
    b"$HOME.png",
    b"~",
    b"~root",
    b".hidden.png",
    b"no_suffix",
    b"UPPER.PNG",
    b"two.dots.png",
    b"trailing .png ",
    b"\xe2\x80\xae gnp.png",
    b"@file.png",
    b"n" * 251 + b".png",
    b"n" * 255,
    "é".encode() * 125 + b".png",
    b"CON.png",
    b"file:x.png",
    b"#.png",
    b";ls.png",
    b"'\".png",
    b"\\.png",
)
