"""All that KVM holds of a machine, taken out of one and put into another that was made like it.

States are plain data: numbers, bytes of the kernel's structs, lists and dicts. They fit a KVM with the same structs.

Source: the kernel's Documentation/virt/kvm/api.rst. Which MSRs there are beside those of KVM_GET_MSR_INDEX_LIST: Intel
SDM volume 4, table 2-2, and arch/x86/kvm/mtrr.c. In which order: what a call of KVM does to what another has set.
"""

from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.errors import ConfigError
from vmm.kvm.structs import MpState, Struct

if TYPE_CHECKING:
    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm

TSC = 0x10
_TSC_DEADLINE = 0x6E0

_NOT_LISTED = (
    0x250,
    0x258,
    0x259,
    *range(0x268, 0x270),
    *range(0x200, 0x210),
    0x2FF,
    *range(0x400, 0x480),
)
"""MTRRs (fixed, variable, default type), and registers of machine-check banks."""

_CHIPS = (lib.KVM_IRQCHIP_PIC_MASTER, lib.KVM_IRQCHIP_PIC_SLAVE, lib.KVM_IRQCHIP_IOAPIC)

_PIT_CHANNELS = 3
_MASK_64 = (1 << 64) - 1


class MsrReader:
    """Reads the MSRs that make up a guest's state: those that this KVM has.

    Args:
        vcpu: any of the machine; all have the same.
    """

    def __init__(self, vcpu: "Vcpu") -> None:
        listed = dict.fromkeys((*vcpu.vm.kvm.msr_index_list(), *_NOT_LISTED))
        listed.pop(TSC, None)
        self._indices: list[int] = []
        rest = list(listed)
        while rest:
            values = vcpu.get_msrs(rest)
            self._indices += values
            del rest[: len(values) + 1]

    def read(self, vcpu: "Vcpu") -> dict[int, int]:
        """Values by index; without the TSC, which goes on while they are read."""
        return vcpu.get_msrs(self._indices)


def _bytes(struct: Any) -> bytes:
    return bytes(ffi.buffer(struct.cdata if isinstance(struct, Struct) else struct))


def _struct(ctype: str, data: bytes) -> Any:
    struct = ffi.new(f"struct {ctype} *")
    size = ffi.sizeof(struct[0])
    if len(data) != size:
        raise ConfigError(f"struct {ctype} has {len(data)} bytes in the snapshot, {size} in this kernel's headers")
    ffi.buffer(struct)[:] = data
    return struct


def save_vcpu(vcpu: "Vcpu", msrs: MsrReader) -> dict[str, Any]:
    """Everything of a vCPU but its TSC; the thread that runs it is not in KVM_RUN."""
    # Accepts an INIT or a SIPI that waits, which changes the rest.
    mp_state = int(vcpu.get_mp_state())
    return {
        "mp_state": mp_state,
        "events": _bytes(vcpu.get_vcpu_events()),
        "regs": _bytes(vcpu.get_regs()),
        "sregs": _bytes(vcpu.get_sregs()),
        "xcrs": [[number, value] for number, value in vcpu.get_xcrs().items()],
        "xsave": bytes(vcpu.get_xsave()),
        "debugregs": _bytes(vcpu.get_debugregs()),
        "lapic": _bytes(vcpu.get_lapic()),
        "nested": vcpu.get_nested_state(),
        "msrs": [[index, value] for index, value in msrs.read(vcpu).items()],
    }


def load_vcpu(vcpu: "Vcpu", state: dict[str, Any], msrs: MsrReader, *, registers: bool, deadline: bool) -> None:
    """Give a vCPU that has not run yet what `save_vcpu` took.

    Args:
        vcpu: has the CPUID that the other one had, and its TSC.
        state: what was taken.
        msrs: of this machine.
        registers: general and special registers too; else somebody gives it those later.
        deadline: its LAPIC's TSC deadline too; likewise.

    Raises:
        ConfigError: this host does not take it.
        KvmError: likewise.
    """
    sregs = _struct("kvm_sregs", state["sregs"])
    if not registers:
        apic_base = sregs.apic_base
        sregs = vcpu.get_sregs()
        sregs.apic_base = apic_base
    # First: it says in which mode the LAPIC is.
    vcpu.set_sregs(sregs)
    if registers:
        vcpu.set_regs(_struct("kvm_regs", state["regs"]))
    vcpu.set_xcrs(dict(state["xcrs"]))
    vcpu.set_xsave(state["xsave"])
    vcpu.set_debugregs(_struct("kvm_debugregs", state["debugregs"]))
    now = msrs.read(vcpu)
    wanted = {index: value for index, value in state["msrs"] if now.get(index) != value}
    deadline_tsc = wanted.pop(_TSC_DEADLINE, None)
    _set_msrs(vcpu, wanted)
    if state["nested"] != vcpu.get_nested_state():
        vcpu.set_nested_state(state["nested"])
    vcpu.set_lapic(_struct("kvm_lapic_state", state["lapic"]))
    # After the LAPIC, whose timer has its mode from there.
    if deadline and deadline_tsc is not None:
        _set_msrs(vcpu, {_TSC_DEADLINE: deadline_tsc})
    # Registers forget exceptions in flight, so these come later.
    vcpu.set_vcpu_events(_struct("kvm_vcpu_events", state["events"]))
    vcpu.set_mp_state(MpState(state["mp_state"]))


