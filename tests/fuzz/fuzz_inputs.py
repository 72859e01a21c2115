"""Random numbers and bytes as somebody picks them who looks for ends."""

import os
import random
import tempfile
from functools import cache
from pathlib import Path

MIB = 1 << 20


@cache
def scratch() -> Path:
    """A directory of this process, which its supervisor may kill."""
    return Path(tempfile.mkdtemp(prefix="vmm-fuzz-", dir=os.environ.get("VMM_FUZZ_DIRECTORY")))


def number(chance: random.Random, bits: int = 64) -> int:
    """One near something that has an end, more often than any other."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.getrandbits(bits)
    if kind == 1:
        return chance.randrange(16)
    if kind == 2:
        return (1 << chance.randrange(bits)) - chance.randrange(3) & (1 << bits) - 1
    if kind == 3:
        return 1 << chance.randrange(bits)
    return -chance.randrange(1, 64) & (1 << bits) - 1


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, moved, left out or said twice."""
    made = bytearray(data)
    for _ in range(1 << chance.randrange(5)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                width = chance.choice((2, 4, 8))
                made[at : at + width] = number(chance, 8 * width).to_bytes(width, "little")
            case 2:
                del made[at : at + (1 << chance.randrange(8))]
            case 3:
                other = chance.randrange(len(made) + 1)
                made[at:at] = made[other : other + (1 << chance.randrange(8))]
            case 4:
                del made[at:]
            case _:
                made[at : at + 4] = chance.randbytes(4)
    return bytes(made)
