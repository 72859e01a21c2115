"""Which lines of source the guest's code reached: from the blocks that the software CPU translated.

C notes each block as it is translated (`native/softcpu/coverage.c`), so that executing costs what it ever does. Here
they are kept, and become lines once the machine stands still: an image may be gone by then, so UEFI's list of them is
looked at now and then while the guest runs.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.errors import ConfigError
from vmm.legible import counted, legible

if TYPE_CHECKING:
    from vmm.debug.efi import EfiImage
    from vmm.debug.images import Images, LoadedImage
    from vmm.debug.lines import LineRow

MAX_BLOCKS = 1 << 20
"""That are kept: OVMF's way to its shell has 31,000. Later ones are counted as lost."""

_MAX_OVERLAPPING = 16
"""Images that are, or were, at one address."""
_RING_BLOCKS = 1 << 16
_LIST_SECONDS = 0.25

Lines = dict[str, dict[int, int]]
"""By source file: which lines there is code of, and whether that was reached (1) or not (0)."""


class Covered(NamedTuple):
    """What was reached so far.

    Attributes:
        lines: of every file of source that an image which was executed was built of.
        images: how many of these images have line numbers.
        unknown: names of images that were executed and have none, in order.
        lost: how many blocks more there were than are kept.
    """

    lines: Lines
    images: int
    unknown: list[str]
    lost: int

    @property
    def notes(self) -> list[str]:
        """What is missing, a line each, for people."""
        notes = []
        if not self.images:
            notes.append("no image that was executed has line numbers; --symbols DIR says where files with them are")
        elif self.unknown:
            notes.append(
                f"{counted(len(self.unknown), 'image')} without line numbers: {', '.join(self.unknown[:4])}, …"
            )
        if self.lost:
            notes.append(f"{self.lost:,} blocks of code more than are kept")
        return [legible(note) for note in notes]

    def lcov(self) -> str:
        """As lcov's tracefile (``geninfo(1)``): what its ``-a`` adds up, and ``genhtml`` shows."""
        return lcov(self.lines)


def lcov(lines: Lines) -> str:
    """A tracefile of lcov's."""
    records = []
    for file, found in sorted(lines.items()):
        data = "".join(f"DA:{line},{hits}\n" for line, hits in sorted(found.items()))
        reached = sum(1 for hits in found.values() if hits)
        name = file.replace("\n", " ")
        records.append(f"TN:\nSF:{name}\n{data}LF:{len(found)}\nLH:{reached}\nend_of_record\n")
    return "".join(records)


def add(total: Lines, more: Lines) -> None:
    """Add what another machine reached."""
    for file, found in more.items():
        known = total.setdefault(file, {})
        for line, hits in found.items():
            known[line] = known.get(line, 0) + hits


