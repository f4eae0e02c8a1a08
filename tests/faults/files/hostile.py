"""What somebody may have made of a file: its bytes, its JSON, its safetensors header."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
"""From a good file to another one."""
DEEP = "[" * 10_000 + "]" * 10_000
RAW = (
    "null",
    "true",
    "false",
    "0",
    "-1",
    "2",
    "0.5",
    "1e999",
    "-1e999",
    "1e-320",
    "NaN",
    "Infinity",
    "-Infinity",
    str(2**31),
    str(2**63),
    str(2**64),
    str(2**60),
    "1" * 400,
    "1" * 5000,
    "-" + "9" * 30,
    '""',
    '"x"',
    '"float32"',
    '"cpu"',
    '"\\u0000"',
    '"\\ud800"',
    '"NaN"',
    '"../../../etc/passwd"',
    '"os:system"',
    '"<script>alert(1)</script>"',
    '"\\u001b[31m\\u202e"',
    '"' + "a" * 100_000 + '"',
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[-1]",
    "[1000000000, 1000000000]",
    "[0]",
    "[1e999]",
    '[["float32", 3]]',
    '{"": 0}',
    '{"keep": 1.0}',
    "[" + "0," * 20_000 + "0]",
    DEEP,
    '{"a":' * 10_000 + "0" + "}" * 10_000,
)
"""JSON texts that stand where something else should; some are none."""
TOKENS = (
    *(x.encode() for x in RAW),
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b"{",
    b"}",
    b'"',
    b",",
    (1 << 60).to_bytes(8, "little"),
    (2**64 - 1).to_bytes(8, "little"),
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a, *a]",
    b"- " * 3000,
)


class Canary:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def poisoned(path: Path) -> bytes:
    """A pickle that makes a file at a path when it is loaded."""
    return pickle.dumps(Canary(path))


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost, put in or moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 4, 30, 300)), len(changed) - at)
        way = rng.randrange(7)
        if way == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif way == 1:
            del changed[at:]
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        elif way == 4:
            changed[at : at + length] = rng.randbytes(length)
        elif way == 5:
            changed[at : at + rng.choice((0, length))] = rng.choice(TOKENS)
        else:
            changed[at : at + length] = bytes([rng.choice((0, 32, 48, 57, 255))]) * length
    return bytes(changed)


def of_json(text: str | bytes, rng: random.Random) -> bytes:
    """A document with one to three of its values, or keys, changed."""
    found = json.loads(text)
    marks: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = _changed(found, rng, marks)
    made = json.dumps(found)
    for number, raw in enumerate(marks):
        made = made.replace(f'"@@{number}@@"', raw)
    return made.encode()


def _changed(found: Any, rng: random.Random, marks: list[str]) -> Any:
    """A tree with one change somewhere; what JSON's writer would not write stands as a mark."""
    places = list(_places(found))
    if not places:
        return _mark(rng.choice(RAW), marks)
    holder, key = rng.choice(places)
    way = rng.randrange(6)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[_mark(rng.choice(('"x"', '"\\ud800"', '""', '"../x"')), marks)] = holder.pop(key)
    elif way == 2 and isinstance(holder, dict) and isinstance(key, str):
        other = json.dumps(key)
        holder[key] = _mark(f"{rng.choice(RAW)}, {other}: {json.dumps(holder[key])}", marks)
    elif way == 3:
        elsewhere, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(elsewhere[other_key]))
    else:
        holder[key] = _mark(rng.choice(RAW), marks)
    return found


def _mark(raw: str, marks: list[str]) -> str:
    marks.append(raw)
    return f"@@{len(marks) - 1}@@"


def _places(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a tree, by what holds it and where."""
    stack = [found]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            stack.append(holder[key])


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A file whose header says something else; texts of JSON in it are changed from within."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kept = json.loads(header)
    inner = [k for k, v in kept.get("__metadata__", {}).items() if v.startswith(("{", "["))]
    if inner and rng.random() < 0.7:
        key = rng.choice(inner)
        kept["__metadata__"][key] = of_json(kept["__metadata__"][key], rng).decode()
        header = json.dumps(kept).encode()
    else:
        header = of_json(header, rng)
    claimed = len(header) if rng.random() < 0.95 else rng.choice((0, 1, 2**31, 2**60, 2**64 - 1, len(header) - 1))
    return claimed.to_bytes(8, "little") + header + rest


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON of several changed, or lost, or told twice."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    way = rng.randrange(8)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    else:
        lines[at] = of_json(lines[at], rng) + b"\n"
    return b"".join(lines)
