"""What users ask of a machine: its registers, what the guest read, how long things took, who executed it."""

from __future__ import annotations

from vmm.legible import counted
from vmm.options import check_type
from vmm.run.runnable import Runnable
from vmm.tables.files import VMGENID_ADDRESS_FILE
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.bus import Bus
    from vmm.config.interface import InterfaceChoice
    from vmm.config.machine import Interface, MachineConfig
    from vmm.cpu.processors import Processors
    from vmm.cpu.registers import Registers
    from vmm.debug.images import LoadedImage
    from vmm.debug.look import Look
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.run.console import Stream
    from vmm.run.coverage import Coverage, Covered
    from vmm.run.exit_times import ExitTimes
    from vmm.run.lifetime import Lifetime
    from vmm.run.outcome import Reset
    from vmm.run.profile import Counts, Profile, Profiler
    from vmm.run.timeline import TimelineEvent
    from vmm.run.trace import Trace
    from vmm.softcpu.decision import Decision
    from vmm.softcpu.engine import SoftwareCpu


class Observable(Runnable):
    """The part of a `Machine` that tells what became of it; what it asks for is described there."""

    accelerator: Decision
    config: MachineConfig
    debugcon: Stream
    fw_cfg: FwCfg | None
    fwctl: Fwctl | None
    interface_choice: InterfaceChoice
    memory: GuestMemory
    mmio: Bus
    ports: Bus
    serial: Stream
    softcpu: SoftwareCpu | None
    vcpus: list[Vcpu]
    _coverage: Coverage | None
    _lifetime: Lifetime
    _processors: Processors
    _profiler: Profiler | None

    if TYPE_CHECKING:

        @property
        def _look(self) -> Look:
            """What is known of the guest's images."""

    @property
    def interface(self) -> Interface:
        """What answers at ports 0x510 and 0x511: never AUTO."""
        return self.interface_choice.interface

    @property
    def trace(self) -> Trace:
        """What the guest read from fw_cfg so far."""
        from vmm.run.trace import Trace

        return Trace(self.fw_cfg)

    @property
    def vmgenid_address(self) -> int | None:
        """GPA of the VM generation id, once firmware has placed it and told us; None before, or without the device."""
        if self.config.vmgenid is None or self.fw_cfg is None:
            return None
        return int.from_bytes(self.fw_cfg.contents(VMGENID_ADDRESS_FILE), "little") or None

    @property
    def present_cpus(self) -> list[int]:
        """The indices of the CPUs that there are now: those at boot, and those that were plugged in."""
        return [index for index, present in enumerate(self._processors.present) if present]

    def registers(self, index: int = 0) -> Registers:
        """The registers of a vCPU, to be printed or looked up; between two runs.

        Raises:
            RuntimeError: the machine runs.
            KvmError: it is closed.
            IndexError: it has no such vCPU.
        """
        from vmm.cpu.registers import Registers

        check_type(index, "index", int)
        present = self._processors.present
        if not (0 <= index < len(present) and present[index]):
            raise IndexError(f"no vCPU {index}: the machine has {counted(sum(present), 'CPU')}; see present_cpus")

        if self._lifetime.running:
            raise RuntimeError("the machine is running; its registers can be read once run() has returned")
        return Registers.of(self.vcpus[index])

    def images(self, index: int = 0) -> list[LoadedImage]:
        """What is loaded in the guest, by address, as a vCPU sees it; between two runs.

        It takes about a second for each GiB below 4 GiB.

        Raises:
            RuntimeError: the machine runs.
            KvmError: it is closed.
        """
        return self._look.images.all(self.registers(index).values)

    def started_s(self) -> list[float | None]:
        """For each vCPU: seconds after vCPU 0's that its first instruction since the last reset came; or None."""
        return self._processors.started_s()

    def exit_counts(self) -> dict[str, int]:
        """How often KVM_RUN returned, of all vCPUs together, by `reason_name`."""
        return self._processors.exit_counts()

    def exit_times(self) -> list[ExitTimes]:
        """How long this program took for each exit reason, port and MMIO page; empty unless asked for in the config."""
        if not self._processors.times:
            return []
        from vmm.run.exit_times import collect

        return collect(self._processors.times)

    def exit_times_lost(self) -> int:
        """How many measurements `exit_times` lacks, because the guest used more ports and pages than it holds."""
        return sum(table.lost for table in self._processors.times)

    def profile(self) -> Profile | None:
        """What the vCPUs were executing so far, by image; between two runs. None unless asked for in the config.

        Raises:
            RuntimeError: the machine runs.
            KvmError: it is closed.
        """
        if self._profiler is None:
            return None
        return self._profiler.finish(self.registers().values)

    def coverage(self) -> Covered | None:
        """Which lines of source the guest's code reached so far; between two runs. None unless asked for in the config.

        Images with line numbers are found by ``symbols``; a guest of ours has its own.

        Raises:
            RuntimeError: the machine runs.
            KvmError: it is closed.
        """
        return None if self._coverage is None else self._coverage.finish()

    def _counts(self) -> Counts:
        """What the guest has done; with ``io_lock`` held."""
        from vmm.run.profile import Counts

        items = self.fw_cfg.items() if self.fw_cfg is not None else ()
        instructions = 0 if self.softcpu is None else self.softcpu.counters().instructions
        accesses = self.ports.accesses() + self.mmio.accesses()
        return Counts(accesses, sum(item.bytes_read for item in items), instructions)

    @property
    def started_ns(self) -> int:
        """When the first run began, CLOCK_MONOTONIC; 0 before."""
        return self._lifetime.started_ns

    @property
    def elapsed_s(self) -> float:
        """Seconds spent in runs."""
        return self._lifetime.elapsed_s

    @property
    def reset_count(self) -> int:
        """How often the machine was reset and went on."""
        return self._lifetime.reset_count

    @property
    def resets(self) -> list[Reset]:
        """The latest of these resets, 100 at the most: when, by whom, and by what."""
        return list(self._lifetime.resets)

    @property
    def timeline(self) -> list[TimelineEvent]:
        """What happened when, in order."""
        from vmm.run.timeline import collect_timeline

        streams = (self.serial, self.debugcon)
        return collect_timeline(self._lifetime, self._processors.starts(), streams, self.fw_cfg, self.fwctl)

    def accelerator_report(self) -> dict[str, Any]:
        """Who executed the guest's instructions, why, and how many ran where."""
        report: dict[str, Any] = {"name": str(self.accelerator.name), "why": self.accelerator.why}
        if self.softcpu is None:
            return report | {"instructions": 0, "kvm_steps": 0, "interrupts": 0}
        return report | self.softcpu.counters()._asdict()
