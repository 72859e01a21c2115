"""Processors, boot order, and the fw_cfg items themselves."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from vmm.interface import VMGENID_ADDRESS_FILE
from vmm.tables.boot_order import BOOT_ORDER_FILE, HALT, cmos_boot_bytes
from vmm.verify.guest_report import GuestReport, Kind
from vmm.verify.result import Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence

_MADT_ENTRIES = 44
_LOCAL_APIC, _LOCAL_X2APIC = 0, 9
_ENABLED = 1
_HARDWARE_PATH, _ACPI_PATH = 1, 2
_FLOPPY_HID = 0x0604_41D0
"""PNP0604 as an EISA id."""


def compare_processors(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare the counts that the guest has from firmware and from the MADT."""
    subject = Subject("processors")
    cpus, most = collected.config.cpus, collected.config.max_cpus
    if report.processors is None:
        subject.add("MP Services", str(cpus), "-", Verdict.MISSING, reason=f"{evidence.firmware} has no such protocol")
    else:
        total, enabled = report.processors
        name = "MP Services, enabled" if report.kind is Kind.UEFI else "answered INIT and SIPI"
        reason = evidence.never_read("nb_cpus") or "not all of them answered in time"
        verdict = Verdict.ARRIVED if enabled == cpus and total == cpus else Verdict.ALTERED
        found = str(enabled) if total == enabled else f"{enabled} of {total}"
        subject.add(name, str(cpus), found, verdict, reason="" if verdict.ok else reason)
    madt = report.table("APIC")
    if madt is None:
        subject.add("MADT", f"{cpus} of {most}", "-", Verdict.MISSING, reason="the guest has no MADT; see ACPI tables")
        return subject
    flags = list(_madt_processors(madt))
    enabled = sum(flag & _ENABLED for flag in flags)
    verdict = Verdict.ARRIVED if (enabled, len(flags)) == (cpus, most) else Verdict.ALTERED
    subject.add("MADT, enabled of possible", f"{cpus} of {most}", f"{enabled} of {len(flags)}", verdict,
                reason="" if verdict.ok else "see ACPI tables")  # fmt: skip
    return subject


def _madt_processors(madt: bytes) -> Iterator[int]:
    """The flags of each processor entry (ACPI 6.5, 5.2.12)."""
    at = _MADT_ENTRIES
    while at + 2 <= len(madt) and madt[at + 1] >= 2:
        if madt[at] == _LOCAL_APIC:
            yield int.from_bytes(madt[at + 4 : at + 8], "little")
        elif madt[at] == _LOCAL_X2APIC:
            yield int.from_bytes(madt[at + 8 : at + 12], "little")
        at += madt[at + 1]


def compare_boot(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare the order of boot devices: UEFI's BootOrder, or what SeaBIOS logs and CMOS holds."""
    subject = Subject("boot order")
    text = collected.published.get(BOOT_ORDER_FILE, b"").rstrip(b"\0").decode("ascii", "replace")
    offered = [line for line in text.split("\n") if line]
    if report.kind is Kind.UEFI:
        _compare_boot_variables(subject, offered, report, evidence)
        return subject
    seen = re.findall(r"^(\d+): (\S+)", collected.log.partition("boot order:")[2], re.MULTILINE)
    logged = [path for _, path in seen]
    for place, path in enumerate(offered, 1):
        found = f"{logged.index(path) + 1}: {path}" if path in logged else "-"
        arrived = path in logged and logged.index(path) + 1 == place
        verdict = Verdict.ARRIVED if arrived else Verdict.ALTERED if path in logged else Verdict.MISSING
        reason = "" if arrived else evidence.never_read(BOOT_ORDER_FILE) or "SeaBIOS logged another order"
        subject.add(path, str(place), found, verdict, reason=reason)
    wanted = cmos_boot_bytes(collected.config.boot.once or collected.config.boot.order)
    there = {index: report.cmos[index] for index in wanted if index < len(report.cmos)}
    shown = ["0x{:02x}={:02x}".format(*pair) for pair in wanted.items()]
    subject.add(
        "CMOS boot devices",
        " ".join(shown),
        " ".join("0x{:02x}={:02x}".format(*pair) for pair in there.items()) or "-",
        Verdict.ARRIVED if wanted == there else Verdict.ALTERED,
        reason="" if wanted == there else "the guest or its firmware wrote CMOS",
    )
    return subject


def _compare_boot_variables(subject: Subject, offered: list[str], report: GuestReport, evidence: Evidence) -> None:
    data = report.variables.get("BootOrder", b"")
    numbers = [number for (number,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2])]
    options = [boot_option(report.variables.get(f"Boot{number:04X}", b"")) for number in numbers]
    names = ", ".join(name for name, _ in options)
    last, taken = -1, set()
    for place, path in enumerate((path for path in offered if path != HALT), 1):
        wanted = uefi_path(path)
        matches = (index for index, (_, nodes) in enumerate(options) if wanted and nodes[: len(wanted)] == wanted)
        at = next((index for index in matches if index not in taken), -1)
        taken.add(at)
        if at < 0:
            reason = evidence.never_read(BOOT_ORDER_FILE) or (
                "OVMF found nothing bootable there" if wanted else "OVMF knows only paths that begin with /pci@i0cf8"
            )
            subject.add(path, str(place), "-", Verdict.MISSING, reason=reason)
            continue
        arrived = at > last
        last = max(last, at)
        subject.add(
            path,
            str(place),
            f"{at + 1}: Boot{numbers[at]:04X} {options[at][0]}",
            Verdict.ARRIVED if arrived else Verdict.ALTERED,
            reason="" if arrived else "overridden by firmware: BootOrder has another order",
        )
    if not offered:
        subject.add("BootOrder", "nothing", names or "-", Verdict.EXTRA)
    else:
        subject.add("BootOrder", "", names, Verdict.EXTRA)


