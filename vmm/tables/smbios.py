"""SMBIOS structures and their entry point, for ``etc/smbios/*``.

Layouts are those of DMTF DSP0134 (System Management BIOS Reference
Specification): version 2.8 with the 31-byte ``_SM_`` entry point, or 3.0 with
the 24-byte ``_SM3_`` one. Firmware places the structures, then fills in their
address and the checksums, which are shipped as 0 as QEMU does. It installs
nothing if the anchor's table length isn't the size of the other item.

Handles are QEMU's: type times 256, except 0x1000 and up for the memory types.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from vmm import late
from vmm.errors import ConfigError
from vmm.layout import HIGH_RAM_BASE
from vmm.tables.files import SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.tables.smbios_options import END_OF_TABLE, OEM_STRINGS, SmbiosOption
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final, Self

_OPTIONAL: Final = frozenset((0, 2))
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_DEVICE_SIZE = 16 * _GIB  # one memory device per 16 GiB, as QEMU
_MAX_V2_TABLE = 0xFFFF
_NO_HANDLE = 0xFFFF
_NO_ERROR_INFORMATION = 0xFFFE
_CHASSIS_HANDLE, _MEMORY_ARRAY_HANDLE = 0x300, 0x1000


class _Fields(dict[str, bytes | int]):
    """What the user says about structures of one type."""

    def text(self, name: str, default: str = "") -> bytes:
        value = self.get(name, default.encode())
        return value if isinstance(value, bytes) else b""

    def number(self, name: str, default: int = 0) -> int:
        value = self.get(name, default)
        return value if isinstance(value, int) else default


class SmbiosDescription(NamedTuple):
    """What SMBIOS says about a machine.

    Attributes:
        low_memory: bytes of RAM from 0.
        high_memory: the rest, in bytes.
        high_base: where that begins.
        cpus: processors present at boot.
        sockets: processor packages that may exist; those without a CPU at boot
            are described as unpopulated.
        cores: cores per package.
        threads: threads per core.
        processor_id: CPUID leaf 1, EAX in the low half and EDX in the high one.
        uuid: 16 bytes in textual order, as fw_cfg key 0x02; None for zeros.
        unasked: those of types 0 and 2 that are told without an option for them. As from QEMU, firmware that has no
            type 0 from us makes its own.
        uefi: whether the firmware is UEFI (type 0).
        version: (2, 8) or (3, 0).
        product: type 1 product name.
        options: the user's ``-smbios`` options in order.
    """

    low_memory: int
    high_memory: int = 0
    high_base: int = HIGH_RAM_BASE
    cpus: int = 1
    sockets: int = 1
    cores: int = 1
    threads: int = 1
    processor_id: int = 0
    uuid: bytes | None = None
    unasked: frozenset[int] = frozenset()
    uefi: bool = False
    version: tuple[int, int] = (2, 8)
    product: str = "Virtual Machine"
    options: tuple[SmbiosOption, ...] = ()

    def check(self) -> None:
        """Refuse what can't be described.

        Raises:
            ConfigError: a version that does not exist, a UUID of another size.
        """
        if self.version not in {(2, 8), (3, 0)}:
            raise ConfigError(f"SMBIOS version {self.version[0]}.{self.version[1]}: must be 2.8 or 3.0")
        if self.uuid is not None and len(self.uuid) != 16:
            raise ConfigError(f"SMBIOS: a UUID has 16 bytes, not {len(self.uuid)}")


class _Structure:
    """One structure under construction: a formatted area and its string set."""

    def __init__(self, kind: int, handle: int) -> None:
        self._kind = kind
        self._handle = handle
        self._body = b""
        self._strings: list[bytes] = []

    def put(self, layout: str, *values: int | bytes) -> Self:
        """Append packed little-endian fields."""
        self._body += struct.pack("<" + layout, *values)
        return self

    def text(self, *values: bytes) -> Self:
        """Append string fields: the string's number, or 0 for an empty one."""
        for value in values:
            self._body += bytes([len(self._strings) + 1 if value else 0])
            self.strings(value)
        return self

    def strings(self, *values: bytes) -> Self:
        """Append strings to which no field refers; an empty one is left out, as it would end the structure."""
        self._strings += [value for value in values if value]
        return self

    def encode(self) -> bytes:
        strings = b"".join(string + b"\0" for string in self._strings)
        header = struct.pack("<BBH", self._kind, 4 + len(self._body), self._handle)
        return header + self._body + (strings or b"\0") + b"\0"


def build_smbios(machine: SmbiosDescription) -> dict[str, bytes]:
    """Build the anchor and the structures as fw_cfg files.

    A user's structure from a file stands instead of ours of the same type;
    fields change ours. Type 127 comes last.

    The order is QEMU's: the user's structures, then ours by type.

    Raises:
        ConfigError: the description makes no sense, or is too long for a version 2.8 entry point.
    """
    machine.check()
    structures = [structure for option in machine.options for structure in option.structures]
    replaced = {structure[0] for structure in structures}
    for kind, builder in _BUILDERS.items():
        options = [option for option in machine.options if option.type == kind]
        if kind not in replaced and (kind not in _OPTIONAL or kind in machine.unasked or options):
            structures += builder(machine, options)
    structures.append(_Structure(END_OF_TABLE, 0x7F00).encode())
    tables = b"".join(structures)
    anchor = _anchor_v2(structures, tables) if machine.version[0] == 2 else _anchor_v3(tables)
    return {SMBIOS_ANCHOR_FILE: anchor, SMBIOS_FILE: tables}


