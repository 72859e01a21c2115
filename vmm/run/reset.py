"""Resets a machine in place: what its reset button, and every way in which a guest can reset it, does.

As in QEMU, devices, interrupt controllers, timers and vCPUs return to the state after power-on; RAM, CMOS, the variable
store and what is on the consoles stay. Read-only images cannot have changed. PAM is the one exception: as on the real
chipsets, and not as in QEMU, the legacy ROM area shows ROM again, so that SeaBIOS need not reset a second time to get
there (qemu_prep_reset in its src/resume.c).

All of it happens with io_lock held while no vCPU runs, so that no timer of a device gets in between.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import lib
from vmm.cpu.reset import PowerOn, reset_vcpu
from vmm.run.outcome import ResetKind

if TYPE_CHECKING:
    from vmm.bus import Bus
    from vmm.cpu.processors import Processors
    from vmm.devices.fw_cfg import FwCfg
    from vmm.kvm import Vm
    from vmm.platform import Platform
    from vmm.softcpu.engine import SoftwareCpu

_CHIPS = (lib.KVM_IRQCHIP_PIC_SLAVE, lib.KVM_IRQCHIP_PIC_MASTER, lib.KVM_IRQCHIP_IOAPIC)
"""The slave first, for what it requests the master remembers."""


class _Pristine(NamedTuple):
    """KVM's part of a machine after power-on."""

    chips: list[Any]
    pit: Any
    cpu: PowerOn


class MachineReset:
    """Resets one machine; call it while no vCPU runs.

    Args:
        vm: KVM's part.
        processors: its vCPUs.
        softcpu: what executes them, if it is not KVM.
        buses: whose devices are reset; also those that were added after the machine was made.
        platform: the board.
        fw_cfg: None if the machine has none.
        hand_over: does what is done before the guest's first instruction, such as loading a kernel.
        first_cmos: what the first reset stores in CMOS, by register: the boot order after ``-boot once=``.
    """

    def __init__(
        self,
        vm: "Vm",
        processors: "Processors",
        softcpu: "SoftwareCpu | None",
        buses: "Sequence[Bus]",
        platform: "Platform",
        fw_cfg: "FwCfg | None",
        hand_over: Callable[[], None],
        first_cmos: Mapping[int, int],
    ) -> None:
        self._vm = vm
        self._processors = processors
        self._softcpu = softcpu
        self._buses = buses
        self._platform = platform
        self._fw_cfg = fw_cfg
        self._hand_over = hand_over
        self._first_cmos = first_cmos
        self._pristine: _Pristine | None = None

    def __call__(self, kind: ResetKind) -> None:
        """Reset it.

        Args:
            kind: why. After S3 the chipset still shows RAM where firmware put it, and what is done before the guest's
                first instruction is not done again, for all that is in RAM.

        Raises:
            KvmError: KVM refuses a part of the state after power-on.
        """
        with self._buses[0].lock:
            wakeup = kind is ResetKind.WAKEUP
            self._reset_devices(wakeup=wakeup)
            pristine = self._pristine = self._pristine or self._look()
            for gsi in range(lib.KVM_IOAPIC_NUM_PINS):
                self._vm.irq_line(gsi, False)
            for chip in pristine.chips:
                self._vm.set_irqchip(chip)
            self._vm.set_pit2(pristine.pit)
            # Last, for until then an interrupt may have reached a LAPIC.
            self._processors.forget_starts()
            for index, vcpu in enumerate(self._processors.vcpus):
                reset_vcpu(vcpu, pristine.cpu)
                if self._softcpu is not None:
                    self._softcpu.reset_vcpu(self._processors.cores[index])
            if self._first_cmos:
                self._platform.rtc.store(self._first_cmos)
                self._first_cmos = {}
            if not wakeup:
                self._hand_over()

    def _reset_devices(self, *, wakeup: bool) -> None:
        own = list(self._platform.devices.values())
        added = [device for bus in self._buses for _, device in bus.devices() if device not in own]
        self._platform.reset(wakeup=wakeup)
        for device in added:
            device.reset()
        if self._fw_cfg is not None:
            self._fw_cfg.reset(wakeup=wakeup)

    def _look(self) -> _Pristine:
        """KVM's chips and CPUs after power-on, as a second machine has them, which never runs."""
        with ExitStack() as parts:
            vm = parts.enter_context(self._vm.kvm.create_vm())
            vm.create_irqchip()
            vm.create_pit2()
            vcpu = parts.enter_context(vm.create_vcpu(0))
            vcpu.set_cpuid2(self._processors.cpuid)
            reset_vcpu(vcpu)
            return _Pristine([vm.get_irqchip(chip) for chip in _CHIPS], vm.get_pit2(), PowerOn.of(vcpu))
