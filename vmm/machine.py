"""One virtual machine: its parts wired together, and the loop that waits for it.

```python
from vmm import Machine

with Machine("ovmf", cpus=3, memory="512M") as machine:
    outcome = machine.run(until="Shell>", deadline=60)
    assert outcome.reached
```
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from vmm import layout
from vmm._native import ffi, lib
from vmm.bus import Bus, IoLock
from vmm.config.machine import Accelerator, Dispatch, Interface, MachineConfig, MachineType, Target
from vmm.cpu import cpuid
from vmm.cpu.reset import reset_vcpu
from vmm.errors import ConfigError, HostError
from vmm.handoff import interface, tables
from vmm.kvm import Kvm, Vcpu, pc_routes
from vmm.memory import GuestMemory
from vmm.platform import Parts, builder
from vmm.run.console import Stream, Watcher, compile_pattern
from vmm.run.outcome import Outcome, Reason
from vmm.run.threads import Run
from vmm.softcpu import decision
from vmm.softcpu.engine import SoftwareCpu

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fw_cfg_items import VmCoreInfo
    from vmm.devices.fwctl import Fwctl
    from vmm.run.exit_times import ExitTimes
    from vmm.run.trace import AccessLog, Trace

POLL_SECONDS = 0.004
"""How often the waiting thread looks at the consoles: much shorter than what a person notices."""


class TimelineEvent(NamedTuple):
    """Something that happened, in seconds since the first run began."""

    t_s: float
    event: str


class Machine:
    """A machine, ready to run; a context manager that gives everything back.

    Args:
        config: what the machine is. Or a firmware name or path, with the fields
            of `MachineConfig` as keyword arguments.
        customize: sees and may change what fw_cfg offers, before the guest does.

    Raises:
        ConfigError: the description makes no sense, or a file is unusable.
        HostError: ``/dev/kvm`` or a capability is missing.
    """

    def __init__(
        self,
        config: MachineConfig | str = "ovmf",
        /,
        *,
        customize: interface.Customize | None = None,
        **options: Any,
    ) -> None:
        if isinstance(config, MachineConfig):
            if options:
                raise TypeError(f"a MachineConfig is whole: {', '.join(options)} cannot be given beside it")
            self.config = config
        else:
            self.config = MachineConfig.create(config, **options)
        self._events: list[TimelineEvent] = []
        self.elapsed_s = 0.0
        self._closers = ExitStack()
        self.serial = Stream("serial", self._sink(self.config.serial, "-serial"))
        self.debugcon = Stream("debugcon", self._sink(self.config.debugcon, "-debugcon"))
        self.outcome: Outcome | None = None
        """How the last run ended; None before."""
        self._closed = False
        self._run: Run | None = None
        self._first_run_began = 0.0
        self._customize = customize
        self.vmcoreinfo: VmCoreInfo | None = None
        """Where a guest's kernel says that its crash notes are; only with ``-device vmcoreinfo``."""
        try:
            self._build()
        except BaseException:
            self._closers.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the virtual machine, its memory and its threads; may be called twice.

        What was counted can still be asked for; running and memory have ended.
        """
        self._closed = True
        self._closers.close()

    # -- building ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        config = self.config
        self.kvm = self._closers.enter_context(Kvm())
        self.kvm.require()
        cpuid.check_count(self.kvm, config.max_cpus)
        self.accelerator = decision.decide(config.accel, self.kvm, interpretable=config.firmware.interpretable)
        self.vm = self._closers.enter_context(self.kvm.create_vm())
        self.vm.set_identity_map_address(layout.KVM_IDENTITY_MAP_ADDRESS)
        self.vm.set_tss_address(layout.KVM_TSS_ADDRESS)
        # The core's structures hold what a closed machine can still be asked, so they live as long as this object.
        self._core = ffi.gc(lib.vmm_vm_new(self.vm.fd), lib.vmm_vm_free)
        self.memory = GuestMemory(self.vm, self._core, config.memory, layout.LOW_RAM_LIMIT)
        self._closers.callback(self.memory.close)
        self.io_lock = IoLock(self._core)
        self.ports = Bus("port", ffi.addressof(self._core, "ports"), self.io_lock, self._device_failed)
        self.mmio = Bus("MMIO", ffi.addressof(self._core, "mmio"), self.io_lock, self._device_failed)
        self.platform = builder(config.machine_type)(
            Parts(
                ports=self.ports,
                mmio=self.mmio,
                memory=self.memory,
                ram_low=self.memory.low_size,
                ram_high=self.memory.high_size,
                firmware=config.firmware,
                cpus=config.cpus,
                irq=self.vm.irq_line,
                msi=self.vm.signal_msi,
                power=_Power(self._finish),
                serial=self.serial.write,
                debugcon=self.debugcon.write,
                boot_order=config.boot.once or config.boot.order,
            )
        )
        self._closers.callback(self.platform.close)
        # After the memory slots: where KVM frees its I/O buses by call_srcu, as Linux 6.18 does, the first slot that is
        # added once it has chips waits for two ticks of the kernel.
        self.vm.create_irqchip()
        self.vm.create_pit2()
        self.vm.set_gsi_routing(pc_routes())
        self.softcpu = SoftwareCpu(self._core) if self.accelerator.name is Accelerator.KVM_SOFTCPU else None
        if self.softcpu is not None:
            self._closers.callback(self.softcpu.close)
            self.memory.park_roms(True)
            self._closers.callback(self.memory.park_roms, False)
        self._create_vcpus()
        if config.machine_type is MachineType.BHYVE:
            self._place_smbios()
        self._add_interface()
        if config.direct:
            from vmm.handoff import direct  # noqa: PLC0415  # few runs do without firmware

            direct.prepare(self)
        self._access_log = self._start_access_log(config.trace) if config.trace is not None else None

    def _start_access_log(self, path: str) -> "AccessLog | None":
        """Write every access to fw_cfg, or every request to fwctl, to ``path``."""
        from vmm.run.trace import AccessLog, LogWriter  # noqa: PLC0415  # few runs ask

        writer = LogWriter(path)
        if self.fwctl is not None:
            self.fwctl.on_request = lambda request: writer.request(request, self.started_ns)
            self._closers.callback(writer.end_of_requests, self.fwctl)
        if self.fw_cfg is None:
            return None
        log = AccessLog(self.fw_cfg, self._core, self._core_vcpus, writer.access)

        def end() -> None:
            log.close()
            writer.end(self.trace, log.dropped)

        self._closers.callback(end)
        return log

    @property
    def trace(self) -> "Trace":
        """What the guest read from fw_cfg so far."""
        from vmm.run.trace import Trace  # noqa: PLC0415  # few runs ask

        return Trace(self.fw_cfg)

    def _place_smbios(self) -> None:
        from vmm.tables import smbios_placement  # noqa: PLC0415  # only bhyve's board has it in RAM

        sizes = self.memory.low_size, self.memory.high_size
        files = tables.smbios_files(self.config, *sizes, self._processor_id())
        room = layout.SMBIOS_BHYVE
        self.memory.write(room.start, smbios_placement.place(files, room.start, len(room)))

    def _sink(self, target: Target, option: str) -> Callable[[bytes], object] | None:
        """Where a console goes by itself: a file; a terminal is served by whoever waits for the machine."""
        if target.path is None:
            return None
        try:
            write = self._closers.enter_context(target.path.open("wb", buffering=0)).write
        except OSError as error:
            raise ConfigError(f"{option} file:{target.path}: cannot write: {(error.strerror or '').lower()}") from error

        def sink(data: bytes) -> None:
            try:
                write(data)
            except OSError as error:
                raise HostError(f"{option} file:{target.path}: {(error.strerror or '').lower()}") from error

        return sink

    def _add_interface(self) -> None:
        self.interface_choice = self.config.interface_choice
        self.fw_cfg: FwCfg | None = None
        self.fwctl: Fwctl | None = None
        if self.interface is Interface.QEMU:
            self.fw_cfg = interface.build_fw_cfg(
                self.config,
                self.memory,
                self._core,
                self._device_failed,
                processor_id=self._processor_id,
                feature_control=self._feature_control,
                on_vmcoreinfo=self._vmcoreinfo_written,
                customize=self._customize,
            )
            self.fw_cfg.attach(self.ports, in_python=self.config.dispatch is Dispatch.PYTHON)
        else:
            self.fwctl = interface.build_fwctl(self.config)
            self.fwctl.attach(self.ports)

    def _processor_id(self) -> int:
        entries = cpuid.cpuid_entries(self.kvm, 0, self.config.cpus, software_cpu=self.softcpu is not None)
        return next((entry.edx << 32 | entry.eax for entry in entries if entry.function == 1), 0)

    def _vmcoreinfo_written(self, info: "VmCoreInfo | None") -> None:
        self.vmcoreinfo = info

    @property
    def vmgenid_address(self) -> int | None:
        """GPA of the VM generation id, once firmware has placed it and told us; None before, or without the device."""
        if self.config.vmgenid is None or self.fw_cfg is None:
            return None
        return int.from_bytes(self.fw_cfg.contents(interface.VMGENID_ADDRESS_FILE), "little") or None

    def _create_vcpus(self) -> None:
        self.vcpus: list[Vcpu] = []
        self._core_vcpus: list[Any] = []
        self._exit_times: list[Any] = []
        for index in range(self.config.cpus):
            vcpu = self._closers.enter_context(self.vm.create_vcpu(index))
            entries = cpuid.cpuid_entries(self.kvm, index, self.config.cpus, software_cpu=self.softcpu is not None)
            vcpu.set_cpuid2(entries)
            self._feature_control = cpuid.feature_control(entries)
            reset_vcpu(vcpu, index)
            core = ffi.gc(lib.vmm_vcpu_new(self._core, vcpu.fd, vcpu.run, index), lib.vmm_vcpu_free)
            if self.config.exit_times:
                self._exit_times.append(ffi.gc(lib.exit_times_new(), lib.exit_times_free))
                core.times = self._exit_times[-1]
            if self.softcpu is not None:
                self.softcpu.add_vcpu(core, entries)
            self.vcpus.append(vcpu)
            self._core_vcpus.append(core)

    # -- running ----------------------------------------------------------------------------------------------------

    def run(
        self,
        until: str | None = None,
        deadline: float | None = None,
        send: Sequence[tuple[str, str]] = (),
        on_poll: Callable[["Machine"], None] | None = None,
    ) -> Outcome:
        """Run until the guest shows ``until`` on a console, ends by itself, or the deadline passes.

        May be called again: the guest goes on where it was stopped.

        Args:
            until: a regular expression to be found in what the serial port or the debug port prints from now on.
            deadline: seconds this call may take; None waits for ever.
            send: pairs (regular expression, text): once the consoles show the expression, the text is typed into
                the serial port, as UTF-8; in order, each searched after the one before it. A single byte from 0x80
                on is its surrogate escape (PEP 383), as in what Python makes of a command line.
            on_poll: called on this thread some hundred times a second, for progress.

        Raises:
            DeviceError: a device of vmm failed; the guest is stopped.
            HostError: likewise, because a console's file could not be written any further.
            KeyboardInterrupt: never; Ctrl-C ends the run with `Reason.INTERRUPTED`.
            ConfigError: a pattern is no regular expression.
            ValueError: the machine is closed.
        """
        if self._closed:
            raise ValueError("the machine is closed; run it inside its 'with' block")
        streams = (self.serial, self.debugcon)
        goal = Watcher(streams, [compile_pattern(until)] if until else [])
        prompts = Watcher(streams, [compile_pattern(pattern) for pattern, _ in send])
        answers = [text for _, text in send]
        run = self._run = Run(self._core, self._core_vcpus, self._execute)
        self._first_run_began = self._first_run_began or run.began
        if self._access_log is not None:
            self._access_log.start_ns = self.started_ns
        run.start()
        try:
            while not run.wait(POLL_SECONDS):
                for _ in range(prompts.poll()):
                    self.type(answers.pop(0).encode("utf-8", "surrogateescape"))
                if goal.poll():
                    run.finish(Reason.UNTIL, f"the console showed {until!r}")
                elif deadline is not None and run.elapsed_s > deadline:
                    run.finish(Reason.TIMEOUT, self._timeout_message(goal, prompts, deadline))
                if self._access_log is not None:
                    self._access_log.poll()
                if on_poll is not None:
                    on_poll(self)
        except KeyboardInterrupt:
            run.finish(Reason.INTERRUPTED, "interrupted")
        finally:
            run.stop()
            self.elapsed_s += run.elapsed_s
        outcome = self.outcome = self._outcome(run, until, goal)
        self._events.append(TimelineEvent(run.began - self._first_run_began + outcome.elapsed_s, outcome.reason.value))
        return outcome

    @staticmethod
    def _outcome(run: Run, until: str | None, goal: Watcher) -> Outcome:
        end = run.end or Outcome(Reason.STOPPED, run.elapsed_s, "stopped")
        # What was printed before the guest ended counts, even if it powered off before the next look.
        if until is not None and end.reason is not Reason.UNTIL and (goal.waiting_for is None or goal.poll()):
            return Outcome(Reason.UNTIL, run.elapsed_s, f"the console showed {until!r}")
        return end._replace(missed_until=goal.waiting_for)

    @property
    def interface(self) -> Interface:
        """What answers at ports 0x510 and 0x511: never AUTO."""
        return self.interface_choice.interface

    def started_s(self) -> list[float | None]:
        """For each vCPU: seconds after vCPU 0's that its first instruction came; None if it never did."""
        times = [core.started_ns for core in self._core_vcpus]
        return [(time_ns - times[0]) / 1e9 if time_ns else None for time_ns in times]

    def exit_counts(self) -> dict[str, int]:
        """How often KVM_RUN returned, of all vCPUs together, by `reason_name`."""
        from vmm.kvm.exit_reasons import reason_name  # noqa: PLC0415  # for who reads it

        counts = {
            reason_name(reason): sum(core.exits[reason] for core in self._core_vcpus)
            for reason in range(lib.VCPU_EXIT_REASONS)
        }
        counts["interrupted by a signal"] = sum(core.interrupted for core in self._core_vcpus)
        return {name: count for name, count in counts.items() if count}

    def exit_times(self) -> "list[ExitTimes]":
        """How long this program took for each exit reason, port and MMIO page; empty unless asked for in the config."""
        if not self.config.exit_times:
            return []
        from vmm.run.exit_times import collect  # noqa: PLC0415  # few runs ask

        return collect(self._exit_times)

    def exit_times_lost(self) -> int:
        """How many measurements `exit_times` lacks, because the guest used more ports and pages than it holds."""
        return sum(table.lost for table in self._exit_times)

    @property
    def started_ns(self) -> int:
        """When the first run began, CLOCK_MONOTONIC; 0 before."""
        return int(self._first_run_began * 1e9)

    @property
    def timeline(self) -> list[TimelineEvent]:
        """What happened when, in order."""
        events = [
            TimelineEvent(core.started_ns / 1e9 - self._first_run_began, f"vCPU {index} started")
            for index, core in enumerate(self._core_vcpus)
            if core.started_ns
        ]
        events += [
            TimelineEvent(stream.first_at - self._first_run_began, f"first output on {stream.name}")
            for stream in (self.serial, self.debugcon)
            if stream.first_at is not None
        ]
        if self.fwctl is not None:
            start = self.started_ns
            events += [TimelineEvent((r.time_ns - start) / 1e9, f"fwctl {r}") for r in self.fwctl.requests]
        return sorted([*events, *self._events], key=lambda event: event.t_s)

    def accelerator_report(self) -> dict[str, Any]:
        """Who executed the guest's instructions, why, and how many ran where."""
        report: dict[str, Any] = {"name": str(self.accelerator.name), "why": self.accelerator.why}
        if self.softcpu is None:
            return report | {"instructions": 0, "kvm_steps": 0, "interrupts": 0}
        return report | self.softcpu.counters()._asdict()

    def type(self, data: bytes) -> None:
        """Type into the serial port."""
        with self.io_lock:
            self.platform.serial.feed(data)

    def stop(self) -> None:
        """End the current `run` from another thread, with `Reason.STOPPED`."""
        self._finish(Reason.STOPPED, "stopped")

    def _execute(self, index: int) -> None:
        run = lib.vmm_vcpu_run if self.softcpu is None else self.softcpu.run
        if run(self._core_vcpus[index]) != lib.VCPU_STOPPED:
            from vmm.run import failure  # noqa: PLC0415  # most guests end well

            vcpu, end = self.vcpus[index], self._core_vcpus[index].end
            self._finish(*failure.describe(vcpu, end, self.memory, software_cpu=self.softcpu is not None))
        self.platform.debugcon.flush()

    def _finish(self, reason: Reason, message: str, details: str = "") -> None:
        """End the current run, if there is one."""
        if self._run is not None:
            self._run.finish(reason, message, details)

    def _device_failed(self, error: Exception) -> None:
        """A device of ours raised: whoever called `run` shall see it."""
        if self._run is None:
            raise error
        self._run.fail(error)

    def _timeout_message(self, goal: Watcher, prompts: Watcher, deadline: float) -> str:
        missing = prompts.waiting_for or goal.waiting_for
        spoke = [stream for stream in (self.serial, self.debugcon) if stream.total]
        last = f"; its last line was {spoke[0].last_line()!r}" if spoke else "; it printed nothing at all"
        what = f" and the guest never showed {missing!r}" if missing else ""
        return f"{deadline:g} s passed{what}{last}"


class _Power(NamedTuple):
    """What the guest can do to its own machine."""

    finish: Callable[[Reason, str], None]

    def reset(self, reason: str) -> None:
        self.finish(Reason.RESET, f"the guest reset the machine: {reason}")

    def power_off(self) -> None:
        self.finish(Reason.POWER_OFF, "the guest powered the machine off")
