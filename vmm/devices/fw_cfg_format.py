"""The names and limits of fw_cfg: its keys, its directory, and what an item may be.

Source: docs/specs/fw_cfg.rst in QEMU's tree; keys from
include/standard-headers/linux/qemu_fw_cfg.h there.
"""

import mmap
import struct

from vmm.errors import ConfigError

Buffer = bytes | bytearray | memoryview | mmap.mmap
"""What an item's contents may come in; used in place unless the item is writable."""

FILE_FIRST = 0x20
"""Key of the first file in the directory."""

ARCH_LOCAL = 0x8000
"""Bit 15 of a key: the architecture's own table."""

INDEX_MASK = 0x3FFF
"""Bits of a key that count: bit 14, once a write mode, means nothing."""

MAX_FILES = 0x4000 - FILE_FIRST
"""Keys left for files."""

NAME_BYTES = 56
"""A name's field in a directory entry; the last byte is NUL."""

DIRECTORY_ENTRY = struct.Struct(">IHH56s")
"""Size, key, reserved, name; big-endian (struct FWCfgFile in the specification)."""


CPU_COUNT_FILE = "opt/bhyve/hw.ncpu"
"""FreeBSD, usr.sbin/bhyve/bhyverun.c: the same as fwctl's OID. edk2, OvmfPkg/Bhyve/AcpiPlatformDxe, takes exactly 4
bytes, little-endian; where it is missing it assumes one CPU and does not turn to fwctl."""


class Key:
    """The fixed keys that a PC publishes. Not an enumeration: to make one of so many takes as long as three modules."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NOGRAPHIC = 0x04
    NB_CPUS = 0x05
    KERNEL_ADDR = 0x07
    KERNEL_SIZE = 0x08
    INITRD_ADDR = 0x0A
    INITRD_SIZE = 0x0B
    NUMA = 0x0D
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_ADDR = 0x13
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    SETUP_ADDR = 0x16
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIR = 0x19
    ACPI_TABLES = 0x8000
    SMBIOS_ENTRIES = 0x8001
    IRQ0_OVERRIDE = 0x8002
    E820_TABLE = 0x8003
    HPET = 0x8004


KEY_NAMES = {key: name.lower() for name, key in vars(Key).items() if name.isupper()}
"""What reports call the items with fixed keys."""


def check_name(name: str, what: str = "fw_cfg file ") -> None:
    """Refuse a file name that the directory cannot hold.

    Args:
        name: the name.
        what: stands before it in messages.

    Raises:
        ConfigError: empty, longer than 55 characters, or not printable ASCII.
    """
    if not name:
        raise ConfigError(f"{what}: a file needs a name, like opt/org.example/greeting")
    if len(name) >= NAME_BYTES:
        raise ConfigError(f"{what}{name}: {len(name)} characters; a name has {NAME_BYTES - 1} at the most")
    if not name.isascii() or not name.isprintable():
        raise ConfigError(f"{what}{name!r}: a name is printable ASCII")
