"""The C device, and the Python one of --dispatch, against the readable model: Hypothesis drives both alike."""

import struct

from fw_cfg_model import DESCRIPTOR, KEY_INVALID, FwCfgModel, ModelItem, ModelMemory, ModelRegion
from fw_cfg_rig import Rig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmm.devices.fw_cfg_python import PythonFwCfg

LOW = 0x3000
ROM, ROM_SIZE = LOW, 0x100
"""Directly behind the first RAM, so that transfers run from one into the other."""
HIGH, HIGH_SIZE = 0x4000, 0x1000
TOP, TOP_SIZE = (1 << 64) - 0x100, 0x100
"""The last bytes of the address space: transfers wrap from here to 0."""

EDGES = (0, LOW, ROM + ROM_SIZE, HIGH, HIGH + HIGH_SIZE, TOP, 1 << 64, 1 << 32)

FILES = {
    "etc/empty": (b"", False),
    "etc/writable": (bytes(range(40)), True),
    "opt/one": (b"1", False),
    "opt/text": (b"a text that is longer than most transfers: " * 3, False),
}

addresses = st.one_of(
    st.integers(0, HIGH + HIGH_SIZE),
    st.builds(lambda edge, near: (edge + near) % (1 << 64), st.sampled_from(EDGES), st.integers(-40, 40)),
)
lengths = st.one_of(st.integers(0, 50), st.integers(0, 5000), st.sampled_from([0x80000000, 0xFFFFFFFF]))
keys = st.one_of(
    st.sampled_from([0, 1, 2, 0x19, 0x20, 0x21, 0x22, 0x23, 0x24, 0x8000, 0x8002, 0x4021, 0xC002]),
    st.integers(0, 0xFFFF),
)


