from device_rig import Rig

from vmm import layout
from vmm.devices.pvpanic import CRASH_LOADED, EVENTS, PANICKED, Pvpanic

PORT = 0x505


class PanicRig(Rig):
    def __init__(self, events: int = EVENTS) -> None:
        super().__init__()
        self.device = Pvpanic(self.power, events)
        self.ports.add(layout.PORT_PVPANIC.start, layout.PORT_PVPANIC.stop - 1, self.device, "pvpanic")


def test_reads_tell_which_events_there_are() -> None:
    assert PanicRig().inb(PORT) == 3
    assert PanicRig(PANICKED).inb(PORT) == 1


def test_a_panic_is_told_and_a_crash_that_goes_on_is_counted() -> None:
    rig = PanicRig()
    rig.outb(PORT, CRASH_LOADED)
    rig.outb(PORT, 0)
    rig.outb(PORT, 0xFC)
    assert (rig.power.events, rig.device.crashes_loaded) == ([], 1)
    rig.outb(PORT, PANICKED | CRASH_LOADED)
    assert (rig.power.events, rig.device.crashes_loaded) == (["panic"], 1)


def test_it_goes_on_from_its_state() -> None:
    rig, other = PanicRig(), PanicRig()
    rig.outb(PORT, CRASH_LOADED)
    other.device.restore(rig.device.state())
    assert other.device.state() == {"crashes_loaded": 1}
    other.device.reset()
    assert other.device.crashes_loaded == 1
