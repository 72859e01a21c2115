/* See guest.h. */
#include "guest.h"

/* Host bridges at 00:00.0, device id in the high half (edk2 OvmfPkg/Include/OvmfPlatforms.h). */
#define HOST_BRIDGE_I440FX 0x1237
#define HOST_BRIDGE_Q35 0x29c0
#define HOST_BRIDGE_BHYVE 0x1275

/* Intel 82371AB (PIIX4) datasheet 7.1, function 3. */
#define PIIX4_PM_DEVICE 1
#define PIIX4_PM_FUNCTION 3
#define PIIX4_PMBASE 0x40
#define PIIX4_PMREGMISC 0x80
#define PIIX4_PMIOSE 0x01

/* Intel ICH9 datasheet 13.1, LPC bridge. */
#define ICH9_LPC_DEVICE 0x1f
#define ICH9_LPC_FUNCTION 0
#define ICH9_PMBASE 0x40
#define ICH9_ACPI_CNTL 0x44
#define ICH9_ACPI_EN 0x80

#define PMBASE 0x600
#define PMBASE_IS_IO 1
#define BHYVE_PMBASE 0x400 /* fixed there (bhyve's acpi.h) */

/* ACPI 6.5, 4.8.3.2.1: PM1a_CNT. SLP_TYP of S5 is 0 on QEMU's machines, 5 on bhyve's. */
#define PM1_CNT 4
#define PM_TIMER 8 /* 4.8.3.3; the offset is Intel's and bhyve's */
#define PM1_SLP_EN (1u << 13)
#define PM1_SLP_TYP_SHIFT 10

#define RESET_CONTROL_HARD 0x06
#define KEYBOARD_COMMAND_PORT 0x64
#define KEYBOARD_PULSE_RESET 0xfe

static uint32_t pci_address(uint8_t device, uint8_t function, uint8_t offset)
{
    return 0x80000000u | (uint32_t)device << 11 | (uint32_t)function << 8 | (offset & 0xfcu);
}

uint32_t pci_read32(uint8_t device, uint8_t function, uint8_t offset)
{
    out32(PCI_ADDRESS, pci_address(device, function, offset));
    return in32(PCI_DATA);
}

void pci_write32(uint8_t device, uint8_t function, uint8_t offset, uint32_t value)
{
    out32(PCI_ADDRESS, pci_address(device, function, offset));
    out32(PCI_DATA, value);
}

enum platform platform_detect(void)
{
    switch (pci_read32(0, 0, 0) >> 16) {
    case HOST_BRIDGE_I440FX:
        return PLATFORM_PC;
    case HOST_BRIDGE_Q35:
        return PLATFORM_Q35;
    case HOST_BRIDGE_BHYVE:
        return PLATFORM_BHYVE;
    default:
        return PLATFORM_UNKNOWN;
    }
}

const char *platform_name(enum platform platform)
{
    static const char names[][8] = {"unknown", "pc", "q35", "bhyve"};

    return names[platform];
}

/* Puts the power management registers where this file wants them. Returns the first port; 0 if there are none. */
static uint16_t power_base(enum platform platform)
{
    switch (platform) {
    case PLATFORM_PC:
        pci_write32(PIIX4_PM_DEVICE, PIIX4_PM_FUNCTION, PIIX4_PMBASE, PMBASE | PMBASE_IS_IO);
        pci_write32(PIIX4_PM_DEVICE, PIIX4_PM_FUNCTION, PIIX4_PMREGMISC, PIIX4_PMIOSE);
        return PMBASE;
    case PLATFORM_Q35:
        pci_write32(ICH9_LPC_DEVICE, ICH9_LPC_FUNCTION, ICH9_PMBASE, PMBASE | PMBASE_IS_IO);
        pci_write32(ICH9_LPC_DEVICE, ICH9_LPC_FUNCTION, ICH9_ACPI_CNTL, ICH9_ACPI_EN);
        return PMBASE;
    case PLATFORM_BHYVE:
        return BHYVE_PMBASE;
    default:
        return 0;
    }
}

uint16_t power_timer_port(void)
{
    uint16_t base = power_base(platform_detect());

    return base ? base + PM_TIMER : 0;
}

static void power_off(void)
{
    enum platform platform = platform_detect();
    uint16_t base = power_base(platform);

    if (base)
        out16(base + PM1_CNT, (uint16_t)(PM1_SLP_EN | (platform == PLATFORM_BHYVE ? 5u << PM1_SLP_TYP_SHIFT : 0)));
}

void power_end(uint32_t status)
{
    if (status == 0) {
        power_off();
    } else {
        out8(ISA_DEBUG_EXIT, (uint8_t)status);
        out8(RESET_CONTROL, RESET_CONTROL_HARD);
        out8(KEYBOARD_COMMAND_PORT, KEYBOARD_PULSE_RESET);
    }
    for (;;)
        __asm__ volatile("cli; hlt");
}
