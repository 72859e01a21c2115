"""A kernel given on the command line, and the fw_cfg items that hand it to the firmware.

Keys 0x07-0x18 get what QEMU puts there: for Linux the setup area, its header
filled in as a boot loader does, apart from the rest; for an ELF file with a
PVH entry its addresses, the segments going into RAM before the guest runs. A
UEFI program has no header to fill in; OVMF puts both parts together again.

Sources: Documentation/arch/x86/boot.rst (the Linux boot protocol; offsets
below count from the start of the file) and Documentation/arch/x86/pvh.rst of
Linux; x86_load_linux in hw/i386/x86.c of QEMU for the choice of addresses.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from vmm.devices.fw_cfg import FwCfg
from vmm.devices.fw_cfg_format import Buffer, Key
from vmm.errors import ConfigError
from vmm.inputs import InputFile

SECTOR = 512

HEADER_MAGIC = 0x202
"""``HdrS``: the setup header is there."""
HEADER_BYTES = 8192
"""As much of the file as QEMU looks at, and patches."""

SETUP_SECTS = 0x1F1
PROTOCOL = 0x206
LOADER_TYPE = 0x210
LOAD_FLAGS = 0x211
RAMDISK_IMAGE = 0x218
"""Its address, and behind it its size."""
HEAP_END = 0x224
COMMAND_LINE = 0x228
RAMDISK_MAX = 0x22C
XLOAD_FLAGS = 0x236
OLD_COMMAND_LINE_MAGIC = 0x20
"""Behind it, where the command line is."""

LOADED_HIGH = 0x01
CAN_USE_HEAP = 0x80
CAN_BE_LOADED_ABOVE_4G = 0x02
LOADER_QEMU = 0xB0
"""The id that boot.rst lists for QEMU, revision 0."""

ACPI_RESERVE = 0x28000
"""What QEMU's PCs keep free below the end of low RAM for SeaBIOS's tables; the initrd stays under it."""

ELF_NOTE_NAME = "Xen"
ELF_NOTE_PVH_ENTRY = 18
"""XEN_ELFNOTE_PHYS32_ENTRY in Xen's public/elfnote.h."""

WHOLE_KERNEL = "etc/boot/kernel"
"""The kernel's file as it is, since QEMU 10."""

Store = Callable[[int, bytes], None]
"""Puts bytes into guest RAM at a GPA."""


@dataclass
class Kernel:
    """What firmware is told of a kernel; addresses are GPAs, sizes bytes."""

    keys: dict[int, Buffer]
    """Contents by fixed key."""
    files: dict[str, Buffer]
    segments: list[tuple[int, bytes]] = field(default_factory=list)
    """What has to be in RAM before the guest runs."""
    entry: int | None = None
    """Where a PVH kernel starts, in 32-bit protected mode."""

    def add_to(self, fw_cfg: FwCfg) -> None:
        """Register the items.

        Raises:
            ConfigError: a key or name is taken.
        """
        for key, data in self.keys.items():
            fw_cfg.add_item(key, data)
        for name, data in self.files.items():
            fw_cfg.add_file(name, data)

    def store(self, write: Store) -> None:
        """Put the segments into guest RAM.

        Raises:
            ConfigError: one of them does not fit.
        """
        for gpa, data in self.segments:
            try:
                write(gpa, data)
            except ValueError as error:
                raise ConfigError(
                    f"-kernel: a segment of {len(data)} bytes at {gpa:#x} is not in RAM: {error}"
                ) from error


def load_kernel(file: InputFile, initrd: InputFile | None, command_line: bytes, low_memory: int) -> Kernel:
    """What ``-kernel``, ``-initrd`` and ``-append`` mean.

    Args:
        file: a bzImage, an ELF file with a PVH note, or a UEFI program.
        initrd: the initial RAM disk.
        command_line: what the kernel gets to read; a NUL is added.
        low_memory: bytes of RAM below the PCI hole.

    Raises:
        ConfigError: a file is too short, of no known kind, or does not fit below the PCI hole.
    """
    path, image = file
    disk = initrd.data if initrd is not None else None
    words = command_line + b"\0"
    if image[:4] == b"\x7fELF":
        kernel = _pvh(path, image, words, disk, low_memory)
    elif image[HEADER_MAGIC : HEADER_MAGIC + 4] == b"HdrS":
        kernel = _linux(path, image, words, disk, low_memory)
    elif image[:2] == b"MZ":
        kernel = _uefi_program(path, image, words, disk)
    else:
        raise ConfigError(f"-kernel {path}: neither a Linux bzImage, an ELF file with a PVH note nor a UEFI program")
    kernel.files[WHOLE_KERNEL] = image
    return kernel


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _part(data: Buffer, start: int, end: int | None = None) -> Buffer:
    """Part of a file, without a copy where it is mapped."""
    return memoryview(data)[start:end]


def _command_line(words: bytes) -> dict[int, Buffer]:
    return {Key.CMDLINE_SIZE: _u32(len(words)), Key.CMDLINE_DATA: words}


def _initrd(disk: Buffer, highest: int, low_memory: int) -> tuple[int, dict[int, Buffer]]:
    """Place the RAM disk as high as may be, at a page: its address and items."""
    limit = min(highest, low_memory - ACPI_RESERVE - 1)
    if len(disk) >= limit:
        raise ConfigError(
            f"-initrd: {len(disk)} bytes do not fit below {limit:#x}; more RAM (-m) or a smaller one would help"
        )
    address = (limit - len(disk)) & ~0xFFF
    return address, {
        Key.INITRD_ADDR: _u32(address),
        Key.INITRD_SIZE: _u32(len(disk)),
        Key.INITRD_DATA: disk,
    }


