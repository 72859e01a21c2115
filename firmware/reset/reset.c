/*
 * reset: resets the machine in every way that a PC has, and looks each time whether it is as it was after power-on.
 *
 * What the first boot finds in registers is kept in RAM. Each boot then changes all of them, sets timers and interrupts
 * going, and resets while the other CPUs are halted, compute, or use a device. What a reset keeps is counted: in CMOS,
 * and in RAM. One line a boot, above it what a reset has left as it should not. The end is always power-off: a status
 * other than 0 would be told by a reset.
 */
#include "fw_cfg.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define CMOS_BOOTS 0x60
#define PIT_CHANNEL_0 0x40
#define PIT_COMMAND 0x43
#define KEYBOARD_COMMAND 0x64
#define SYSTEM_CONTROL_A 0x92

#define APIC 0xfee00000u
#define IOAPIC 0xfec00000u
#define IOAPIC_PINS 24
#define HPET 0xfed00000u

/* RAM that neither the start-up code nor the other CPUs use (rom.ld). */
#define RECORD ((struct record *)0x18000)
#define MAGIC 0x5e7a11edu
#define ROOM 160

struct record {
    uint32_t magic;
    uint32_t boots;
    uint32_t count;
    uint32_t values[ROOM];
};

static uint32_t found[ROOM];
static const char *names[ROOM];
static uint32_t details[ROOM];
static uint32_t count;

static void note(const char *name, uint32_t detail, uint32_t value)
{
    if (count < ROOM) {
        names[count] = name;
        details[count] = detail;
        found[count] = value;
    }
    count++;
}

static uint32_t load(uint32_t address)
{
    return *(volatile uint32_t *)address;
}

