"""The fw_cfg items themselves, read again by the report guest's own client, and what firmware wrote back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vmm.legible import counted
from vmm.tables.files import VMGENID_ADDRESS_FILE
from vmm.verify.result import Subject
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from vmm.verify.collect import Collected
    from vmm.verify.guest_report import GuestReport


def compare(collected: Collected, report: GuestReport) -> Subject:
    """Compare what the guest's own client read, and say whether firmware read it, too."""
    subject = Subject("fw_cfg items")
    found = {item.name: item for item in report.items if item.name}
    for name, data in sorted(collected.published.items()):
        firmware = collected.firmware_reads.get(name)
        read = ", read by firmware" if firmware is not None and firmware.selects else ", not read by firmware"
        read = "" if collected.config.direct else read
        if name not in found:
            length, why = counted(len(data), "byte"), "not in the directory that it read"
            subject.add(name, length, "-", Verdict.MISSING, reason=why, values=(data, None))
            continue
        now, size = found[name].data, found[name].size
        begin = len(now) if size is not None and len(now) < size == len(data) else len(data)
        same = now == data[:begin] or name in collected.writable
        at = next((i for i, (a, b) in enumerate(zip(data, now, strict=False)) if a != b), min(len(data), len(now)))
        difference = "" if begin == len(data) else f"the first {begin} bytes compared, Linux takes too long for more"
        subject.add(
            name,
            counted(len(data), "byte"),
            counted(len(now) if size is None else size, "byte") + read,
            Verdict.ARRIVED if same else Verdict.ALTERED,
            difference=difference if same else f"differs from byte {at:#x} on",
            reason="" if same else "the device gave something else than what was published",
            values=(data, now),
        )
    _add_written(subject, collected)
    return subject


def _add_written(subject: Subject, collected: Collected) -> None:
    """What firmware had to write back: the address of the VM generation id."""
    guid = collected.config.vmgenid
    if guid is None:
        return
    address, there = collected.vmgenid_address, collected.vmgenid_found
    arrived = there == guid
    subject.add(
        "VM generation id",
        str(UUID(bytes_le=guid)),
        "-" if address is None else f"at {address:#x}",
        Verdict.ARRIVED if arrived else Verdict.MISSING if address is None else Verdict.ALTERED,
        difference="" if arrived or there is None else f"the guest has {there.hex()} there",
        reason="" if arrived else f"firmware did not write {VMGENID_ADDRESS_FILE} (WRITE_POINTER)",
    )