def _set_msrs(vcpu: "Vcpu", values: dict[int, int]) -> None:
    accepted = vcpu.set_msrs(values)
    if accepted != len(values):
        index, value = list(values.items())[accepted]
        raise ConfigError(f"this host's KVM refuses MSR {index:#x} <- {value:#x}")


def save_vm(vm: "Vm", guest_ns: int, monotonic_ns: int) -> dict[str, Any]:
    """The interrupt controllers, the PIT, and kvmclock.

    Args:
        vm: no vCPU of it runs.
        guest_ns: the guest's time now.
        monotonic_ns: CLOCK_MONOTONIC at the same moment, which KVM's PIT goes by.
    """
    pit = vm.get_pit2()
    for channel in pit.channels:
        channel.count_load_time = _signed(channel.count_load_time + guest_ns - monotonic_ns)
    return {
        "chips": [_bytes(vm.get_irqchip(chip)) for chip in _CHIPS],
        "pit": _bytes(pit),
        "clock": vm.get_clock(),
    }


def load_chips(vm: "Vm", state: dict[str, Any]) -> None:
    """Give a machine the interrupt controllers that `save_vm` took; lines that are high are driven already.

    KVM keeps the wires apart from the chips and does not tell them. Driven first, they are as they were; driven after
    it, a wire that was high all the time would be an edge to the IOAPIC, and interrupt once more.
    """
    for chip in state["chips"]:
        vm.set_irqchip(_struct("kvm_irqchip", chip))


def load_timers(vm: "Vm", state: dict[str, Any], guest_ns: int, monotonic_ns: int, jump_ns: int) -> None:
    """Give it the rest. Of the PIT's channel 0, KVM keeps no phase: its period begins anew.

    Args:
        vm: the machine.
        state: what `save_vm` took.
        guest_ns: the guest's time now.
        monotonic_ns: CLOCK_MONOTONIC at the same moment.
        jump_ns: by how much the guest's time was put forward.
    """
    pit = _struct("kvm_pit_state2", state["pit"])
    for channel in pit.channels:
        channel.count_load_time = _signed(channel.count_load_time + monotonic_ns - guest_ns)
    vm.set_pit2(pit)
    vm.set_clock(state["clock"] + jump_ns)


def _signed(value: int) -> int:
    value &= _MASK_64
    return value - (1 << 64) if value >> 63 else value


def host_tsc(vcpu: "Vcpu") -> int:
    """The host's TSC now, scaled to this vCPU's frequency where the CPU does that for it."""
    return vcpu.get_msrs([TSC])[TSC] - vcpu.get_tsc_offset()


def save_tsc(vcpu: "Vcpu", offsets: list[int]) -> dict[str, Any]:
    """The first vCPU's TSC now, and at which frequency it counts, with the offsets of all to the host's."""
    return {"offsets": offsets, "tsc": (host_tsc(vcpu) + offsets[0]) & _MASK_64, "khz": vcpu.get_tsc_khz()}


def tsc_offsets(vcpu: "Vcpu", state: dict[str, Any], jump_ns: int) -> list[int]:
    """The offsets with which the TSCs go on from where they stood.

    Args:
        vcpu: the first of the machine that goes on, as it was made.
        state: what `save_tsc` gave.
        jump_ns: by how much the guest's time was put forward.
    """
    base = state["tsc"] + jump_ns * state["khz"] // 1_000_000 - host_tsc(vcpu)
    first = state["offsets"][0]
    return [(base + offset - first) & _MASK_64 for offset in state["offsets"]]
