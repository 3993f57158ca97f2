"""Damage to files and messages, the same for the same number: bytes, JSON values, DER.

Every reader gets a sample and some hundred mutants of it, the same ones in each run. In
``tests/attacks/damage``, many more are tried by, for example::

    FEDLLM_MUTANTS=100000 pytest tests/attacks/damage -k rosters

A failure names the target and the number of the mutant; `Target.mutant` makes it again.
"""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.errors import FedllmError

MUTANTS = int(os.environ.get("FEDLLM_MUTANTS", "150"))
Damage = Callable[[bytes, random.Random], bytes]

_NONSENSE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 0.5),
    *(
        "",
        "x",
        "00" * 32,
        "\x00",
        "\ud800",
        "é",
        "../..",
        "9" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": 0},
    ),
)
_TOML = (
    *(b"1", b"-1", b"0", b"true", b'""', b'"x"', b"[]", b"{}", b"[[]]", b"1e308", b"inf", b"nan"),
    *(b"1979-05-27T07:32:00Z", b"2026-99-99", b"0x" + b"f" * 5000, b"1" * 5000, b"DEEP"),
    *(b"'\\x00'", b'"\\ud800"', b'"\\u0000"', b"{a = 1, a = 2}", b'"${X}"', b'"~nobody/x"'),
)
_RAW = ("NaN", "-Infinity", "1e999", "1" * 5000, "-0", "00", "\\", '"')


@dataclass(frozen=True)
class Target:
    """Something that reads foreign bytes.

    Attributes
    ----------
    name : str
        Names it in a failure.
    sample : bytes
        What it reads without complaint.
    read : callable
        The reader.
    damage : callable
        Damages the sample.
    dress : callable
        Makes a whole file of what was damaged: signs it anew, or puts it into PEM.
    """

    name: str
    sample: bytes
    read: Callable[[bytes], object]
    damage: Damage
    dress: Callable[[bytes], bytes] = bytes

    def mutant(self, number: int) -> bytes:
        """Return the damaged sample of that number."""
        chance = random.Random(f"{self.name}:{number}")
        damaged = self.sample
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            damaged = self.damage(damaged, chance)
        return self.dress(damaged)


def strange_errors(target: Target, count: int, start: int = 0) -> list[str]:
    """Read ``count`` mutants, and describe those that gave neither success nor a FedllmError."""
    target.read(target.dress(target.sample))
    found = []
    for number in range(start, start + count):
        mutant = target.mutant(number)
        try:
            target.read(mutant)
        except FedllmError:
            continue
        except KeyboardInterrupt:
            raise
        # A panic in Rust is no Exception.
        except BaseException as error:
            found.append(
                f"{target.name}, mutant {number}: {type(error).__name__}: {str(error)[:200]}\n"
                f"  {mutant[:400]!r}"
            )
    return found


def check(*targets: Target, share: float = 1.0) -> None:
    """Fail if a mutant gives anything but success or a FedllmError; ``share`` tries fewer."""
    for target in targets:
        count = max(1, int(share * MUTANTS))
        found = strange_errors(target, count)
        assert not found, f"{len(found)} of {count} mutants:\n" + "\n".join(found[:5])


