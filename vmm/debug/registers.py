"""The values of a vCPU's registers, as a debugger reads and writes them."""

from typing import TYPE_CHECKING, Any

from vmm.cpu.registers import Registers
from vmm.debug.description import SEGMENTS, Register
from vmm.errors import KvmError

if TYPE_CHECKING:
    from vmm.kvm import Vcpu

_TABLES = ("gdt", "idt")
_SPECIAL = frozenset(
    {
        *("cr0", "cr2", "cr3", "cr4", "cr8", "efer"),
        *(f"{name}_base" for name in (*SEGMENTS, *_TABLES)),
        *(f"{name}_limit" for name in _TABLES),
    }
)

_AREA = {
    "fctrl": (0, 2),
    "fstat": (2, 2),
    "fop": (6, 2),
    "fioff": (8, 4),
    "fiseg": (12, 2),
    "fooff": (16, 4),
    "foseg": (20, 2),
    "mxcsr": (24, 4),
    **{f"st{number}": (32 + 16 * number, 10) for number in range(8)},
    **{f"xmm{number}": (160 + 16 * number, 16) for number in range(16)},
}
"""Offset and bytes in the XSAVE area (SDM volume 1, table 10-2)."""

_KVM_NAMES = {f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip", "flags")}

_TAGS = 4
"""Where the area has one bit for each x87 register that is not empty."""

_XSTATE_BV = 512
_X87_AND_SSE = 3


class State:
    """All registers of a vCPU that does not run.

    Args:
        vcpu: KVM's part.
        started: whether it has executed anything; if not, KVM must not be asked for more than its registers, or it
            would accept a SIPI that it is to see when it runs.

    Attributes:
        registers: as `vmm.cpu.registers` shows them.
    """

    def __init__(self, vcpu: "Vcpu", *, started: bool) -> None:
        self._vcpu = vcpu
        self._started = started
        self._load()

    def read(self, register: Register) -> bytes:
        """A register's value, little-endian, in the width of its description."""
        size = register.bits // 8
        return self._value(register.name).to_bytes(16, "little")[:size]

    def write(self, register: Register, data: bytes) -> None:
        """Give a register another value, at once.

        Raises:
            ValueError: it cannot have this value, or cannot be written.
        """
        if len(data) * 8 != register.bits:
            raise ValueError(f"{register.name} has {register.bits // 8} bytes, not {len(data)}")
        if data == self.read(register):
            return
        value = int.from_bytes(data, "little")
        try:
            self._store(register.name, value)
        except (KvmError, OverflowError) as error:
            raise ValueError(f"{register.name}: {error}") from error
        finally:
            self._load()
        if data != self.read(register):
            raise ValueError(f"{register.name} cannot become {value:#x} here")

    def _load(self) -> None:
        self.registers = Registers.of(self._vcpu, started=self._started)
        self._area = self._vcpu.get_xsave()

    def _value(self, name: str) -> int:
        values = self.registers.values
        if name in {"rip", "eip"}:
            return self.registers.linear_rip
        if name == "ftag":
            return self._tags()
        if name in _AREA:
            offset, size = _AREA[name]
            return int.from_bytes(self._area[offset : offset + size], "little")
        return values[_KVM_NAMES.get(name, name)]

    def _store(self, name: str, value: int) -> None:
        if name in _SPECIAL:
            table, _, field = name.partition("_")
            sregs = self._vcpu.get_sregs()
            if field:
                setattr(getattr(sregs, table), field, value)
            else:
                setattr(sregs, name, value)
            self._vcpu.set_sregs(sregs)
        elif name in SEGMENTS:
            self._store_selector(name, value)
        elif name in _AREA:
            offset, size = _AREA[name]
            self._area[offset : offset + size] = value.to_bytes(size, "little")
            self._area[_XSTATE_BV] |= _X87_AND_SSE
            self._vcpu.set_xsave(self._area)
        elif name == "ftag":
            self._area[_TAGS] = sum((value >> 2 * number & 3 != 3) << number for number in range(8))
            self._area[_XSTATE_BV] |= _X87_AND_SSE
            self._vcpu.set_xsave(self._area)
        else:
            regs = self._vcpu.get_regs()
            if name in {"rip", "eip"}:
                value -= self.registers.linear_rip - self.registers.values["rip"]
            setattr(regs, _KVM_NAMES.get(name, name), value)
            self._vcpu.set_regs(regs)

    def _store_selector(self, name: str, value: int) -> None:
        """In real mode the base follows; in protected mode only the guest can load a descriptor."""
        if self.registers.values["cr0"] & 1:
            raise ValueError(f"{name} cannot be written in protected mode: a selector alone makes no segment")
        sregs = self._vcpu.get_sregs()
        segment: Any = getattr(sregs, name)
        segment.selector, segment.base = value, value << 4
        self._vcpu.set_sregs(sregs)

    def _tags(self) -> int:
        """The x87 tag word as FNSTENV stores it: two bits a physical register (SDM volume 1, 8.1.7)."""
        top = self._area[3] >> 3 & 7
        word = 0
        for number in range(8):
            tag = 3
            if self._area[_TAGS] >> number & 1:
                at = 32 + 16 * (number - top & 7)
                significand = int.from_bytes(self._area[at : at + 8], "little")
                exponent = int.from_bytes(self._area[at + 8 : at + 10], "little") & 0x7FFF
                if exponent == 0 and significand == 0:
                    tag = 1
                else:
                    tag = 0 if 0 < exponent < 0x7FFF and significand >> 63 else 2
            word |= tag << 2 * number
        return word
