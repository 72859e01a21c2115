"""QEMU's and bhyve's option grammars: sizes with a unit, times, and ``key=value,…`` lists.

This module knows syntax only; what a key means is decided where it is used. Every function raises
:class:`vmm.errors.ConfigError` with one line that names the option, the value and the remedy.
"""

from __future__ import annotations

import re

from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

UNITS: Mapping[str, int] = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
"""Binary multiples by suffix letter, as QEMU's ``-m`` takes them; case does not matter."""

# Compiled when they are needed, which most command lines do not. Python reads, and says, no thousands of digits.
_SIZE = r"(?P<number>\d{1,40}(?:\.\d{1,40})?)\s*(?P<unit>[bkmgtpe]?)(?:i?b)?"
_INTEGER = r"0[xX][0-9a-fA-F]{1,40}|\d{1,40}"


def shown(option: str, value: object) -> str:
    """Return an option and its value as the user typed them: ``-m 512M``, ``unit=1``."""
    return f"{option}{'' if option.endswith('=') else ' '}{value if value != '' else repr('')}"


def check_type(value: object, option: str, *kinds: type) -> None:
    """Refuse what a Python caller gives in a type that an option cannot have; True and False are no numbers.

    Raises:
        TypeError: names the types that it can have.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{option}: must be {wanted}, not {type(value).__name__}: {value!r}")


def typed_bytes(text: str) -> bytes:
    """Return the bytes of a text from the command line: UTF-8, and what was no UTF-8 there as it was (PEP 383).

    Raises:
        ConfigError: surrogates that no byte became, which only a Python program can pass.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r}: not text that can be encoded as UTF-8") from None


def parse_size(text: str | int, option: str, *, unit: str = "b") -> int:
    """Return a size in bytes.

    Args:
        text: ``512M``, ``1.5G``, ``0x100000``, ``64MiB``; an ``int`` is bytes and returned as it is.
        option: what the user typed it after, for the error.
        unit: the suffix letter that a bare number has; QEMU's ``-m`` takes mebibytes ("m").

    Raises:
        ConfigError: not a size, or not a whole number of bytes.
    """
    if isinstance(text, int):
        return text
    if text[:2].lower() == "0x" and re.fullmatch(_INTEGER, text):
        return int(text, 16)
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{shown(option, text)}: not a size; write a number with K, M, G or T behind it, like 512M")
    whole, _, fraction = match["number"].partition(".")
    parts: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * UNITS[(match["unit"] or unit).lower()], parts)
    if rest:
        raise ConfigError(f"{shown(option, text)}: not a whole number of bytes")
    return size


def parse_int(text: str | int, option: str, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return an integer, decimal or 0x-hexadecimal, from ``minimum`` to ``maximum``, both included; None: any.

    Raises:
        ConfigError: not an integer, or out of range.
    """
    if isinstance(text, int):
        value = text
    elif re.fullmatch(_INTEGER, text.removeprefix("-")):
        value = int(text, 0) if text.lower().removeprefix("-").startswith("0x") else int(text)
    else:
        raise ConfigError(f"{shown(option, text)}: not a whole number")
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        most = "up" if maximum is None else f"to {maximum}"
        limits = f"up to {maximum}" if minimum is None else f"from {minimum} {most}"
        raise ConfigError(f"{shown(option, text)}: must be {limits}")
    return value


def parse_seconds(text: str, option: str) -> float:
    """Return a time in seconds.

    Raises:
        ConfigError: not a number, or not above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{shown(option, text)}: not a number of seconds above 0")
    return value


def parse_bool(text: str, option: str) -> bool:
    """Return a flag: ``on``/``off``, ``yes``/``no``, ``true``/``false``.

    Raises:
        ConfigError: anything else.
    """
    if text in {"on", "yes", "true"}:
        return True
    if text in {"off", "no", "false"}:
        return False
    raise ConfigError(f"{option}={text}: write on or off")


def parse_uuid(value: UUID | str, option: str = "-uuid") -> UUID:
    """Return a UUID.

    Raises:
        ConfigError: the text is none.
    """
    from uuid import UUID  # loads `platform`, for one option

    if isinstance(value, UUID):
        return value
    check_type(value, option, str)
    try:
        return UUID(value)
    except ValueError:
        raise ConfigError(f"{shown(option, value)}: not a UUID, like 4600cb32-38ec-4b2f-8acb-81c6ea54f2d8") from None


def quoted(text: object) -> str:
    """Return a word as it can be pasted into a shell."""
    import shlex

    return shlex.quote(str(text))


def quoted_drive(path: object) -> str:
    """Return a path as it can be pasted behind ``-drive …,file=``, its commas doubled."""
    return quoted(str(path).replace(",", ",,"))


def split_commas(text: str) -> list[str]:
    """Split at single commas; two commas stand for one that belongs to the value, as in QEMU."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def implied_value(text: str, key: str) -> str:
    """Return what a list says of the key that its first part may leave out; "" if nothing.

    As in QEMU, ``key=`` may stand anywhere: ``-netdev id=n,type=vhost-user`` is ``-netdev vhost-user,id=n``.
    """
    parts = split_commas(text)
    named = (value for name, separator, value in (part.partition("=") for part in parts) if separator and name == key)
    return next(named, "" if "=" in parts[0] else parts[0])


def parse_pairs(
    text: str,
    option: str,
    *,
    known: Collection[str] | None = None,
    implied: str | None = None,
) -> list[tuple[str, str]]:
    """Return the pairs of a ``key=value,key=value`` list in their order.

    Args:
        text: the list; ``,,`` is a literal comma; a key without ``=`` is a flag and means ``on``, ``nokey`` means off.
        option: what the user typed it after, for the error.
        known: the keys that exist; None: all.
        implied: the key of a first part that has no ``=``, like ``name`` in ``-fw_cfg opt/x,string=y``.

    Raises:
        ConfigError: an empty part, or a key that is not known.
    """
    pairs = []
    for position, part in enumerate(split_commas(text)):
        if not part:
            raise ConfigError(
                f"{shown(option, text)}: an empty part; the form is key=value,key=value (a comma is written ,,)"
            )
        key, separator, value = part.partition("=")
        if not separator:
            if position == 0 and implied is not None:
                key, value = implied, part
            elif known is not None and key.startswith("no") and key not in known and key[2:] in known:
                key, value = key[2:], "off"
            else:
                value = "on"
        if known is not None and key not in known:
            raise ConfigError(f"{shown(option, text)}: unknown key '{key}'; known: {', '.join(sorted(known))}")
        pairs.append((key, value))
    return pairs


def parse_keys(
    text: str,
    option: str,
    *,
    known: Collection[str] | None = None,
    implied: str | None = None,
) -> dict[str, str]:
    """Return :func:`parse_pairs` as a dictionary.

    Raises:
        ConfigError: as there, or a key given twice.
    """
    result: dict[str, str] = {}
    for key, value in parse_pairs(text, option, known=known, implied=implied):
        if key in result:
            raise ConfigError(f"{shown(option, text)}: '{key}' is given twice")
        result[key] = value
    return result
