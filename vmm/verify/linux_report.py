"""What the reporting Linux told: its stream of files, decoded into the report that the comparisons take.

``linux_init.sh`` writes the stream. The guest is not trusted: whatever it sends becomes a `GuestReport` or a
`ReportError`.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from typing import Final

from vmm.tables.e820 import E820Entry, E820Type
from vmm.verify import linux_cpus
from vmm.verify.guest_report import GuestReport, ItemRead, Kind, Located, ReportError

START: Final = b"\nVMM-LINUX 1\n"
_RECORD = re.compile(rb"FILE (\d{1,9}) ([^\n]{1,200})\n")
_ACPI = "/sys/firmware/acpi/tables/"
_DMI = "/sys/firmware/dmi/tables/"
_ITEM = "/sys/firmware/qemu_fw_cfg/by_key/"

_E820_TYPES = {"usable": 1, "reserved": 2, "ACPI data": 3, "ACPI NVS": 4, "unusable": 5, "persistent (type 7)": 7,
               "persistent (type 12)": 12, "soft reserved": 0xEFFFFFFF}  # fmt: skip
"""e820_print_type in arch/x86/kernel/e820.c of Linux."""

_E820_LINE = re.compile(r"(?:BIOS-e820|extended): \[mem (0x[0-9a-f]{1,16})-(0x[0-9a-f]{1,16})\] (.+)")
_EXTENDED = "extended: "
_MEMMAP_LINE = re.compile(r"^/sys/firmware/memmap/([0-9]{1,9})/(start|end|type):(.{1,100})$", re.MULTILINE)
_MEMMAP_TYPES = {"System RAM": 1, "Reserved": 2, "ACPI Tables": 3, "ACPI Non-volatile Storage": 4, "Unusable memory": 5,
                 "Persistent Memory": 7, "Persistent Memory (legacy)": 12, "Soft Reserved": 0xEFFFFFFF}  # fmt: skip
"""e820_type_to_string in arch/x86/kernel/e820.c of Linux."""
_TABLE_LINE = re.compile(r"ACPI: (\S+)\s+(0x[0-9A-Fa-f]{16}) ([0-9A-F]{6})")
_NUMBER = re.compile(r"[0-9]{1,9}")
_LINE = re.compile(r"<(\d{1,9})>\[ *\d+\.\d+\] (.*)")


def files_of(stream: bytes) -> dict[str, bytes]:
    """Split a stream into the files that it carries.

    Raises:
        ReportError: there is none, or it is cut short.
    """
    at = stream.find(START)
    if at < 0:
        raise ReportError("Linux sent no report")
    at += len(START)
    files: dict[str, bytes] = {}
    while (match := _RECORD.match(stream, at)) is not None:
        size, at = int(match[1]), match.end()
        name = match[2].decode("latin-1")
        if at + size >= len(stream) or stream[at + size] != 0x0A:
            raise ReportError(f"the report of Linux is cut short in {name!r}, {size} bytes")
        files[name] = stream[at : at + size]
        at += size + 1
    if not stream.startswith(b"END\n", at):
        raise ReportError(f"the report of Linux has no end: {bytes(stream[at : at + 40])!r} instead")
    return files


def decode(stream: bytes) -> GuestReport:
    """Decode what came over COM1, the kernel's log in front of it included.

    Raises:
        ReportError: there is no report, or it is cut short or malformed.
    """
    files = files_of(stream)
    report = GuestReport(kind=Kind.LINUX, complete=True)
    report.firmware_vendor = f"Linux {files.get('uname', b'').decode('latin-1').strip()}"
    lines = files.get("dmesg", b"").decode("utf-8", "replace").splitlines()
    # The number is facility << 3 | level; the facility of what user space writes into the log is not the kernel's 0.
    report.log = [(int(match[1]) & 7, match[2]) for line in lines if (match := _LINE.match(line)) is not None]
    messages = [message for _, message in report.log]
    # More entries than boot_params has room for come later, and then the whole map is printed once more.
    whole = [message for message in messages if message.startswith(_EXTENDED)]
    logged = [entry for message in whole or messages if (entry := _e820_entry(message)) is not None]
    kept = _memmap(files.get("memmap", b"").decode("ascii", "replace"), logged)
    report.e820 = kept if len(kept) > len(logged) else logged  # of thousands the log has lost the first ones
    _acpi(report, files, messages)
    _smbios(report, files)
    report.linux_cpus, report.linux_nodes = linux_cpus.decode(files)
    report.linux_blocks = linux_cpus.blocks(files)
    try:
        count = int(files.get("nproc", b""))
        report.items = _items(files)
    except ValueError as error:
        raise ReportError(f"the report of Linux is malformed: {error}") from None
    report.processors = count, count
    return report


def _e820_entry(message: str) -> E820Entry | None:
    match = _E820_LINE.fullmatch(message)
    if match is None:
        return None
    number = re.fullmatch(r"type ([0-9]{1,10})", match[3])
    kind = int(number[1]) if number else _E820_TYPES.get(match[3], 2)
    base = int(match[1], 16)
    return E820Entry(base, int(match[2], 16) + 1 - base, kind)


def _memmap(text: str, logged: list[E820Entry]) -> list[E820Entry]:
    """Return the map of /sys/firmware/memmap; a type that has no name there is looked up in what the log has."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for match in _MEMMAP_LINE.finditer(text):
        parts[match[1]][match[2]] = match[3]
    numbers = {entry.base: entry.type for entry in logged}
    entries = []
    for part in parts.values():
        with contextlib.suppress(LookupError, ValueError):
            base, last = int(part["start"], 16), int(part["end"], 16)
            kind = _MEMMAP_TYPES.get(part["type"]) or numbers.get(base, E820Type.RESERVED)
            entries.append(E820Entry(base, last + 1 - base, kind))
    return entries


def _acpi(report: GuestReport, files: dict[str, bytes], messages: list[str]) -> None:
    """Join the bytes, which sysfs has, with the addresses, which the log has; both are in the order of the tables."""
    addresses: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        if (match := _TABLE_LINE.match(message)) is not None:
            address = int(match[2], 16)
            if match[1] == "RSDP":
                report.rsdp = Located(address, b"")
            elif address not in addresses[match[1]]:
                addresses[match[1]].append(address)
    # sysfs: SSDT if it is the only one, else SSDT1, SSDT2, ...
    names = [name.removeprefix(_ACPI) for name in files if name.startswith(_ACPI) and "/" not in name[len(_ACPI) :]]
    for name in sorted(names, key=lambda name: (name[:4], int(name[4:]) if _NUMBER.fullmatch(name[4:]) else 0)):
        known = addresses[name[:4]]
        report.acpi.append(Located(known.pop(0) if known else 0, files[_ACPI + name]))


def _smbios(report: GuestReport, files: dict[str, bytes]) -> None:
    anchor, structures = files.get(_DMI + "smbios_entry_point"), files.get(_DMI + "DMI")
    if anchor is not None and structures is not None:
        report.smbios_entry_points.append(Located(0, anchor))
        report.smbios_tables.append(Located(0, structures))


def _items(files: dict[str, bytes]) -> list[ItemRead]:
    items = []
    for path, data in files.items():
        if path.startswith(_ITEM) and path.endswith("/raw"):
            key = path[len(_ITEM) : -len("/raw")]
            name = files.get(f"{_ITEM}{key}/name", b"").decode("latin-1").strip()
            size = int(files.get(f"{_ITEM}{key}/size", b""))
            items.append(ItemRead(int(key), name, data, size))
    return items
