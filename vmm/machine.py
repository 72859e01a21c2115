"""One virtual machine, put together from its parts.

```python
from vmm import Machine

with Machine("ovmf", cpus=3, memory="512M") as machine:
    outcome = machine.run(until="Shell>", deadline=60)
    assert outcome.reached
```
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import cached_property, partial

from vmm import layout
from vmm._native import ffi, lib
from vmm.bus import Bus, IoLock
from vmm.coalesced import coalesce_consoles, is_coalesced
from vmm.config.machine import Accelerator, Dispatch, Interface, MachineConfig
from vmm.config.outputs import Outputs
from vmm.config.parts import Clock, Sandboxing
from vmm.config.spelled import SpelledOut
from vmm.cpu import cpuid
from vmm.cpu.processors import create_processors
from vmm.devices.clock import VIRTUAL_START_NS, VIRTUAL_UTC_NS, GuestClock
from vmm.handoff import interface, tables
from vmm.kvm import pc_routes
from vmm.legible import counted
from vmm.memory import create_memory
from vmm.platform import Parts, builder
from vmm.run.console import Stream
from vmm.run.expect import Console
from vmm.run.lifetime import Lifetime, Power
from vmm.run.observable import Observable
from vmm.run.runner import Runner
from vmm.run.threads import VcpuThreads, add_vcpus
from vmm.sandbox import Sandbox
from vmm.softcpu import decision
from vmm.tables.boot_order import cmos_boot_bytes
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any, Self, Unpack
    from uuid import UUID

    from vmm.config.items import FwCfgItem
    from vmm.config.keywords import MachineOptions
    from vmm.config.listening import DebugSocket
    from vmm.debug.debugger import Debugger
    from vmm.debug.look import Look
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.devices.vmcoreinfo import VmCoreInfo
    from vmm.kvm.message_routes import MessageRoutes
    from vmm.run.coverage import Coverage
    from vmm.run.keys import TerminalType
    from vmm.run.outcome import Outcome, ResetKind
    from vmm.run.profile import Profiler
    from vmm.run.reset import MachineReset
    from vmm.run.resumption import Resumption, Time
    from vmm.run.snapshot import Snapshot
    from vmm.run.virtual_time import VirtualTime
    from vmm.run.whole import Whole
    from vmm.softcpu.engine import SoftwareCpu


class Machine(Observable):
    """A machine, ready to run; a context manager that gives everything back.

    Args:
        config: what the machine is. Or a firmware name or path, with the fields of a
            `vmm.config.keywords.MachineOptions` as keyword arguments.
        customize: may add items to fw_cfg, before the guest sees them.
        alter: sees and may change the files of tables that fw_cfg offers.
        outputs: the files that the config names, opened already; they stay the caller's.
        resumption: what it goes on from; `Machine.restore` gives it.

    Attributes:
        config: what the machine is.
        serial: what the guest printed on COM1: ``text()``, ``since(0)``.
        debugcon: what it printed on the debug port.
        fw_cfg: QEMU's fw_cfg, with what was read of each item: ``items()``; None if the machine has fwctl.
        fwctl: bhyve's fwctl, with its ``requests``; None if the machine has fw_cfg.
        memory: the guest's physical memory: ``read``, ``write``, ``regions()``.
        vcpus: `vmm.kvm.Vcpu` by index; `registers` prints better.
        ports: which device has which I/O port, and how often each was used; devices may be added.
        mmio: the same for addresses of memory.
        io_lock: held while a device is used; hold it to use one from outside a run.
        platform: the board's devices.
        vm: KVM's part of it all, and ``kvm`` of that.
        softcpu: the software CPU; None if KVM executes the guest.
        accelerator: who executes the guest, and why.
        sandbox: what its threads, or the whole process, cannot do once it runs.
        interface_choice: what answers at ports 0x510 and 0x511, and why.
        vmcoreinfo: where a guest's kernel says that its crash notes are; only with ``-device vmcoreinfo``.
        debugger: the gdb server: ``address``, ``connected``; None without one in the config.
        outcome: how the last run ended; None before.

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
        alter: interface.Alter | None = None,
        outputs: Outputs | None = None,
        resumption: Resumption | None = None,
        **options: Unpack[MachineOptions],
    ) -> None:
        if isinstance(config, MachineConfig):
            if options:
                raise TypeError(f"a MachineConfig is whole: {', '.join(options)} cannot be given beside it")
        else:
            config = MachineConfig.create(config, **options)
        self.config = config
        self.vmcoreinfo: VmCoreInfo | None = None
        self._reset_machine: MachineReset | None = None
        own_code = customize is not None or alter is not None
        # Each part is closed after those that were built on it, also where a later one cannot be built.
        with nullcontext() if resumption is None or own_code else resumption.fitting(), ExitStack() as parts:
            if outputs is None:
                copy_disk = None if resumption is None else resumption.snapshot.copy_disk
                outputs = parts.enter_context(Outputs(config, copy_disk=copy_disk))
            self.serial = Stream("serial", outputs.serial.write if outputs.serial else None)
            self.debugcon = Stream("debugcon", outputs.debugcon.write if outputs.debugcon else None)
            self._clock = GuestClock()
            virtual = self._clock if config.clock is Clock.VIRTUAL else None
            if virtual is not None:
                virtual.stand(VIRTUAL_START_NS)
            self.kvm = parts.enter_context(decision.open_host(config.accel, virtual))
            self.kvm.require()
            cpuid.check_count(self.kvm, config.cpu_topology)
            self.accelerator = decision.decide(config.accel, self.kvm, interpretable=config.firmware.interpretable)
            in_kvm = self.accelerator.name is Accelerator.KVM
            places = tables.place_ram(config, cpuid.addresses(self.kvm, config, software_cpu=not in_kvm))
            self.vm = parts.enter_context(self.kvm.create_vm())
            self.vm.set_identity_map_address(layout.KVM_IDENTITY_MAP_ADDRESS)
            self.vm.set_tss_address(layout.KVM_TSS_ADDRESS)
            # C's structures hold what a closed machine can still be asked, so they live as long as this object.
            core = ffi.gc(lib.vmm_vm_new(self.vm.fd), lib.vmm_vm_free)
            self.vm.attach(core)
            # Those that may be plugged in are made now, and wait: a process in its sandbox makes no vCPU.
            room = config.max_cpus if config.can_plug_cpus else config.cpus
            self._present = [index < config.cpus for index in range(room)]
            self.sandbox = Sandbox(
                config.sandbox,
                core,
                outputs.descriptors,
                cpus=room,
                user=config.user,
                folders=() if config.symbols is None else (config.symbols,),
            )
            self.sandbox.close_files()
            threads = self._threads = VcpuThreads(core, self.sandbox, self._present)
            self._lifetime = Lifetime(threads.kick, config.max_resets if config.resets else None)
            ram = None if resumption is None else resumption.snapshot.map_ram()
            if config.has_smm:
                decision.check_smm(self.accelerator, self.kvm)
            self.memory = create_memory(self.vm, core, config, ram, kvm_smm=in_kvm, high_base=places.high_base)
            parts.callback(self.memory.close)
            self.io_lock = IoLock(core)
            self.ports = Bus("port", ffi.addressof(core, "ports"), self.io_lock, self._lifetime.fail)
            self.mmio = Bus("MMIO", ffi.addressof(core, "mmio"), self.io_lock, self._lifetime.fail)
            self.platform = builder(config.machine_type)(
                Parts(
                    ports=self.ports,
                    mmio=self.mmio,
                    memory=self.memory,
                    ram_low=self.memory.low_size,
                    ram_high=self.memory.high_size,
                    firmware=config.firmware,
                    cpus=config.cpus,
                    apic_ids=tuple(map(config.cpu_topology.apic_id, range(room))) if config.can_plug_cpus else (),
                    present=self._present,
                    irq=self.vm.irq_line,
                    msi=self.vm.signal_msi,
                    power=Power(self._lifetime),
                    clock=self._clock,
                    serial=self.serial.write,
                    debugcon=self.debugcon.write,
                    variables=outputs.variables,
                    hpet=config.hpet,
                    s3=config.s3,
                    pvpanic=config.pvpanic,
                    smi=self._smi_sender(core) if config.has_smm else None,
                    secure_flash=config.has_secure_flash,
                    boot_order=config.boot.once or config.boot.order,
                    core=core,
                    disks=outputs.disks,
                    shared=self.memory.shared,
                    ioeventfd=self._ioeventfd if in_kvm else None,
                    messages=None if self.memory.shared is None else self._message_routes(),
                    coalesce=partial(self._coalesce, core) if in_kvm and is_coalesced(config, self.vm) else None,
                    images={} if resumption is None else resumption.snapshot.map_images(),
                    utc_ns=VIRTUAL_UTC_NS if config.clock is Clock.VIRTUAL else None,
                )
            )
            parts.callback(self.platform.close)
            self.sandbox.files += [disk.event_fd for disk in self.platform.disks]
            self.sandbox.files += [fd for device in self.platform.vhost for fd in device.event_fds]
            self.sandbox.channels = [device.channel for device in self.platform.vhost]
            threads.helpers = [self.platform.timers.start, lambda _: self.platform.restrict_disks(self.vm.fd)]
            threads.foreign = lambda: own_code or self.ports.foreign or self.mmio.foreign
            if resumption is not None:
                with self.io_lock:
                    resumption.place(self.platform)
            self.softcpu: SoftwareCpu | None = None
            if not in_kvm:
                from vmm.softcpu.engine import create_softcpu

                self.softcpu = create_softcpu(core, self.vm, self.memory, parts)
            self.virtual_time: VirtualTime | None = None
            if self.softcpu is not None and config.clock is Clock.VIRTUAL:
                self.virtual_time = self._virtual_time(outputs, self.softcpu)
            # After the memory slots: where KVM frees its I/O buses by call_srcu, as Linux 6.18 does, the first slot
            # that is added once it has chips waits for two ticks of the kernel.
            self.vm.create_irqchip()
            self.vm.create_pit2()
            self.vm.set_gsi_routing(pc_routes())
            self._processors = create_processors(self.vm, core, config, self.softcpu, parts, self._present)
            self.vcpus = self._processors.vcpus
            if self.virtual_time is not None:
                self.virtual_time.begin()
            add_vcpus(
                threads,
                self._processors,
                self.memory,
                self.softcpu,
                self._lifetime,
                self.platform.flush,
                self._note_debug,
                lambda: self._look,
            )
            self.interface_choice = config.interface_choice
            self.fw_cfg: FwCfg | None = None
            self.fwctl: Fwctl | None = None
            if self.interface is Interface.QEMU:
                self.fw_cfg = interface.build_fw_cfg(
                    config,
                    self.memory,
                    core,
                    self._processors,
                    self.platform,
                    self._lifetime.fail,
                    on_vmcoreinfo=self._vmcoreinfo_written,
                    customize=customize,
                    alter=alter,
                    known_files=() if resumption is None else resumption.known_files,
                )
                if self.virtual_time is not None:
                    self.fw_cfg.go_by(self._clock)
                interface.attach_fw_cfg(self.fw_cfg, self.ports, core, in_python=config.dispatch is Dispatch.PYTHON)
            else:
                self.fwctl = interface.build_fwctl(config)
                self.fwctl.attach(self.ports)
            handed = (config, self.memory, self._processors, self.fw_cfg, self.platform, self.io_lock)
            self._hand_over = partial(interface.hand_over, *handed)
            if resumption is None:
                self._hand_over()
            device = self.fw_cfg or self.fwctl
            poll: Callable[[], None] | None = None
            if self.softcpu is None:
                wake = self.platform.timers.wake
                poll = coalesce_consoles(config, core, self.vcpus[0], wake, parts, fw_cfg=self.fw_cfg is not None)
            if config.trace is not None and device is not None:
                from vmm.run.trace import start_log

                poll = start_log(outputs.trace, device, core, self._processors.cores, lambda: self.started_ns, parts)
            self._profiler: Profiler | None = None
            if config.profile:
                from vmm.run.profile import start_profiler

                images = lambda: self._look.images  # noqa: E731  # what it needs is loaded once it is asked
                cores = self._processors.cores
                self._profiler, poll = start_profiler(core, cores, self._counts, images, poll, parts)
            self._coverage: Coverage | None = None
            if config.coverage:
                from vmm.run.coverage import start_coverage

                images = lambda: self._look.images  # noqa: E731
                registers = lambda: self.registers().values  # noqa: E731
                self._coverage, poll = start_coverage(
                    core, images, registers, poll, parts, software_cpu=self.softcpu is not None
                )
            self._consoles = (Console(self.serial), Console(self.debugcon))
            if resumption is not None:
                resumption.resume(self._whole, str(self.accelerator.name))
            runner = Runner(
                self._lifetime,
                threads,
                self._consoles,
                self.platform.serial.feed if self.virtual_time is None else self.virtual_time.feed,
                self._explain,
                self._reset_in_place,
                None if self.virtual_time is None else self.virtual_time.watch,
            )
            super().__init__(runner, self.serial, poll, self._find_terminal, self._press_power_button)
            self.debugger: Debugger | None = None
            if outputs.listener is not None:
                self.debugger = runner.debugger = self._debugged(outputs.listener, core, threads)
                parts.callback(self.debugger.close)
            self._parts = parts.pop_all()

    @property
    def _whole(self) -> Whole:
        """What a snapshot is made of."""
        from vmm.run.whole import Whole  # few runs come to that

        return Whole(
            vm=self.vm,
            processors=self._processors,
            softcpu=self.softcpu,
            memory=self.memory,
            platform=self.platform,
            clock=self._clock,
            io_lock=self.io_lock,
            buses=(self.ports, self.mmio),
            fw_cfg=self.fw_cfg,
            fwctl=self.fwctl,
            consoles=self._consoles,
        )

    def __new__(cls, config: MachineConfig | str = "ovmf", /, *_: Any, **options: Any) -> Self:
        """A machine, in this process or in another one (``sandbox="process"``).

        What comes back then is a `vmm.isolation.machine.ProcessMachine`, which has the same names.
        """
        sandbox = config.sandbox if isinstance(config, MachineConfig) else options.get("sandbox")
        if cls is not Machine or sandbox != Sandboxing.PROCESS:
            return super().__new__(cls)
        from typing import cast

        from vmm.isolation.machine import ProcessMachine

        return cast("Self", ProcessMachine.made(config, **options))

    __init__.__wrapped__ = __new__.__wrapped__ = SpelledOut(__init__)  # type: ignore[attr-defined]

    @classmethod
    def restore(
        cls,
        snapshot: Snapshot,
        *,
        fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str = (),
        generation: UUID | str | None = None,
        time: Time | str = "stopped",
        customize: interface.Customize | None = None,
        alter: interface.Alter | None = None,
        outputs: Outputs | None = None,
    ) -> Self:
        """Make a machine that goes on where a snapshot was taken; any number of them, also side by side.

        Its variables are a copy of its own, written back nowhere, and its consoles go on behind what was printed and
        read before.

        Args:
            snapshot: may be closed afterwards.
            fw_cfg: items, as for `MachineConfig.create`: of those that the guest knows, these have other contents; new
                ones come behind them in the directory.
            generation: a new VM generation id (``"auto"`` is a random one), of which the guest is told. Without one,
                it cannot know that there may be others like it, with the same state of random number generators.
            time: "stopped" goes on with the time at which it was taken, "now" moves the guest's clocks by as much as
                the host's clock moved meanwhile.
            customize: as for `Machine`, and the same as when it was taken.
            alter: likewise.
            outputs: likewise.

        Raises:
            ConfigError: it cannot go on: another kind of host or CPU, or an item that it cannot have.
            HostError: the host lacks something.
            KvmError: KVM does not take its state.
        """
        from vmm.run.resumption import prepare

        resumption = prepare(snapshot, fw_cfg, generation, time)
        return cls(resumption.config, customize=customize, alter=alter, outputs=outputs, resumption=resumption)

    def snapshot(self) -> Snapshot:
        """Take a snapshot, between two runs; the machine may go on.

        Raises:
            RuntimeError: the machine runs.
            ValueError: it is closed.
            ConfigError: the guest has ended, or the machine has a device that no snapshot can have, such as a disk that
                the guest may have written to.
            HostError: there is not enough memory.
            KvmError: KVM does not give its state.
        """
        with self._lifetime.hold():
            return self.snapshot_while_held()

    def snapshot_while_held(self) -> Snapshot:
        """As `snapshot`, for a debugger that holds the vCPUs in the middle of a run."""
        from vmm.run import snapshot

        self.platform.flush()
        self.platform.settle()
        return snapshot.take(self.config, str(self.accelerator.name), self._whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Machine {self.config.firmware.path}, {counted(sum(self._present), 'CPU')}, {self._lifetime.state}>"

    def close(self) -> None:
        """Give back the virtual machine, its memory and its threads; may be called twice.

        A run that goes on in another thread ends first, with `Reason.STOPPED`. What was counted can still be asked
        for; running and memory have ended.

        Raises:
            KvmError: a vCPU does not stop: all is kept, for it uses the memory. May be called again later.
            RuntimeError: it is a callback or a device of the machine that calls, inside a run.
        """
        self._runner.close()
        self._parts.close()

    def plug_cpu(self, index: int | None = None) -> int:
        """Plug a CPU in, between runs or from another thread in the middle of one; the guest's OS is told by ACPI.

        The OS decides what it does with it: Linux adds it, and uses it once somebody writes 1 to its file ``online``.
        Firmware counts it at the next reset, at which it stays.

        Args:
            index: which of those that ``max_cpus`` leaves room for; None: the first that is not there.

        Returns:
            Its index.

        Raises:
            ConfigError: it is there, or there is no room for it, or firmware's system management mode would not know
                it.
            SendError: the guest has ended.
            HostError: the host gives no further thread.
            ValueError: the machine is closed.
            RuntimeError: a device calls, on the thread of a vCPU.
            VmmError: as `run`.
        """
        from vmm.run.plug import plug_cpu  # few machines get more CPUs

        self._runner.check_alive()
        return plug_cpu(index, self.config, self._processors, self.softcpu, self.platform, self._threads, self.io_lock)

    def unplug_cpu(self, index: int) -> None:
        """Ask the guest's OS, by ACPI, to let go of a CPU, as `plug_cpu` may be called; it is gone once the OS does.

        Linux does, and uses it no more; `present_cpus` tells. A CPU that is gone can be plugged in again.

        Args:
            index: not 0.

        Raises:
            ConfigError: it is not there, or cannot be taken out.
            SendError: the guest has ended.
            ValueError: the machine is closed.
            VmmError: as `run`.
        """
        from vmm.run.plug import unplug_cpu

        self._runner.check_alive()
        unplug_cpu(index, self.config, self._present, self.platform, self.io_lock)

    def _find_terminal(self) -> TerminalType:
        from vmm.run.console_terminal import find_terminal  # few machines are sent keys

        return find_terminal(self.platform.flash, self.config.firmware.kind)

    def _press_power_button(self) -> None:
        if self.virtual_time is not None:
            self.virtual_time.press_power_button()
            return
        with self.io_lock:
            self.platform.pm.press_power_button()

    def _virtual_time(self, outputs: Outputs, softcpu: SoftwareCpu) -> VirtualTime:
        from vmm.run.virtual_time import VirtualTime, read_recording

        def press() -> None:
            with self.io_lock:
                self.platform.pm.press_power_button()

        replay = self.config.replay
        time = VirtualTime(
            self._clock,
            softcpu,
            self.platform.timers,
            self.platform.serial.feed,
            press,
            self._lifetime.fail,
            None if outputs.record is None else outputs.record.write,
            None if replay is None else read_recording(bytes(replay.data)),
        )
        for stream in (self.serial, self.debugcon):
            stream.instructions = lambda: time.instructions
            stream.printed = time.note_output
        self._lifetime.instructions = lambda: time.instructions
        return time

    def _ioeventfd(self, fd: int, address: int, wanted: bool) -> None:
        self.vm.ioeventfd(fd, address, 2, deassign=not wanted)

    def _message_routes(self) -> MessageRoutes:
        from vmm.kvm.message_routes import MessageRoutes  # few machines have devices of other processes

        return MessageRoutes(self.vm)

    def _coalesce(self, core: Any, address: int, size: int, wanted: bool) -> bool:
        (self.vm.coalesce_writes if wanted else self.vm.stop_coalescing)(address, size)
        return not lib.vmm_vm_keeps_writes(core)

    def _smi_sender(self, core: Any) -> Callable[[bool], None]:
        from vmm.cpu.smi import send_smi

        return lambda broadcast: send_smi(core, self.vcpus, self.softcpu, broadcast=broadcast)

    def _reset_in_place(self, kind: ResetKind) -> None:
        if self._reset_machine is None:
            from vmm.run.reset import MachineReset  # few machines are reset

            boot = self.config.boot
            self._reset_machine = MachineReset(
                self.vm,
                self._processors,
                self.softcpu,
                (self.ports, self.mmio),
                self.platform,
                self.fw_cfg,
                self._hand_over,
                cmos_boot_bytes(boot.order) if boot.once else {},
            )
        self._reset_machine(kind)

    def _debugged(self, listener: DebugSocket, core: Any, threads: VcpuThreads) -> Debugger:
        from vmm.debug.debugger import Debugger

        return Debugger(
            self,
            core,
            self._processors.cores,
            threads,
            self._lifetime,
            listener=listener,
            hold=self.config.hold,
            interprets=not decision.has_hardware_virtualization(),
        )

    def _note_debug(self, index: int) -> None:
        if self.debugger is not None:
            self.debugger.note_debug(index)

    def _explain(self, outcome: Outcome) -> Outcome:
        from vmm.run.failure import explained  # few runs fail

        buses = (self.ports, self.mmio)
        return explained(outcome, self._processors, buses, (self.debugcon, self.serial), lambda: self._look)

    @cached_property
    def _look(self) -> Look:
        from vmm.debug.look import Look

        return Look(self.memory, self.config.firmware, self.config.symbols)

    def _vmcoreinfo_written(self, info: VmCoreInfo | None) -> None:
        self.vmcoreinfo = info
