"""fwctl on the wire: every row of its state machine, its framing and its errors, as bytes that a guest would see."""

import struct

import pytest
from fwctl_rig import (
    ASK,
    E2BIG,
    ECHO,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    EPERM,
    GET,
    GET_LEN,
    HW_NCPU,
    IDENTIFY,
    NULL,
    OK,
    ONES,
    SET,
    TELL,
    Step,
    device,
    in1,
    in2,
    in4,
    out1,
    out2,
    out4,
    play,
    words,
)
from hypothesis import given
from hypothesis import strategies as st
from vmm._native import ffi, lib

from vmm.bus import Bus, IoLock
from vmm.devices.fw_cfg import FwCfg
from vmm.devices.fwctl import LOG_LIMIT, Fwctl, State
from vmm.devices.fwctl_format import VALUE_LIMIT, Error, FwctlRequest, Operation, encode_value
from vmm.errors import ConfigError

STATE_ROWS = {
    "before any reset, byte reads give all-ones": [in1(0xFF, 0xFF), in4(ONES)],
    "before any reset, requests are ignored": [ASK, in4(ONES), *IDENTIFY, ASK, TELL],
    "ident: byte reads give the signature, then all-ones": [*IDENTIFY, in1(0xFF)],
    "ident: the signature comes from either port": [out2(0), in1(0x42, at=0), in1(0x48), in1(0x59, at=0), in1(0x56)],
    "ident: word reads give all-ones and do not advance": [out2(0), in1(0x42), in4(ONES), in1(*b"HYV")],
    "ident: words written are ignored": [out2(0), in1(*b"BH"), ASK, in1(*b"YV"), in4(ONES), ASK, TELL],
    "ident: a zero selector restarts the signature": [out2(0), in1(*b"BHY"), out2(0), in1(*b"BHYV"), ASK, TELL],
    "request: byte reads give all-ones": [*IDENTIFY, in1(0xFF), ASK, TELL],
    "request: byte reads do not disturb a half request": [
        *IDENTIFY, out4(20, GET), in1(0xFF), out4(0xA5, *HW_NCPU), TELL,
    ],
    "request: word reads give all-ones": [*IDENTIFY, in4(ONES), out4(20), in4(ONES), out4(GET, 0xA5, *HW_NCPU), TELL],
    "request: complete, then the response": [*IDENTIFY, ASK, TELL, in4(ONES)],
    "request: a zero selector discards a half request": [
        *IDENTIFY, out4(20, GET, 1), out2(0), in1(*b"BHYV"), ASK, TELL,
    ],
    "request: a half request is gone before the signature is read": [
        *IDENTIFY, out4(20), out2(0), ASK, in1(*b"BHYV"), ASK, TELL,
    ],
    "response: byte reads give all-ones": [*IDENTIFY, ASK, in1(0xFF), TELL],
    "response: words written are ignored": [*IDENTIFY, ASK, ASK, out4(0, 0, 0), TELL, in4(ONES)],
    "response: may be read from either port": [
        *IDENTIFY, ASK, in4(28, at=1), in4(GET, 0xA5), in4(OK, 4, 0, 3, at=1), in4(ONES),
    ],
    "response: a zero selector discards it": [
        *IDENTIFY, ASK, in4(28, GET), out2(0), in1(*b"BHYV"), in4(ONES), ASK, TELL,
    ],
    "response: stays until it is read": [
        *IDENTIFY, ASK, in4(28), in1(0xFF), out2(1), in2(0xFFFF), in4(GET, 0xA5, OK, 4, 0, 3),
    ],
    "two requests in a row, the first 16-bit write far behind": [*IDENTIFY, ASK, TELL, ASK, TELL],
    "a selector other than zero is ignored": [
        *IDENTIFY, out4(20), out2(1, 0x19, 0xFFFF), out4(GET, 0xA5, *HW_NCPU), TELL,
    ],
    "two-byte reads give 0xffff": [
        in2(0xFFFF), out2(0), in2(0xFFFF), in1(*b"BHYV"), in2(0xFFFF, at=0), ASK, in2(0xFFFF), TELL,
    ],
    "one-byte writes are ignored": [
        out1(0), in1(0xFF), *IDENTIFY, out4(20), out1(0, 12), out4(GET, 0xA5, *HW_NCPU), TELL,
    ],
    "writes to port 0x511 are ignored": [
        out2(0, at=1), in1(0xFF), *IDENTIFY, out4(20, GET, at=1), out2(0, at=1), ASK, TELL,
    ],
    "edk2 probes fw_cfg amid its fwctl conversation": [
        *IDENTIFY, out2(0), in1(*b"BHYV"), out2(1), in1(0xFF, 0xFF, 0xFF, 0xFF), ASK, TELL,
    ],
}  # fmt: skip

