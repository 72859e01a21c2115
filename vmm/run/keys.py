"""Keys by name, as a terminal sends them to firmware.

OVMF's serial console is a terminal of type PC ANSI (edk2, OvmfPkg/Library/PlatformBootManagerLib/PlatformData.c and
MdeModulePkg/Universal/Console/TerminalDxe/TerminalConIn.c), which has no F11 and F12. It takes a lone ESC as that key
when nothing follows for two seconds, and at once when what follows is no sequence.

OVMF 2025.02's is another terminal, seen to take ``ESC 1`` for F1 and ``ESC @`` for F12: of the keys here it knows the
arrows, esc, enter, tab, backspace and ctrl; `Runnable.send` types whatever else it takes.
"""

from vmm.errors import ConfigError

KEYS = {
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "right": b"\x1b[C",
    "left": b"\x1b[D",
    "home": b"\x1b[H",
    "end": b"\x1b[F",
    "insert": b"\x1b[@",
    "delete": b"\x1b[X",
    "page-up": b"\x1b[I",
    "page-down": b"\x1b[G",
    **{f"f{number}": b"\x1b[" + bytes((letter,)) for number, letter in enumerate(b"MNOPQRSTUV", 1)},
    "esc": b"\x1b",
    "enter": b"\r",
    "tab": b"\t",
    "backspace": b"\b",
    **{f"ctrl-{chr(ord('a') + number)}": bytes((number + 1,)) for number in range(26)},
}


def key(name: str) -> bytes:
    """What a key sends; upper and lower case are the same.

    Raises:
        ConfigError: there is no key of that name.
    """
    try:
        return KEYS[name.lower()]
    except KeyError:
        known = ", ".join(name for name in KEYS if not name.startswith("ctrl-"))
        raise ConfigError(f"no key is named {name!r}; known are {known}, and ctrl-a to ctrl-z") from None
