import pytest
from device_rig import Rig

from vmm.devices.debugcon import DebugConsole
from vmm.devices.reset import I8042Reset, SystemControlA


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.ports.add(0x92, 0x92, SystemControlA(rig.power), "system control A")
    rig.ports.add(0x64, 0x64, I8042Reset(rig.power), "i8042 command")
    rig.ports.add(0x402, 0x402, DebugConsole(rig.printed.extend), "debugcon")
    return rig


def test_port_92_keeps_a20_and_resets_on_bit_0(rig: Rig) -> None:
    assert rig.inb(0x92) == 0x02
    rig.outb(0x92, 0xFC)
    assert rig.inb(0x92) == 0x00
    rig.outb(0x92, 0x02)
    assert rig.power.events == []
    rig.outb(0x92, 0x03)
    assert rig.power.events == ["reset: port 0x92 <- 0x03"]


def test_keyboard_controller_is_absent_but_for_its_reset_pulse(rig: Rig) -> None:
    assert rig.inb(0x64) == 0xFF
    rig.outb(0x64, 0xAA)
    assert rig.power.events == []
    rig.outb(0x64, 0xFE)
    assert rig.power.events == ["reset: port 0x64 <- 0xfe"]


def test_debugcon_answers_and_prints(rig: Rig) -> None:
    assert rig.inb(0x402) == 0xE9
    assert rig.ins(0x402, 1, 2) == b"\xe9\xe9"
    rig.outb(0x402, ord("A"))
    rig.outs(0x402, 1, b"BC")
    assert rig.printed == b"ABC"


def test_debugcon_under_a_wide_access_takes_its_byte(rig: Rig) -> None:
    rig.out(0x402, 2, 0x4241)
    rig.out(0x401, 2, 0x4443)
    assert rig.printed == b"AD"
    assert rig.inp(0x402, 2) == 0xFFE9
