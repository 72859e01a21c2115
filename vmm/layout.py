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

LEGACY_VIDEO = range(0xA0000, 0xC0000)
"""IBM PC: display memory. Nothing is there, for there is no display."""

LEGACY_ROM = range(0xC0000, 0x100000)
"""IBM PC: option ROMs and the system BIOS; PAM registers decide between ROM and RAM, segment by segment."""

LEGACY_END = 0x100000
"""IBM PC: first address above the area that 20 address bits reach."""

FOUR_GIB = 4 * GIB

HIGH_RAM_BASE = FOUR_GIB
"""QEMU's and bhyve's choice for RAM that the PCI hole displaced."""

IMAGE_WINDOW = range(FOUR_GIB - 16 * MIB, FOUR_GIB)
"""Where firmware images end at 4 GiB; 16 MiB is the most that QEMU's PCs take, too."""

KVM_TSS_ADDRESS = IMAGE_WINDOW.start - 3 * 4 * KIB
"""Three pages for KVM_SET_TSS_ADDR (Documentation/virt/kvm/api.rst), directly below the largest image."""

KVM_IDENTITY_MAP_ADDRESS = KVM_TSS_ADDRESS - 4 * KIB
"""One page for KVM_SET_IDENTITY_MAP_ADDR, directly below the TSS pages: 0xfeffc000, as in QEMU."""