class Both(RuleBasedStateMachine):
    """Two devices, one guest."""

    in_python = False
    coalesced = False

    @initialize(dma=st.sampled_from([True, True, True, False]), seed=st.binary(min_size=8, max_size=8))
    def build(self, dma: bool, seed: bytes) -> None:
        self.events: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        self.rig = Rig(dma=dma, ram_size=LOW, coalesced=self.coalesced)
        self.parts = [
            (0, self.rig.ram, False),
            (ROM, self.rig.add_memory(ROM, ROM_SIZE, read_only=True), True),
            (HIGH, self.rig.add_memory(HIGH, HIGH_SIZE), False),
            (TOP, self.rig.add_memory(TOP, TOP_SIZE), False),
        ]
        for _, part, _ in self.parts:
            part[:] = (seed * (len(part) // len(seed) + 1))[: len(part)]
        device = self.rig.device
        device.add_item(0x02, bytes(range(16)))
        device.add_item(0x8002, b"\1\0\0\0")
        for name, (data, writable) in FILES.items():
            device.add_file(name, data, writable=writable, on_write=self._note(0) if writable else None)
        self.rig.start(in_python=self.in_python)
        items = {0: b"QEMU", 1: bytes([3 if dma else 1, 0, 0, 0]), 2: bytes(range(16)), 0x8002: b"\1\0\0\0"}
        items |= {device.key_of(name): data for name, (data, _) in FILES.items()}
        items[0x19] = self._directory()
        self.model = FwCfgModel(
            {key: ModelItem(bytearray(data)) for key, data in items.items()},
            ModelMemory([ModelRegion(gpa, bytearray(part), read_only) for gpa, part, read_only in self.parts]),
            dma,
        )
        item = self.model.items[device.key_of("etc/writable")]
        item.writable = True
        note = self._note(1)
        item.on_write = lambda offset, length: note(offset, bytes(length))
        self.model.__post_init__()

    def _note(self, side: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        def note(offset: int, data: bytes) -> None:
            self.events[side].append((offset, len(data)))

        return note

    def _directory(self) -> bytes:
        """From the specification: count, then size, key, reserved, name; big-endian."""
        entries = [
            struct.pack(">IHH56s", len(FILES[name][0]), 0x20 + at, 0, name.encode())
            for at, name in enumerate(sorted(FILES))
        ]
        return len(entries).to_bytes(4, "big") + b"".join(entries)

    @rule(key=keys)
    def select(self, key: int) -> None:
        self.rig.select(key)
        self.model.select(key)

    @rule(offset=st.integers(0, 11), size=st.sampled_from([1, 2, 4]), count=st.integers(1, 60))
    def port_in(self, offset: int, size: int, count: int) -> None:
        size = min(size, 12 - offset) if size != 4 or offset <= 8 else 1
        ours = self.rig.inp(0x510 + offset, size, count)
        assert ours == b"".join(self.model.read(offset, size) for _ in range(count))

    @rule(count=st.integers(1, 200))
    def read_data(self, count: int) -> None:
        assert self.rig.inp(0x511, 1, count) == b"".join(self.model.read(1, 1) for _ in range(count))

    @rule(offset=st.integers(0, 11), size=st.sampled_from([1, 2, 4]), data=st.binary(min_size=12, max_size=12))
    def port_out(self, offset: int, size: int, data: bytes) -> None:
        size = min(size, 12 - offset) if size != 4 or offset <= 8 else 1
        count = len(data) // size
        self.rig.outs(0x510 + offset, size, data[: count * size])
        for at in range(0, count * size, size):
            self.model.write(offset, data[at : at + size])

    @rule(
        at=addresses,
        operation=st.integers(0, 31),
        noise=st.sampled_from([0, 0, 0x8000, 0xFFE0]),
        key=keys,
        length=lengths,
        buffer=addresses,
    )
    def transfer(self, at: int, operation: int, noise: int, key: int, length: int, buffer: int) -> None:
        if operation & 2 and length > 5000:
            length %= 5000  # the model stores byte by byte
        descriptor = DESCRIPTOR.pack(key << 16 | noise | operation, length, buffer)
        for gpa, part, read_only in self.parts:
            if gpa <= at <= gpa + len(part) - 16 and not read_only:
                part[at - gpa : at - gpa + 16] = descriptor
                self.model.memory.write(at, descriptor)
        self._trigger(at)

    def _trigger(self, at: int) -> None:
        raw = self.model.memory.read(at, 16)
        if raw is not None and raw[3] & 2 and int.from_bytes(raw[4:8], "big") > 5000:
            return  # a stray descriptor whose length the model would take minutes for
        self.rig.trigger(at)
        self.model.write(4, struct.pack(">I", at >> 32))
        self.model.write(8, struct.pack(">I", at & 0xFFFFFFFF))

    def _state(self) -> tuple[int, int, int]:
        """Selected key, offset, latched DMA address."""
        native = self.rig.settled()
        return native.key, native.offset, native.dma_address

    @rule()
    def reset(self) -> None:
        self.rig.device.reset()
        self.model.reset()

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "model"):
            return
        state = self._state()
        # The devices tell a key in the midst of its table that holds nothing from one beyond it; no guest can.
        key = state[0] if state[0] in self.model.items else KEY_INVALID
        assert (key, *state[1:]) == (self.model.key, self.model.offset, self.model.dma_address)
        assert self.rig.device.contents("etc/writable") == bytes(self.model.items[0x21].data)
        for region, (_, part, _) in zip(self.model.memory.regions, self.parts, strict=True):
            assert region.data == part
        assert self.events[0] == self.events[1]
        assert not self.rig.failures


class BothInPython(Both):
    """The same for the device that --dispatch python shows."""

    in_python = True

    def _state(self) -> tuple[int, int, int]:
        device = self.rig.device._registers
        assert isinstance(device, PythonFwCfg)
        return device._key, device._offset, device._dma_address


class BothCoalesced(Both):
    """The same where writes wait in KVM's ring, many of them, until somebody looks."""

    coalesced = True

    def same_state(self) -> None:
        """Not after each step: to look ends the wait."""

    @rule()
    def look(self) -> None:
        super().same_state()


SETTINGS = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TestBoth = Both.TestCase
TestBoth.settings = SETTINGS
TestBothCoalesced = BothCoalesced.TestCase
TestBothCoalesced.settings = SETTINGS
TestBothInPython = BothInPython.TestCase
TestBothInPython.settings = settings(SETTINGS, max_examples=50)
