import pytest
from device_rig import ManualTimers, Rig

from vmm.devices.debugcon import BUFFER_SIZE, COLLECT_NS, DebugConsole

PORT = 0x402


class DebugRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.timers = ManualTimers(self.lock)
        self.pieces: list[bytes] = []
        self.console = DebugConsole(self.pieces.append, self.timers, self.lock)
        self.ports.add(PORT, PORT, self.console, "debugcon")

    def print(self, text: bytes) -> None:
        for byte in text:
            self.outb(PORT, byte)


@pytest.fixture
def rig() -> DebugRig:
    return DebugRig()


def test_it_answers(rig: DebugRig) -> None:
    assert rig.inb(PORT) == 0xE9
    assert rig.ins(PORT, 1, 2) == b"\xe9\xe9"
    assert rig.inp(PORT, 2) == 0xFFE9
    assert rig.pieces == []


def test_bytes_are_collected_for_some_milliseconds(rig: DebugRig) -> None:
    rig.print(b"abc")
    rig.outs(PORT, 1, b"def")
    assert rig.pieces == [b"a"]
    rig.timers.advance(COLLECT_NS - 1)
    assert rig.pieces == [b"a"]
    rig.print(b"g")
    rig.timers.advance(1)
    assert rig.pieces == [b"a", b"bcdefg"]
    rig.print(b"h")
    rig.timers.advance(COLLECT_NS)
    assert rig.pieces[2:] == [b"h"]


def test_after_a_pause_a_byte_goes_out_at_once(rig: DebugRig) -> None:
    rig.print(b"ab")
    rig.timers.advance(2 * COLLECT_NS)
    rig.print(b"c")
    assert rig.pieces == [b"a", b"b", b"c"]
    rig.timers.advance(100 * COLLECT_NS)
    assert rig.pieces == [b"a", b"b", b"c"]
    rig.outs(PORT, 1, b"de")
    assert rig.pieces == [b"a", b"b", b"c", b"de"]


def test_nothing_is_lost_when_the_buffer_is_full(rig: DebugRig) -> None:
    text = bytes(i * 7 % 251 for i in range(2 * BUFFER_SIZE + 100))
    rig.outs(PORT, 1, text[:2])
    for at in range(2, len(text), 1000):
        rig.outs(PORT, 1, text[at : at + 1000])
    assert [len(piece) for piece in rig.pieces] == [2, BUFFER_SIZE, BUFFER_SIZE]
    rig.print(b"!")
    rig.console.flush()
    assert b"".join(rig.pieces) == text + b"!"
    rig.console.flush()
    assert len(rig.pieces) == 4


def test_a_wide_access_prints_its_first_byte(rig: DebugRig) -> None:
    for _ in range(2):
        rig.out(PORT, 2, 0x4241)
        rig.out(PORT - 1, 2, 0x4443)
        rig.outs(PORT, 4, b"E...F...")
    rig.console.flush()
    assert b"".join(rig.pieces) == b"ADEF" * 2


def test_a_sink_that_fails_fails_the_machine(rig: DebugRig) -> None:
    class FullError(Exception):
        pass

    def full(data: bytes) -> None:
        raise FullError(data)

    console = DebugConsole(full, rig.timers, rig.lock)
    rig.ports.add(0xE9, 0xE9, console, "full")
    rig.outb(0xE9, ord("a"))
    assert [repr(failure) for failure in rig.failures] == ["FullError(b'a')"]
    rig.outb(0xE9, ord("b"))
    with pytest.raises(FullError):
        console.flush()
