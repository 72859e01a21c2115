import pytest
from device_rig import Rig

from vmm.devices.reset import I8042Reset, SystemControlA


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.ports.add(0x92, 0x92, SystemControlA(rig.power), "system control A")
    rig.ports.add(0x64, 0x64, I8042Reset(rig.power), "i8042 command")
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
