"""ROM images of a few instructions in real mode, for machines of type pc without firmware."""

SIZE = 0x20000
START = 0xFF00

RESET = "ba f9 0c b0 06 ee eb fe"  # mov dx, 0xcf9; mov al, 6; out dx, al; jmp $


def image(code: str) -> bytes:
    """128 KiB with machine code, in hexadecimal, that begins at `START` in their last 64 KiB."""
    rom = bytearray(SIZE)
    data = bytes.fromhex(code)
    rom[SIZE - 0x10000 + START : SIZE - 0x10000 + START + len(data)] = data
    jump = b"\xe9" + (START - 0xFFF3 & 0xFFFF).to_bytes(2, "little")
    rom[-16 : -16 + len(jump)] = jump
    return bytes(rom)
