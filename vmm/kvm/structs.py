"""What calls take and return where a kernel struct would be clumsy: plain, typed values."""

from __future__ import annotations

from enum import IntEnum

from vmm._native import ffi, lib
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


class Struct:
    """A struct of the kernel's with its names of fields, to be read, set, and printed.

    Args:
        cdata: cffi's object, which `vmm._native` takes in its place.
    """

    __slots__ = ("cdata",)

    cdata: Any

    def __init__(self, cdata: Any) -> None:
        object.__setattr__(self, "cdata", cdata)

    def __getattr__(self, name: str) -> Any:
        return _shown(getattr(object.__getattribute__(self, "cdata"), name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.cdata, name, value.cdata if isinstance(value, Struct) else value)

    def __copy__(self) -> Struct:
        kind = ffi.typeof(self.cdata)
        copied = ffi.new(f"{(kind.item if kind.kind == 'pointer' else kind).cname} *")
        ffi.memmove(copied, self.cdata if kind.kind == "pointer" else ffi.addressof(self.cdata), ffi.sizeof(copied[0]))
        return Struct(copied)

    def __dir__(self) -> list[str]:
        return _fields(self.cdata)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={_text(getattr(self.cdata, name))}" for name in _fields(self.cdata))
        return f"<{ffi.typeof(self.cdata).cname.rstrip(' *&')}: {values}>"


def _fields(cdata: Any) -> list[str]:
    kind = ffi.typeof(cdata)
    names = (name for name, _ in (kind.item if kind.kind == "pointer" else kind).fields)
    return [name for name in names if not name.startswith(("pad", "reserved", "unused"))]


def _shown(value: Any) -> Any:
    return Struct(value) if isinstance(value, ffi.CData) and ffi.typeof(value).kind in {"struct", "union"} else value


def _text(value: Any) -> str:
    if isinstance(value, int):
        return hex(value)
    if not isinstance(value, ffi.CData) or ffi.typeof(value).kind in {"struct", "union"}:
        return repr(_shown(value))
    if ffi.sizeof(ffi.typeof(value).item) == 1:
        return bytes(ffi.buffer(value)).hex()
    return f"[{', '.join(map(_text, value))}]"


class CpuidEntry(NamedTuple):
    """One leaf of CPUID: struct kvm_cpuid_entry2. ``indexed`` says that ECX selects a ``subleaf``."""

    function: int
    subleaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    indexed: bool = False


class MpState(IntEnum):
    """KVM_GET_MP_STATE: what a vCPU is doing with regard to INIT, SIPI and HLT."""

    RUNNABLE = lib.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = lib.KVM_MP_STATE_UNINITIALIZED
    """An AP that nobody has started."""
    INIT_RECEIVED = lib.KVM_MP_STATE_INIT_RECEIVED
    """Waits for SIPI."""
    HALTED = lib.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = lib.KVM_MP_STATE_SIPI_RECEIVED


class Capability(NamedTuple):
    """One answer of KVM_CHECK_EXTENSION: 0 is absent; what a larger value means is the capability's own."""

    name: str
    number: int
    value: int


class IrqchipRoute(NamedTuple):
    """A GSI that is wired to a pin of an in-kernel chip (KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC)."""

    gsi: int
    irqchip: int
    pin: int


class MsiRoute(NamedTuple):
    """A GSI that sends a message-signalled interrupt: a store of ``data`` to ``address``."""

    gsi: int
    address: int
    data: int


GsiRoute = IrqchipRoute | MsiRoute


def pc_routes() -> list[GsiRoute]:
    """A PC's wiring, for `Vm.set_gsi_routing`: GSI n to the PICs' and the IOAPIC's pin n, but the timer to pin 2.

    That last one is what ACPI tables and firmware of PCs say (an interrupt source override from IRQ 0 to GSI 2, ACPI
    6.5, section 5.2.12.5). KVM_CREATE_IRQCHIP by itself wires GSI 0 to pin 0.
    """
    routes: list[GsiRoute] = []
    for gsi in range(16):
        chip = lib.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else lib.KVM_IRQCHIP_PIC_SLAVE
        routes.append(IrqchipRoute(gsi, chip, gsi % 8))
    pins = [gsi for gsi in range(lib.KVM_IOAPIC_NUM_PINS) if gsi != 2]
    routes += [IrqchipRoute(gsi, lib.KVM_IRQCHIP_IOAPIC, gsi or 2) for gsi in pins]
    return routes


def cpuid_to_c(entries: Iterable[CpuidEntry]) -> Any:
    """A struct kvm_cpuid2 with ``entries``."""
    listed = list(entries)
    table = ffi.new("struct kvm_cpuid2 *", {"nent": len(listed), "entries": len(listed)})
    for slot, entry in zip(table.entries, listed, strict=True):
        slot.function, slot.index, slot.eax, slot.ebx, slot.ecx, slot.edx = entry[:6]
        slot.flags = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX if entry.indexed else 0
    return table


def cpuid_from_c(table: Any) -> list[CpuidEntry]:
    """The entries of a struct kvm_cpuid2 that KVM filled."""
    return [
        CpuidEntry(
            entry.function,
            entry.index,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
            bool(entry.flags & lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        )
        for entry in table.entries[0 : table.nent]
    ]


def msrs_to_c(values: Mapping[int, int]) -> Any:
    """A struct kvm_msrs with ``values`` by index."""
    table = ffi.new("struct kvm_msrs *", {"nmsrs": len(values), "entries": len(values)})
    for entry, (index, value) in zip(table.entries, values.items(), strict=True):
        entry.index, entry.data = index, value
    return table
