"""The vCPUs of one machine, each with what the C core counts of it."""

from __future__ import annotations

from collections import deque
from functools import partial

from vmm._native import ffi, lib
from vmm.cpu import cpuid
from vmm.cpu.reset import PowerOn, reset_vcpu
from vmm.kvm.descriptor import kvm_error
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

    from vmm.config.machine import MachineConfig
    from vmm.kvm import CpuidEntry, Vcpu, Vm
    from vmm.softcpu.engine import SoftwareCpu


_KEPT_STARTS = 1024


class Processors:
    """All of them, by index.

    Args:
        present: as the attribute.

    Attributes:
        present: which of them there are now; the others never run until they are plugged in. The machine's own list.
        vcpus: KVM's part of each.
        cores: the ``struct vmm_vcpu`` of each, which outlives KVM's part: a closed machine tells what it counted.
        times: the ``struct exit_times`` of each; empty where nobody asked.
        cpuid: what CPUID says on the last of them; on the others only their APIC ids differ.
        power_on: what KVM gave them when they were new; None where none of them comes again.
        earlier_starts: what `starts` said before the last reset, as many as are kept.
    """

    def __init__(self, present: list[bool]) -> None:
        self.present = present
        self.vcpus: list[Vcpu] = []
        self.cores: list[Any] = []
        self.times: list[Any] = []
        self.cpuid: list[CpuidEntry] = []
        self.power_on: PowerOn | None = None
        self.earlier_starts: deque[tuple[int, int, int]] = deque(maxlen=_KEPT_STARTS)

    def add(self, vcpu: Vcpu, core: Any, times: Any, entries: list[CpuidEntry]) -> None:
        """The next one.

        Args:
            vcpu: KVM's part.
            core: its ``struct vmm_vcpu``.
            times: its ``struct exit_times``; None where nobody asked.
            entries: what CPUID says on it; on the others only their APIC ids differ.
        """
        self.vcpus.append(vcpu)
        self.cores.append(core)
        if times is not None:
            self.times.append(times)
        self.cpuid = entries

    @property
    def processor_id(self) -> int:
        """CPUID leaf 1: EAX (the signature) in the low half, EDX (features) in the high one."""
        return next((entry.edx << 32 | entry.eax for entry in self.cpuid if entry.function == 1), 0)

    @property
    def feature_control(self) -> int | None:
        """What firmware should write into MSR 0x3a, if the CPUs have it."""
        return cpuid.feature_control(self.cpuid)

    def starts(self) -> list[tuple[int, int, int]]:
        """Of each first instruction after power-on or a reset: the CPU's index, CLOCK_MONOTONIC in ns, and how many.

        How many the machine had executed before it, that is, where time goes by them; else 0.
        """
        now = ((index, core.started_ns, core.started_at) for index, core in enumerate(self.cores) if core.started_ns)
        return [*self.earlier_starts, *now]

    def forget_starts(self) -> None:
        """At a reset, none has started.

        Raises:
            KvmError: KVM does not let go of one that was watched for that.
        """
        self.earlier_starts.extend(self.starts()[len(self.earlier_starts) :])
        for index in range(len(self.cores)):
            self.forget_start(index)

    def forget_start(self, index: int) -> None:
        """One has not started; raises what `forget_starts` does."""
        if error := -lib.vmm_vcpu_reset(self.cores[index]):
            raise kvm_error(error, "KVM_SET_GUEST_DEBUG", f"vCPU {index}")

    def started_s(self) -> list[float | None]:
        """For each: seconds after vCPU 0's that its first instruction since the last reset came; None if none did."""
        times = [core.started_ns for core in self.cores]
        return [(time_ns - times[0]) / 1e9 if time_ns else None for time_ns in times]

    def exit_counts(self) -> dict[str, int]:
        """How often KVM_RUN returned, of all together, by `reason_name`."""
        from vmm.kvm.exit_reasons import reason_name

        counts = {
            reason_name(reason): sum(core.exits[reason] for core in self.cores)
            for reason in range(lib.VCPU_EXIT_REASONS)
        }
        counts["interrupted by a signal"] = sum(core.interrupted for core in self.cores)
        return {name: count for name, count in counts.items() if count}


def create_processors(
    vm: Vm,
    core: Any,
    config: MachineConfig,
    softcpu: SoftwareCpu | None,
    closers: ExitStack,
    present: list[bool],
) -> Processors:
    """Create a machine's vCPUs as they are after power-on, with those that may be plugged in.

    Args:
        vm: has its interrupt controllers.
        core: the C core's ``struct vmm_vm``.
        config: of the machine.
        softcpu: what executes them, if it is not KVM.
        closers: closes them.
        present: which of them there are, and how many there may be.

    Raises:
        KvmError: KVM refuses one, or its state.
        HostError: KVM refuses MSRs that every firmware needs.
    """
    processors = Processors(present)
    topology = config.cpu_topology
    if topology.has_wide_ids:
        vm.use_x2apic_ids()
    own_chips = vm.kvm.stands_in is not None
    guest = cpuid.Guest(topology, config.cpu, software_cpu=softcpu is not None, own_chips=own_chips)
    for index in range(len(present)):
        vcpu = closers.enter_context(vm.create_vcpu(topology.apic_id(index), index))
        entries = cpuid.cpuid_entries(vm.kvm, index, guest)
        vcpu.set_cpuid2(entries)
        reset_vcpu(vcpu)
        core_vcpu = ffi.gc(lib.vmm_vcpu_new(core, vcpu.fd, vcpu.run, index), lib.vmm_vcpu_free)
        core_vcpu.apic_id = vcpu.vcpu_id
        vcpu.attach(core_vcpu)
        times = None
        if config.exit_times:
            times = core_vcpu.times = ffi.gc(lib.exit_times_new(), lib.exit_times_free)
        if softcpu is not None:
            softcpu.add_vcpu(core_vcpu, entries)
            vcpu.amend_sregs = partial(softcpu.amend_sregs, core_vcpu)
        processors.add(vcpu, core_vcpu, times, entries)
    if config.can_plug_cpus:
        processors.power_on = PowerOn.of(processors.vcpus[-1])
    return processors