def boot_option(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return an EFI_LOAD_OPTION's description, and its device path from a PCI root on, as UEFI's texts.

    Layout: UEFI 2.10, 3.1.3, 10.3.2 and 10.3.3. A path that does not begin at a PCI root gives no texts; it ends at the
    first node that is neither a PCI function nor a floppy.
    """
    end = 6
    while end + 2 <= len(data) and data[end : end + 2] != b"\0\0":
        end += 2
    name = data[6:end].decode("utf-16-le", "replace")
    nodes: list[str] = []
    at, root = end + 2, False
    while at + 4 <= len(data):
        kind, subtype, length = struct.unpack_from("<BBH", data, at)
        body = data[at + 4 : at + length]
        if (kind, subtype, len(body)) == (_ACPI_PATH, 1, 8):
            hid, uid = struct.unpack("<II", body)
            if hid == _FLOPPY_HID and root:
                nodes.append(f"Floppy({uid:#x})")
            root = True
        elif (kind, subtype, len(body)) == (_HARDWARE_PATH, 1, 2) and root:
            nodes.append(f"Pci({body[1]:#x},{body[0]:#x})")
        else:
            break
        at += length
    return name, tuple(nodes)


def uefi_path(path: str) -> tuple[str, ...]:
    """Return the begin of the UEFI device path that OVMF makes of an OpenFirmware path; nothing if it makes none.

    Rules: edk2, OvmfPkg/Library/QemuBootOrderLib, TranslatePciOfwNodes; of what lies behind the PCI function, only a
    floppy's number is translated here.
    """
    first, *rest = path.strip("/").split("/")
    match = re.fullmatch(r"[^@]+@([0-9a-f]+)(?:,([0-9a-f]+))?", rest[0]) if rest else None
    if first != "pci@i0cf8" or match is None:
        return ()
    nodes = [f"Pci(0x{match[1]},0x{match[2] or '0'})"]
    floppy = re.fullmatch(r"floppy@([0-9a-f]+)", rest[-1])
    if floppy is not None:
        nodes.append(f"Floppy(0x{floppy[1]})")
    return tuple(nodes)


def compare_items(collected: Collected, report: GuestReport) -> Subject:
    """Compare what the guest's own client read, and say whether firmware read it, too."""
    subject = Subject("fw_cfg items")
    found = {item.name: item.data for item in report.items if item.name}
    for name, data in sorted(collected.published.items()):
        firmware = collected.firmware_reads.get(name)
        read = "read by firmware" if firmware is not None and firmware.selects else "not read by firmware"
        if name not in found:
            subject.add(name, f"{len(data)} bytes", "-", Verdict.MISSING, reason="not in the directory that it read")
            continue
        now = found[name]
        same = now == data or name in collected.writable
        at = next((i for i, (a, b) in enumerate(zip(data, now, strict=False)) if a != b), min(len(data), len(now)))
        subject.add(
            name,
            f"{len(data)} bytes",
            f"{len(now)} bytes, {read}",
            Verdict.ARRIVED if same else Verdict.ALTERED,
            difference="" if same else f"differs from byte {at:#x} on",
            reason="" if same else "the device gave something else than what was published",
        )
    _add_written(subject, collected)
    return subject


def _add_written(subject: Subject, collected: Collected) -> None:
    """What firmware had to write back: the address of the VM generation id."""
    guid = collected.config.vmgenid
    if guid is None:
        return
    address, there = collected.vmgenid_address, collected.vmgenid_found
    arrived = there == guid.bytes_le
    subject.add(
        "VM generation id",
        str(guid),
        "-" if address is None else f"at {address:#x}",
        Verdict.ARRIVED if arrived else Verdict.MISSING if address is None else Verdict.ALTERED,
        difference="" if arrived or there is None else f"the guest has {there.hex()} there",
        reason="" if arrived else f"firmware did not write {VMGENID_ADDRESS_FILE} (WRITE_POINTER)",
    )
