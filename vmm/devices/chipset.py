"""The PCI functions that make a PC: host bridges of 440FX and Q35, their ISA bridges, PIIX4's power management.

Register names and reset values: Intel 82441FX (290549), 82371AB PIIX4 (290562), 3 Series (316966), ICH9 (316972).
"""

from vmm import layout
from vmm.bus import Bus
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.pci import INTERRUPT_PIN, Ecam, PciBus, PciFunction
from vmm.devices.pirq import PIRQ_OFF, PirqRouter
from vmm.devices.shadow import PAM_REGISTERS, ShadowArea
from vmm.devices.smram import (
    ESMRAMC_RESET,
    ESMRAMC_WRITABLE,
    EXTENDED_TSEG_MIB,
    EXTENDED_TSEG_QUERY,
    LOCK,
    OPEN,
    SMBASE_IN_RAM,
    SMBASE_LOCK,
    SMBASE_QUERY,
    SMRAM_RESET,
    SMRAM_WRITABLE,
    SMRAM_WRITABLE_LOCKED,
    Smram,
)
from vmm.errors import ConfigError

INTEL = 0x8086
HOST_BRIDGE = 0x060000
ISA_BRIDGE = 0x060100
OTHER_BRIDGE = 0x068000
"""PCI Code and ID Assignment: class codes."""

_I440FX_PAM = 0x59
_Q35_PAM = 0x90

_Q35_PCIEXBAR = 0x60
_PCIEXBAR_ENABLE = 1
_PCIEXBAR_LENGTH = 0x6
_Q35_TSEG = 0x50
_Q35_SMBASE = 0x9C
_Q35_SMRAM = 0x9D
_Q35_ESMRAMC = 0x9E

_PMBASE = 0x40
"""ICH9 and PIIX4."""
_ICH9_ACPI_CONTROL = 0x44
_ICH9_ACPI_ENABLE = 0x80
_ICH9_GEN_PMCON_1 = 0xA0
_ICH9_SMI_LOCK = 0x10
_ICH9_RCBA = 0xF0

_PIIX4_DEVACTB = 0x58
_PIIX4_APMC_ENABLE = 1 << 25
_PIIX4_PMREGMISC = 0x80
_PIIX4_PM_IO_ENABLE = 0x01

_IO_SPACE = 0x01
"""Bit 0 of a base register for ports: hardwired to 1."""


def _add_pmbase(function: PciFunction, pm: AcpiPm) -> None:
    """Give a function the register that says where the ACPI block is, at a multiple of its size."""
    function.set_dword(_PMBASE, _IO_SPACE)
    function.writable[_PMBASE : _PMBASE + 4] = (0x1_0000 - pm.model.size).to_bytes(4, "little")


def _place_pm(pm: AcpiPm, function: PciFunction, enabled: int) -> None:
    """Move the ACPI block to where the register says, or away."""
    base = function.dword(_PMBASE) & ~_IO_SPACE
    pm.move(base if enabled and base else None)


class HostBridge(PciFunction):
    """0:0.0 with PAM registers.

    Args:
        device: device ID.
        revision: revision ID.
        pam: where the seven PAM registers start.
        shadow: what they switch.
    """

    def __init__(self, device: int, revision: int, pam: int, shadow: ShadowArea) -> None:
        super().__init__(INTEL, device, HOST_BRIDGE, revision=revision)
        self._pam = pam
        self._shadow = shadow
        self._update_shadow()

    def config_written(self, first: int, last: int) -> None:
        """Follow the PAM registers."""
        super().config_written(first, last)
        if first < self._pam + PAM_REGISTERS and self._pam <= last:
            self._update_shadow()

    def _update_shadow(self) -> None:
        self._shadow.update(bytes(self.config[self._pam : self._pam + PAM_REGISTERS]))


def i440fx_host_bridge(shadow: ShadowArea) -> HostBridge:
    """82441FX."""
    return HostBridge(0x1237, 2, _I440FX_PAM, shadow)


