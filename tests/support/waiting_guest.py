"""A firmware image that is always at the same place: it waits for a key, and answers."""

from pathlib import Path

from vmm import Machine

_SIZE, _START = 0x10000, 0xFF00

_DEBUG_PORT = "ba 02 04"  # mov dx, 0x402
_WAIT = (
    "ba fd 03"  # mov dx, COM1's line status
    "ec a8 01 74 fb"  # in al, dx; test al, 1; jz on the in
    "ba f8 03 ec"  # take the character
)

READY, DONE = "ready", "done"
"""What it prints on the debug port: at first, and for each character that is typed."""

GENEROUS = 120.0
"""Seconds; a busy machine must not fail a test that isn't about time."""

_PRINT_TSC = (
    "0f 31 66 89 d3"  # rdtsc; mov ebx, edx
    f"{_DEBUG_PORT}"
    "b9 04 00 ee 66 c1 e8 08 e2 f9"  # four times: out dx, al; shr eax, 8
    "66 89 d8"  # mov eax, ebx
    "b9 04 00 ee 66 c1 e8 08 e2 f9"
)


def write_waiting_guest(directory: Path, *, tsc: bool = False) -> str:
    """Write the image; return its path.

    Args:
        directory: where.
        tsc: print the TSC, 8 bytes, instead of `DONE`.
    """
    begin = bytes.fromhex(_DEBUG_PORT) + _printing(f"{READY}\n")
    answer = bytes.fromhex(_PRINT_TSC) if tsc else bytes.fromhex(_DEBUG_PORT) + _printing(f"{DONE}\n")
    loop = bytes.fromhex(_WAIT) + answer
    code = begin + loop + _jump(-len(loop) - 3)
    reset = _jump(_START - (_SIZE - 16) - 3)
    image = b"\xf4" * _START + code.ljust(_SIZE - 16 - _START, b"\xf4") + reset.ljust(16, b"\xf4")
    path = directory / ("tsc.fd" if tsc else "waits.fd")
    path.write_bytes(image)
    return str(path)


def answers_as(machine: Machine) -> str:
    """Send it a character; return all that it has printed once it is done."""
    machine.send("x")
    machine.expect(DONE, deadline=GENEROUS)
    return machine.debugcon.text()


def _printing(text: str) -> bytes:
    """mov al, character; out dx, al."""
    return b"".join(bytes((0xB0, character, 0xEE)) for character in text.encode())


def _jump(distance: int) -> bytes:
    return b"\xe9" + distance.to_bytes(2, "little", signed=True)