MESSAGE_ROWS = {
    "GET answers length and value": [out4(20, GET, 7, *HW_NCPU), in4(28, GET, 7, OK, 4, 0, 3)],
    "GET_LEN answers the length alone": [out4(20, GET_LEN, 7, *HW_NCPU), in4(24, GET_LEN, 7, OK, 4, 0)],
    "an unknown OID": [out4(24, GET, 9, *words(b"hw.nothing\0")), in4(16, GET, 9, ENOENT)],
    "txid and opcode are echoed whatever they are": [out4(12, 0xDEADBEEF, ONES), in4(16, 0xDEADBEEF, ONES, ENOENT)],
    "NULL": [out4(12, NULL, 1), in4(16, NULL, 1, ENOENT)],
    "ECHO swallows its payload": [out4(20, ECHO, 1, 2, 3), in4(16, ECHO, 1, ENOENT, ONES)],
    "SET": [out4(12, SET, 1), in4(16, SET, 1, ENOENT)],
    "opcode 0": [out4(16, 0, 1, 2), in4(16, 0, 1, ENOENT)],
    "80 bytes of OID are looked up": [out4(92, GET, 1, *HW_NCPU, *[0] * 18), in4(28, GET, 1, OK, 4, 0, 3)],
    "81 bytes are too big, and swallowed": [out4(93, GET, 1, *[1] * 20), in4(16, GET, 1, E2BIG, ONES)],
    "84 bytes are too big, and swallowed": [
        out4(96, GET_LEN, 1, *[1] * 20), in4(ONES), out4(1), in4(16, GET_LEN, 1, E2BIG),
    ],
    "6 bytes of payload are one word": [out4(18, GET, 1, HW_NCPU[0]), in4(28, GET, 1, OK, 4, 0, 3)],
    "7 bytes of payload are one word": [out4(19, GET, 1, HW_NCPU[0]), in4(28, GET, 1, OK, 4, 0, 3)],
    "1 byte of payload is one word": [out4(13, GET, 1, HW_NCPU[0]), in4(28, GET, 1, OK, 4, 0, 3)],
    "3 bytes of payload are one word": [out4(15, GET, 1, *words(b"hw\0x")), in4(16, GET, 1, ENOENT)],
    "an empty payload matches the first OID": [out4(12, GET, 1), in4(28, GET, 1, OK, 4, 0, 3)],
    "an empty name is not an empty payload": [out4(16, GET, 1, 0), in4(16, GET, 1, ENOENT)],
    "a prefix without NUL matches": [out4(16, GET, 1, *words(b"hw.n")), in4(28, GET, 1, OK, 4, 0, 3)],
    "a prefix with NUL does not": [out4(20, GET, 1, *words(b"hw.n\0")), in4(16, GET, 1, ENOENT)],
    "more than the OID does not match": [out4(24, GET, 1, *words(b"hw.ncpus\0")), in4(16, GET, 1, ENOENT)],
    "what follows the NUL does not matter": [out4(24, GET, 1, *HW_NCPU, 0x41414141), in4(28, GET, 1, OK, 4, 0, 3)],
    "a size of 0": [out4(0, GET, 1), in4(16, GET, 1, EINVAL)],
    "a size of 11": [out4(11, GET, 1), in4(16, GET, 1, EINVAL)],
    "text has a NUL and is padded": [
        out4(20, GET, 1, *words(b"text\0")), in4(32, GET, 1, OK, 8, 0, *words(b"hello\0")),
    ],
    "five bytes are eight": [out4(20, GET_LEN, 1, *words(b"bytes\0")), in4(24, GET_LEN, 1, OK, 8, 0)],
    "a value of nothing": [out4(20, GET, 1, *words(b"empty\0")), in4(24, GET, 1, OK, 0, 0)],
    "a 64-bit integer": [out4(16, GET, 1, *words(b"big\0")), in4(32, GET, 1, OK, 8, 0, 0, 1)],
    "a negative integer": [out4(20, GET, 1, *words(b"minus\0")), in4(28, GET, 1, OK, 4, 0, ONES)],
    "a callable": [out4(20, GET, 1, *words(b"call\0")), in4(28, GET, 1, OK, 4, 0, 77)],
    "a callable that returns too much": [out4(20, GET, 1, *words(b"toomuch\0")), in4(16, GET, 1, EMSGSIZE)],
}  # fmt: skip


