/* See devices_suite.h. This file: PCI, the chipset, ACPI, ports without a home. */
#include "devices_suite.h"

#define SYSTEM_CONTROL_A 0x92
#define SMI_COMMAND 0xb2

#define Q35_PCIEXBAR 0x60
#define ECAM 0xb0000000u
#define ECAM_ENABLE 1u

#define I440FX_PAM 0x59
#define Q35_PAM 0x90
#define PAM_RAM 0x30
#define PAM_READ_ONLY 0x10
#define PAM_ROM 0x00
#define SEGMENT_F 0xf0000u

static void select(uint8_t device, uint8_t function, uint8_t offset)
{
    (void)pci_read32(device, function, offset);
}

static void suite_pci_ports(void)
{
    uint32_t identity = pci_read32(0, 0, 0);

    select(0, 0, 0x40);
    tap_equal(in32(PCI_ADDRESS), 0x80000040u, "PCI: CONFIG_ADDRESS reads back");
    out16(PCI_ADDRESS, 0xffff);
    out8(PCI_ADDRESS, 0xff);
    tap_equal(in32(PCI_ADDRESS), 0x80000040u, "PCI: narrow writes leave CONFIG_ADDRESS alone");
    select(0, 0, 0);
    tap_equal(in16(PCI_DATA + 2), identity >> 16, "PCI: 16 bits at CONFIG_DATA + 2");
    tap_equal(in8(PCI_DATA + 3), identity >> 24, "PCI: 8 bits at CONFIG_DATA + 3");
    tap_equal(pci_read32(17, 0, 0), 0xffffffffu, "PCI: an empty slot reads all-ones");
    pci_write32(17, 0, 0, 0);
    pci_write32(0, 0, 0, 0x12345678);
    tap_equal(pci_read32(0, 0, 0), identity, "PCI: vendor and device are read-only");
    out32(PCI_ADDRESS, 0);
    tap_equal(in32(PCI_DATA), 0xffffffffu, "PCI: CONFIG_DATA without the enable bit is nobody");
}

static void suite_pci_ecam(void)
{
    uint32_t line;

    pci_write32(0, 0, Q35_PCIEXBAR + 4, 0);
    pci_write32(0, 0, Q35_PCIEXBAR, ECAM | ECAM_ENABLE);
    tap_equal(load32(ECAM), pci_read32(0, 0, 0), "ECAM: 0:0.0 as through the ports");
    tap_equal(load32(ECAM + (31u << 15)), pci_read32(31, 0, 0), "ECAM: 0:31.0 as through the ports");
    tap_equal(load32(ECAM + (17u << 15)), 0xffffffffu, "ECAM: an empty slot reads all-ones");
    line = pci_read32(31, 0, 0x60);
    store8(ECAM + (31u << 15) + 0x61, 0x0b);
    tap_equal(pci_read32(31, 0, 0x60), (line & 0xffff00ffu) | 0x0b00u, "ECAM: one byte of a register is written");
    pci_write32(31, 0, 0x60, line);
    pci_write32(0, 0, Q35_PCIEXBAR, 0);
    tap_ok(load32(ECAM) != pci_read32(0, 0, 0), "ECAM: gone when PCIEXBAR is disabled");
}

static void write_pam0(uint8_t pam, uint8_t value)
{
    select(0, 0, pam);
    out8((uint16_t)(PCI_DATA + (pam & 3)), value);
}

static void suite_pam(uint8_t pam)
{
    const uint32_t at = SEGMENT_F + 0x8000;
    uint32_t rom = load32(at);

    write_pam0(pam, PAM_RAM);
    store32(at, ~rom);
    tap_equal(load32(at), ~rom, "PAM: RAM takes the place of the ROM");
    write_pam0(pam, PAM_READ_ONLY);
    store32(at, 0);
    tap_equal(load32(at), ~rom, "PAM: RAM can be made read-only");
    write_pam0(pam, PAM_ROM);
    tap_equal(load32(at), rom, "PAM: the ROM comes back");
    write_pam0(pam, PAM_RAM);
    tap_equal(load32(at), ~rom, "PAM: the RAM behind keeps its contents");
    write_pam0(pam, PAM_ROM);
}

void suite_pci(enum platform platform)
{
    suite_pci_ports();
    if (platform == PLATFORM_Q35)
        suite_pci_ecam();
    else
        tap_skip("ECAM", "not a Q35");
    if (platform == PLATFORM_Q35)
        suite_pam(Q35_PAM);
    else if (platform == PLATFORM_PC)
        suite_pam(I440FX_PAM);
    else
        tap_skip("PAM", "no such chipset");
}

void suite_acpi(enum platform platform)
{
    const uint16_t base = power_timer_port() - 8;
    const uint16_t status = base;
    const uint16_t enable = base + 2;
    const uint16_t control = base + 4;
    uint8_t on = platform == PLATFORM_Q35 ? 0x02 : platform == PLATFORM_PC ? 0xf1 : 0xa0;
    uint8_t off = platform == PLATFORM_Q35 ? 0x03 : platform == PLATFORM_PC ? 0xf0 : 0xa1;
    uint32_t start = ticks();
    uint32_t last = 0;
    bool forwards = true;

    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t now = ticks_since(start);

        forwards = forwards && now >= last;
        last = now;
    }
    tap_ok(forwards && last != 0, "PM timer: counts upwards");
    out16(enable, 0x0120);
    tap_equal(in16(enable), 0x0120, "PM1: enable bits are held");
    out16(enable, 0);
    out16(status, 0xffff);
    tap_equal(in16(status) & 0xfffeu, 0, "PM1: status bits are cleared by ones");
    out8(SMI_COMMAND, on);
    tap_equal(in16(control) & 1, 1, "SMI_CMD: ACPI enable sets SCI_EN");
    out8(SMI_COMMAND, off);
    tap_equal(in16(control) & 1, 0, "SMI_CMD: ACPI disable clears it");
}

static void suite_ports(void)
{
    out8(SYSTEM_CONTROL_A, 0x02);
    tap_equal(in8(SYSTEM_CONTROL_A) & 0x03, 0x02, "port 92: A20 reads back, reset does not");
    out8(RESET_CONTROL, 0x02);
    tap_equal(in8(RESET_CONTROL), 0x02, "port cf9: the kind of reset reads back");
    out8(RESET_CONTROL, 0);
    tap_equal(in32(0x5678), 0xffffffffu, "a port that nobody owns reads all-ones");
}

uint32_t main(void);

uint32_t main(void)
{
    enum platform platform = platform_detect();

    console_init();
    tap_begin("PC devices");
    if (!clock_init()) {
        tap_bail_out("no host bridge that this guest knows");
        return tap_end();
    }
    interrupts_init();
    suite_pci(platform);
    suite_acpi(platform);
    suite_ports();
    suite_rtc();
    suite_serial();
    suite_hpet();
    suite_flash();
    return tap_end();
}
