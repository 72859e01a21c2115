"""What a machine is put together from, in which order, and what its parts tell each other."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import cached_property, partial

from vmm import layout
from vmm._native import ffi, lib
from vmm.bus import Bus, IoLock
from vmm.coalesced import drain, is_coalesced, keep_writes
from vmm.config.machine import Accelerator, Dispatch, Interface, MachineConfig
from vmm.config.outputs import Outputs
from vmm.config.parts import Clock
from vmm.cpu import cpuid
from vmm.cpu.processors import create_processors
from vmm.devices.clock import VIRTUAL_START_NS, VIRTUAL_UTC_NS, GuestClock
from vmm.firmware.images import FirmwareKind
from vmm.handoff import interface, tables
from vmm.kvm import pc_routes
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
    from collections.abc import Callable

    from vmm.config.listening import DebugSocket
    from vmm.config.parts import RamPlaces
    from vmm.debug.debugger import Debugger
    from vmm.debug.look import Look
    from vmm.debug.target import Debuggee
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.devices.vmcoreinfo import VmCoreInfo
    from vmm.kvm.ahead import VmAhead
    from vmm.kvm.message_routes import MessageRoutes
    from vmm.run.coverage import Coverage
    from vmm.run.keys import TerminalType
    from vmm.run.outcome import Outcome, ResetKind
    from vmm.run.profile import Profiler
    from vmm.run.reset import MachineReset
    from vmm.run.resumption import Resumption
    from vmm.run.virtual_time import VirtualTime
    from vmm.run.whole import Whole
    from vmm.softcpu.engine import SoftwareCpu


_READ_TABLES = frozenset({FirmwareKind.OVMF, FirmwareKind.SEABIOS, FirmwareKind.BHYVE})
"""Real firmware does; of our guests, few live long enough."""


class Assembly(Observable):
    """A machine's parts; `vmm.machine.Machine` says what they are, and what can be done with it."""

    def __init__(
        self,
        config: MachineConfig,
        *,
        customize: interface.Customize | None,
        alter: interface.Alter | None,
        outputs: Outputs | None,
        resumption: Resumption | None,
        ahead: VmAhead | None,
    ) -> None:
        self.config = config
        self.vmcoreinfo: VmCoreInfo | None = None
        self._reset_machine: MachineReset | None = None
        own_code = customize is not None or alter is not None
        # Each part is closed after those that were built on it, also where a later one cannot be built.
        with nullcontext() if resumption is None or own_code else resumption.fitting(), ExitStack() as parts:
            self._parts = parts
            if outputs is None:
                copy_disk = None if resumption is None else resumption.snapshot.copy_disk
                outputs = parts.enter_context(Outputs(config, copy_disk=copy_disk))
            self.serial = Stream("serial", outputs.serial.write if outputs.serial else None)
            self.debugcon = Stream("debugcon", outputs.debugcon.write if outputs.debugcon else None)
            places = self._decide_who_executes()
            if self.kvm.stands_in is not None:
                ahead = None
            self._create_vm(ahead)
            core = self._core  # and not self, which the caller's outputs would keep alive
            outputs.note_leaving(lambda: bool(core.stop))
            self._confine(outputs)
            self._map_memory(places.high_base, resumption)
            self._build_board(outputs, resumption)
            self._threads.foreign = lambda: own_code or self.ports.foreign or self.mmio.foreign
            self._create_vcpus(outputs, ahead)
            self._offer_configuration(customize, alter, resumption)
            poll = self._watch(outputs)
            self._consoles = (Console(self.serial), Console(self.debugcon))
            if resumption is not None:
                resumption.resume(self._whole, str(self.accelerator.name))
            if ahead is not None:
                ahead.settle()
                poll = ahead.watch(poll)
            reads_tables = config.firmware.kind in _READ_TABLES
            runner = Runner(
                self._lifetime,
                self._threads,
                self._consoles,
                self.platform.serial.feed if self.virtual_time is None else self.virtual_time.feed,
                self._explain,
                self._reset_in_place,
                None if self.virtual_time is None else self.virtual_time.watch,
                None if self.fw_cfg is None or not reads_tables else partial(interface.build_ahead, self.fw_cfg),
            )
            super().__init__(runner, self.serial, poll, self._find_terminal, self._press_power_button)
            self.debugger: Debugger | None = None
            if outputs.listener is not None:
                self.debugger = runner.debugger = self._debugged(outputs.listener)
                parts.callback(self.debugger.close)
            self._parts = parts.pop_all()

    def _decide_who_executes(self) -> RamPlaces:
        """Open the host, and choose an accelerator; return where RAM is and may be."""
        config = self.config
        self._clock = GuestClock()
        virtual = self._clock if config.clock is Clock.VIRTUAL else None
        if virtual is not None:
            virtual.stand(VIRTUAL_START_NS)
        self.kvm = self._parts.enter_context(decision.open_host(config.accel, virtual, config.max_cpus))
        self.kvm.require()
        cpuid.check_count(self.kvm, config.cpu_topology)
        self.accelerator = decision.decide(config.accel, self.kvm, interpretable=config.firmware.interpretable)
        self._in_kvm = self.accelerator.name is Accelerator.KVM
        return tables.place_ram(config, cpuid.addresses(self.kvm, config, software_cpu=not self._in_kvm))

    def _create_vm(self, ahead: VmAhead | None) -> None:
        """Make the virtual machine, of which C keeps a structure, or take the one that was made ahead."""
        self.vm = self._parts.enter_context(self.kvm.create_vm() if ahead is None else ahead.vm)
        self._keeps_writes = self._in_kvm and is_coalesced(self.config, self.vm)
        if ahead is not None and self._keeps_writes:
            keep_writes(self.config, self.vm)
        self.vm.set_identity_map_address(layout.KVM_IDENTITY_MAP_ADDRESS)
        self.vm.set_tss_address(layout.KVM_TSS_ADDRESS)
        # C's structures hold what a closed machine can still be asked, so they live as long as this object.
        self._core = ffi.gc(lib.vmm_vm_new(self.vm.fd), lib.vmm_vm_free)
        self.vm.attach(self._core)

    def _confine(self, outputs: Outputs) -> None:
        """Prepare the sandbox, and the threads that will be in it."""
        config = self.config
        # Those that may be plugged in are made now, and wait: a process in its sandbox makes no vCPU.
        room = config.max_cpus if config.can_plug_cpus else config.cpus
        self._present = [index < config.cpus for index in range(room)]
        self.sandbox = Sandbox(
            config.sandbox,
            self._core,
            outputs.descriptors,
            cpus=room,
            user=config.user,
            folders=() if config.symbols is None else (config.symbols,),
        )
        self.sandbox.close_files()
        self._threads = VcpuThreads(self._core, self.sandbox, self._present)
        self._lifetime = Lifetime(self._threads.kick, config.max_resets if config.resets else None)

    def _map_memory(self, high_base: int, resumption: Resumption | None) -> None:
        """Put RAM behind addresses; what is at other addresses and at ports will be on the buses."""
        ram = None if resumption is None else resumption.snapshot.map_ram()
        if self.config.has_smm:
            decision.check_smm(self.accelerator, self.kvm)
        self.memory = create_memory(self.vm, self._core, self.config, ram, kvm_smm=self._in_kvm, high_base=high_base)
        self._parts.callback(self.memory.close)
        self.io_lock = IoLock(self._core)
        self.ports = Bus("port", ffi.addressof(self._core, "ports"), self.io_lock, self._lifetime.fail)
        self.mmio = Bus("MMIO", ffi.addressof(self._core, "mmio"), self.io_lock, self._lifetime.fail)

    def _build_board(self, outputs: Outputs, resumption: Resumption | None) -> None:
        """Build the devices, and put them where the board has them."""
        config = self.config
        virtual = config.clock is Clock.VIRTUAL
        apic_id = config.cpu_topology.apic_id
        self.platform = builder(config.machine_type)(
            Parts(
                ports=self.ports,
                mmio=self.mmio,
                memory=self.memory,
                ram_low=self.memory.low_size,
                ram_high=self.memory.high_size,
                firmware=config.firmware,
                cpus=config.cpus,
                apic_ids=tuple(map(apic_id, range(len(self._present)))) if config.can_plug_cpus else (),
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
                smi=self._smi_sender() if config.has_smm else None,
                secure_flash=config.has_secure_flash,
                boot_order=config.boot.once or config.boot.order,
                core=self._core,
                disks=outputs.disks,
                shared=self.memory.shared,
                ioeventfd=self._ioeventfd if self._in_kvm else None,
                messages=None if self.memory.shared is None else self._message_routes(),
                coalesce=self._coalesce if self._keeps_writes else None,
                images={} if resumption is None else resumption.snapshot.map_images(),
                utc_ns=VIRTUAL_UTC_NS if virtual else None,
                virtual=virtual,
            )
        )
        self._parts.callback(self.platform.close)
        self.sandbox.files += [fd for disk in self.platform.disks for fd in disk.guest_files]
        self.sandbox.files += [fd for device in self.platform.vhost for fd in device.event_fds]
        self.sandbox.channels = [device.channel for device in self.platform.vhost]
        self._threads.helpers = [self.platform.timers.start, lambda _: self.platform.restrict_disks(self.vm.fd)]
        self._threads.start_timers = self.platform.timers.start
        if resumption is not None:
            with self.io_lock:
                resumption.place(self.platform)

    def _create_vcpus(self, outputs: Outputs, ahead: VmAhead | None) -> None:
        """Make the interrupt controllers and the vCPUs, and the software CPU if that executes."""
        config = self.config
        self.softcpu: SoftwareCpu | None = None
        if not self._in_kvm:
            from vmm.softcpu.engine import create_softcpu

            self.softcpu = create_softcpu(self._core, self.vm, self.memory, self._parts)
        self.virtual_time: VirtualTime | None = None
        if self.softcpu is not None and config.clock is Clock.VIRTUAL:
            self.virtual_time = self._virtual_time(outputs, self.softcpu)
            self._parts.callback(self.virtual_time.close)
        if ahead is None:
            # After the memory slots: where KVM frees its I/O buses by call_srcu, as Linux 6.18 does, the first slot
            # that is added once it has chips waits for two ticks of the kernel. Those have passed since `ahead`.
            self.vm.create_irqchip()
            self.vm.create_pit2()
            if self._keeps_writes:
                keep_writes(config, self.vm)
        self.vm.set_gsi_routing(pc_routes())
        self._processors = create_processors(self.vm, self._core, config, self.softcpu, self._parts, self._present)
        self.vcpus = self._processors.vcpus
        if self.virtual_time is not None:
            self.virtual_time.begin()
        add_vcpus(
            self._threads,
            self._processors,
            self.memory,
            self.softcpu,
            self._lifetime,
            self.platform.flush,
            self._note_debug,
            lambda: self._look,
        )

    def _offer_configuration(
        self,
        customize: interface.Customize | None,
        alter: interface.Alter | None,
        resumption: Resumption | None,
    ) -> None:
        """Tell firmware what the machine is, by fw_cfg or fwctl; do what is to be done before its first instruction."""
        config = self.config
        self.interface_choice = config.interface_choice
        self.fw_cfg: FwCfg | None = None
        self.fwctl: Fwctl | None = None
        if self.interface is Interface.QEMU:
            self.fw_cfg = interface.build_fw_cfg(
                config,
                self.memory,
                self._core,
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
            interface.attach_fw_cfg(self.fw_cfg, self.ports, self._core, in_python=config.dispatch is Dispatch.PYTHON)
        else:
            self.fwctl = interface.build_fwctl(config)
            self.fwctl.attach(self.ports)
        handed = (config, self.memory, self._processors, self.fw_cfg, self.platform, self.io_lock)
        self._hand_over = partial(interface.hand_over, *handed)
        if resumption is None:
            self._hand_over()

    def _watch(self, outputs: Outputs) -> Callable[[], None] | None:
        """Begin to look on, as far as that is asked for; return what is called all the time while the guest runs."""
        config, core, cores = self.config, self._core, self._processors.cores
        device = self.fw_cfg or self.fwctl
        poll: Callable[[], None] | None = None
        if self._keeps_writes:
            poll = drain(core, self.vcpus[0], self.platform.timers.wake, self._parts)
        if config.trace is not None and device is not None:
            from vmm.run.trace import start_log

            poll = start_log(outputs.trace, device, core, cores, lambda: self.started_ns, self._parts)
        self._profiler: Profiler | None = None
        if config.profile:
            from vmm.run.profile import start_profiler

            images = lambda: self._look.images  # noqa: E731  # what it needs is loaded once it is asked
            self._profiler, poll = start_profiler(core, cores, self._counts, images, poll, self._parts)
        self._coverage: Coverage | None = None
        if config.coverage:
            from vmm.run.coverage import start_coverage

            images = lambda: self._look.images  # noqa: E731
            registers = lambda: self.registers().values  # noqa: E731
            self._coverage, poll = start_coverage(
                core, images, registers, poll, self._parts, software_cpu=self.softcpu is not None
            )
        return poll

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

    def _coalesce(self, address: int, size: int, wanted: bool) -> bool:
        (self.vm.coalesce_writes if wanted else self.vm.stop_coalescing)(address, size)
        return not lib.vmm_vm_keeps_writes(self._core)

    def _smi_sender(self) -> Callable[[bool], None]:
        from vmm.cpu.smi import send_smi

        return lambda broadcast: send_smi(self._core, self.vcpus, self.softcpu, broadcast=broadcast)

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

    def _debugged(self, listener: DebugSocket) -> Debugger:
        from typing import cast

        from vmm.debug.debugger import Debugger

        return Debugger(
            cast("Debuggee", self),  # which `Machine` is
            self._core,
            self._processors.cores,
            self._threads,
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
