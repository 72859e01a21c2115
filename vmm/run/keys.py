"""Keys by name, as a terminal sends them to firmware.

UEFI firmware takes its serial console for a terminal of one of the types below, and reads other keys than up, enter
and their like from each one's own escape sequences. Which type that is stands in its variable ConIn
(`vmm.run.console_terminal`): Debian's OVMF 2022.11 has PC ANSI, its 2025.02 VT-UTF8.

A lone ESC is that key when nothing follows for two seconds, and at once when what follows is no sequence.

Source: edk2, MdeModulePkg/Universal/Console/TerminalDxe/TerminalConIn.c. The last four of its types, PuTTY's, have no
Home, End, Insert and pages, and in old versions TtyTerm has none either.
"""

from collections.abc import Iterable
from enum import StrEnum

from vmm.errors import ConfigError
from vmm.options import check_type

ESC = b"\x1b"


class TerminalType(StrEnum):
    """Which terminal firmware takes its serial console for."""

    AUTO = "auto"
    """The one that firmware says."""
    PC_ANSI = "pcansi"
    VT100 = "vt100"
    VT100_PLUS = "vt100plus"
    VT_UTF8 = "vtutf8"
    TTY_TERM = "ttyterm"
    """VT220, and what programs on Linux understand."""
    LINUX = "linux"
    XTERM_R6 = "xtermr6"
    VT400 = "vt400"
    SCO = "sco"


_COMMON = {
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "right": b"\x1b[C",
    "left": b"\x1b[D",
    "esc": ESC,
    "enter": b"\r",
    "tab": b"\t",
    "backspace": b"\b",
    **{f"ctrl-{chr(ord('a') + number)}": bytes((number + 1,)) for number in range(26)},
}
"""What all terminals send."""

_MOVES = ("home", "end", "insert", "delete", "page-up", "page-down")
_FUNCTIONS = tuple(f"f{number}" for number in range(1, 13))
_NAMES = (*_MOVES, *_FUNCTIONS)

_DELETE = b"\x7f"


def _sequences(names: tuple[str, ...], prefix: str, *endings: str) -> dict[str, bytes]:
    """Return what keys send: ESC, what is the same for all of them, and what is not."""
    return {name: ESC + (prefix + ending).encode() for name, ending in zip(names, endings, strict=False)}


_VT100_PLUS = _sequences(_MOVES, "", *"hk+-?/") | _sequences(_FUNCTIONS, "", *"1234567890!@")

_VT220_FUNCTIONS = ("11", "12", "13", "14", "15", "17", "18", "19", "20", "21", "23", "24")
"""Without the ``~`` that ends them: but for TtyTerm, firmware has the key before, and would take that for another."""

_KEYS = {
    TerminalType.PC_ANSI: _sequences(_MOVES, "[", *"HF@XIG") | _sequences(_FUNCTIONS, "[", *"MNOPQRSTUV"),
    TerminalType.VT100: _sequences(_MOVES, "[", *"HK@P?/") | _sequences(_FUNCTIONS, "O", *"PQwxtuqrpM"),
    TerminalType.VT100_PLUS: _VT100_PLUS,
    TerminalType.VT_UTF8: _VT100_PLUS,
    TerminalType.TTY_TERM: _sequences(_MOVES, "[", "H", "F", "2~", "3~", "5~", "6~")
    | _sequences(_FUNCTIONS, "[", *(f"{number}~" for number in _VT220_FUNCTIONS)),
    TerminalType.LINUX: {"delete": _DELETE}
    | _sequences(_FUNCTIONS, "[", "[A", "[B", "[C", "[D", "[E", *_VT220_FUNCTIONS[5:]),
    TerminalType.XTERM_R6: {"delete": _DELETE}
    | _sequences(_FUNCTIONS[:4], "O", *"PQRS")
    | _sequences(_FUNCTIONS[4:], "[", *_VT220_FUNCTIONS[4:]),
    TerminalType.VT400: {"delete": _DELETE} | _sequences(_FUNCTIONS, "[", *_VT220_FUNCTIONS),
    TerminalType.SCO: {"delete": _DELETE} | _sequences(_FUNCTIONS, "[", *"MNOPQRSTUVWX"),
}


def check_keys(names: Iterable[str], terminal: TerminalType) -> None:
    """Refuse names of keys before they are pressed.

    Args:
        names: upper and lower case are the same.
        terminal: AUTO: the type is not known yet, and any that has the keys may be it.

    Raises:
        ConfigError: there is no key of that name, or that type of terminal has none.
        TypeError: a name is no text.
    """
    for name in names:
        check_type(name, "a key", str)
        if name.lower() in _COMMON:
            continue
        if name.lower() not in _NAMES:
            known = ", ".join(known for known in (*_COMMON, *_NAMES) if not known.startswith("ctrl-"))
            raise ConfigError(f"no key is named {name!r}; known are {known}, and ctrl-a to ctrl-z")
        if terminal is not TerminalType.AUTO and name.lower() not in _KEYS[terminal]:
            raise ConfigError(f"key {name}: firmware knows no such key of a terminal of type {terminal}")


def key(name: str, terminal: TerminalType) -> bytes:
    """What a key sends.

    Args:
        name: upper and lower case are the same.
        terminal: the type; AUTO: it is not known.

    Raises:
        ConfigError: as `check_keys`; or what the key sends depends on the type, which is not known.
        TypeError: the name is no text.
    """
    check_keys((name,), terminal)
    if name.lower() in _COMMON:
        return _COMMON[name.lower()]
    if terminal is TerminalType.AUTO:
        raise ConfigError(
            f"key {name}: what it sends depends on the terminal that firmware expects, and firmware has not said that "
            f"yet; wait first for something that it shows, or choose the terminal: {', '.join(_KEYS)}"
        )
    return _KEYS[terminal][name.lower()]
