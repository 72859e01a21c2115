"""QEMU's ``key=value,key=value`` option text, as the table options use it.

Nothing here knows an option: it splits text, converts numbers and switches,
and says which option a bad value belongs to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtT]?)[bB]?")


def split(text: str, *, option: str, implied: str | None = None) -> list[tuple[str, str]]:
    """Split QEMU option text into (key, value) pairs, in the order given.

    A doubled comma stands for one comma inside a value, as in QEMU. ``implied``
    is the key of a first part that has no ``=``.

    Raises:
        ConfigError: a part without ``=``, or without a key.

    """
    pairs: list[tuple[str, str]] = []
    parts = re.split(r"(?<!,),(?!,)", text.replace(",,", "\0"))
    for index, escaped in enumerate(parts):
        part = escaped.replace("\0", ",")
        key, equals, value = part.partition("=")
        if not equals and index == 0 and implied is not None and part:
            key, value = implied, part
        elif not equals or not key:
            raise ConfigError(f"{option} {text}: '{part}' is not of the form key=value")
        pairs.append((key, value))
    return pairs


def split_once(text: str, *, option: str, known: Collection[str], implied: str | None = None) -> dict[str, str]:
    """Split option text whose keys may each appear once and must be in ``known``.

    Raises:
        ConfigError: an unknown key, a key given twice, or a malformed part.

    """
    values: dict[str, str] = {}
    for key, value in split(text, option=option, implied=implied):
        if key not in known:
            raise ConfigError(f"{option} {text}: unknown field '{key}' (known: {', '.join(sorted(known))})")
        if key in values:
            raise ConfigError(f"{option} {text}: field '{key}' is given twice")
        values[key] = value
    return values


def number(value: str, *, what: str, low: int, high: int, suffixes: bool = False) -> int:
    """Convert a decimal or ``0x`` number, with QEMU's size suffixes if allowed.

    Args:
        value: the text; ``k``, ``M``, ``G`` and ``T`` are powers of 1024.
        what: names the value in the error, as ``-e820 base``.
        low: the smallest value accepted.
        high: the largest value accepted.
        suffixes: whether a size suffix may follow.

    Raises:
        ConfigError: not a number, or outside ``low`` to ``high``.

    """
    sign = -1 if value.startswith("-") else 1
    match = _NUMBER.fullmatch(value.removeprefix("-"))
    if match is None or (match[2] and not suffixes):
        example = "0x1000, 4096 or 4K" if suffixes else "decimal or 0x…"
        raise ConfigError(f"{what}={value}: not a number ({example})")
    digits = match[1]
    base = 16 if digits[:2].lower() == "0x" else 10
    result = sign * int(digits, base) * _SUFFIXES[match[2].lower()]
    if not low <= result <= high:
        form = "d" if high < 1 << 17 else "#x"
        raise ConfigError(f"{what}={value}: must be between {low:{form}} and {high:{form}}")
    return result


def switch(value: str, *, what: str) -> bool:
    """Convert ``on`` or ``off``.

    Raises:
        ConfigError: anything else.

    """
    if value not in {"on", "off"}:
        raise ConfigError(f"{what}={value}: must be on or off")
    return value == "on"
