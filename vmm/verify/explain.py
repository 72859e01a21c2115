"""Why two values of `vmm.verify.values` are not equal, in lines for pytest."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vmm.tables.e820 import E820Entry
from vmm.verify import acpi, smbios
from vmm.verify.values import Side, Structure, Table

_MOST = 20
"""Lines; more of them say no more."""


def explain(left: object, right: object) -> list[str] | None:
    """Return lines that say what differs, a summary first; None if these are no values of ours.

    A line with `-` is in `left` alone, one with `+` in `right` alone.
    """
    if isinstance(left, Side) and isinstance(right, Side):
        return ["the two sides differ", *_shortened(_sides(left, right))]
    lines = _lines(left, right)
    if lines is None:
        return None
    return [f"{_name(left)} == {_name(right)}", *_shortened(lines)]


def _lines(left: object, right: object) -> list[str] | None:
    if isinstance(left, Table) and isinstance(right, Table):
        if left.signature != right.signature:
            return [f"- {left!r}", f"+ {right!r}"]
        sizes = [f"length: {len(left.data)} != {len(right.data)}"] if len(left.data) != len(right.data) else []
        return sizes + [_unequal(*found) for found in acpi.differences(left.signature, left.data, right.data)]
    if isinstance(left, Structure) and isinstance(right, Structure):
        return [_unequal(*found) for found in smbios.differences(left.data, right.data)]
    if _is_map(left) and _is_map(right):
        return _in_one_alone(left, right)
    return None


def _sides(left: Side, right: Side) -> list[str]:
    lines = []
    for field in fields(Side):
        was, now = getattr(left, field.name), getattr(right, field.name)
        if was == now:
            continue
        if not isinstance(was, dict):
            inner = _lines(was, now)
            lines += [_unequal(field.name, was, now)] if inner is None else [f"{field.name}:", *inner]
            continue
        for sign, one, other in (("-", was, now), ("+", now, was)):
            if alone := [name for name in one if name not in other]:
                lines.append(f"{sign} {field.name}: {', '.join(alone)}")
        for name in [name for name in was if name in now]:
            if was[name] != now[name]:
                differs = _lines(was[name], now[name])
                lines.append(f"{field.name}[{name!r}]: " + ("; ".join(differs[:3]) if differs else "other bytes"))
    return lines


def _unequal(name: str, left: object, right: object) -> str:
    return f"{name}: {left} != {right}"


def _in_one_alone(left: Any, right: Any) -> list[str]:
    alone = [(entry, "-") for entry in left if entry not in right] + [(e, "+") for e in right if e not in left]
    return [f"{sign} {entry}" for entry, sign in sorted(alone)] or ["the same, in another order"]


def _is_map(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(entry, E820Entry) for entry in value)


def _name(value: Any) -> str:
    return f"memory map of {len(value)} {'entry' if len(value) == 1 else 'entries'}" if _is_map(value) else repr(value)


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST else [*lines[:_MOST], f"… and {len(lines) - _MOST} lines more"]
