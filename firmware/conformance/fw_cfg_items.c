/* What the items say, as far as a guest can check it without knowing its machine. */
#include "fw_cfg_suite.h"

void test_keys(void)
{
    uint32_t id = fw_cfg_read32(FW_CFG_ID);
    uint32_t cpus = fw_cfg_read16(FW_CFG_CPUS);

    tap_ok(id == 1 || id == 3, "key 0x01, features: the port, and DMA or not");
    tap_ok(cpus >= 1, "key 0x05, CPUs at boot: there is one");
    tap_ok(fw_cfg_read16(FW_CFG_MAX_CPUS) >= cpus, "key 0x0f, CPUs at most: not less than at boot");
}

/* Whether everything behind the name's end is zero, its last byte included. */
static bool padded(const char name[56])
{
    for (size_t i = strlen(name); i < 56; i++)
        if (name[i])
            return false;
    return name[0] && !name[55];
}

static int compare_names(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return (uint8_t)*a - (uint8_t)*b;
}

void test_directory(void)
{
    uint32_t count = fw_cfg_directory();
    struct fw_cfg_file file;
    char previous[56] = "";
    bool keys = true;
    bool reserved = true;
    bool names = true;
    bool sorted = true;

    for (uint32_t i = 0; i < count; i++) {
        fw_cfg_next(&file);
        keys &= file.key >= FW_CFG_FIRST_FILE && file.key < 0x4000;
        reserved &= file.reserved == 0;
        names &= padded(file.name);
        if (names)
            sorted &= compare_names(previous, file.name) < 0;
        memcpy(previous, file.name, sizeof(previous));
    }
    tap_ok(count >= 1 && count < 0x4000, "directory: has a sane number of entries");
    tap_ok(keys, "directory: keys are files' keys");
    tap_ok(reserved, "directory: reserved fields are 0");
    tap_ok(names, "directory: names have 1 to 55 characters, padded with NULs");
    tap_ok(sorted, "directory: sorted by name, no name twice");
}

void test_e820(void)
{
    struct fw_cfg_file file;
    struct fw_cfg_e820 entry;
    uint64_t sum = 0;
    uint64_t size;

    if (!fw_cfg_find("etc/e820", &file)) {
        tap_skip("etc/e820", "absent");
        return;
    }
    tap_ok(file.size && file.size % sizeof(entry) == 0, "etc/e820: whole entries");
    fw_cfg_select(file.key);
    for (uint32_t i = 0; i < file.size / sizeof(entry); i++) {
        fw_cfg_read(&entry, sizeof(entry));
        if (entry.type == FW_CFG_E820_RAM)
            sum += (uint64_t)entry.length_high << 32 | entry.length_low;
    }
    tap_ok(fw_cfg_low_ram_end() != 0, "etc/e820: RAM begins at address 0");
    fw_cfg_select(FW_CFG_RAM_SIZE);
    fw_cfg_read(&size, sizeof(size));
    tap_ok(sum == size, "etc/e820: as much RAM as key 0x03 says");
}
