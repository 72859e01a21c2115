"""The board without a guest: every place where bhyve's firmware looks."""

from pathlib import Path

import pytest
from device_rig import LOW_RAM, MIB, Rig

from vmm import layout
from vmm.firmware.images import FirmwareImages, FirmwareKind, VariableStore
from vmm.firmware.images import Layout as ImageLayout
from vmm.platform import bhyve
from vmm.platform.parts import Platform

KIB = 1 << 10
HPET = layout.HPET.start
RESET_VECTOR = b"reset vector"


class BoardRig(Rig):
    def __init__(self, ram: int = 96 * MIB) -> None:
        super().__init__(ram)
        self.platform = self._build()

    def _build(self) -> Platform:
        store = VariableStore(Path("VARS.fd"), b"\xff" * 128 * KIB)
        code = (b"\x90" * 128 * KIB)[: -len(RESET_VECTOR)] + RESET_VECTOR
        images = FirmwareImages(FirmwareKind.BHYVE, ImageLayout.FLASH, "CODE.fd", code, store)
        return bhyve.build(self.parts(images))

    def config(self, device: int, register: int) -> int:
        self.out(0xCF8, 4, 1 << 31 | device << 11 | register)
        return self.inp(0xCFC, 4)

    def cmos(self, register: int) -> int:
        self.outb(0x70, register)
        return self.inb(0x71)


@pytest.fixture
def rig() -> BoardRig:
    return BoardRig()


def test_pci_functions(rig: BoardRig) -> None:
    assert rig.config(0, 0) >> 16 == 0x1275
    assert rig.config(31, 0) == 0x7000_8086
    assert rig.config(31, 8) >> 8 == 0x060100
    assert rig.config(1, 0) == 0xFFFF_FFFF


def test_nothing_has_a_base_address_to_assign(rig: BoardRig) -> None:
    for device, _ in rig.platform.pci.functions():
        for register in range(0x10, 0x28, 4):
            assert rig.config(device, register) == 0
            rig.out(0xCFC, 4, 0xFFFF_FFFF)
            assert rig.config(device, register) == 0


def test_pm_timer_has_32_bits_at_0x408(rig: BoardRig) -> None:
    rig.platform.pm._timer.start_ns -= 10_000_000_000
    assert rig.inp(0x408, 4) > 1 << 24, "10 s at 3.58 MHz need more than 24 bits"


def test_pm1a_takes_s5_at_0x404(rig: BoardRig) -> None:
    rig.out(0x404, 2, 1 << 13 | 5 << 10)
    assert rig.power.events == ["off"]


def test_acpi_ports_are_there_after_a_reset_too(rig: BoardRig) -> None:
    rig.out(0x402, 2, 0x100)
    assert rig.inp(0x402, 2) == 0x100
    rig.platform.reset()
    assert rig.inp(0x402, 2) == 0
    rig.out(0x404, 2, 1 << 13 | 5 << 10)
    assert rig.power.events == ["off"]


def test_smi_command_switches_acpi(rig: BoardRig) -> None:
    rig.outb(0xB2, 0xA0)
    assert rig.inp(0x404, 2) & 1
    rig.outb(0xB2, 0xA1)
    assert not rig.inp(0x404, 2) & 1


@pytest.mark.parametrize(("port", "value"), [(0xCF9, 6), (0x64, 0xFE)])
def test_ways_to_reset(rig: BoardRig, port: int, value: int) -> None:
    rig.outb(port, value)
    assert len(rig.power.events) == 1
    assert rig.power.events[0].startswith("reset")


def test_cmos_tells_memory_sizes() -> None:
    rig = BoardRig(LOW_RAM + 3 * 64 * KIB)
    low = rig.cmos(0x34) | rig.cmos(0x35) << 8
    assert low == (LOW_RAM - 16 * MIB) // (64 * KIB)
    assert rig.cmos(0x5B) | rig.cmos(0x5C) << 8 | rig.cmos(0x5D) << 16 == 3


def test_rtc_says_valid_whatever_is_written(rig: BoardRig) -> None:
    rig.outb(0x70, 0x0D)
    rig.outb(0x71, 0)
    assert rig.cmos(0x0D) == 0x80


def test_hpet_interrupts_by_message(rig: BoardRig) -> None:
    assert rig.load(HPET, 8) >> 32 == 10_000_000
    rig.store(HPET + 0x110, 8, 0xFEE0_0000 << 32 | 0x40)
    rig.store(HPET + 0x100, 8, 1 << 14 | 1 << 2)
    rig.store(HPET + 0x108, 8, 1)
    rig.store(HPET + 0x10, 8, 1)
    for _ in range(1000):
        if rig.messages:
            break
        rig.platform.timers.run_due()
    assert rig.messages == [(0xFEE0_0000, 0x40)]
    rig.platform.close()


def test_segments_below_1_mib_are_ram(rig: BoardRig) -> None:
    for gpa in (0xC0000, 0xF1000, 0xFFFF0):
        rig.store(gpa, 4, 0x1234_5678)
        assert rig.load(gpa, 4) == 0x1234_5678


def test_flash_takes_probe_writes_and_the_code_is_not_written(rig: BoardRig) -> None:
    top = layout.FOUR_GIB
    store = top - 256 * KIB
    rig.store(store, 1, 0x50)
    rig.store(store, 1, 0x70)
    assert rig.load(store, 1) & 0x7F == 0
    rig.store(store, 1, 0xFF)
    assert rig.load(store, 1) == 0xFF
    rig.store(top - 4, 4, 0)
    assert rig.memory.read(top - len(RESET_VECTOR), len(RESET_VECTOR)) == RESET_VECTOR


def test_debug_port_is_not_in_the_pm1_block(rig: BoardRig) -> None:
    assert rig.inb(0xE9) == 0xE9
    rig.outb(0xE9, ord("x"))
    rig.outb(0x402, ord("y"))
    assert bytes(rig.printed) == b"x"
