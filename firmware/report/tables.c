/* ACPI and SMBIOS as they lie in memory. Offsets: ACPI 6.5 chapter 5, SMBIOS 3.6 (DSP0134) 5.2. See report.h. */
#include "report.h"

#define RSDP_SIZE_V1 20
#define RSDP_REVISION 15
#define RSDP_RSDT 16
#define RSDP_LENGTH 20
#define RSDP_XSDT 24
#define TABLE_HEADER 36
#define TABLE_LENGTH 4
#define TABLE_LIMIT (16u << 20)
#define FADT_FACS 36
#define FADT_DSDT 40
#define FADT_X_FACS 132
#define FADT_X_DSDT 140
#define TABLES_LIMIT 256

static uint64_t seen[TABLES_LIMIT];
static uint32_t seen_count;

static uint64_t load(uintptr_t address, size_t size)
{
    uint64_t value = 0;

    memcpy(&value, (const void *)address, size);
    return value;
}

static void report_table(uint64_t gpa);

static void report_entries(uintptr_t root, uint32_t length, size_t width)
{
    for (uint32_t at = TABLE_HEADER; at + width <= length; at += (uint32_t)width)
        report_table(load(root + at, width));
}

static void report_fadt(uintptr_t fadt, uint32_t length)
{
    if (length >= FADT_DSDT + 4) {
        report_table(load(fadt + FADT_FACS, 4));
        report_table(load(fadt + FADT_DSDT, 4));
    }
    if (length >= FADT_X_DSDT + 8) {
        report_table(load(fadt + FADT_X_FACS, 8));
        report_table(load(fadt + FADT_X_DSDT, 8));
    }
}

/* A length that no table has is cut: the host sees the header and judges. */
static void report_table(uint64_t gpa)
{
    uintptr_t address = (uintptr_t)gpa;
    uint32_t length;

    if (gpa == 0 || gpa != address || seen_count == TABLES_LIMIT)
        return;
    for (uint32_t i = 0; i < seen_count; i++)
        if (seen[i] == gpa)
            return;
    seen[seen_count++] = gpa;
    length = (uint32_t)load(address + TABLE_LENGTH, 4);
    if (length < TABLE_HEADER || length > TABLE_LIMIT)
        length = TABLE_HEADER;
    stream_memory("ACPI", address, length);
    if (memcmp((const void *)address, "RSDT", 4) == 0)
        report_entries(address, length, 4);
    else if (memcmp((const void *)address, "XSDT", 4) == 0)
        report_entries(address, length, 8);
    else if (memcmp((const void *)address, "FACP", 4) == 0)
        report_fadt(address, length);
}

uintptr_t reported_table(const char *signature)
{
    for (uint32_t i = 0; i < seen_count; i++)
        if (memcmp((const void *)(uintptr_t)seen[i], signature, 4) == 0)
            return (uintptr_t)seen[i];
    return 0;
}

void report_acpi(uintptr_t address)
{
    bool extended = load(address + RSDP_REVISION, 1) >= 2;
    uint32_t length = extended ? (uint32_t)load(address + RSDP_LENGTH, 4) : RSDP_SIZE_V1;

    if (length < RSDP_SIZE_V1 || length > 4096)
        length = RSDP_SIZE_V1;
    stream_memory("RSDP", address, length);
    report_table(load(address + RSDP_RSDT, 4));
    if (extended && length >= RSDP_XSDT + 8)
        report_table(load(address + RSDP_XSDT, 8));
}

void report_smbios(uintptr_t address)
{
    bool version3 = memcmp((const void *)address, "_SM3_", 5) == 0;
    size_t length = (size_t)load(address + (version3 ? 6 : 5), 1);
    uint64_t table = version3 ? load(address + 16, 8) : load(address + 24, 4);
    size_t size = (size_t)(version3 ? load(address + 12, 4) : load(address + 22, 2));

    stream_memory("SMEP", address, length);
    if (table && table == (uintptr_t)table && size <= TABLE_LIMIT)
        stream_memory("SMBT", (uintptr_t)table, size);
}
