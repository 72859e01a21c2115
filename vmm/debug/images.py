"""What is loaded in a guest, and where: found in its memory, without the help of whoever built it.

UEFI's executables come from the table that UEFI keeps for debuggers, and from their headers in memory, a BIOS's option
ROMs from theirs; a Linux kernel from the page tables; a guest of ours, and firmware that is just a ROM, from the file
that the machine started with. Names are those that the linker left in an image, else those of the firmware volumes
in memory.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from vmm.cpu.paging import walk
from vmm.debug import efi
from vmm.debug.option_roms import option_roms
from vmm.debug.symbols import Function, SymbolFiles, beside, function_at
from vmm.firmware import guests
from vmm.firmware.contents import read
from vmm.firmware.volumes import HEADER, SIGNATURE, SIGNATURE_OFFSET, volume_at
from vmm.layout import FOUR_GIB
from vmm.legible import legible
from vmm.run.evidence import Place

if TYPE_CHECKING:
    from vmm.debug.lines import LineRow
    from vmm.firmware.images import FirmwareImages
    from vmm.memory import GuestMemory

MAX_SEEN = 1024
"""Images that are remembered of a guest that runs: it may list others for ever."""

_CHUNK = 16 << 20
_OVERLAP = 1 << 16
"""Of chunks that are scanned: more than a header takes."""

_BEFORE = 4 << 20
"""How far in front of an address the header of its image is looked for: OVMF's largest, the shell, has 900 KiB."""

_VOLUME_ALIGNMENT = 0x10000
_VOLUME_BYTES = 64 << 20
_MAX_VOLUMES = 16
"""Of volumes in RAM so many are read at the most: OVMF's two have 13 MiB."""

_KERNEL_START = 0xFFFF_FFFF_8000_0000
_KERNEL_END = 0xFFFF_FFFF_C000_0000
_KERNEL_LINKED = 0xFFFF_FFFF_8100_0000
_KERNEL_STEP = 2 << 20
"""Linux, Documentation/arch/x86/x86_64/mm.rst: where the kernel's text is mapped, and CONFIG_PHYSICAL_ALIGN."""
_BANNER = b"Linux version "
_BANNER_BYTES = 256


class LoadedImage(NamedTuple):
    """One executable in the guest's memory.

    Attributes:
        name: for people; "" if nothing says it.
        base: linear address of its beginning (RVA 0).
        size: bytes.
        kind: ``uefi``, ``linux``, ``guest`` (one of ours) or ``rom``.
        found: by what.
        path: of the file with its symbols; "" if nothing says it.
        guid: of its file in a firmware volume; None: not known, or it has none.
        detail: more words; "" where there is nothing to say.
        symbols: the file of the user's, or of ours, that has its symbols; "" if there is none.
        loaded: what is added to that file's addresses.
    """

    name: str
    base: int
    size: int
    kind: str
    found: str
    path: str = ""
    guid: UUID | None = None
    detail: str = ""
    symbols: str = ""
    loaded: int = 0

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + self.size

    def place(self, address: int) -> Place:
        """An address in it."""
        function = self.function(address)
        offset = address - self.base
        return Place(address, self.name, offset) if function is None else Place(address, self.name, offset, *function)

    def function(self, address: int) -> Function | None:
        """The function that an address in it is in; None: there is no file that says so."""
        return function_at(Path(self.symbols), address - self.loaded) if self.symbols else None

    def line_table(self) -> "list[LineRow]":
        """Which lines its code is of, by the addresses of its file with symbols; empty where that has none."""
        from vmm.debug.lines import line_table  # few ask

        return line_table(Path(self.symbols)) if self.symbols else []

    def as_dict(self) -> dict[str, object]:
        """What ``vmm images --json`` prints."""
        return self._asdict() | {"guid": None if self.guid is None else str(self.guid)}