class Coverage:
    """Notes what one machine executes, from its first run on.

    Args:
        core: the C core's ``struct vmm_vm``.
        images: gives the machine's images, once it is asked.
        registers: gives those of a vCPU, between two runs.

    Attributes:
        on_close: told what was reached, right before the machine closes; None: nobody is.
    """

    def __init__(self, core: Any, images: "Callable[[], Images]", registers: Callable[[], Mapping[str, int]]) -> None:
        self.on_close: Callable[[Covered], None] | None = None
        self._registers = registers
        self._core = core
        self._ring = ffi.gc(lib.ring_new(_RING_BLOCKS, ffi.sizeof("struct coverage_block")), lib.ring_free)
        if self._ring == ffi.NULL:
            raise MemoryError
        core.coverage = self._ring
        self._batch = ffi.new("struct coverage_block[]", 4096)
        self._images = images
        self._loaded: dict[EfiImage, int] = {}
        self._blocks: dict[tuple[int, int, int], int] = {}
        self._beyond = 0
        self._list_due = 0.0

    def poll(self) -> None:
        """To be called often while the machine runs."""
        self._take()
        now = time.monotonic()
        if now >= self._list_due and lib.vmm_io_trylock(self._core):
            self._list_due = now + _LIST_SECONDS
            try:
                self._images().see(self._loaded)
            finally:
                lib.vmm_io_unlock(self._core)

    def close(self) -> None:
        """Ask for no more; no vCPU runs."""
        if self.on_close is not None:
            self.on_close(self.finish())
        self._core.coverage = ffi.NULL

    def finish(self) -> Covered:
        """What was reached so far, of a machine that stands still."""
        registers = self._registers()
        self._take()
        images = self._images()
        listed = list(zip(images.named(self._loaded), self._loaded.values(), strict=True))
        known = {(image.base, image.size) for image, _ in listed}
        listed += [(image, 0) for image in images.all(registers) if (image.base, image.size) not in known]
        reached: dict[str, tuple[LoadedImage, list[tuple[int, int]]]] = {}
        unknown: set[str] = set()
        for address, size, image in _owners(self._blocks.items(), listed):
            if image.symbols:
                start = address - image.loaded
                reached.setdefault(image.symbols, (image, []))[1].append((start, start + size))
            else:
                unknown.add(image.name)
        return self._covered(reached, unknown)

    def _covered(self, reached: "dict[str, tuple[LoadedImage, list[tuple[int, int]]]]", unknown: set[str]) -> Covered:
        lines: Lines = {}
        known = 0
        for image, ranges in reached.values():
            rows = image.line_table()
            if not rows:
                unknown.add(image.name)
                continue
            known += 1
            # Of two images with the same source, a line was reached if it was in one of them.
            for source, found in _reached(rows, ranges).items():
                total = lines.setdefault(source, {})
                for line, hits in found.items():
                    total[line] = max(hits, total.get(line, 0))
        return Covered(lines, known, sorted(unknown), self._beyond + int(lib.ring_dropped(self._ring)))

    def _take(self) -> None:
        epoch = len(self._loaded)
        while count := lib.ring_take(self._ring, self._batch, len(self._batch)):
            for at in range(count):
                block = self._batch[at]
                # Where other images have come, the same address may be another one's.
                key = (block.address, block.size, epoch)
                if key not in self._blocks:
                    if len(self._blocks) >= MAX_BLOCKS:
                        self._beyond += 1
                        continue
                    self._blocks[key] = block.time_ns


def _owners(
    blocks: Iterable[tuple[tuple[int, int, int], int]], images: "list[tuple[LoadedImage, int]]"
) -> "Iterator[tuple[int, int, LoadedImage]]":
    """Addresses and sizes of blocks, with the image that each was in when it was seen.

    Args:
        blocks: their addresses, sizes and what else tells them apart, and when they were seen.
        images: and since when each was there, as far as that is known (0: it is not).
    """
    waiting = sorted(images, key=lambda pair: pair[0].base, reverse=True)
    there: list[tuple[LoadedImage, int]] = []
    for (address, size, _), seen_ns in sorted(blocks):
        while waiting and waiting[-1][0].base <= address:
            there.append(waiting.pop())
        there = [pair for pair in there if address in pair[0]][-_MAX_OVERLAPPING:]
        if not there:
            continue
        # The last that was seen before, with what came until the next look; else what came first.
        until = seen_ns + int(_LIST_SECONDS * 1e9)
        by_time = sorted(there, key=lambda pair: pair[1])
        yield address, size, next((image for image, since in reversed(by_time) if since <= until), by_time[0][0])


def _reached(rows: "list[LineRow]", ranges: list[tuple[int, int]]) -> Lines:
    """The lines of a file's rows, and which of them the ranges of addresses touch."""
    lines: Lines = {}
    merged: list[list[int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    starts = [start for start, _ in merged]
    for row in rows:
        at = bisect_right(starts, row.end - 1) - 1
        hit = at >= 0 and merged[at][1] > row.start
        found = lines.setdefault(row.file, {})
        found[row.line] = max(int(hit), found.get(row.line, 0))
    return lines


def start_coverage(
    core: Any,
    images: "Callable[[], Images]",
    registers: Callable[[], Mapping[str, int]],
    poll: Callable[[], None] | None,
    parts: ExitStack,
    *,
    software_cpu: bool,
) -> tuple[Coverage, Callable[[], None]]:
    """Note what a machine executes; returns what does so, and what is to be called in the place of ``poll``.

    Args:
        core: as for `Coverage`, and so are images and registers.
        images: see there.
        registers: see there.
        poll: what was called often so far, if anything was.
        parts: takes care of the end.
        software_cpu: whether that executes the guest.

    Raises:
        ConfigError: it does not.
    """
    if not software_cpu:
        raise ConfigError("--coverage: only the software CPU tells what it executes; add -accel kvm+softcpu")
    coverage = Coverage(core, images, registers)
    parts.callback(coverage.close)

    def both() -> None:
        if poll is not None:
            poll()
        coverage.poll()

    return coverage, both
