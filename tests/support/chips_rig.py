"""Our chips alone: a machine without KVM, memory and guest, whose time stands until it is told to go on."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from vmm._native import ffi, lib

from vmm.cpu.reset import reset_vcpu
from vmm.softcpu.chips import ChipsSystem

LAPIC = 0xFEE00000
IOAPIC = 0xFEC00000
MS = 1_000_000
"""In nanoseconds."""

SPURIOUS_ON = 0x1FF


class ChipsRig:
    """CPUs after power-on; CPU 0 is the one that memory accesses come from.

    Args:
        cpus: how many there are.
        wide_ids: their APIC ids, of 32 bits, instead of 0, 1 and so on of 8.
    """

    def __init__(self, cpus: int = 1, wide_ids: Sequence[int] = ()) -> None:
        self.vm = ChipsSystem("a test").create_vm()
        self._clock = lib.chips_clock(self.vm._handle)
        self._clock.stands = True
        self._clock.offset_ns = 1_000_000_000
        self.vm.create_irqchip()
        self.vm.create_pit2()
        if wide_ids:
            self.vm.use_x2apic_ids()
        self.vcpus = [self.vm.create_vcpu(number) for number in wide_ids or range(cpus)]
        for vcpu in self.vcpus:
            reset_vcpu(vcpu)
        self._calls = lib.chips_calls

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.vm.close()

    def advance(self, ns: int) -> None:
        """Let time go on."""
        self._clock.offset_ns += ns

    def read(self, port: int, size: int = 1) -> int:
        """IN."""
        return int(getattr(self._calls, "in")(self.vm._handle, port, size))

    def write(self, port: int, value: int, size: int = 1) -> None:
        """OUT."""
        self._calls.out(self.vm._handle, port, size, value)

    def load(self, gpa: int, cpu: int = 0) -> int:
        """A load of four bytes."""
        return int(self._calls.load(self.vcpus[cpu]._handle, gpa, 4))

    def store(self, gpa: int, value: int, cpu: int = 0) -> None:
        """A store of four bytes."""
        self._calls.store(self.vcpus[cpu]._handle, gpa, 4, value)

    def read_msr(self, index: int, cpu: int = 0) -> int | None:
        """RDMSR; None is #GP."""
        value = ffi.new("uint64_t *")
        return int(value[0]) if self._calls.read_msr(self.vcpus[cpu]._handle, index, value) else None

    def write_msr(self, index: int, value: int, cpu: int = 0) -> bool:
        """WRMSR; False is #GP."""
        return bool(self._calls.write_msr(self.vcpus[cpu]._handle, index, value))

    def take(self, cpu: int = 0) -> int | None:
        """What the CPU, if it takes NMIs and interrupts, would serve now: a vector, None, or -1 for a reset."""
        handle = self.vcpus[cpu]._handle
        wanted = (True, True, True)
        event = self._calls.look(handle, wanted)
        if event == lib.CHIPS_RESET:
            return -1
        return None if event == lib.CHIPS_NOTHING else int(self._calls.acknowledge(handle, wanted))

    def is_started(self, cpu: int) -> bool:
        """Whether a CPU that waits for that alone has been reset."""
        return bool(self._calls.look(self.vcpus[cpu]._handle, {"reset": True}) == lib.CHIPS_RESET)


def start_pics(rig: ChipsRig) -> None:
    """As firmware does: vectors 0x20 and 0x28, nothing masked."""
    for port, vector, icw3 in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        for offset, value in ((0, 0x11), (1, vector), (1, icw3), (1, 1), (1, 0)):
            rig.write(port + offset, value)


def start_lapic(rig: ChipsRig, cpu: int = 0) -> None:
    rig.store(LAPIC + 0xF0, SPURIOUS_ON, cpu)


def end(rig: ChipsRig, cpu: int = 0) -> None:
    rig.store(LAPIC + 0xB0, 0, cpu)


def command(rig: ChipsRig, low: int, destination: int = 0, cpu: int = 0) -> None:
    rig.store(LAPIC + 0x310, destination << 24, cpu)
    rig.store(LAPIC + 0x300, low, cpu)


def route(rig: ChipsRig, pin: int, entry: int) -> None:
    for half in (1, 0):
        rig.store(IOAPIC, 0x10 + 2 * pin + half)
        rig.store(IOAPIC + 0x10, entry >> 32 * half & 0xFFFFFFFF)


def entry_of(rig: ChipsRig, pin: int) -> int:
    rig.store(IOAPIC, 0x10 + 2 * pin)
    return rig.load(IOAPIC + 0x10)


def program(rig: ChipsRig, channel: int, mode: int, count: int) -> None:
    rig.write(0x43, channel << 6 | 3 << 4 | mode << 1)
    rig.write(0x40 + channel, count & 0xFF)
    rig.write(0x40 + channel, count >> 8 & 0xFF)
