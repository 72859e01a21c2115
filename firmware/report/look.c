/* What is where the tables say that something is. Offsets: ACPI 6.5 5.2.9, 5.2.12; HPET 1.0a; MCFG: PCI Firmware 3.3. */
#include "ports.h"
#include "report.h"

#define FADT_PM_TIMER 76
#define MADT_LOCAL_APIC 36
#define MADT_ENTRIES 44
#define MADT_IO_APIC 1
#define IO_APIC_ADDRESS 4
#define MCFG_BASE 44
#define HPET_ADDRESS 44
#define TABLE_LENGTH 4

#define LOCAL_APIC_ID 0x20
#define MSR_X2APIC_ID (MSR_X2APIC + LOCAL_APIC_ID / 16)
#define IO_APIC_DATA 0x10
#define IO_APIC_VERSION 1
#define HOST_BRIDGE 0x80000000u /* CONFIG_ADDRESS: bus 0, device 0, function 0, register 0 */
#define LOOKS 1000000           /* a PM timer counts at 3.58 MHz, so that a few must do */

/* u32 what, u64 where, and two u64 of what was there. */
static void look(enum report_look what, uint64_t where, uint64_t first, uint64_t second)
{
    uint64_t seen[3] = {where, first, second};
    uint32_t kind = what;

    stream_record("LOOK", sizeof(kind) + sizeof(seen));
    stream_bytes(&kind, sizeof(kind));
    stream_bytes(seen, sizeof(seen));
}

static uint32_t load32(uint64_t gpa)
{
    return *(volatile uint32_t *)(uintptr_t)gpa;
}

static uint64_t field(uintptr_t table, size_t offset, size_t size)
{
    uint64_t value = 0;

    memcpy(&value, (const void *)(table + offset), size);
    return value;
}

/* A guest of 32 bits reaches only what is below 4 GiB. */
static bool in_reach(uint64_t gpa)
{
    return gpa && gpa == (uintptr_t)gpa;
}

static void look_at_ecam(uint64_t base)
{
    out32(PCI_ADDRESS, HOST_BRIDGE);
    if (in_reach(base))
        look(LOOK_ECAM, base, load32(base), in32(PCI_DATA));
}

static void look_at_pm_timer(uint16_t port)
{
    uint32_t first = in32(port);
    uint32_t now = first;

    for (uint32_t i = 0; i < LOOKS && now == first; i++)
        now = in32(port);
    look(LOOK_PM_TIMER, port, first, now);
}

static void look_at_apics(uintptr_t madt)
{
    uint64_t local = field(madt, MADT_LOCAL_APIC, 4);
    uint32_t length = (uint32_t)field(madt, TABLE_LENGTH, 4);

    if (x2apic())
        look(LOOK_X2APIC, MSR_X2APIC_ID, read_msr(MSR_X2APIC_ID), 0);
    else if (in_reach(local))
        look(LOOK_LOCAL_APIC, local, load32(local + LOCAL_APIC_ID), 0);
    for (uint32_t at = MADT_ENTRIES; at + 2 <= length; at += (uint32_t)field(madt, at + 1, 1)) {
        uint64_t io = field(madt, at + IO_APIC_ADDRESS, 4);

        if (field(madt, at + 1, 1) < 2)
            return;
        if (field(madt, at, 1) == MADT_IO_APIC && in_reach(io)) {
            *(volatile uint32_t *)(uintptr_t)io = IO_APIC_VERSION;
            look(LOOK_IO_APIC, io, load32(io + IO_APIC_DATA), 0);
        }
    }
}

void report_looks(void)
{
    uintptr_t table = reported_table("MCFG");

    if (table)
        look_at_ecam(field(table, MCFG_BASE, 8));
    table = reported_table("FACP");
    if (table && field(table, FADT_PM_TIMER, 4))
        look_at_pm_timer((uint16_t)field(table, FADT_PM_TIMER, 4));
    table = reported_table("HPET");
    if (table && in_reach(field(table, HPET_ADDRESS, 8)))
        look(LOOK_HPET, field(table, HPET_ADDRESS, 8), load32(field(table, HPET_ADDRESS, 8)), 0);
    table = reported_table("APIC");
    if (table)
        look_at_apics(table);
}
