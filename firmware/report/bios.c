/* The report guest for a BIOS, once bios.S has collected E820 and left real mode. */
#include "report.h"

#define E820_BUFFER 0x50000u
#define E820_ENTRIES (E820_BUFFER + 16)

#define EBDA_SEGMENT 0x40e /* BIOS data area */
#define BIOS_AREA 0xe0000u
#define SMBIOS_AREA 0xf0000u
#define BIOS_END 0x100000u
#define PARAGRAPH 16

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71

static uintptr_t find(const char *text, uintptr_t start, uintptr_t end)
{
    for (uintptr_t at = start; at < end; at += PARAGRAPH)
        if (memcmp((const void *)at, text, strlen(text)) == 0)
            return at;
    return 0;
}

static void report_e820(void)
{
    uint32_t count;

    memcpy(&count, (const void *)E820_BUFFER, sizeof(count));
    stream_record("E820", count * sizeof(struct fw_cfg_e820));
    stream_bytes((const void *)E820_ENTRIES, count * sizeof(struct fw_cfg_e820));
}

/* 128 bytes, as the RTC's index port selects them. */
static void report_cmos(void)
{
    uint8_t registers[128];

    for (uint8_t i = 0; i < sizeof(registers); i++) {
        out8(CMOS_INDEX, i);
        registers[i] = in8(CMOS_DATA);
    }
    stream_record("CMOS", sizeof(registers));
    stream_bytes(registers, sizeof(registers));
}

static void report_processors(void)
{
    uint32_t others = fw_cfg_read16(FW_CFG_CPUS) - 1u;
    uint32_t counts[2];

    counts[0] = counts[1] = (others ? cpus_start(others) : 0) + 1;
    stream_record("CPUS", sizeof(counts));
    stream_bytes(counts, sizeof(counts));
}

void bios_main(const char *product); /* from bios.S */

void bios_main(const char *product)
{
    uint16_t segment;
    uintptr_t found;

    if (stream_open(REPORT_BIOS)) {
        stream_record("NAME", strlen(product));
        stream_bytes(product, strlen(product));
        report_e820();
        report_cmos();
        memcpy(&segment, (const void *)EBDA_SEGMENT, sizeof(segment));
        found = find("RSD PTR ", (uintptr_t)segment << 4, ((uintptr_t)segment << 4) + 0x400);
        if (!found)
            found = find("RSD PTR ", BIOS_AREA, BIOS_END);
        if (found) {
            report_acpi(found);
            report_looks();
        }
        found = find("_SM_", SMBIOS_AREA, BIOS_END);
        if (found)
            report_smbios(found);
        found = find("_SM3_", SMBIOS_AREA, BIOS_END);
        if (found)
            report_smbios(found);
        report_processors();
        report_items();
        stream_close();
    }
    power_end(0);
}