def set_payload(oid: bytes, value: bytes, length: int | None = None) -> list[int]:
    size = len(value) if length is None else length
    return [*words(oid + b"\0"), *words(struct.pack("<Q", size)), *words(value)]


def message(opcode: int, payload: list[int]) -> Step:
    return out4(12 + 4 * len(payload), opcode, 1, *payload)


EXTENSION_ROWS = {
    "NULL succeeds": [out4(12, NULL, 1), in4(16, NULL, 1, OK)],
    "NULL takes a payload": [out4(20, NULL, 1, 2, 3), in4(16, NULL, 1, OK, ONES)],
    "ECHO of nothing": [out4(12, ECHO, 1), in4(16, ECHO, 1, OK, ONES)],
    "ECHO of two words": [out4(20, ECHO, 1, 2, ONES), in4(24, ECHO, 1, OK, 2, ONES, ONES)],
    "ECHO at its limit": [
        message(ECHO, [5] * (VALUE_LIMIT // 4)), in4(16 + VALUE_LIMIT, ECHO, 1, OK, *[5] * (VALUE_LIMIT // 4)),
    ],
    "ECHO above its limit": [message(ECHO, [5] * (VALUE_LIMIT // 4 + 1)), in4(16, ECHO, 1, E2BIG)],
    "SET stores": [
        message(SET, set_payload(b"rw", b"abcde")), in4(16, SET, 1, OK),
        message(GET, words(b"rw\0")), in4(32, GET, 1, OK, 8, 0, *words(b"abcde")),
    ],
    "SET of nothing": [message(SET, set_payload(b"rw", b"")), in4(16, SET, 1, OK)],
    "SET of what has no setter": [message(SET, set_payload(b"hw.ncpu", b"\1\0\0\0")), in4(16, SET, 1, EPERM)],
    "SET that the setter refuses": [message(SET, set_payload(b"rw", b"no")), in4(16, SET, 1, EINVAL)],
    "SET of an unknown OID": [message(SET, set_payload(b"rwx", b"abcd")), in4(16, SET, 1, ENOENT)],
    "SET of a prefix": [message(SET, set_payload(b"r", b"abcd")), in4(16, SET, 1, ENOENT)],
    "SET whose length is too long": [message(SET, set_payload(b"rw", b"abcd", 5)), in4(16, SET, 1, EMSGSIZE)],
    "SET whose length is too short": [message(SET, set_payload(b"rw", b"abcde", 3)), in4(16, SET, 1, EMSGSIZE)],
    "SET whose length is huge": [message(SET, set_payload(b"rw", b"abcd", (1 << 64) - 1)), in4(16, SET, 1, EMSGSIZE)],
    "SET without a length": [message(SET, words(b"rw\0")), in4(16, SET, 1, EMSGSIZE)],
    "SET without a NUL": [message(SET, words(b"rwrw")), in4(16, SET, 1, EMSGSIZE)],
    "SET of nothing at all": [out4(12, SET, 1), in4(16, SET, 1, EMSGSIZE)],
    "SET of more than a value may have": [
        message(SET, set_payload(b"rw", bytes(VALUE_LIMIT + 1))), in4(16, SET, 1, EMSGSIZE),
    ],
    "SET larger than any could be": [message(SET, [0x41] * 2000), in4(16, SET, 1, E2BIG)],
    "opcode 6": [out4(12, 6, 1), in4(16, 6, 1, ENOENT)],
}  # fmt: skip


@pytest.mark.parametrize("steps", STATE_ROWS.values(), ids=STATE_ROWS.keys())
def test_state_machine(steps: list[Step]) -> None:
    play(device(), steps)


@pytest.mark.parametrize("steps", MESSAGE_ROWS.values(), ids=MESSAGE_ROWS.keys())
def test_messages(steps: list[Step]) -> None:
    fwctl = device()
    play(fwctl, [*IDENTIFY, *steps])
    play(fwctl, [ASK, TELL] if fwctl.stage is State.REQUEST else [out2(0), in1(*b"BHYV"), ASK, TELL])


@pytest.mark.parametrize("steps", EXTENSION_ROWS.values(), ids=EXTENSION_ROWS.keys())
def test_extensions(steps: list[Step]) -> None:
    play(device(extensions=True), [*IDENTIFY, *steps, ASK, TELL])


def test_cve_2023_3494_a_reset_inside_a_response_leaves_nothing_behind() -> None:
    """FreeBSD-SA-23:07: the old request stayed "complete", and each further word landed behind the OID's 80 bytes."""
    fwctl = device()
    play(fwctl, [*IDENTIFY, out4(92, GET, 1, *[0x41414141] * 20), in4(16, GET, 1)])
    for _ in range(100):
        play(fwctl, [out2(0), in1(*b"BHYV"), out4(0x42424242)])
        assert not fwctl._request.payload
        assert fwctl._request.header == [0x42424242]
    play(fwctl, [out2(0), in1(*b"BHYV"), ASK, TELL])


def test_a_huge_request_is_swallowed_without_being_kept() -> None:
    fwctl = device(extensions=True)
    for opcode in (GET, GET_LEN, ECHO, SET, 99):
        play(fwctl, [*IDENTIFY, out4(ONES, opcode, 1)])
        for _ in range(3000):
            fwctl.write(0, 4, 0x41414141)
        assert fwctl.stage is State.REQUEST
        assert len(fwctl._request.payload) == 0
    play(fwctl, [out2(0), in1(*b"BHYV"), ASK, TELL])


def test_machine_reset_forgets_the_conversation_and_keeps_values() -> None:
    fwctl = device()
    play(fwctl, [*IDENTIFY, ASK, in4(28)])
    fwctl.reset()
    play(fwctl, [in4(ONES), in1(0xFF), ASK, in4(ONES), *IDENTIFY, ASK, TELL])


def test_log_names_what_was_asked_and_answered() -> None:
    seen: list[FwctlRequest] = []
    fwctl = device()
    fwctl.on_request = seen.append
    play(fwctl, [*IDENTIFY, ASK, TELL, out4(24, GET_LEN, 8, *words(b"no.such\xfe\0")), in4(16, GET_LEN, 8, ENOENT)])
    assert seen == list(fwctl.requests)
    assert [str(request) for request in seen] == ["GET hw.ncpu OK 03 00 00 00", "GET_LEN no.such\\xfe ENOENT"]
    assert seen[0] == FwctlRequest(GET, 0xA5, "hw.ncpu", Error.OK, "hw.ncpu", b"\3\0\0\0")
    assert fwctl.probes == 1


def test_log_is_bounded() -> None:
    fwctl = device()
    play(fwctl, [*IDENTIFY])
    for _ in range(LOG_LIMIT + 5):
        play(fwctl, [ASK, TELL])
    assert len(fwctl.requests) == LOG_LIMIT
    assert fwctl.request_count == LOG_LIMIT + 5


def test_a_failing_callable_raises_and_answers_eio() -> None:
    fwctl = Fwctl()
    fwctl.register("bad", lambda: 1 // 0)
    play(fwctl, [*IDENTIFY, out4(16, GET, 1)])
    with pytest.raises(ZeroDivisionError):
        fwctl.write(0, 4, words(b"bad\0")[0])
    play(fwctl, [in4(16, GET, 1, Error.EIO)])
    assert fwctl.requests[-1].error is Error.EIO


def test_registering_again_replaces_and_keeps_the_order() -> None:
    fwctl = device()
    fwctl.register("hw.ncpu", 9)
    assert fwctl.oids[0] == "hw.ncpu"
    play(fwctl, [*IDENTIFY, ASK, in4(28, GET, 0xA5, OK, 4, 0, 9)])
    fwctl.unregister("hw.ncpu")
    fwctl.unregister("hw.ncpu")
    play(fwctl, [ASK, in4(16, GET, 0xA5, ENOENT)])


@pytest.mark.parametrize("oid", ["", "a\0b", "ä", "a\n", "x" * 80])
def test_names_that_the_protocol_cannot_carry(oid: str) -> None:
    with pytest.raises(ConfigError, match="79 printable ASCII"):
        Fwctl().register(oid, 1)


def test_values_that_the_protocol_cannot_carry() -> None:
    with pytest.raises(ConfigError, match="64 bits"):
        Fwctl().register("a", 1 << 64)
    with pytest.raises(ConfigError, match="4097 bytes"):
        Fwctl().register("a", bytes(4097))
    with pytest.raises(TypeError, match="not float"):
        Fwctl().register("a", 1.5)  # type: ignore[arg-type]


@given(st.one_of(st.binary(max_size=64), st.text(max_size=16), st.integers(-(1 << 63), (1 << 64) - 1)))
def test_values_are_whole_words(value: bytes | str | int) -> None:
    data = encode_value(value)
    assert len(data) % 4 == 0
    if isinstance(value, int):
        assert int.from_bytes(data, "little", signed=value < 0) == value
    else:
        assert data.startswith(value if isinstance(value, bytes) else value.encode())


# ---------------------------------------------------------------------------------------------------------------------
# On the port bus, as KVM's exits arrive.


class PortBus:
    """A port bus without a virtual machine, and what a vCPU does to it."""

    def __init__(self) -> None:
        self.core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
        self.table = ffi.addressof(self.core, "ports")
        self.bus = Bus("port", self.table, IoLock(self.core))

    def access(self, port: int, size: int, data: bytes, *, write: bool) -> bytes:
        buffer = ffi.new("uint8_t[]", data)
        access = ffi.new("struct io_access *")
        access.address, access.size, access.count, access.is_write = port, size, len(data) // size, write
        access.data = buffer
        lib.io_table_access(self.table, access)
        assert self.bus.failure is None
        return bytes(ffi.buffer(buffer, len(data)))

    def outs(self, port: int, size: int, data: bytes) -> None:
        self.access(port, size, data, write=True)

    def ins(self, port: int, size: int, count: int) -> bytes:
        return self.access(port, size, bytes(size * count), write=False)


def test_string_instructions_are_as_many_single_ones() -> None:
    vcpu = PortBus()
    device().attach(vcpu.bus)
    vcpu.outs(0x510, 2, b"\0\0")
    assert vcpu.ins(0x511, 1, 6) == b"BHYV\xff\xff"
    request = struct.pack("<III8s", 20, GET, 0xA5, b"hw.ncpu\0")
    for port in (0x510, 0x511):
        vcpu.outs(0x510, 4, request)
        assert vcpu.ins(port, 4, 8) == struct.pack("<IIIIQII", 28, GET, 0xA5, 0, 4, 3, ONES)
    assert vcpu.ins(0x511, 2, 3) == b"\xff" * 6


def test_accesses_beside_the_two_ports() -> None:
    vcpu = PortBus()
    device().attach(vcpu.bus)
    vcpu.outs(0x510, 2, b"\0\0")
    assert vcpu.ins(0x512, 1, 4) == b"\xff" * 4
    assert vcpu.ins(0x513, 4, 1) == b"\xff" * 4
    vcpu.outs(0x512, 4, bytes(4))
    vcpu.outs(0x50F, 2, bytes(2))
    assert vcpu.ins(0x511, 1, 4) == b"BHYV"


@pytest.mark.parametrize("fwctl_first", [True, False])
def test_fwctl_and_fw_cfg_do_not_fit_into_one_machine(*, fwctl_first: bool) -> None:
    vcpu = PortBus()
    fw_cfg = FwCfg(vcpu.core)
    fw_cfg.publish()
    devices: list[Fwctl | FwCfg] = [device(), fw_cfg] if fwctl_first else [fw_cfg, device()]
    devices[0].attach(vcpu.bus)
    with pytest.raises(ConfigError, match=r"(?s)fwctl.*fw_cfg|fw_cfg.*fwctl"):
        devices[1].attach(vcpu.bus)


def test_operation_names() -> None:
    assert FwctlRequest(Operation.SET, 0, "a", Error.EPERM).operation_name == "SET"
    assert str(FwctlRequest(0x77, 0, "", Error.ENOENT)) == "0x77 ENOENT"
