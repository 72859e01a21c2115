"""Every guest physical address and port, each with its source.

```
  4 GiB +  ┌──────────────────────────┐ HIGH_RAM_BASE: RAM that did not fit below the PCI hole
           ├──────────────────────────┤ 4 GiB
           │ flash or BIOS, downwards │ images end at 4 GiB, where the reset vector is
           │ KVM's TSS, identity map  │ inside the topmost 4 MiB
           │ LAPIC, HPET, IOAPIC      │
           │ PCI windows, ECAM        │ the PCI hole
           ├──────────────────────────┤ end of low RAM
           │ RAM                      │
    1 MiB  ├──────────────────────────┤ LEGACY_END
           │ ROM or RAM, by chipset   │ LEGACY_ROM
           │ legacy video: nothing    │ LEGACY_VIDEO
  640 KiB  ├──────────────────────────┤
           │ RAM                      │
        0  └──────────────────────────┘
```
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE = 4 * KIB
"""The smallest page of x86 (SDM volume 3, 4.2): what firmware and tables align and count by."""

LEGACY_VIDEO = range(0xA0000, 0xC0000)
"""IBM PC: display memory. Nothing is there, for there is no display."""

HIGH_SMRAM = range(0xFEDA_0000, 0xFEDC_0000)
"""Intel 3 Series (316966) 5.1.33: where H_SMRAME shows the RAM behind LEGACY_VIDEO instead."""

DEFAULT_SMBASE = range(0x30000, 0x50000)
"""Intel SDM volume 3, 32.11: where a CPU that was reset takes its first SMI. The size is QEMU's
(include/hw/pci-host/q35.h, MCH_HOST_BRIDGE_SMBASE_SIZE)."""

LEGACY_ROM = range(0xC0000, 0x100000)
"""IBM PC: option ROMs and the system BIOS; PAM registers decide between ROM and RAM, segment by segment."""

SMBIOS_BHYVE = range(0xF1000, 0xF2400)
"""bhyve: usr.sbin/bhyve/smbiostbl.c, SMBIOS_BASE; ends where basl.h puts the ACPI tables. edk2's SmbiosPlatformDxe for
bhyve searches 0xf0000-0xfffff."""

LEGACY_END = 0x100000
"""IBM PC: first address above the area that 20 address bits reach."""

Q35_LOW_RAM = 0xB000_0000
Q35_LOW_RAM_CUT = 0x8000_0000
"""QEMU, pc_q35_init in hw/i386/pc_q35.c: RAM that reaches to 2816 MiB is cut at 2 GiB, so that both parts are whole
GiB; less than that stays below."""

PC_LOW_RAM = 0xE000_0000
PC_LOW_RAM_CUT = 0xC000_0000
"""QEMU, pc_init1 in hw/i386/pc_piix.c: RAM that reaches to 3.5 GiB is cut at 3 GiB, likewise."""

BHYVE_LOW_RAM = 3 * GIB
"""bhyve: lib/libvmmapi/vmmapi.c, vm_open: lowmem_limit."""

FOUR_GIB = 4 * GIB

HIGH_RAM_BASE = FOUR_GIB
"""QEMU's and bhyve's choice for RAM that the PCI hole displaced."""

HYPERTRANSPORT = range(0xFD_0000_0000, 0x100_0000_0000)
"""AMD I/O Virtualization Technology (48882) 2.1.2: addresses with a meaning of their own in AMD's systems. QEMU 7.1 and
later (pc_memory_init in hw/i386/pc.c) have RAM behind it, if RAM or devices would reach it on an AMD CPU."""

IMAGE_WINDOW = range(FOUR_GIB - 16 * MIB, FOUR_GIB)
"""Where firmware images end at 4 GiB; 16 MiB is the most that QEMU's PCs take, too."""

KVM_TSS_ADDRESS = IMAGE_WINDOW.start - 3 * 4 * KIB
"""Three pages for KVM_SET_TSS_ADDR (Documentation/virt/kvm/api.rst), directly below the largest image."""

KVM_IDENTITY_MAP_ADDRESS = KVM_TSS_ADDRESS - 4 * KIB
"""One page for KVM_SET_IDENTITY_MAP_ADDR, directly below the TSS pages: 0xfeffc000, as in QEMU."""

SOFTWARE_CPU_STUBS = KVM_IDENTITY_MAP_ADDRESS - 4 * KIB
"""One page of code that KVM executes for the software CPU (native/softcpu/stubs.c), directly below KVM's own pages: no
image and no RAM reaches it. It is in none of the guest's memory maps, so the guest finds nothing there."""

# The PCI hole.

ECAM_DEFAULT = 0xB000_0000
"""Where OVMF 2022.11 puts Q35's ECAM (OvmfPkg.dec, PcdPciExpressBaseAddress), and SeaBIOS (src/config.h,
Q35_PCIEXBAR_ADDR); newer OVMF chooses 0xe0000000. Firmware decides: nothing is there before it does."""

ECAM_SIZES = (256 * MIB, 128 * MIB, 64 * MIB)
"""Intel 3 Series (316966) 5.1.18, PCIEXBAR LENGTH 0-2: 256, 128 or 64 buses of 32 devices x 8 functions x 4 KiB."""

BHYVE_BARS = range(0xC000_0000, 0xE000_0000)
"""bhyve: usr.sbin/bhyve/pci_emul.c, where PCI devices get their addresses before the guest starts: from the end of low
RAM's largest size to PCI_EMUL_ECFG_BASE."""

