import pytest
from device_rig import Rig

from vmm.devices.serial import Serial

COM1 = 0x3F8
DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCRATCH = (COM1 + i for i in (0, 1, 2, 2, 3, 4, 5, 6, 7))
IRQ = 4
OUT2 = 0x08


class SerialRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.serial = Serial(lambda level: self.irq(IRQ, level), self.printed.extend, self.lock)
        self.ports.add(COM1, COM1 + 7, self.serial, "COM1")


@pytest.fixture
def rig() -> SerialRig:
    return SerialRig()


def test_power_on_registers(rig: SerialRig) -> None:
    assert [rig.inb(port) for port in (IER, IIR, LCR, MCR, LSR, MSR, SCRATCH)] == [0, 1, 0, 0, 0x60, 0xB0, 0]


def test_scratch_register_holds_what_is_written(rig: SerialRig) -> None:
    for value in (0xAA, 0x55):
        rig.outb(SCRATCH, value)
        assert rig.inb(SCRATCH) == value


def test_prints_bytes_and_strings(rig: SerialRig) -> None:
    rig.outb(DATA, ord("h"))
    rig.outs(DATA, 1, b"ello")
    assert rig.printed == b"hello"
    assert rig.inb(LSR) == 0x60


def test_divisor_latch_hides_data_and_prints_nothing(rig: SerialRig) -> None:
    rig.outb(LCR, 0x83)
    rig.outb(DATA, 1)
    rig.outb(IER, 2)
    rig.outs(DATA, 1, b"\x07")
    assert (rig.inb(DATA), rig.inb(IER)) == (7, 2)
    rig.outb(LCR, 0x03)
    assert rig.inb(IER) == 0
    assert rig.printed == b""


def test_ier_keeps_four_bits(rig: SerialRig) -> None:
    rig.outb(IER, 0xFF)
    assert rig.inb(IER) == 0x0F


def test_fifo_shows_in_iir_only_when_enabled(rig: SerialRig) -> None:
    assert rig.inb(IIR) == 0x01
    rig.outb(FCR, 0x01)
    assert rig.inb(IIR) == 0xC1


def test_typed_text_arrives_whole_without_fifo(rig: SerialRig) -> None:
    rig.serial.feed(b"typed faster than it is read")
    received = bytearray()
    while rig.inb(LSR) & 1:
        received.append(rig.inb(DATA))
    assert received == b"typed faster than it is read"
    assert rig.serial.unread == 0


def test_received_interrupt_lasts_until_everything_is_read(rig: SerialRig) -> None:
    rig.outb(FCR, 0x01)
    rig.outb(IER, 0x01)
    rig.outb(MCR, OUT2)
    rig.serial.feed(b"ab")
    assert rig.lines[IRQ]
    assert rig.inb(IIR) == 0xC4
    rig.inb(DATA)
    assert rig.lines[IRQ]
    rig.inb(DATA)
    assert not rig.lines[IRQ]
    assert rig.inb(IIR) == 0xC1


def test_below_the_trigger_level_the_timeout_is_the_cause(rig: SerialRig) -> None:
    rig.outb(FCR, 0x81)  # 8 characters
    rig.outb(IER, 0x01)
    rig.serial.feed(b"1234567")
    assert rig.inb(IIR) == 0xCC
    rig.serial.feed(b"8")
    assert rig.inb(IIR) == 0xC4


def test_transmitter_interrupt_on_enable_then_cleared_by_iir_then_again_by_each_character(rig: SerialRig) -> None:
    rig.outb(MCR, OUT2)
    rig.outb(IER, 0x02)
    assert rig.lines[IRQ]
    assert rig.inb(IIR) == 0x02
    assert rig.inb(IIR) == 0x01
    assert not rig.lines[IRQ]
    rig.outb(DATA, ord("x"))
    assert rig.lines[IRQ]
    rig.outb(DATA, ord("y"))
    assert rig.edges[-2:] == [(IRQ, False), (IRQ, True)], "an edge-triggered controller must see each one"


def test_linux_probe_for_transmitters_that_do_not_reassert(rig: SerialRig) -> None:
    # drivers/tty/serial/8250/8250_port.c, serial8250_do_startup: both reads must report the interrupt.
    for _ in range(2):
        rig.outb(IER, 0)
        rig.outb(IER, 0x02)
        assert rig.inb(IIR) == 0x02


def test_out2_gates_the_line(rig: SerialRig) -> None:
    rig.outb(IER, 0x02)
    assert not rig.lines.get(IRQ)
    rig.outb(MCR, OUT2)
    assert rig.lines[IRQ]
    rig.outb(MCR, 0)
    assert not rig.lines[IRQ]


def test_loopback_returns_data_and_modem_lines(rig: SerialRig) -> None:
    rig.outb(MCR, 0x1A)
    assert rig.inb(MSR) & 0xF0 == 0x90, "the value that Linux's loopback test looks for"
    rig.outb(DATA, 0xAE)
    assert rig.inb(LSR) & 1
    assert rig.inb(DATA) == 0xAE
    assert rig.printed == b""


def test_typed_text_waits_while_in_loopback(rig: SerialRig) -> None:
    rig.outb(MCR, 0x10)
    rig.serial.feed(b"q")
    assert not rig.inb(LSR) & 1
    rig.outb(MCR, 0)
    assert rig.inb(DATA) == ord("q")


def test_modem_changes_are_reported_once_and_interrupt(rig: SerialRig) -> None:
    rig.outb(IER, 0x08)
    rig.outb(MCR, 0x10)
    assert rig.inb(IIR) == 0x00
    assert rig.inb(MSR) == 0x0B, "CTS, DSR and DCD went away"
    assert rig.inb(IIR) == 0x01
    assert rig.inb(MSR) == 0x00


def test_fifo_reset_drops_only_what_is_in_the_fifo(rig: SerialRig) -> None:
    rig.outb(FCR, 0x01)
    rig.serial.feed(bytes(range(40)))
    rig.outb(FCR, 0x03)
    assert rig.inb(DATA) == 16


def test_wide_accesses_cover_neighbouring_registers(rig: SerialRig) -> None:
    rig.out(LCR, 2, 0x0803)
    assert rig.inp(LCR, 4) == 0xB060_0803


def test_reset_keeps_what_is_typed_but_not_the_settings(rig: SerialRig) -> None:
    rig.outb(SCRATCH, 9)
    rig.outb(MCR, OUT2)
    rig.outb(IER, 2)
    rig.serial.feed(b"abc")
    rig.serial.reset()
    assert not rig.lines[IRQ]
    assert (rig.inb(SCRATCH), rig.inb(IER)) == (0, 0)
    assert rig.inb(LSR) == 0x61
