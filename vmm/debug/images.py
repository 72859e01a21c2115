"""What is loaded in a guest, and where: found in its memory, without the help of whoever built it.

UEFI's executables come from the table that UEFI keeps for debuggers, and from their headers in memory; a Linux kernel
from the page tables; a guest of ours, and firmware that is no more than a ROM, from the file that the machine started
with. Names are those that the linker left in an image, else those of the firmware volumes in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from vmm.cpu.paging import walk
from vmm.debug import efi
from vmm.firmware import guests
from vmm.firmware.contents import Contents, read
from vmm.firmware.volumes import HEADER, SIGNATURE, SIGNATURE_OFFSET, volume_at
from vmm.layout import FOUR_GIB
from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.firmware.images import FirmwareImages
    from vmm.memory import GuestMemory

_CHUNK = 16 << 20
_OVERLAP = 1 << 16
"""Of chunks that are scanned: more than a header takes."""

_BEFORE = 4 << 20
"""How far in front of an address the header of its image is looked for: OVMF's largest, the shell, has 900 KiB."""

_VOLUME_ALIGNMENT = 0x10000
_VOLUME_BYTES = 32 << 20
"""Of volumes in RAM, at most twice as many are read: OVMF's have 13 MiB."""

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
    """

    name: str
    base: int
    size: int
    kind: str
    found: str
    path: str = ""
    guid: UUID | None = None
    detail: str = ""

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + self.size

    def where(self, address: int) -> str:
        """An address in it: ``DxeCore+0x1a2b``."""
        return f"{self.name or 'an image without a name'}+{address - self.base:#x}"

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
    """

    def __init__(self, memory: "GuestMemory", firmware: "FirmwareImages") -> None:
        self._memory = memory
        self._firmware = firmware
        self._contents: Contents | None = None

    def all(self, registers: Mapping[str, int]) -> list[LoadedImage]:
        """All that there is, by address; ``registers`` of a vCPU say by which page tables addresses are meant."""
        found = self._listed()
        bases = {image.base for image in found}
        found += (image for image in self._scanned(self._everything()) if image.base not in bases)
        kernel = self._kernel(registers)
        ours = self._ours()
        found += [image for image in (kernel, ours) if image is not None]
        return sorted(found, key=lambda image: image.base)

    def where(self, address: int, registers: Mapping[str, int]) -> str:
        """An address in words, with the function if that is known: ``probe+0xa2c, main+0x10``; "" in no known image."""
        image = self.at(address, registers)
        if image is None:
            return ""
        function = _function(Path(image.path), address) if image.kind == "guest" and image.path else ""
        return ", ".join(filter(None, (image.where(address), function)))

    def at(self, address: int, registers: Mapping[str, int]) -> LoadedImage | None:
        """The one that a linear address is in; None: none is known."""
        candidates = (self._ours(), self._kernel(registers) if address >= _KERNEL_START else None)
        for image in candidates:
            if image is not None and address in image:
                return image
        for image in self._listed():
            if address in image:
                return image
        gpa = walk(address, registers, self._read).gpa
        # Where a linear address is another physical one, no firmware runs.
        if gpa == address:
            for image in self._scanned(self._before(gpa)):
                if address in image:
                    return image
        return self._rom(address)

    def _read(self, gpa: int, size: int) -> bytes:
        """As `GuestMemory.read`, for addresses that a guest made up."""
        if gpa >> 52:
            raise ValueError(f"no memory at {gpa:#x}")
        return self._memory.read(gpa, size)

    # -- UEFI -------------------------------------------------------------------------------------------------------

    def _listed(self) -> list[LoadedImage]:
        found = efi.listed(self._read, self._memory.low_size)
        return [self._named(image, "debug image info table") for image in found]

    def _scanned(self, pieces: Iterable[tuple[int, bytes]]) -> Iterator[LoadedImage]:
        for gpa, data in pieces:
            for image in efi.scan(data, gpa, self._read):
                yield self._named(image, "header")

    def _named(self, image: efi.EfiImage, found: str) -> LoadedImage:
        name, guid = image.name, image.guid
        if not name or guid is None:
            module_name, module_guid = self._module_of(image)
            name, guid = name or module_name, guid or module_guid
        return LoadedImage(name or (str(guid) if guid else ""), image.base, image.size, "uefi", found, image.path, guid)

    def _module_of(self, image: efi.EfiImage) -> tuple[str, UUID | None]:
        """What the firmware volumes in memory say: by the file's GUID, else by the header of its executable."""
        for module in self._volumes().modules:
            if image.guid is not None and module.guid == image.guid and module.name != str(module.guid):
                return module.name, module.guid
            header = efi.header_at(module.data[:4096], 0) if module.architecture and image.guid is None else None
            if header is not None and image.key and header[2] == image.key:
                return module.name, module.guid
        return "", None

    def _volumes(self) -> Contents:
        """What the firmware volumes in RAM, and in the image itself, hold; read once, for it takes a moment."""
        if self._contents is None:
            volumes = [read(data) for data in self._volume_bytes()]
            self._contents = Contents(modules=[module for contents in volumes for module in contents.modules])
        return self._contents

    def _volume_bytes(self) -> Iterator[bytes]:
        left = 2 * _VOLUME_BYTES
        for gpa in self._places(_VOLUME_ALIGNMENT):
            try:
                header = self._read(gpa, HEADER.size)
                volume = volume_at(header, 0)
                if volume is not None and volume.size <= left:
                    left -= volume.size
                    yield self._read(gpa, volume.size)
            except ValueError:
                continue
        # What is not compressed there runs there: SEC.
        yield from (self._firmware.code[at:] for at in _last_volume(self._firmware.code))

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
        detail = f"{banner}; loaded {base - _KERNEL_LINKED:#x} above the addresses of its vmlinux"
        return LoadedImage("vmlinux", base, end - base, "linux", "page tables", detail=detail)

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

    # -- what the machine started with ------------------------------------------------------------------------------

    def _ours(self) -> LoadedImage | None:
        path = self._firmware.path
        if not self._firmware.code or not guests.is_ours(path):
            return None
        base, size = self._firmware.code_address, len(self._firmware.code)
        symbols = _symbols(path)
        return LoadedImage(
            path.stem, base, size, "guest", "the machine's image", "" if symbols is None else str(symbols)
        )

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


def _symbols(path: Path) -> Path | None:
    elf = path.with_suffix(".elf")
    return elf if elf.is_file() else None


def _function(elf: Path, address: int) -> str:
    """The function of an ELF file that an address is in, and how far; "" if none is in front of it."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        symbols = [
            (symbol["st_value"], symbol.name)
            for symbol in (table.iter_symbols() if isinstance(table, SymbolTableSection) else ())
            if symbol["st_info"]["type"] in {"STT_FUNC", "STT_NOTYPE"} and symbol["st_shndx"] != "SHN_ABS"
        ]
    value, name = max((symbol for symbol in symbols if symbol[0] <= address and symbol[1]), default=(0, ""))
    return f"{name}+{address - value:#x}" if name else ""


def _last_volume(code: bytes) -> Iterator[int]:
    """Where the volume begins that ends with the image: it has the reset vector."""
    at = code.find(SIGNATURE)
    while at >= 0:
        volume = volume_at(code, at - SIGNATURE_OFFSET)
        if volume is not None and volume.offset + volume.size == len(code):
            yield volume.offset
            return
        at = code.find(SIGNATURE, at + 1)