def _anchor_v2(structures: list[bytes], tables: bytes) -> bytes:
    if len(tables) > _MAX_V2_TABLE:
        raise ConfigError(
            f"SMBIOS structures of {len(tables)} bytes: version 2.8 has room for {_MAX_V2_TABLE}; "
            "add -machine smbios-entry-point-type=64"
        )
    largest = max(len(structure) for structure in structures)
    intermediate = struct.pack("<5sBHIHB", b"_DMI_", 0, len(tables), 0, len(structures), 0x28)
    return struct.pack("<4sBBBBHB5x", b"_SM_", 0, 31, 2, 8, largest, 0) + intermediate


def _anchor_v3(tables: bytes) -> bytes:
    return struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, 0, len(tables), 0)


def _bios(machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    major, minor = divmod(user.number("release"), 256)
    characteristics_not_supported = 1 << 3
    virtual_machine, uefi, targeted_distribution = 1 << 4, 1 << 3, 1 << 2
    extension = virtual_machine | targeted_distribution
    extension |= uefi if user.number("uefi", machine.uefi) else 0
    bios = _Structure(0, 0).text(user.text("vendor", "vmm"), user.text("version", "1")).put("H", 0xE800)
    bios.text(user.text("date", "01/01/2026"))
    bios.put("BQBBBBBB", 0, characteristics_not_supported, 0, extension, major, minor, 0xFF, 0xFF)
    return [bios.encode()]


def _system(machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    uuid = user.text("uuid") or machine.uuid
    power_switch = 6
    system = _Structure(1, 0x100).text(
        user.text("manufacturer", "vmm"),
        user.text("product", machine.product),
        user.text("version"),
        user.text("serial"),
    )
    system.put("16sB", _guid(uuid) if uuid else bytes(16), power_switch).text(user.text("sku"), user.text("family"))
    return [system.encode()]


def _guid(uuid: bytes) -> bytes:
    """The bytes of a UUID with its first three fields little-endian (SMBIOS 7.2.1)."""
    late.load("uuid")
    from uuid import UUID

    return UUID(bytes=uuid).bytes_le


def _board(machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    hosting_board, motherboard = 1, 0x0A
    board = _Structure(2, 0x200).text(
        user.text("manufacturer", "vmm"),
        user.text("product", machine.product),
        user.text("version"),
        user.text("serial"),
        user.text("asset"),
    )
    board.put("B", hosting_board).text(user.text("location")).put("HBB", _CHASSIS_HANDLE, motherboard, 0)
    return [board.encode()]


def _chassis(_machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    other, safe, unknown = 1, 3, 2
    chassis = _Structure(3, _CHASSIS_HANDLE).text(user.text("manufacturer", "vmm")).put("B", other)
    chassis.text(user.text("version"), user.text("serial"), user.text("asset"))
    chassis.put("BBBBIBBBB", safe, safe, safe, unknown, 0, 0, 0, 0, 0).text(user.text("sku"))
    return [chassis.encode()]


def _processors(machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    """One structure per socket; counts above 255 need the words that version 3.0 adds."""
    per_socket = machine.cores * machine.threads
    central_processor, other = 3, 1
    characteristics = 1 << 2 | (machine.cores > 1) << 3 | (machine.threads > 1) << 4  # 64-bit, multi-core, threads
    populated_and_enabled = 0x41
    result = []
    for socket in range(machine.sockets):
        present = socket * per_socket < machine.cpus
        processor = _Structure(4, 0x400 + socket).text(user.text("sock_pfx", "CPU") + b"%2x" % socket)
        processor.put("BB", central_processor, other).text(user.text("manufacturer", "vmm"))
        processor.put("Q", user.number("processor-id") or machine.processor_id)
        processor.text(user.text("version")).put(
            "BHHHBBHHH",
            0,
            0,
            user.number("max-speed"),
            user.number("current-speed"),
            populated_and_enabled if present else 0,
            other,
            _NO_HANDLE,
            _NO_HANDLE,
            _NO_HANDLE,
        )
        processor.text(user.text("serial"), user.text("asset"), user.text("part"))
        cores, threads = machine.cores, per_socket
        processor.put("BBB", *(min(count, 0xFF) for count in (cores, cores, threads)))
        processor.put("HH", characteristics, other)
        if machine.version[0] >= 3:
            processor.put("HHH", cores, cores, threads)
        result.append(processor.encode())
    return result


def _memory_array(machine: SmbiosDescription, _user: _Fields) -> list[bytes]:
    size = machine.low_memory + machine.high_memory
    devices = len(_device_sizes(size))
    other, system_memory, multi_bit_ecc, use_extended = 1, 3, 6, 0x8000_0000
    in_kib = size // _KIB
    array = _Structure(16, _MEMORY_ARRAY_HANDLE).put("BBB", other, system_memory, multi_bit_ecc)
    array.put("IHH", min(in_kib, use_extended), _NO_ERROR_INFORMATION, devices)
    array.put("Q", size if in_kib >= use_extended else 0)
    return [array.encode()]


def _device_sizes(size: int) -> list[int]:
    """Cut RAM into memory devices of at most 16 GiB, in bytes."""
    return [min(_DEVICE_SIZE, size - start) for start in range(0, size, _DEVICE_SIZE)]


def _memory_devices(machine: SmbiosDescription, user: _Fields) -> list[bytes]:
    unknown_width, dimm, ram, other_detail = 0xFFFF, 9, 7, 2
    in_kib_flag, use_extended = 0x8000, 0x7FFF
    result = []
    for index, size in enumerate(_device_sizes(machine.low_memory + machine.high_memory)):
        short, extended = size // _MIB, 0
        if size % _MIB:
            short = in_kib_flag | min(size // _KIB, use_extended)
        elif short >= use_extended:
            short, extended = use_extended, size // _MIB
        device = _Structure(17, 0x1100 + index)
        device.put("HHHHHBB", _MEMORY_ARRAY_HANDLE, _NO_ERROR_INFORMATION, unknown_width, unknown_width, short, dimm, 0)
        device.text(user.text("loc_pfx", "DIMM") + b" %d" % index, user.text("bank"))
        device.put("BHH", ram, other_detail, user.number("speed"))
        device.text(*(user.text(name) for name in ("manufacturer", "serial", "asset", "part")))
        device.put("BIHHHH", 0, extended, user.number("speed"), 0, 0, 0)
        result.append(device.encode())
    return result


def _mapped_addresses(machine: SmbiosDescription, _user: _Fields) -> list[bytes]:
    """One structure for RAM below the PCI hole, one for the rest; ends are inclusive."""
    use_extended = 0xFFFF_FFFF
    ranges = [(0, machine.low_memory)]
    if machine.high_memory:
        ranges.append((machine.high_base, machine.high_base + machine.high_memory))
    result = []
    for index, (start, end) in enumerate(ranges):
        short = (start // _KIB, end // _KIB - 1)
        extended = (0, 0)
        if short[1] >= use_extended:
            short, extended = (use_extended, use_extended), (start, end - 1)
        mapped = _Structure(19, 0x1300 + index).put("IIHB", *short, _MEMORY_ARRAY_HANDLE, 1).put("QQ", *extended)
        result.append(mapped.encode())
    return result


def _boot_information(_machine: SmbiosDescription, _user: _Fields) -> list[bytes]:
    return [_Structure(32, 0x2000).put("6xB", 0).encode()]


def _port_connector(index: int, user: _Fields) -> bytes:
    port = _Structure(8, 0x800 + index).text(user.text("internal_reference")).put("B", 0)
    port.text(user.text("external_reference"))
    return port.put("BB", user.number("connector_type"), user.number("port_type")).encode()


def _oem_strings(_machine: SmbiosDescription, given: Sequence[SmbiosOption]) -> list[bytes]:
    """One structure, whatever number of options there is; an empty string counts, though it can't be there."""
    values = [value for option in given for _, value in option.fields if isinstance(value, bytes)]
    if not values:
        return []
    return [_Structure(OEM_STRINGS, 0xE00).put("B", len(values)).strings(*values).encode()]


def _onboard_device(index: int, user: _Fields) -> bytes:
    enabled, other, first = 0x80, 1, 1
    device = _Structure(41, 0x2900 + index).text(user.text("designation"))
    device.put("BBHBB", enabled | user.number("kind", other), user.number("instance", first), 0, 0, 0)
    return device.encode()


_Builder = Callable[[SmbiosDescription, Sequence[SmbiosOption]], list[bytes]]


def _whole(build: Callable[[SmbiosDescription, _Fields], list[bytes]]) -> _Builder:
    """Add the fields of all options up."""
    return lambda machine, given: build(machine, _Fields(field for option in given for field in option.fields))


def _each(build: Callable[[int, _Fields], bytes]) -> _Builder:
    """Make a structure of each option."""
    return lambda _machine, given: [build(index, _Fields(option.fields)) for index, option in enumerate(given)]


_BUILDERS: Mapping[int, _Builder] = {
    0: _whole(_bios),
    1: _whole(_system),
    2: _whole(_board),
    3: _whole(_chassis),
    4: _whole(_processors),
    8: _each(_port_connector),
    OEM_STRINGS: _oem_strings,
    16: _whole(_memory_array),
    17: _whole(_memory_devices),
    19: _whole(_mapped_addresses),
    32: _whole(_boot_information),
    41: _each(_onboard_device),
}