class Q35HostBridge(HostBridge):
    """82G33 and relatives: PAM, the address of ECAM, and the memory of system management mode.

    QEMU's lockable RAM at the default SMBASE is there where CPUs can be plugged in; else its register, 0x9c, reads 0.

    Args:
        shadow: what PAM switches.
        pci: the bus that ECAM shows.
        mmio: where ECAM is put.
        smram: what the registers of that memory switch; None: without that mode they read as 0.
    """

    def __init__(self, shadow: ShadowArea, pci: PciBus, mmio: Bus, smram: Smram | None = None) -> None:
        self._ecam = Ecam(pci)
        self._mmio = mmio
        self._ecam_at: range | None = None
        self._smram = smram
        super().__init__(0x29C0, 0, _Q35_PAM, shadow)
        self.writable[_Q35_SMBASE : _Q35_ESMRAMC + 1] = bytes(3)
        if smram is None:
            self.writable[_Q35_TSEG : _Q35_TSEG + 2] = bytes(2)
        else:
            self._reset_smm()
            self._follow_lock()
            if smram.plugging:
                self._follow_smbase(smram)

    @property
    def ecam(self) -> range | None:
        """Where the guest finds ECAM; None: nowhere, as before firmware has set PCIEXBAR."""
        return self._ecam_at

    def config_written(self, first: int, last: int) -> None:
        """Follow PAM, PCIEXBAR, SMRAM and ESMRAMC."""
        super().config_written(first, last)
        if first < _Q35_PCIEXBAR + 8 and last >= _Q35_PCIEXBAR:
            self._move_ecam()
        if self._smram is None:
            return
        if first < _Q35_TSEG + 2 and last >= _Q35_TSEG and self._extended_tseg() == EXTENDED_TSEG_QUERY:
            self._set_extended_tseg(EXTENDED_TSEG_MIB)
        if first <= _Q35_SMBASE <= last and self._smram.plugging:
            self._follow_smbase(self._smram)
        if first <= _Q35_ESMRAMC and last >= _Q35_SMRAM:
            self._follow_lock()
            self._smram.update(self.config[_Q35_SMRAM], self.config[_Q35_ESMRAMC])

    def restore(self, config: bytes) -> None:
        """Also the register of the default SMBASE, which was asked for then."""
        if self._smram is not None and self._smram.plugging:
            self.writable[_Q35_SMBASE] = SMBASE_LOCK
        super().restore(config)

    def wake_up(self) -> None:
        """The memory of system management mode is neither closed nor locked (QEMU, mch_reset)."""
        if self._smram is not None:
            self._reset_smm()
        super().wake_up()

    def _reset_smm(self) -> None:
        self._set_extended_tseg(EXTENDED_TSEG_MIB)
        self.config[_Q35_SMBASE] = 0
        self.config[_Q35_SMRAM], self.config[_Q35_ESMRAMC] = SMRAM_RESET, ESMRAMC_RESET

    def _extended_tseg(self) -> int:
        return int.from_bytes(self.config[_Q35_TSEG : _Q35_TSEG + 2], "little")

    def _set_extended_tseg(self, mib: int) -> None:
        self.config[_Q35_TSEG : _Q35_TSEG + 2] = mib.to_bytes(2, "little")

    def _follow_smbase(self, smram: Smram) -> None:
        value, writable = self.config[_Q35_SMBASE], self.writable[_Q35_SMBASE]
        if value == 0:
            writable = 0xFF
        elif writable == 0xFF:  # what is no question leaves nothing
            value, writable = (SMBASE_IN_RAM, SMBASE_LOCK) if value == SMBASE_QUERY else (0, 0xFF)
        elif value & SMBASE_LOCK:
            value, writable = SMBASE_LOCK, 0
        self.config[_Q35_SMBASE], self.writable[_Q35_SMBASE] = value, writable
        smram.hide_smbase(value == SMBASE_LOCK)

    def _follow_lock(self) -> None:
        locked = bool(self.config[_Q35_SMRAM] & LOCK)
        if locked:
            self.config[_Q35_SMRAM] &= ~OPEN
        self.writable[_Q35_SMRAM] = SMRAM_WRITABLE_LOCKED if locked else SMRAM_WRITABLE
        self.writable[_Q35_ESMRAMC] = 0 if locked else ESMRAMC_WRITABLE

    def _wanted_ecam(self) -> range | None:
        register = self.dword(_Q35_PCIEXBAR) | self.dword(_Q35_PCIEXBAR + 4) << 32
        length = (register & _PCIEXBAR_LENGTH) >> 1
        if not register & _PCIEXBAR_ENABLE or length >= len(layout.ECAM_SIZES):
            return None
        size = layout.ECAM_SIZES[length]
        base = register & 0xF_FFFF_FFFF & -size
        return range(base, base + size)

    def _move_ecam(self) -> None:
        wanted = self._wanted_ecam()
        if wanted == self._ecam_at:
            return
        if self._ecam_at is not None:
            self._mmio.remove(self._ecam_at.start)
        self._ecam_at = None
        if wanted is None:
            return
        try:
            self._mmio.add(wanted.start, wanted.stop - 1, self._ecam, "ECAM")
        except ConfigError:
            # The guest put it over another device: undefined on a real chipset, here the device stays.
            return
        self._ecam_at = wanted


