"""Any sequence of accesses to fwctl, against a model that is written as a conversation instead of as states."""

import struct
from collections.abc import Generator

from fwctl_rig import ASK, GET, HW_NCPU, IDENTIFY, ONES, TELL, Step, device, in1, out2, out4, play
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.devices.fwctl import Fwctl, State
from vmm.devices.fwctl_format import VALUE_LIMIT

Access = tuple[bool, int, int, int]  # is_write, offset, size, value
Conversation = Generator[int | None, Access, None]


SELECT_0 = (True, 0, 2, 0)


class RestartError(Exception):
    """The guest wrote the selector 0."""


def model(values: dict[bytes, bytes]) -> Conversation:
    """Answer each access that is sent in; a read's answer is yielded, a write's is None."""
    access = yield None

    def step(answer: int | None) -> Generator[int | None, Access, None]:
        nonlocal access
        access = yield answer
        if access == SELECT_0:
            raise RestartError

    def ones() -> int | None:
        return None if access[0] else (1 << 8 * access[2]) - 1

    def is_in(size: int) -> bool:
        return not access[0] and access[1] <= 1 and access[2] == size

    def word() -> Generator[int | None, Access, int]:
        while not (access[0] and access[1] == 0 and access[2] == 4):
            yield from step(ones())
        value = access[3]
        yield from step(None)
        return value

    def tell(size: int, units: bytes) -> Generator[int | None, Access, None]:
        for at in range(0, len(units), size):
            while not is_in(size):
                yield from step(ones())
            yield from step(int.from_bytes(units[at : at + size], "little"))

    def exchange() -> Generator[int | None, Access, None]:
        size = yield from word()
        opcode = yield from word()
        txid = yield from word()
        data, error = b"", 0
        if size < 12:
            error = 22
        else:
            payload = b""
            rest = size - 12
            while rest > 0:
                payload += (yield from word()).to_bytes(4, "little")
                rest = 0 if rest < 8 else rest - 4
            if opcode not in {3, 4}:
                error = 2
            elif size - 12 > 80:
                error = 7
            else:
                name = payload.split(b"\0")[0] + (b"\0" if b"\0" in payload else b"")
                found = [value for oid, value in values.items() if (oid + b"\0").startswith(name)]
                if not found or (name == b"\0"):
                    error = 2
                else:
                    data = struct.pack("<Q", len(found[0])) + (found[0] if opcode == 3 else b"")
        yield from tell(4, struct.pack("<IIII", 16 + len(data), opcode, txid, error) + data)

    restarted = access == SELECT_0
    while True:
        try:
            if not restarted:
                while True:
                    yield from step(ones())
            yield from step(None)
            yield from tell(1, b"BHYV")
            while True:
                yield from exchange()
        except RestartError:
            restarted = True


VALUES = {b"hw.ncpu": b"\3\0\0\0", b"hw.n2": b"\1\2\3\4\5\6\7\0", b"empty": b""}

any_word: st.SearchStrategy[int] = st.one_of(
    st.integers(0, 8), st.integers(9, 30), st.sampled_from(HW_NCPU), st.sampled_from([92, 93, 96]), st.integers(0, ONES)
)
size_of_access = st.sampled_from([1, 2, 4])
one_access = st.one_of(
    st.tuples(st.booleans(), st.sampled_from([0, 0, 1, 2]), size_of_access, any_word),
    st.tuples(st.just(True), st.just(0), st.just(4), any_word),
)


def accesses(steps: list[Step]) -> list[Access]:
    return [(what.startswith("out"), at, int(what[-1]), value) for what, at, values in steps for value in values]


burst = st.one_of(
    st.tuples(one_access, st.sampled_from([1, 1, 1, 2, 3, 40])).map(lambda pair: [pair[0]] * pair[1]),
    st.just(accesses(IDENTIFY)),
    st.just(accesses([ASK])),
    st.just(accesses([TELL])),
    st.just(accesses([out4(92, GET, 1, *[0x41414141] * 20)])),
)


@given(st.lists(burst, max_size=60).map(lambda bursts: [access for part in bursts for access in part]))
@settings(max_examples=400)
def test_any_accesses_agree_with_the_model_and_stay_bounded(sequence: list[Access]) -> None:
    fwctl = Fwctl()
    for oid, value in VALUES.items():
        fwctl.register(oid.decode(), value)
    oracle = model(VALUES)
    next(oracle)
    for number, (is_write, offset, size, wide) in enumerate(sequence):
        cut = wide & ((1 << 8 * size) - 1)
        expected = oracle.send((is_write, offset, size, cut))
        if is_write:
            fwctl.write(offset, size, cut)
        else:
            assert fwctl.read(offset, size) == expected, number
        assert isinstance(fwctl.stage, State)
        assert len(fwctl._request.payload) <= 80
        assert len(fwctl._response) <= 16 + 8 + VALUE_LIMIT


@given(st.lists(burst, max_size=40).map(lambda bursts: [access for part in bursts for access in part]))
def test_with_extensions_any_accesses_stay_bounded_and_recoverable(sequence: list[Access]) -> None:
    fwctl = device(extensions=True)
    for is_write, offset, size, number in sequence:
        cut = number & ((1 << 8 * size) - 1)
        if is_write:
            fwctl.write(offset, size, cut)
        else:
            assert 0 <= fwctl.read(offset, size) < 1 << 8 * size
        assert len(fwctl._request.payload) <= 80 + 8 + VALUE_LIMIT
        assert len(fwctl._response) <= 16 + 8 + VALUE_LIMIT
    play(fwctl, [out2(0), in1(*b"BHYV"), ASK, TELL])
