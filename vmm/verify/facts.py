"""The machine itself, at the end of a run: what tables' statements are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm import layout
from vmm.devices.hpet import BLOCK_ID
from vmm.platform import Standing

if TYPE_CHECKING:
    from vmm.machine import Machine

_MSR_APIC_BASE: Final = 0x1B
_APIC_BASE: Final = 0xFFFF_F000
_ADDRESS_SIZES: Final = 0x8000_0008
"""SDM volume 3, 11.4.4; volume 2, CPUID: EAX bits 0 to 7, physical address bits."""


class Facts(NamedTuple):
    """What is so.

    Attributes:
        standing: what the board's registers placed where.
        pm_timer_bits: width of the PM timer.
        ram: (first, last) of each range with RAM behind it, by address, neighbours joined.
        memory: likewise with RAM, ROM or flash behind it.
        apic_ids: of every processor.
        started: how many of them have executed anything.
        local_apic: where the local APICs are.
        io_apic: where the I/O APIC is.
        hpet_id: low half of the HPET's capability register.
        physical_bits: how many address bits the processors have; 0 if CPUID does not say.
    """

    standing: Standing = Standing()
    pm_timer_bits: int = 24
    ram: tuple[tuple[int, int], ...] = ()
    memory: tuple[tuple[int, int], ...] = ()
    apic_ids: tuple[int, ...] = ()
    started: int = 0
    local_apic: int = layout.LAPIC_BASE
    io_apic: int = layout.IOAPIC_BASE
    hpet_id: int = BLOCK_ID
    physical_bits: int = 0


def facts_of(machine: Machine) -> Facts:
    """Ask a machine that does not run now."""
    regions = machine.memory.regions()
    first = machine.vcpus[0]
    sizes = next((entry.eax for entry in first.get_cpuid2() if entry.function == _ADDRESS_SIZES), 0)
    with machine.io_lock:
        standing = machine.platform.standing()
    return Facts(
        standing=standing,
        pm_timer_bits=machine.platform.pm.model.timer_bits,
        ram=_joined([(region.gpa, region.gpa + region.size - 1) for region in regions if region.kind == "ram"]),
        memory=_joined([(region.gpa, region.gpa + region.size - 1) for region in regions]),
        apic_ids=tuple(machine.vcpus[index].vcpu_id for index in machine.present_cpus),
        started=sum(seconds is not None for seconds in machine.started_s()),
        local_apic=first.get_msrs([_MSR_APIC_BASE])[_MSR_APIC_BASE] & _APIC_BASE,
        physical_bits=sizes & 0xFF,
    )


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return tuple(joined)
