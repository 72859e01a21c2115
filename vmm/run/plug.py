"""How a CPU is plugged into a machine, whose vCPU was made with the machine and has waited since; and taken out."""

from __future__ import annotations

from vmm.cpu.reset import reset_vcpu
from vmm.errors import ConfigError, HostError
from vmm.legible import counted
from vmm.options import check_type
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.bus import IoLock
    from vmm.config.machine import MachineConfig
    from vmm.cpu.processors import Processors
    from vmm.devices.cpu_hotplug import CpuHotplug
    from vmm.platform import Platform
    from vmm.run.threads import VcpuThreads
    from vmm.softcpu.engine import SoftwareCpu


def plug_cpu(
    index: int | None,
    config: MachineConfig,
    processors: Processors,
    softcpu: SoftwareCpu | None,
    platform: Platform,
    threads: VcpuThreads,
    io_lock: IoLock,
) -> int:
    """Plug a CPU in, and start its thread if the machine runs; arguments, but for the machine's parts, as `Machine`'s.

    Raises:
        ConfigError: it cannot be plugged in.
        HostError: the host gives no further thread.
        KvmError: KVM refuses the state after power-on.
        RuntimeError: the calling thread is a vCPU's.
    """
    if index is not None:
        check_type(index, "index", int)
    if threads.is_one_calling():
        raise RuntimeError("plug_cpu() was called on the thread of a vCPU, by a device; call it from another thread")
    with io_lock:
        hotplug, chosen = _choose(index, config, processors.present, platform, threads)
        vcpu, core = processors.vcpus[chosen], processors.cores[chosen]
        # While it was not there, the guest may have sent it interrupts, INITs, and SMIs, which KVM looks at when asked.
        vcpu.get_vcpu_events()
        processors.forget_start(chosen)
        reset_vcpu(vcpu, processors.power_on)
        if softcpu is not None:
            softcpu.reset_vcpu(core)
        # Before that, for a run that begins now starts the threads of those that are there.
        processors.present[chosen] = True
        try:
            threads.launch(chosen)
        except HostError:
            processors.present[chosen] = False
            raise
        hotplug.plug(chosen)
    return chosen


def unplug_cpu(index: int, config: MachineConfig, present: list[bool], platform: Platform, io_lock: IoLock) -> None:
    """Ask the guest's OS to let go of a CPU; arguments, but for the machine's parts, as `Machine`'s.

    Raises:
        ConfigError: it cannot be taken out.
    """
    check_type(index, "index", int)
    with io_lock:
        hotplug, smi = platform.cpu_hotplug, platform.smi_features
        if hotplug is None:
            raise ConfigError(
                "unplug_cpu: only a q35 or pc that leaves room for CPUs lets them go; make the machine with "
                f"-smp {config.cpus},maxcpus=N"
            )
        if not 0 <= index < len(present) or not present[index]:
            raise ConfigError(f"unplug_cpu: there is no CPU {index}; see present_cpus")
        if index == 0:
            raise ConfigError("unplug_cpu: CPU 0 is the one that the machine starts with, and stays")
        if smi is not None and (smi.broadcast or config.firmware.needs_smm):
            raise ConfigError("unplug_cpu: the firmware uses system management mode, and would wait for the CPU there")
        if not hotplug.removes:
            raise ConfigError("unplug_cpu: nobody listens; wait until the guest's OS has started, if it has ACPI")
        hotplug.ask_to_remove(index)


def _choose(
    index: int | None, config: MachineConfig, present: list[bool], platform: Platform, threads: VcpuThreads
) -> tuple[CpuHotplug, int]:
    """Which one it is, if it may be, and what it is plugged into."""
    hotplug = platform.cpu_hotplug
    if hotplug is None:
        raise ConfigError(
            "plug_cpu: a bhyve machine has nothing to tell the guest by; take q35 or pc"
            if config.max_cpus > config.cpus
            else f"plug_cpu: there is no room for another CPU; make the machine with -smp {config.cpus},maxcpus=N"
        )
    if index is None:
        if all(present):
            raise ConfigError(f"plug_cpu: all {counted(len(present), 'CPU')} that maxcpus gives room for are there")
        absent = [each for each, there in enumerate(present) if not there]
        index = next((each for each in absent if not threads.has(each)), absent[0])
    if not 0 <= index < len(present):
        raise ConfigError(f"plug_cpu: there is no CPU {index}: maxcpus is {len(present)}, and they count from 0")
    if present[index]:
        raise ConfigError(f"plug_cpu: CPU {index} is there already")
    if threads.has(index):
        raise ConfigError(f"plug_cpu: CPU {index} was taken out just now, and still stops; try again")
    smi = platform.smi_features
    if smi is not None and (smi.broadcast or config.firmware.needs_smm) and not smi.announces_cpus:
        # QEMU, ich9_pm_device_pre_plug_cb in hw/acpi/ich9.c: it would take SMIs at an SMBASE in common RAM.
        raise ConfigError(
            "plug_cpu: the firmware uses system management mode, and has not (yet) agreed to be told of CPUs that are "
            "plugged in (etc/smi/requested-features, bit 1); wait until it has started, or boot other firmware"
        )
    return hotplug, index