class IsaBridge(PciFunction):
    """An ISA bridge with routing registers for PIRQ A to D at 0x60, and with eight PIRQs for E to H at 0x68.

    Args:
        device: device ID.
        revision: revision ID.
        pirqs: what the registers route.
        multifunction: the device has more functions.
    """

    def __init__(self, device: int, pirqs: PirqRouter, *, revision: int = 0, multifunction: bool = False) -> None:
        super().__init__(INTEL, device, ISA_BRIDGE, revision=revision, multifunction=multifunction)
        self._pirqs = pirqs
        self._routed = {0x60: 0} if multifunction else {0x60: 0, 0x68: 4}
        for register in self._routed:
            self.config[register : register + 4] = bytes((PIRQ_OFF,)) * 4

    def config_written(self, first: int, last: int) -> None:
        """Follow the routing registers."""
        super().config_written(first, last)
        for register, pirq in self._routed.items():
            if first < register + 4 and register <= last:
                self._pirqs.route(pirq, bytes(self.config[register : register + 4]))


class Ich9Lpc(IsaBridge):
    """0:31.0: ISA bridge, PMBASE, interrupt routing registers, the lock of GBL_SMI_EN.

    Args:
        pm: the ACPI block that PMBASE and ACPI_CNTL place.
        pirqs: what the routing registers route.
    """

    def __init__(self, pm: AcpiPm, pirqs: PirqRouter) -> None:
        super().__init__(0x2918, pirqs, revision=2)
        self._pm = pm
        _add_pmbase(self, pm)
        self.writable[_ICH9_RCBA : _ICH9_RCBA + 4] = (0xFFFF_C001).to_bytes(4, "little")

    def config_written(self, first: int, last: int) -> None:
        """Move the ACPI block, lock SMIs on."""
        super().config_written(first, last)
        if first <= _ICH9_GEN_PMCON_1 <= last:
            locked = bool(self.config[_ICH9_GEN_PMCON_1] & _ICH9_SMI_LOCK)
            self.writable[_ICH9_GEN_PMCON_1] = 0xFF & ~_ICH9_SMI_LOCK if locked else 0xFF
            self._pm.lock_smi(locked)
        if first <= _ICH9_ACPI_CONTROL and last >= _PMBASE:
            _place_pm(self._pm, self, self.config[_ICH9_ACPI_CONTROL] & _ICH9_ACPI_ENABLE)

    def wake_up(self) -> None:
        """GBL_SMI_EN is not locked."""
        self.config[_ICH9_GEN_PMCON_1] &= ~_ICH9_SMI_LOCK
        super().wake_up()


def piix3_isa_bridge(pirqs: PirqRouter) -> IsaBridge:
    """82371SB, 0:1.0; 0:1.3 exists besides."""
    return IsaBridge(0x7000, pirqs, multifunction=True)


class Piix4Pm(PciFunction):
    """82371AB function 3, 0:1.3: PMBASE.

    Args:
        pm: the ACPI block that PMBASE and PMREGMISC place.
    """

    def __init__(self, pm: AcpiPm) -> None:
        super().__init__(INTEL, 0x7113, OTHER_BRIDGE, revision=3)
        self._pm = pm
        self.config[INTERRUPT_PIN] = 1
        _add_pmbase(self, pm)
        # "SMM is set up already": SeaBIOS would otherwise wait for an SMI (src/fw/smm.c).
        self.set_dword(_PIIX4_DEVACTB, _PIIX4_APMC_ENABLE)

    def config_written(self, first: int, last: int) -> None:
        """Move the ACPI block."""
        super().config_written(first, last)
        if first <= _PIIX4_PMREGMISC and last >= _PMBASE:
            _place_pm(self._pm, self, self.config[_PIIX4_PMREGMISC] & _PIIX4_PM_IO_ENABLE)