static void store(uint32_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static uint32_t ioapic_read(uint32_t index)
{
    store(IOAPIC, index);
    return load(IOAPIC + 0x10);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    store(IOAPIC, index);
    store(IOAPIC + 0x10, value);
}

static uint8_t cmos_read(uint8_t index)
{
    out8(CMOS_INDEX, index);
    return in8(CMOS_DATA);
}

static void cmos_write(uint8_t index, uint8_t value)
{
    out8(CMOS_INDEX, index);
    out8(CMOS_DATA, value);
}

/* Bytes that read back what was written, with something else to write. */
static const struct {
    uint16_t port;
    uint8_t other;
} ports[] = {
    {0x21, 0xb8}, /* the PICs' masks: the timer and the slave open */
    {0xa1, 0xfe}, /* the clock open */
    {0x4d0, 0x20}, /* ELCR */
    {0x4d1, 0x0c},
    {SYSTEM_CONTROL_A, 0x00},
    {RESET_CONTROL, 0x02},
    {COM1 + 3, 0x1b}, /* before the next: DLAB is off in both */
    {COM1 + 1, 0x02}, /* the transmitter is empty: an interrupt at once */
    {COM1 + 4, 0x0b},
    {COM1 + 7, 0x5a},
};

/* Of MSRs: EFER, STAR, LSTAR, SYSENTER, PAT, MTRRs, and what SWAPGS swaps. */
static const struct {
    uint32_t index;
    uint64_t other;
} msrs[] = {
    {0xc0000080, 0x001}, {0xc0000081, 0x1234567800000000}, {0xc0000082, 0x12345678}, {0x174, 0x10},
    {0x175, 0x20000},    {0x176, 0x30000},                 {0x277, 0x0606060606060606}, {0x2ff, 0xc06},
    {0x200, 0x6},        {0x201, 0xff000800},              {0x250, 0x0606060606060606}, {0xc0000102, 0x98765000},
};

static const uint16_t apic_registers[] = {0x80, 0xd0, 0xe0, 0xf0, 0x320, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0};
static const uint16_t apic_pending[] = {0x200, 0x210, 0x220, 0x230, 0x240, 0x250, 0x260, 0x270};

static void look(void)
{
    uint32_t value;

    note("fw_cfg", 0, in8(FW_CFG_DATA)); /* first: the first byte of the signature */
    for (uint32_t i = 0; i < ARRAY_SIZE(ports); i++)
        note("port", ports[i].port, in8(ports[i].port));
    /* In QEMU the PIT counts after power-on, in mode 3: its output and what it requests are as time wants them. */
    out8(PIT_COMMAND, 0xe2);
    note("PIT mode", 0, in8(PIT_CHANNEL_0) & 0x3f);
    out8(0x20, 0x0a);
    note("PIC requests", 0, in8(0x20) & 0xfe);
    out8(0xa0, 0x0a);
    note("PIC requests", 1, in8(0xa0));
    note("clock B", 0, cmos_read(0x0b) & 0x68); /* a reset leaves QEMU's UIE alone */
    for (uint32_t i = 0; i < ARRAY_SIZE(apic_registers); i++)
        note("APIC", apic_registers[i], load(APIC + apic_registers[i]));
    for (uint32_t i = 0; i < ARRAY_SIZE(apic_pending); i++)
        note("APIC", apic_pending[i], load(APIC + apic_pending[i]));
    for (uint32_t pin = 0; pin < IOAPIC_PINS; pin++)
        note("IOAPIC pin", pin, ioapic_read(0x10 + 2 * pin));
    note("HPET", 0x10, load(HPET + 0x10));
    note("HPET", 0x100, load(HPET + 0x100));
    for (uint32_t i = 0; i < ARRAY_SIZE(msrs); i++)
        note("MSR", msrs[i].index, (uint32_t)read_msr(msrs[i].index));
    __asm__ volatile("mov %%cr4, %0" : "=r"(value));
    note("CR4", 0, value);
    __asm__ volatile("mov %%dr7, %0" : "=r"(value));
    note("DR7", 0, value);
    __asm__ volatile("mov %%dr0, %0" : "=r"(value));
    note("DR0", 0, value);
    note("PCI command", 0, pci_read32(0, 0, 4) & 0xffff);
    if (platform_detect() == PLATFORM_Q35) {
        note("PCIEXBAR", 0, pci_read32(0, 0, 0x60));
        note("PMBASE", 0, pci_read32(31, 0, 0x40));
        note("ACPI_CNTL", 0, pci_read32(31, 0, 0x44));
        note("PIRQ", 0, pci_read32(31, 0, 0x60));
    } else {
        note("PMBASE", 0, pci_read32(1, 3, 0x40));
        note("PMREGMISC", 0, pci_read32(1, 3, 0x80) & 0xff);
        note("PIRQ", 0, pci_read32(1, 0, 0x60));
    }
}

/* Interrupts are off in the processor, and nothing here is ever delivered. */
static void change(void)
{
    fw_cfg_select(FW_CFG_RAM_SIZE);
    for (uint32_t pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic_write(0x10 + 2 * pin, 0x40 + pin);
    store(APIC + 0xf0, 0x1ff);
    store(APIC + 0x80, 0x20);
    store(APIC + 0xd0, 0x55000000);
    store(APIC + 0x340, 0x41);
    store(APIC + 0x350, 0x42);
    store(APIC + 0x370, 0x43);
    store(APIC + 0x3e0, 0x0b);
    store(APIC + 0x320, 0x20044); /* periodic, vector 44 */
    store(APIC + 0x380, 1000000);
    out8(PIT_COMMAND, 0x34);
    out8(PIT_CHANNEL_0, 0x40);
    out8(PIT_CHANNEL_0, 0x01);
    for (uint32_t i = 0; i < ARRAY_SIZE(ports); i++)
        out8(ports[i].port, ports[i].other);
    cmos_write(0x0b, 0x7a);
    store(HPET + 0x10, 3);
    store(HPET + 0x100, 0x4c);
    store(HPET + 0x108, 10000);
    for (uint32_t i = 0; i < ARRAY_SIZE(msrs); i++)
        write_msr(msrs[i].index, msrs[i].other);
    __asm__ volatile("mov %0, %%cr4; mov %1, %%dr0; mov %2, %%dr7" : : "r"(0x10), "r"(0x12345678), "r"(0x402));
    pci_write32(0, 0, 4, 0x7);
    if (platform_detect() == PLATFORM_Q35) {
        pci_write32(31, 0, 0x60, 0x0b0a0908);
        pci_write32(0, 0, 0x60, 0xb0000001);
    } else {
        pci_write32(1, 0, 0x60, 0x0b0a0908);
    }
    (void)power_timer_port();
}

static void fault_three_times(void)
{
    static const struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) no_table;

    __asm__ volatile("lidt %0; ud2" : : "m"(no_table));
}

static const char *const ways[] = {"port cf9", "port 92", "port 64", "a triple fault"};

static void reset(uint32_t way)
{
    switch (way) {
    case 0:
        out8(RESET_CONTROL, 0x06);
        break;
    case 1:
        out8(SYSTEM_CONTROL_A, 0x01);
        break;
    case 2:
        out8(KEYBOARD_COMMAND, 0xfe);
        break;
    default:
        fault_three_times();
    }
    for (;;)
        __asm__ volatile("hlt");
}

static void compare(uint32_t boots)
{
    if (RECORD->magic != MAGIC || RECORD->boots != boots || RECORD->count != count || count > ROOM) {
        print("RAM: %x, boot %u, %u of %u registers\n", RECORD->magic, RECORD->boots, RECORD->count, count);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (found[i] != RECORD->values[i])
            print("%s %x: %x, not %x\n", names[i], details[i], found[i], RECORD->values[i]);
    }
}

uint32_t main(void);
uint32_t main(void)
{
    uint32_t boots = cmos_read(CMOS_BOOTS);
    uint32_t others;

    console_init();
    look();
    if (boots == 0) {
        RECORD->magic = MAGIC;
        RECORD->boots = 0;
        RECORD->count = count;
        memcpy(RECORD->values, found, sizeof(found));
    } else {
        compare(boots);
    }
    ap_busy = 1;
    others = cpus_start(fw_cfg_read16(FW_CFG_CPUS) - 1u);
    print("boot %u after %s, %u CPUs\n", boots, boots ? ways[(boots - 1) % ARRAY_SIZE(ways)] : "power-on", others + 1);
    if (boots < ARRAY_SIZE(ways)) {
        cmos_write(CMOS_BOOTS, (uint8_t)(boots + 1));
        RECORD->boots = boots + 1;
        change();
        reset(boots);
    }
    return 0;
}