IOAPIC_BASE = 0xFEC0_0000
"""Intel 82093AA; KVM's in-kernel IOAPIC (arch/x86/kvm/ioapic.h, IOAPIC_DEFAULT_BASE_ADDRESS)."""

HPET = range(0xFED0_0000, 0xFED0_0400)
"""IA-PC HPET 1.0a, 2.3.1: 1 KiB a block; the address is the ICH's first choice and bhyve's and QEMU's only one."""

LAPIC_BASE = 0xFEE0_0000
"""Intel SDM volume 3, 11.4.1: where the local APIC is after reset."""

# Ports. A range holds every port that belongs to the device.

PORT_PIC_MASTER = range(0x20, 0x22)
PORT_PIT = range(0x40, 0x44)
PORT_PIC_SLAVE = range(0xA0, 0xA2)
PORT_ELCR = range(0x4D0, 0x4D2)
"""Served in the kernel: KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2; userspace never sees them."""

PORT_I8042_DATA = range(0x60, 0x61)
PORT_I8042_COMMAND = range(0x64, 0x65)
"""Intel 8042. Not neighbours: 0x61 between them is the PIT's gate and speaker."""

PORT_CMOS = range(0x70, 0x72)
"""Motorola MC146818: index, data."""

PORT_POST = range(0x80, 0x81)
"""POST codes; also where Linux and firmware write to wait a microsecond."""

PORT_SYSTEM_CONTROL_A = range(0x92, 0x93)
"""IBM PS/2: fast A20 (bit 1), fast reset (bit 0)."""

PORT_APM = range(0xB2, 0xB4)
"""ICH9 (316972) 13.7.3: APM control, which is ACPI's SMI_CMD, and APM status."""

PORT_DEBUG_BOCHS = range(0xE9, 0xEA)
"""Bochs: a character written is printed; reads give the port's number."""

PORT_COM1 = range(0x3F8, 0x400)
PORT_COM2 = range(0x2F8, 0x300)
"""IBM PC; 8 registers of a 16550A (National Semiconductor PC16550D)."""

PORT_DEBUG_QEMU = range(0x402, 0x403)
"""isa-debugcon as QEMU's users place it: OVMF's and SeaBIOS's debug port, if a read gives 0xe9."""

PORT_PM_BHYVE = range(0x400, 0x40C)
"""bhyve: usr.sbin/bhyve/pm.c and acpi.c. PM1a_EVT 0x400, PM1a_CNT 0x404, PM timer 0x408."""

PORT_PVPANIC = range(0x505, 0x506)
"""QEMU's default (include/hw/misc/pvpanic.h, docs/specs/pvpanic.rst); etc/pvpanic-port and the DSDT tell the guest."""

PORT_FW_CFG = range(0x510, 0x51C)
"""QEMU, docs/specs/fw_cfg.rst: selector 0x510, data 0x511, DMA address 0x514 and 0x518; `native/include/vmm/fw_cfg.h`
says the same."""

PORT_FW_CFG_NOTES = range(0x510, 0x518)
"""Those of them to which a write changes what later ones mean, and does nothing else; 0x518 starts a transfer."""

PORT_FWCTL = range(0x510, 0x515)
"""FreeBSD, usr.sbin/bhyve/amd64/fwctl.c: 0x510 and 0x511, of which a 4-byte access reaches to 0x514. The bus hands over
whole only what lies in one range."""

PORT_PCI_CONFIG = range(0xCF8, 0xD00)
"""PCI 3.0, 3.2.2.3.2: CONFIG_ADDRESS, CONFIG_DATA. A byte at 0xcf9 is the ICH's reset control instead."""

PORT_GPE0_PIIX4 = range(0xAFE0, 0xAFE4)
"""QEMU's pc (include/hw/acpi/piix4.h): two status and two enable bytes."""

PORT_CPU_HOTPLUG_ICH9 = range(0xCD8, 0xCF8)
PORT_CPU_HOTPLUG_PIIX4 = range(0xAF00, 0xAF20)
"""QEMU's q35 and pc (include/hw/acpi/cpu_hotplug.h): 32 bytes of a bitmap, or 12 of registers and nothing behind."""

PMBASE_DEFAULT = 0x600
"""Where SeaBIOS (src/config.h, PORT_ACPI_PM_BASE) and OVMF on Q35 (Q35MchIch9.h, ICH9_PMBASE_VALUE) put the ACPI block;
OVMF on i440FX uses 0xb000. Firmware decides: nothing is there before it does."""

PM_EVENT = 0x0
PM_CONTROL = 0x4
PM_TIMER = 0x8
"""From PMBASE: PM1a_STS and PM1a_EN, PM1a_CNT, PM_TMR (ICH9 316972 13.8.3; PIIX4 290562 7.2)."""

ICH9_PM_SIZE = 0x80
ICH9_GPE0 = range(0x20, 0x30)
ICH9_SMI_ENABLE = 0x30
"""ICH9 13.8.3: 64-bit GPE0_STS, then GPE0_EN; SMI_EN."""

PIIX4_PM_SIZE = 0x40
"""PIIX4 7.2: 64 ports."""

SCI_IRQ = 9
"""ICH9 13.1.14, ACPI_CNTL.SCI_IRQ_SEL 0; PIIX4 has no other."""

PIT_GSI = 2
"""Input of the I/O APIC that IRQ 0 is wired to: `vmm.kvm.pc_routes`."""

COM1_IRQ = 4
RTC_IRQ = 8
"""IBM AT."""
