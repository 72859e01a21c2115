"""A fwctl device with values of every kind, and exchanges with it as lists of steps."""

from vmm.devices.fwctl import Fwctl
from vmm.devices.fwctl_format import VALUE_LIMIT

NULL, ECHO, GET, GET_LEN, SET = 1, 2, 3, 4, 5
OK, EPERM, ENOENT, E2BIG, EINVAL, EMSGSIZE = 0, 1, 2, 7, 22, 40
ONES = 0xFFFFFFFF


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4].ljust(4, b"\0"), "little") for at in range(0, len(data), 4)]


HW_NCPU = words(b"hw.ncpu\0")

# Steps of an exchange: (what, port's offset, values). "out2" and "out4" write, "in1", "in2" and "in4" read and compare.
Step = tuple[str, int, list[int]]


def out1(*values: int, at: int = 0) -> Step:
    return ("out1", at, list(values))


def out2(*values: int, at: int = 0) -> Step:
    return ("out2", at, list(values))


def out4(*values: int, at: int = 0) -> Step:
    return ("out4", at, list(values))


def in1(*values: int, at: int = 1) -> Step:
    return ("in1", at, list(values))


def in2(*values: int, at: int = 1) -> Step:
    return ("in2", at, list(values))


def in4(*values: int, at: int = 0) -> Step:
    return ("in4", at, list(values))


IDENTIFY = [out2(0), in1(*b"BHYV")]
ASK = out4(20, GET, 0xA5, *HW_NCPU)
TELL = in4(28, GET, 0xA5, OK, 4, 0, 3)


def refuse_no(value: bytes) -> None:
    if value == b"no":
        raise ValueError


def device(*, extensions: bool = False) -> Fwctl:
    fwctl = Fwctl(extensions=extensions)
    fwctl.register("hw.ncpu", 3)
    fwctl.register("text", "hello")
    fwctl.register("bytes", b"12345")
    fwctl.register("empty", b"")
    fwctl.register("big", 1 << 32)
    fwctl.register("minus", -1)
    fwctl.register("call", lambda: 77)
    fwctl.register("toomuch", lambda: bytes(VALUE_LIMIT + 1))
    fwctl.register("rw", b"", setter=refuse_no)
    return fwctl


def play(fwctl: Fwctl, steps: list[Step]) -> None:
    for number, (what, offset, values) in enumerate(steps):
        size = int(what[-1])
        for value in values:
            if what.startswith("out"):
                fwctl.write(offset, size, value)
            else:
                got = fwctl.read(offset, size)
                assert got == value, f"step {number}, {what} at +{offset}: {got:#x}, expected {value:#x}"