def at(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Return what puts bytes into a file and reads it."""

    def put(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    return put


def signed_anew(sign: Callable[[Any], bytes]) -> Callable[[bytes], bytes]:
    """Return what signs damaged values as their owner would; what cannot be signed stays."""

    def dress(content: bytes) -> bytes:
        with suppress(Exception):
            return sign(json.loads(content))
        return content

    return dress


def text(content: bytes) -> str:
    """Return bytes as a reader of text gets them from a careless caller."""
    return content.decode(errors="surrogateescape")


def in_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut, insert, repeat or exchange bytes."""
    place = chance.randrange(len(content) + 1)
    end = min(len(content), place + chance.choice((1, 2, 8, 64, 1024)))
    kind = chance.randrange(9)
    if kind == 0 and content:
        place = chance.randrange(len(content))
        changed = content[place] ^ (1 << chance.randrange(8))
        return content[:place] + bytes([changed]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[end:]
    if kind == 3:
        return content[:place] + chance.randbytes(chance.randrange(1, 9)) + content[place:]
    if kind == 4:
        return content[:end] + content[place:]
    if kind == 5:
        return content[:place] + chance.randbytes(end - place) + content[end:]
    if kind == 6:
        return content[:place] + b"\xff\xfe" + content[place:]
    if kind == 7:
        return content[:place] + bytes(end - place) + content[end:]
    return chance.choice((b"", b"\n", b"\0", content + content, content[::-1]))


def in_lines(content: bytes, chance: random.Random) -> bytes:
    """Damage the values in one line of JSON Lines, or its bytes."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return in_json(content, chance)
    place = chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        return in_bytes(content, chance)
    if kind == 1:
        lines[place : place + 1] = chance.choice(([], [lines[place]] * 2, [b"\n"], [b"[]\n"]))
    else:
        lines[place] = in_json(lines[place].rstrip(b"\n"), chance) + b"\n"
    return b"".join(lines)


def in_toml(content: bytes, chance: random.Random) -> bytes:
    """Exchange a value, repeat a line or a table, bury a value; or damage the bytes."""
    lines = content.splitlines(keepends=True)
    if not lines or chance.randrange(3) == 0:
        return in_bytes(content, chance)
    place = chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        lines[place : place + 1] = chance.choice(([], [lines[place]] * 2))
    elif kind == 1:
        other = chance.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    else:
        key = lines[place].partition(b"=")[0]
        depth = chance.choice((20, 900, 20_000))
        lines[place] = key + b"= " + chance.choice(_TOML).replace(b"DEEP", b"[" * depth) + b"\n"
    return b"".join(lines)


def in_json(content: bytes, chance: random.Random) -> bytes:
    """Exchange, remove, rename, repeat or bury a value; now and then damage the bytes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return in_bytes(content, chance)
    if chance.randrange(6) == 0:
        return in_bytes(content, chance)
    holder: list[Any] = [value]
    where = chance.choice(_places(holder))
    raw = _changed(where, chance)
    return json.dumps(holder[0]).replace(json.dumps("\N{SNOWMAN}"), raw).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    if isinstance(value, dict | list):
        keys: Any = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            found.append((value, key))
            found += _places(value[key])
    return found


def _changed(where: tuple[Any, Any], chance: random.Random) -> str:
    """Change what stands at a place; returns the raw text that fills a hole left there."""
    holder, key = where
    old, raw = holder[key], ""
    kind = chance.randrange(8)
    if kind <= 2:
        holder[key] = chance.choice(_NONSENSE)
    elif kind == 3:
        holder[key], raw = "\N{SNOWMAN}", chance.choice(_RAW)
    elif kind == 4:
        depth = chance.choice((20, 40, 900, 20_000))
        opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
        holder[key], raw = "\N{SNOWMAN}", opening * depth + "1" + closing * depth
    elif kind == 5 and isinstance(old, dict) and old:
        name = chance.choice(list(old))
        again = f",{json.dumps(name)}:{json.dumps(chance.choice((old[name], 1, None)))}}}"
        holder[key], raw = "\N{SNOWMAN}", json.dumps(old)[:-1] + again
    elif kind == 6 and isinstance(holder, dict):
        del holder[key]
        if chance.randrange(2):
            holder[key + "x"] = old
    elif isinstance(old, str) and old:
        place = chance.randrange(len(old))
        holder[key] = (
            old[:place] + chance.choice(("", "\u2028", " ", "A", "\x1f")) + old[place + 1 :]
        )
    else:
        holder[key] = [old]
    return raw


def as_pem(label: str) -> Callable[[bytes], bytes]:
    """Return what puts DER into PEM with a label such as CERTIFICATE."""

    def dress(der: bytes) -> bytes:
        text = base64.encodebytes(der).decode()
        return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()

    return dress


def of_pem(pem: bytes) -> bytes:
    """Return the bytes in the first block of PEM."""
    lines = pem.decode().split("-----")[2]
    return base64.b64decode(lines)
