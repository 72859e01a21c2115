"""One virtual machine, and what can be done with it.

```python
from vmm import Machine

with Machine("ovmf", cpus=3, memory="512M") as machine:
    outcome = machine.run(until="Shell>", deadline=60)
    assert outcome.reached
```
"""

from __future__ import annotations

from vmm.assembly import Assembly
from vmm.config.machine import MachineConfig
from vmm.config.parts import Sandboxing
from vmm.config.spelled import SpelledOut
from vmm.legible import counted
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Self, Unpack
    from uuid import UUID

    from vmm.config.debugger import DebugAddress
    from vmm.config.items import FwCfgItem
    from vmm.config.keywords import MachineOptions
    from vmm.config.outputs import Outputs
    from vmm.handoff import interface
    from vmm.kvm.ahead import VmAhead
    from vmm.run.resumption import Resumption, Time
    from vmm.run.snapshot import Snapshot


class Machine(Assembly):
    """A machine, ready to run; a context manager that gives everything back.

    Args:
        config: what the machine is. Or a firmware name or path, with the fields of a
            `vmm.config.keywords.MachineOptions` as keyword arguments.
        customize: may add items to fw_cfg, before the guest sees them.
        alter: sees and may change the files of tables that fw_cfg offers.
        outputs: the files that the config names, opened already; they stay the caller's.
        resumption: what it goes on from; `Machine.restore` gives it.
        ahead: a VM of KVM that was made before; it stays the caller's.

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
        ahead: VmAhead | None = None,
        **options: Unpack[MachineOptions],
    ) -> None:
        if isinstance(config, MachineConfig):
            if options:
                raise TypeError(f"a MachineConfig is whole: {', '.join(options)} cannot be given beside it")
        else:
            config = MachineConfig.create(config, **options)
        super().__init__(config, customize=customize, alter=alter, outputs=outputs, resumption=resumption, ahead=ahead)

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
        gdb: DebugAddress | str | None = None,
        hold: bool = False,
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
            gdb: where a debugger finds it, as for `MachineConfig.create`.
            hold: its first run waits for one.
            customize: as for `Machine`, and the same as when it was taken.
            alter: likewise.
            outputs: likewise.

        Raises:
            ConfigError: it cannot go on: another kind of host or CPU, or an item that it cannot have.
            HostError: the host lacks something.
            KvmError: KVM does not take its state.
        """
        from vmm.run.resumption import prepare

        resumption = prepare(snapshot, fw_cfg, generation, time).debugged(gdb, hold=hold)
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
            index: which of those that ``max_cpus`` leaves room for; None: the first that is not there, nor still stops.

        Returns:
            Its index.

        Raises:
            ConfigError: it is there, or still stops, or there is no room for it, or firmware's system management mode
                would not know it.
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