def _split(image: Buffer, setup: Buffer, real_address: int, load_address: int) -> dict[int, Buffer]:
    kernel = _part(image, len(setup))
    return {
        Key.KERNEL_ADDR: _u32(load_address),
        Key.KERNEL_SIZE: _u32(len(kernel)),
        Key.KERNEL_DATA: kernel,
        Key.SETUP_ADDR: _u32(real_address),
        Key.SETUP_SIZE: _u32(len(setup)),
        Key.SETUP_DATA: setup,
    }


def _linux(path: Path, image: Buffer, words: bytes, disk: Buffer | None, low_memory: int) -> Kernel:
    setup_size = ((image[SETUP_SECTS] or 4) + 1) * SECTOR
    if setup_size > len(image):
        raise ConfigError(f"-kernel {path}: {len(image)} bytes, less than its own setup area of {setup_size}")
    setup = bytearray(_part(image, 0, setup_size))
    (protocol,) = struct.unpack_from("<H", setup, PROTOCOL)
    recent = protocol >= 0x202 and setup[LOAD_FLAGS] & LOADED_HIGH
    real, command_line = (0x10000, 0x20000) if recent else (0x90000, 0x9A000 - ((len(words) + 15) & ~15))
    load = 0x100000 if protocol >= 0x200 and setup[LOAD_FLAGS] & LOADED_HIGH else 0x10000
    highest = _initrd_limit(setup, protocol)
    if protocol >= 0x202:
        struct.pack_into("<I", setup, COMMAND_LINE, command_line)
    else:
        struct.pack_into("<HH", setup, OLD_COMMAND_LINE_MAGIC, 0xA33F, command_line - real)
    if protocol >= 0x200:
        setup[LOADER_TYPE] = LOADER_QEMU
    if protocol >= 0x201:
        setup[LOAD_FLAGS] |= CAN_USE_HEAP
        struct.pack_into("<H", setup, HEAP_END, command_line - real - 0x200)
    keys = _command_line(words) | {Key.CMDLINE_ADDR: _u32(command_line)}
    if disk is not None:
        if protocol < 0x200:
            raise ConfigError(f"-initrd: the kernel {path} is too old for one (boot protocol {protocol:#x})")
        address, items = _initrd(disk, highest, low_memory)
        struct.pack_into("<II", setup, RAMDISK_IMAGE, address, len(disk))
        keys |= items
    return Kernel(keys | _split(image, bytes(setup), real, load), {})


def _initrd_limit(setup: bytearray, protocol: int) -> int:
    """The highest address that the kernel takes a RAM disk at."""
    if protocol >= 0x20C and struct.unpack_from("<H", setup, XLOAD_FLAGS)[0] & CAN_BE_LOADED_ABOVE_4G:
        return 0xFFFFFFFF
    if protocol >= 0x203:
        return int(struct.unpack_from("<I", setup, RAMDISK_MAX)[0])
    return 0x37FFFFFF


def _uefi_program(path: Path, image: Buffer, words: bytes, disk: Buffer | None) -> Kernel:
    """Split anywhere, patch nothing: only firmware that puts it together again can start it."""
    if len(image) <= SECTOR:
        raise ConfigError(f"-kernel {path}: {len(image)} bytes are no UEFI program")
    keys = _command_line(words) | _split(image, _part(image, 0, SECTOR), 0x10000, 0x100000)
    if disk is not None:
        keys |= {Key.INITRD_SIZE: _u32(len(disk)), Key.INITRD_DATA: disk}
    return Kernel(keys, {})


def _pvh(path: Path, image: Buffer, words: bytes, disk: Buffer | None, low_memory: int) -> Kernel:
    # Slow to load, and few machines have such a kernel.
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    try:
        elf = ELFFile(BytesIO(bytes(image)))
        loads = [segment for segment in elf.iter_segments("PT_LOAD") if segment["p_memsz"]]
        entries = [
            int.from_bytes(note["n_descdata"], "little")
            for segment in elf.iter_segments("PT_NOTE")
            if isinstance(segment, NoteSegment)
            for note in segment.iter_notes()
            if note["n_name"] == ELF_NOTE_NAME and str(note["n_type"]) == str(ELF_NOTE_PVH_ENTRY)
        ]
        segments = [(segment["p_paddr"], segment.data().ljust(segment["p_memsz"], b"\0")) for segment in loads]
    except (ELFError, ValueError, KeyError, struct.error) as error:
        raise ConfigError(f"-kernel {path}: a damaged ELF file: {error}") from error
    if not entries:
        raise ConfigError(f"-kernel {path}: an ELF file without a PVH note (Linux: CONFIG_PVH); a bzImage would do")
    if not segments:
        raise ConfigError(f"-kernel {path}: an ELF file that loads nothing")
    low = min(gpa for gpa, _ in segments)
    high = max(gpa + len(data) for gpa, data in segments)
    if high > low_memory:
        raise ConfigError(f"-kernel {path}: reaches up to {high:#x}, RAM to {low_memory:#x}; more (-m) would help")
    header = bytes(_part(image, 0, HEADER_BYTES)).ljust(HEADER_BYTES, b"\0")
    keys = _command_line(words) | {
        Key.KERNEL_ENTRY: _u32(entries[0] & 0xFFFFFFFF),
        Key.KERNEL_ADDR: _u32(low),
        Key.KERNEL_SIZE: _u32(high - low),
        Key.SETUP_SIZE: _u32(HEADER_BYTES),
        Key.SETUP_DATA: header,
    }
    if disk is not None:
        keys |= _initrd(disk, 0xFFFFFFFF, low_memory)[1]
    return Kernel(keys, {}, segments, entries[0])
