"""ROM images of a few instructions in real mode, for machines of type pc without firmware."""

SIZE = 0x20000
START = 0xFF00

RESET = "ba f9 0c b0 06 ee eb fe"  # mov dx, 0xcf9; mov al, 6; out dx, al; jmp $

SUSPENDS = (
    "b0 0f e6 70 e4 71 3c fe 74 30"  # CMOS 0x0f is 0xfe: go to where it wakes up
    "ba f8 0c 66 b8 40 0b 00 80 66 ef"  # PIIX4's PMBASE: 0x600
    "ba fc 0c 66 b8 01 06 00 00 66 ef"
    "ba f8 0c 66 b8 80 0b 00 80 66 ef"  # PMREGMISC: enabled
    "ba fc 0c b0 01 ee"
    "ba 04 06 b8 00 24 ef eb fe"  # PM1_CNT: SLP_TYP 1, SLP_EN
    "ba 02 04 b0 61 ee b0 77 ee b0 61 ee b0 6b ee b0 65 ee b0 0a ee"  # print "awake"
    "ba 04 06 b8 00 20 ef eb fe"  # SLP_TYP 0: power off
)
"""Suspends a machine of type pc with s3=on to RAM; once it is woken up, says so and powers it off."""


def image(code: str) -> bytes:
    """128 KiB with machine code, in hexadecimal, that begins at `START` in their last 64 KiB."""
    rom = bytearray(SIZE)
    data = bytes.fromhex(code)
    rom[SIZE - 0x10000 + START : SIZE - 0x10000 + START + len(data)] = data
    jump = b"\xe9" + (START - 0xFFF3 & 0xFFFF).to_bytes(2, "little")
    rom[-16 : -16 + len(jump)] = jump
    return bytes(rom)