def table(images: Iterable[LoadedImage]) -> str:
    """Images for people, one a line."""
    lines = [f"{'address':>16} {'size':>9}  {'name':<32} source"]
    for image in images:
        more = "; ".join(filter(None, (image.found, image.path, image.detail)))
        lines.append(f"{image.base:16x} {image.size:#9x}  {image.name or '?':<32} {more}")
    return legible("\n".join(lines), keep="\n")


class Images:
    """Looks for them, in a machine that does not run.

    Args:
        memory: of the machine.
        firmware: what it started with.
        folder: of the user's, with files that have symbols; None: there is none.
    """

    def __init__(self, memory: "GuestMemory", firmware: "FirmwareImages", folder: Path | None = None) -> None:
        self._memory = memory
        self._read = efi.reader(memory)
        self._folder = folder
        self._firmware = firmware
        self._modules = _Modules({}, {})
        self._seen: list[tuple[int, int]] | None = None

    def all(self, registers: Mapping[str, int]) -> list[LoadedImage]:
        """All that there is, by address; ``registers`` of a vCPU say by which page tables addresses are meant."""
        modules = self._modules_now()
        executables = {image.base: image for image in self._scanned(self._everything())}
        executables |= {image.base: image for image in efi.listed(self._read, self._memory.low_size)}
        executables |= {image.base: image for image in self._in_smram()}
        found = [self._named(image, modules) for image in executables.values()]
        kernel = self._kernel(registers)
        ours = self._ours()
        found += [image for image in (kernel, ours) if image is not None]
        found += self._option_roms()
        return sorted(found, key=lambda image: image.base)

    def place(self, registers: Mapping[str, int]) -> Callable[[int], Place | None]:
        """What finds out what an address is in, with the function if that is known; None: in no known image.

        It is good as long as the machine stands still.
        """
        image_at = self.finder(registers)

        def find(address: int) -> Place | None:
            image = image_at(address)
            return None if image is None else image.place(address)

        return cache(find)

    def finder(self, registers: Mapping[str, int]) -> Callable[[int], LoadedImage | None]:
        """What finds the image that an address is in, as long as the machine stands still; None: it is in none."""
        known = [image for image in (self._ours(), self._kernel(registers)) if image is not None]
        listed = self.listed()

        def find(address: int) -> LoadedImage | None:
            found = next((image for image in known if address in image), None)
            if found is None and (found := self._at(address, listed, registers)) is not None:
                known.append(found)
            return found or self._rom(address)

        return cache(find)

    def listed(self) -> list[efi.EfiImage]:
        """What UEFI itself lists: soon told, at any time; of a machine that runs, it may be half of a change."""
        return efi.listed(self._read, self._memory.low_size)

    def see(self, seen: dict[efi.EfiImage, int]) -> None:
        """Add what UEFI lists now, and when that was (CLOCK_MONOTONIC in ns), up to `MAX_SEEN` in all."""
        # What the guest has there may be anything, or half of something.
        with suppress(ValueError):
            for image in self.listed():
                if len(seen) < MAX_SEEN:
                    seen.setdefault(image, time.monotonic_ns())

    def named(self, listed: Iterable[efi.EfiImage]) -> list[LoadedImage]:
        """Those that were listed, with the names that the firmware volumes have for them."""
        modules = self._modules_now()
        return [self._named(image, modules) for image in listed]

    def _at(self, address: int, listed: list[efi.EfiImage], registers: Mapping[str, int]) -> LoadedImage | None:
        """The executable of UEFI's that an address is in."""
        for executable in listed:
            if executable.base <= address < executable.base + executable.size:
                return self._named(executable, self._modules_now())
        for start, size in self._memory.smm_ranges():
            if start <= address < start + size:
                found = (image for image in self._in_smram() if image.base <= address < image.base + image.size)
                image = next(found, None)
                return None if image is None else self._named(image, self._modules_now())
        gpa = walk(address, registers, self._read).gpa
        # Where a linear address is another physical one, no firmware runs.
        if gpa == address:
            if (rom := next((rom for rom in self._option_roms() if address in rom), None)) is not None:
                return rom
            for executable in self._scanned(self._before(gpa)):
                if executable.base <= address < executable.base + executable.size:
                    return self._named(executable, self._modules_now())
        return None

    @cached_property
    def _files(self) -> SymbolFiles | None:
        return None if self._folder is None else SymbolFiles(self._folder)

    def _named(self, image: efi.EfiImage, modules: "_Modules") -> LoadedImage:
        """With the names of firmware volumes: by the file's GUID, else by the header of its executable."""
        guid = image.guid or modules.guids.get(image.key)
        name = image.name or (modules.names.get(guid, str(guid)) if guid else "")
        found = "debug image info table" if image.is_listed else "header"
        file = self._files.find(image.path or name) if self._files is not None and (image.path or name) else None
        symbols_at = ("", 0) if file is None else (str(file), image.base)
        return LoadedImage(name, image.base, image.size, "uefi", found, image.path, guid, "", *symbols_at)

    # -- UEFI -------------------------------------------------------------------------------------------------------

    def _scanned(self, pieces: Iterable[tuple[int, bytes]]) -> Iterator[efi.EfiImage]:
        for gpa, data in pieces:
            yield from efi.scan(data, gpa, self._read)

    def _in_smram(self) -> Iterator[efi.EfiImage]:
        """Executables of system management mode, whose memory firmware has closed to all others."""
        for gpa, size in self._memory.smm_ranges():
            for start in range(gpa, gpa + size, _CHUNK):
                data = self._memory.read_in_smm(start, min(_CHUNK + _OVERLAP, gpa + size - start))
                yield from efi.scan(data, start, self._memory.read_in_smm)

    def _modules_now(self) -> "_Modules":
        """What the firmware volumes hold; read anew only where there are others than before."""
        volumes = self._volumes()
        if volumes != self._seen:
            # The last one has the reset vector, and runs where it is.
            last = (self._firmware.code[at:] for at in _last_volume(self._firmware.code))
            self._modules = _modules(chain((self._read(gpa, size) for gpa, size in volumes), last))
            self._seen = volumes
        return self._modules

    def _volumes(self) -> list[tuple[int, int]]:
        """Where firmware volumes are in RAM, and their sizes."""
        found: list[tuple[int, int]] = []
        for gpa in self._places(_VOLUME_ALIGNMENT):
            volume = volume_at(self._read(gpa, HEADER.size), 0)
            whole = 0 if volume is None else volume.size + sum(size for _, size in found)
            if volume is not None and whole <= _VOLUME_BYTES and len(found) < _MAX_VOLUMES:
                with suppress(ValueError):
                    self._read(gpa + volume.size - 1, 1)
                    found.append((gpa, volume.size))
        return found

    def _places(self, alignment: int) -> Iterator[int]:
        """The multiples of this in low RAM at which something is."""
        for region in self._memory.regions():
            if region.kind == "ram" and region.gpa < FOUR_GIB:
                for gpa, length in self._memory.touched(region.gpa, region.size):
                    yield from range(-(-gpa // alignment) * alignment, gpa + length, alignment)

    def _everything(self) -> Iterator[tuple[int, bytes]]:
        for region in self._memory.regions():
            if region.gpa >= FOUR_GIB:
                continue  # firmware that has not set up page tables cannot be there
            whole = [(region.gpa, region.size)]
            for gpa, length in self._memory.touched(*whole[0]) if region.kind == "ram" else whole:
                for start in range(gpa, gpa + length, _CHUNK):
                    yield start, self._read(start, min(_CHUNK + _OVERLAP, gpa + length - start))

    def _before(self, gpa: int) -> Iterator[tuple[int, bytes]]:
        for region in self._memory.regions():
            if region.gpa <= gpa < region.gpa + region.size:
                start = max(region.gpa, gpa - _BEFORE)
                yield start, self._read(start, gpa + 1 - start)

    # -- Linux ------------------------------------------------------------------------------------------------------

    def _kernel(self, registers: Mapping[str, int]) -> LoadedImage | None:
        """A 64-bit kernel: the first addresses that are mapped where every such kernel has its text."""

        def gpa(linear: int) -> int | None:
            return walk(linear, registers, self._read).gpa

        if not registers["efer"] >> 10 & 1:
            return None
        base = next((at for at in range(_KERNEL_START, _KERNEL_END, _KERNEL_STEP) if gpa(at) is not None), None)
        if base is None:
            return None
        end = next((at for at in range(base, _KERNEL_END, _KERNEL_STEP) if gpa(at) is None), _KERNEL_END)
        banner = self._banner(gpa(base), end - base)
        if banner is None:
            return None
        moved = base - _KERNEL_LINKED
        detail = f"{banner}; loaded {moved:#x} above the addresses of its vmlinux"
        file = self._files.kernel() if self._files is not None else None
        return LoadedImage(
            "vmlinux", base, end - base, "linux", "page tables", "", None, detail, str(file or ""), moved if file else 0
        )

    def _banner(self, gpa: int | None, size: int) -> str | None:
        """``Linux version …`` of a kernel, which is in one piece of physical memory."""
        for start in range(gpa or 0, (gpa or 0) + size, _KERNEL_STEP):
            try:
                data = self._read(start, _KERNEL_STEP)
            except ValueError:
                return None
            at = data.find(_BANNER)
            # A format string is there, too: its version is a percent sign.
            while at >= 0 and not data[at + len(_BANNER) : at + len(_BANNER) + 1].isdigit():
                at = data.find(_BANNER, at + 1)
            if at >= 0:
                words = data[at : at + _BANNER_BYTES].decode("ascii", "replace").split()
                return " ".join(words[:3])
        return None

    # -- a BIOS -----------------------------------------------------------------------------------------------------

    def _option_roms(self) -> list[LoadedImage]:
        return [
            LoadedImage(rom.name or "option ROM", rom.base, rom.size, "rom", "header", detail=rom.detail)
            for rom in option_roms(self._read)
        ]

    # -- what the machine started with ------------------------------------------------------------------------------

    def _ours(self) -> LoadedImage | None:
        path = self._firmware.path
        if not self._firmware.code or not guests.is_ours(path):
            return None
        base, size = self._firmware.code_address, len(self._firmware.code)
        elf = beside(path)
        file = "" if elf is None else str(elf)
        return LoadedImage(path.stem, base, size, "guest", "the machine's image", file, symbols=file)

    def _rom(self, address: int) -> LoadedImage | None:
        """Firmware as a whole, below 4 GiB or in its copy below 1 MiB."""
        if not self._firmware.code:
            return None
        image = LoadedImage(
            self._firmware.path.name,
            self._firmware.code_address,
            len(self._firmware.code),
            "rom",
            "the machine's image",
        )
        return image if address in image else None


class _Modules(NamedTuple):
    """The files of firmware volumes: their names by GUID, and the GUIDs of executables by `EfiImage.key`."""

    names: dict[UUID, str]
    guids: dict[bytes, UUID]


def _modules(volumes: Iterable[bytes]) -> _Modules:
    found = _Modules({}, {})
    for data in volumes:
        # What is compressed in there is not executed there.
        for module in read(data, limit=0).modules:
            if module.name != str(module.guid):
                found.names[module.guid] = module.name
            header = efi.header_at(module.data[:4096], 0) if module.architecture else None
            if header is not None:
                found.guids[header[2]] = module.guid
    return found


def _last_volume(code: bytes) -> Iterator[int]:
    """Where the volume begins that ends with the image: it has the reset vector."""
    at = code.find(SIGNATURE)
    while at >= 0:
        volume = volume_at(code, at - SIGNATURE_OFFSET)
        if volume is not None and volume.offset + volume.size == len(code):
            yield volume.offset
            return
        at = code.find(SIGNATURE, at + 1)
