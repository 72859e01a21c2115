"""The registers of a vCPU, to be looked at and printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.kvm.structs import MpState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.kvm import Vcpu

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class Registers:
    """The registers of a vCPU that does not run now.

    Attributes:
        values: by name: ``rax`` … ``r15``, ``rip``, ``rflags``, ``cr0`` …, ``efer``, ``apic_base``, ``dr6``, ``dr7``,
            for each segment ``cs`` (selector), ``cs_base``, ``cs_limit``, ``cs_attributes`` (as in a descriptor's
            bytes 5 and 6: type, S, DPL, P, AVL, L, D/B, G); ``gdt_base``, ``gdt_limit``, ``idt_base``, ``idt_limit``.
        mp_state: RUNNABLE, HALTED …
    """

    def __init__(self, values: Mapping[str, int], mp_state: MpState = MpState.RUNNABLE) -> None:
        self.values = dict(values)
        self.mp_state = mp_state

    @classmethod
    def of(cls, vcpu: Vcpu, *, started: bool = True) -> Registers:
        """Read them from KVM.

        Args:
            vcpu: does not run now.
            started: False: leave alone what KVM does when it is asked for ``mp_state``, which is to accept a SIPI.

        Raises:
            KvmError: the vCPU is closed.
        """
        regs, sregs, debug = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_debugregs()
        values: dict[str, int] = {name: getattr(regs, name) for name in (*_GENERAL, "rip", "rflags")}
        values |= {name: getattr(sregs, name) for name in _CONTROL}
        values |= {"dr6": debug.dr6, "dr7": debug.dr7}
        for name in _SEGMENTS:
            values |= _segment_values(name, getattr(sregs, name))
        for name in ("gdt", "idt"):
            table = getattr(sregs, name)
            values |= {f"{name}_base": table.base, f"{name}_limit": table.limit}
        return cls(values, vcpu.get_mp_state() if started else MpState.UNINITIALIZED)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Registers: {self.bits}-bit code at RIP {self.values['rip']:#x}, CPL {self.cpl}, {self.mp_state.name}>"

    @property
    def bits(self) -> int:
        """16, 32 or 64: how the CPU decodes instructions at RIP."""
        attributes = self.values["cs_attributes"]
        if self.values["efer"] >> 10 & 1 and attributes >> 13 & 1:
            return 64
        return 32 if self.values["cr0"] & 1 and attributes >> 14 & 1 else 16

    @property
    def mode(self) -> str:
        """In words: "64-bit code in long mode"."""
        mode = "protected" if self.values["cr0"] & 1 else "real"
        return f"{self.bits}-bit code in {'long' if self.values['efer'] >> 10 & 1 else mode} mode"

    @property
    def cpl(self) -> int:
        """Current privilege level: SS's DPL (SDM volume 3, 5.5), 0 in real mode."""
        return self.values["ss_attributes"] >> 5 & 3 if self.values["cr0"] & 1 else 0

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction: CS base + RIP, in 64-bit mode RIP."""
        if self.bits == 64:
            return self.values["rip"]
        return (self.values["cs_base"] + self.values["rip"]) & 0xFFFFFFFF

    @property
    def text(self) -> str:
        """Several lines, for people: the mode, general registers, segments, tables, control registers."""
        values = self.values
        lines = [
            f"{self.mode}, CPL {self.cpl}, {self.mp_state.name}",
            f"RIP {values['rip']:016x}  RFLAGS {values['rflags']:08x}",
        ]
        rows = (_GENERAL[start : start + 4] for start in range(0, len(_GENERAL), 4))
        lines += ["  ".join(f"{name.upper():3} {values[name]:016x}" for name in row) for row in rows]
        lines += [
            f"{name.upper():3} {values[name]:04x}  base {values[f'{name}_base']:016x}"
            f"  limit {values[f'{name}_limit']:08x}  attributes {values[f'{name}_attributes']:04x}"
            for name in _SEGMENTS
        ]
        lines += [
            f"{name.upper()}       base {values[f'{name}_base']:016x}  limit {values[f'{name}_limit']:04x}"
            for name in ("gdt", "idt")
        ]
        lines.append("  ".join(f"{name.upper()} {values[name]:x}" for name in (*_CONTROL, "dr6", "dr7")))
        return "\n".join(lines)


def _segment_values(name: str, segment: Any) -> dict[str, int]:
    attributes = (
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 12
        | segment.l << 13
        | segment.db << 14
        | segment.g << 15
    )
    return {
        name: segment.selector,
        f"{name}_base": segment.base,
        f"{name}_limit": segment.limit,
        f"{name}_attributes": attributes,
    }
