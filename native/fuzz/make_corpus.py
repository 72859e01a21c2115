"""Write the seed inputs of libFuzzer's targets: what real guests do, and the ends of everything.

usage: make_corpus.py DIRECTORY      writes DIRECTORY/fw_cfg/*, DIRECTORY/guest_memory/* and DIRECTORY/virtio_blk/*
"""

import struct
import sys
from pathlib import Path
from typing import Any

SELECT, READ_DATA, PORT_IN, PORT_OUT, RESET, TRACE, DMA = range(7)
DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 2, 4, 8, 16
ADD, REMOVE, COPY = range(3)
START, OFFER, REQUEST = 0, 2, 8
QUEUE_SIZE = 16

PLACE_LOW, PLACE_LOW_END, PLACE_ROM_END, PLACE_HIGH, PLACE_HIGH_END, PLACE_TOP, PLACE_ANY_RAM, PLACE_ANYWHERE = range(8)


def record(
    operation: int, *, place: int = 0, number: int = 0, length: int = 0, address: int = 0, data: bytes = b""
) -> bytes:
    """One operation, as struct record in records.h has it."""
    return struct.pack(
        "<BBHIQ8s", operation, place, number, length & 0xFFFFFFFF, address % (1 << 64), data.ljust(8, b"\0")
    )


def dma(control: int, key: int, length: int, place: int, address: int, page: int = 8) -> bytes:
    """A descriptor at a place, for a buffer at 64 * page."""
    return record(DMA, place=place, number=key, length=length, address=address, data=bytes([control, 0, 0, page]))


def fw_cfg_seeds() -> dict[str, bytes]:
    """Probes as firmware does them, transfers across every end."""
    seeds = {
        "probe": record(SELECT, number=0) + record(READ_DATA, length=3) + record(SELECT, number=1),
        "directory": record(SELECT, number=0x19) + record(READ_DATA, length=3) + record(READ_DATA, length=63) * 5,
        "past_the_end": record(SELECT, number=0x21) + record(READ_DATA, length=60) * 2,
        "bits_14_and_15": b"".join(record(SELECT, number=key) for key in (0x4019, 0x8002, 0xC002, 0x3FFF, 0xFFFF)),
        "odd_widths": b"".join(
            record(kind, place=place, length=width << 16, data=b"\x10\x32\x54\x76")
            for kind in (PORT_IN, PORT_OUT)
            for place in range(0, 18, 3)
            for width in range(2)
        ),
        "traced": record(TRACE, place=1)
        + record(SELECT, number=0x21)
        + record(READ_DATA, length=9) * 3
        + record(TRACE),
        "reset": record(SELECT, number=0x21) + record(READ_DATA) + record(RESET) + record(READ_DATA, length=3),
    }
    for name, control in (("read", DMA_READ), ("skip", DMA_SKIP), ("write", DMA_WRITE), ("nothing", 0)):
        for length in (0, 1, 16, 17, 37, 400, 5001, 0xFFFFFFFF):
            seeds[f"dma_{name}_{length}"] = b"".join(
                dma(control | DMA_SELECT, key, length, PLACE_ANY_RAM, 0x100) for key in (0x21, 0x22, 0x23, 0x3000)
            )
    for place in range(PLACE_LOW, PLACE_ANYWHERE):
        for near in (-16, -4, -1, 0):
            seeds[f"descriptor_{place}_{-near}"] = dma(DMA_READ | DMA_SELECT, 0x21, 37, place, near % 256)
    for page in (0x3F, 0x40, 0x43, 0x44, 0x7F, 0x80, 0x9F, 0xA0):
        seeds[f"buffer_{page:x}"] = dma(DMA_READ | DMA_SELECT, 0x23, 5000, PLACE_ANY_RAM, 0x40, page) + dma(
            DMA_WRITE | DMA_SELECT, 0x22, 16, PLACE_ANY_RAM, 0x40, page
        )
    return seeds


def guest_memory_seeds() -> dict[str, bytes]:
    """Neighbours, holes and the wrap at 2^64."""
    neighbours = record(ADD, address=0x10, length=0x20) + record(ADD, address=0x30, length=0x20, place=1)
    wrap = record(ADD, address=0x70, length=0x10) + record(ADD, address=0, length=0x10)
    seeds = {}
    for number, name in enumerate(("read", "write", "scatter", "zero", "readable", "word", "store32")):
        for length in (0, 1, 0x20, 0x3F, 0x7F):
            step: dict[str, Any] = {"number": number, "length": length, "data": b"abcdefgh"}
            seeds[f"{name}_{length}"] = (
                neighbours
                + record(COPY, address=0x08, **step)
                + record(COPY, address=0x2E, **step)
                + record(REMOVE, address=0x30)
                + record(COPY, address=0x2E, **step)
                + wrap
                + record(COPY, address=0x78, **step)
            )
    return seeds


def virtio_blk_seeds() -> dict[str, bytes]:
    """A driver that starts the disk and asks for each kind of request, right and spoiled in each way."""
    ring_features = 1 << 28 | 1 << 29 | 1 << 13 | 1 << 14 | 1 << 11
    seeds = {}
    for name, features in (("plain", 0), ("negotiated", ring_features)):
        for kind in range(8):
            for spoiled in range(8):
                begin = record(START, address=features, data=b"\6")
                wrong = record(REQUEST, number=kind, length=1024, address=3, data=bytes((0, spoiled, 100, kind & 1, 2)))
                seeds[f"{name}_{kind}_{spoiled}"] = begin + wrong + begin + wrong
    seeds["read_only"] = record(START, data=b"\1") + record(REQUEST, number=1, length=512)
    seeds["ahead"] = record(START) + record(OFFER, place=QUEUE_SIZE + 1)
    return seeds


def main() -> None:
    """Write all corpora."""
    top = Path(sys.argv[1])
    targets = {"fw_cfg": fw_cfg_seeds(), "guest_memory": guest_memory_seeds(), "virtio_blk": virtio_blk_seeds()}
    for target, seeds in targets.items():
        directory = top / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (directory / name).write_bytes(data)


if __name__ == "__main__":
    main()
