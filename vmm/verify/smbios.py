"""SMBIOS: every structure that was offered against those behind the entry point that the guest found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.tables.files import SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.tables.smbios_options import END_OF_TABLE, split_structures
from vmm.verify.result import Subject
from vmm.verify.values import Structure, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence
    from vmm.verify.guest_report import GuestReport

NAMES = {
    0: "BIOS", 1: "system", 2: "board", 3: "chassis", 4: "processor", 7: "cache", 8: "port connector", 9: "slot",
    11: "OEM strings", 16: "memory array", 17: "memory device", 19: "mapped addresses", 32: "boot information",
    38: "IPMI device", 41: "onboard device", 127: "end of table",
}  # fmt: skip
"""DSP0134, chapter 7."""

_Key = tuple[int, int]


class _EntryPoint(NamedTuple):
    """Bytes that an entry point has, and where in it the version is (DSP0134, 5.2)."""

    size: int
    version: int


_ENTRY_POINTS = {"_SM_": _EntryPoint(31, 6), "_SM3_": _EntryPoint(24, 7)}


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare structure by structure: type and handle name one."""
    subject = Subject("SMBIOS")
    offered = {_key(data): data for data in split_structures(collected.tables[SMBIOS_FILE])}
    found: dict[_Key, bytes] = {}
    for table in report.smbios_tables:
        found |= _structures(table.data)
    _entry_point(subject, collected, report, evidence)
    for key, data in offered.items():
        if key[0] == END_OF_TABLE:
            continue
        name = f"type {key[0]} {NAMES.get(key[0], '')}".rstrip()
        values = Structure(*key, data), Structure(*key, found[key]) if key in found else None
        if key not in found:
            reason = _why(collected, evidence)
            subject.add(name, _words(data), "-", Verdict.MISSING, reason=reason, values=values)
        elif found[key] == data:
            subject.add(name, _words(data), _words(found[key]), Verdict.ARRIVED, values=values)
        else:
            differs = "; ".join(f"{what} was {was}, is {now}" for what, was, now in differences(data, found[key]))
            reason = _why(collected, evidence, altered=True)
            subject.add(name, _words(data), _words(found[key]), Verdict.ALTERED, difference=differs, reason=reason,
                        values=values)  # fmt: skip
    for key, data in found.items():
        if key not in offered and key[0] != END_OF_TABLE:
            name = f"type {key[0]} {NAMES.get(key[0], '')}".rstrip()
            subject.add(name, "-", _words(data), Verdict.EXTRA, values=(None, Structure(*key, data)))
    return subject


def published_fault(published: dict[str, bytes]) -> str:
    """Say what makes both firmwares ignore the two files; nothing if there is nothing.

    Rules: OvmfPkg/SmbiosPlatformDxe (IsEntryPointStructureValid and GetSmbiosFromFwCfg), SeaBIOS
    src/fw/biostables.c (smbios_romfile_setup).
    """
    anchor, tables = published.get(SMBIOS_ANCHOR_FILE, b""), published.get(SMBIOS_FILE, b"")
    if anchor[:4] == b"_SM_" and len(anchor) == _ENTRY_POINTS["_SM_"].size:
        length = int.from_bytes(anchor[22:24], "little")
    elif anchor[:5] == b"_SM3_" and len(anchor) == _ENTRY_POINTS["_SM3_"].size:
        length = int.from_bytes(anchor[12:16], "little")
    else:
        return f"{SMBIOS_ANCHOR_FILE} is no entry point: {len(anchor)} bytes, {anchor[:5]!r}"
    if length != len(tables):
        return f"{SMBIOS_ANCHOR_FILE} says {length} bytes of structures, {SMBIOS_FILE} has {len(tables)}"
    try:
        for _ in split_structures(tables):
            pass
    except ValueError as error:
        return f"{SMBIOS_FILE}: {error}"
    return ""


def _why(collected: Collected, evidence: Evidence, *, altered: bool = False) -> str:
    fault = published_fault(collected.published)
    if fault and altered and not evidence.is_ovmf:
        fault += "; SeaBIOS builds its own"
    reason = evidence.never_read(SMBIOS_ANCHOR_FILE) or fault
    reason = reason or evidence.never_read(SMBIOS_FILE)
    if not reason and collected.published.get(SMBIOS_FILE) != collected.tables[SMBIOS_FILE]:
        reason = "it was published like that"
    return reason or ("overridden by firmware" if altered else f"dropped by {evidence.firmware}")


def _entry_point(subject: Subject, collected: Collected, report: GuestReport, evidence: Evidence) -> None:
    offered = "_SM_" if collected.tables[SMBIOS_ANCHOR_FILE].startswith(b"_SM_") else "_SM3_"
    for found in report.smbios_entry_points:
        data, place = found.data, f" at {found.address:#x}" if found.address else ""
        kind = next((kind for kind in _ENTRY_POINTS if data.startswith(kind.encode())), None)
        if kind is None or len(data) < _ENTRY_POINTS[kind].size:
            words = f"{len(data)} bytes{place}"
            subject.add("entry point", offered, words, Verdict.ALTERED, difference=f"no entry point: {data[:5]!r}")
            continue
        version = data[_ENTRY_POINTS[kind].version :]
        wrong = sum(data) & 0xFF
        subject.add(
            "entry point",
            offered,
            f"{kind} {version[0]}.{version[1]}{place}",
            Verdict.ALTERED if wrong else Verdict.ARRIVED,
            difference="its checksum is wrong" if wrong else "",
        )
    if not report.smbios_entry_points:
        subject.add("entry point", SMBIOS_ANCHOR_FILE, "-", Verdict.MISSING, reason=_why(collected, evidence))


def _structures(data: bytes) -> dict[_Key, bytes]:
    """Take structures until the end of the table, or until there is no whole one."""
    result: dict[_Key, bytes] = {}
    try:
        for structure in split_structures(data):
            result[_key(structure)] = structure
            if structure[0] == END_OF_TABLE:
                break
    except ValueError:
        pass
    return result


def _key(structure: bytes) -> _Key:
    return structure[0], int.from_bytes(structure[2:4], "little")


def _strings(structure: bytes) -> list[str]:
    return Structure(*_key(structure), structure).strings


def _words(structure: bytes) -> str:
    texts = ", ".join(_strings(structure))
    return f"{len(structure)} bytes" + (f": {texts[:60]}" if texts else "")


def differences(was: bytes, now: bytes) -> Iterator[tuple[str, str, str]]:
    """Name the bytes and strings in which two structures differ, and what each has there."""
    if was[1] != now[1]:
        yield "bytes of the formatted area", str(was[1]), str(now[1])
    for at in range(min(was[1], now[1])):
        if was[at] != now[at] and at != 1:
            yield f"byte {at:#x}", f"{was[at]:#04x}", f"{now[at]:#04x}"
    if _strings(was) != _strings(now):
        yield "strings", str(_strings(was)), str(_strings(now))
