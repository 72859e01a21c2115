"""Boot order: fw_cfg's ``bootorder`` and CMOS against UEFI's BootOrder, or SeaBIOS's log; and what was booted of it."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from vmm.tables.boot_order import BOOT_ORDER_FILE, HALT, cmos_boot_bytes
from vmm.verify.guest_report import ROM_PATH, GuestReport, Kind
from vmm.verify.result import Subject
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence
    from vmm.verify.taken import Attempt

_HARDWARE_PATH, _ACPI_PATH = 1, 2
_FLOPPY_HID = 0x0604_41D0
"""PNP0604 as an EISA id."""


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare the order of boot devices: UEFI's BootOrder, or what SeaBIOS logs and CMOS holds."""
    subject = Subject("boot order")
    text = collected.published.get(BOOT_ORDER_FILE, b"").rstrip(b"\0").decode("ascii", "replace")
    offered = [line for line in text.split("\n") if line and line != ROM_PATH]
    if report.kind is Kind.UEFI:
        _compare_boot_variables(subject, offered, report, evidence, collected.attempts)
        return subject
    seen = re.findall(r"^(\d+): (\S+)", collected.log.partition("boot order:")[2], re.MULTILINE)
    logged = [path for _, path in seen if path != ROM_PATH]
    subject.whole = _devices(offered), _devices(logged)
    for place, path in enumerate(offered, 1):
        found = f"{logged.index(path) + 1}: {path}" if path in logged else "-"
        arrived = path in logged and logged.index(path) + 1 == place
        verdict = Verdict.ARRIVED if arrived else Verdict.ALTERED if path in logged else Verdict.MISSING
        reason = "" if arrived else evidence.never_read(BOOT_ORDER_FILE) or "SeaBIOS logged another order"
        subject.add(path, str(place), found, verdict, taken=_taken(path, collected.attempts), reason=reason)
    _others(subject, offered, collected.attempts)
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


def _compare_boot_variables(
    subject: Subject, offered: list[str], report: GuestReport, evidence: Evidence, attempts: Sequence[Attempt]
) -> None:
    data = report.variables.get("BootOrder", b"")
    numbers = [number for (number,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2])]
    options = [boot_option(report.variables.get(f"Boot{number:04X}", b"")) for number in numbers]
    names = ", ".join(name for name, _ in options)
    last, taken = -1, set()
    placed: list[tuple[int, str]] = []
    for place, path in enumerate((path for path in offered if path != HALT), 1):
        wanted = uefi_path(path)
        matches = (index for index, (_, nodes) in enumerate(options) if wanted and nodes[: len(wanted)] == wanted)
        at = next((index for index in matches if index not in taken), -1)
        taken.add(at)
        if at < 0:
            reason = evidence.never_read(BOOT_ORDER_FILE) or (
                "OVMF found nothing bootable there" if wanted else "OVMF knows only paths that begin with /pci@i0cf8"
            )
            subject.add(path, str(place), "-", Verdict.MISSING, taken=_taken(path, attempts), reason=reason)
            continue
        placed.append((at, path))
        arrived = at > last
        last = max(last, at)
        subject.add(
            path,
            str(place),
            f"{at + 1}: Boot{numbers[at]:04X} {options[at][0]}",
            Verdict.ARRIVED if arrived else Verdict.ALTERED,
            taken=_taken(path, attempts),
            reason="" if arrived else "overridden by firmware: BootOrder has another order",
        )
    subject.whole = _devices(offered), tuple(path for _, path in sorted(placed))
    _others(subject, offered, attempts)
    if not offered:
        subject.add("BootOrder", "nothing", names or "-", Verdict.EXTRA)
    else:
        subject.add("BootOrder", "", names, Verdict.EXTRA)


def _is_about(attempt: Attempt, path: str) -> bool:
    """Whether firmware tried the device of an OpenFirmware path."""
    nodes = tuple(node.lower() for node in uefi_path(path))
    return attempt.path == path or bool(nodes and attempt.uefi[: len(nodes)] == nodes)


def _taken(path: str, attempts: Sequence[Attempt]) -> str:
    if not attempts or path == HALT:
        return ""
    found = next((attempt for attempt in attempts if _is_about(attempt, path)), None)
    return "not tried" if found is None else found.why_not or "started"


def _others(subject: Subject, offered: list[str], attempts: Sequence[Attempt]) -> None:
    """Add what firmware tried that was not in the order."""
    for attempt in attempts:
        if not any(_is_about(attempt, path) for path in offered):
            subject.add(attempt.path, "nothing", "-", Verdict.EXTRA, taken=attempt.why_not or "started")


def _devices(paths: list[str]) -> tuple[str, ...]:
    """Leave out the last line that only tells firmware to stop."""
    return tuple(path for path in paths if path != HALT)


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
