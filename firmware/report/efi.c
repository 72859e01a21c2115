/*
 * The report guest for UEFI: started as the "kernel" that fw_cfg hands over, before firmware has settled the boot
 * options. So it is a driver: it stays, and reports when firmware is ready to boot the first of them.
 */
#include "efi.h"
#include "report.h"

static const struct efi_guid acpi_20 = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81}};
static const struct efi_guid acpi_10 = {0xeb9d2d30, 0x2d88, 0x11d3, {0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}};
static const struct efi_guid smbios_2 = {0xeb9d2d31, 0x2d88, 0x11d3, {0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}};
static const struct efi_guid smbios_3 = {0xf2fd1544, 0x9794, 0x4a2c, {0x99, 0x2e, 0xe5, 0xbb, 0xcf, 0x20, 0xe3, 0x94}};
static const struct efi_guid variables = {0x8be4df61, 0x93ca, 0x11d2, {0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}};
static const struct efi_guid mp_services = {0x3fdda605, 0xa76e, 0x4f46, {0xad, 0x29, 0x12, 0xf4, 0x53, 0x1b, 0x3d, 0x08}};
static const struct efi_guid ready_to_boot = {0x7ce88fb3, 0x4bd7, 0x4679, {0x87, 0xa8, 0xa8, 0xd8, 0xde, 0xe5, 0x0d, 0x2b}};

static struct efi_system_table *system_table;
static uint8_t scratch[0x8000];

static void *find_table(const struct efi_guid *guid)
{
    for (size_t i = 0; i < system_table->table_count; i++)
        if (memcmp(&system_table->tables[i].guid, guid, sizeof(*guid)) == 0)
            return system_table->tables[i].table;
    return NULL;
}

/* u32 revision, then the vendor's name in UTF-16. */
static void report_firmware(void)
{
    size_t length = 0;

    while (system_table->firmware_vendor[length])
        length++;
    stream_record("FIRM", 4 + 2 * length);
    stream_bytes(&system_table->firmware_revision, 4);
    stream_bytes(system_table->firmware_vendor, 2 * length);
}

/* u32 size of a descriptor, u32 version, descriptors. */
static void report_memory_map(void)
{
    size_t size = sizeof(scratch);
    size_t descriptor = 0;
    size_t key;
    uint32_t head[2] = {0, 0};

    if (system_table->boot->get_memory_map(&size, scratch, &key, &descriptor, &head[1]) != EFI_SUCCESS)
        return;
    head[0] = (uint32_t)descriptor;
    stream_record("UMAP", sizeof(head) + size);
    stream_bytes(head, sizeof(head));
    stream_bytes(scratch, size);
}

static void report_processors(void)
{
    struct efi_mp_services *mp;
    size_t counts[2];
    uint32_t words[2];

    if (system_table->boot->locate_protocol(&mp_services, NULL, (void **)&mp) != EFI_SUCCESS ||
        mp->get_number_of_processors(mp, &counts[0], &counts[1]) != EFI_SUCCESS)
        return;
    words[0] = (uint32_t)counts[0];
    words[1] = (uint32_t)counts[1];
    stream_record("CPUS", sizeof(words));
    stream_bytes(words, sizeof(words));
}

/* u32 attributes, u32 bytes of the name, the name in UTF-16, the data; only those that begin with "Boot". */
static void report_variables(void)
{
    static efi_char name[512];
    static const efi_char boot[] = {'B', 'o', 'o', 't'};
    struct efi_guid vendor;
    size_t size = sizeof(name);

    name[0] = 0;
    while (system_table->runtime->get_next_variable_name(&size, name, &vendor) == EFI_SUCCESS) {
        if (memcmp(&vendor, &variables, sizeof(vendor)) == 0 && memcmp(name, boot, sizeof(boot)) == 0) {
            size_t data = sizeof(scratch);
            uint32_t head[2] = {0, (uint32_t)size - 2};

            if (system_table->runtime->get_variable(name, &vendor, &head[0], &data, scratch) == EFI_SUCCESS) {
                stream_record("VAR ", sizeof(head) + head[1] + data);
                stream_bytes(head, sizeof(head));
                stream_bytes(name, head[1]);
                stream_bytes(scratch, data);
            }
        }
        size = sizeof(name);
    }
}

static void EFIAPI report(void *event, void *context)
{
    void *acpi = find_table(&acpi_20);
    void *smbios = find_table(&smbios_2);
    void *smbios3 = find_table(&smbios_3);

    (void)event;
    (void)context;
    if (stream_open(REPORT_UEFI)) {
        report_firmware();
        report_memory_map();
        if (!acpi)
            acpi = find_table(&acpi_10);
        if (acpi) {
            report_acpi((uintptr_t)acpi);
            report_looks();
        }
        if (smbios)
            report_smbios((uintptr_t)smbios);
        if (smbios3)
            report_smbios((uintptr_t)smbios3);
        report_processors();
        report_variables();
        report_items();
        stream_close();
    }
    system_table->runtime->reset_system(EFI_RESET_SHUTDOWN, EFI_SUCCESS, 0, NULL);
}

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table); /* from efi.ld */

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table)
{
    void *event;

    (void)image;
    system_table = table;
    return table->boot->create_event_ex(EVT_NOTIFY_SIGNAL, TPL_CALLBACK, report, NULL, &ready_to_boot, &event);
}
