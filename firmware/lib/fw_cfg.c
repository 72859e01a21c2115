/* See fw_cfg.h. */
#include "fw_cfg.h"

enum interface interface_detect(char signature[5])
{
    out16(FW_CFG_SELECTOR, FW_CFG_SIGNATURE);
    for (int i = 0; i < 4; i++)
        signature[i] = (char)in8(FW_CFG_DATA);
    signature[4] = 0;
    if (memcmp(signature, "QEMU", 4) == 0)
        return INTERFACE_FW_CFG;
    if (memcmp(signature, "BHYV", 4) == 0)
        return INTERFACE_FWCTL;
    return INTERFACE_NONE;
}

void fw_cfg_select(uint16_t key)
{
    out16(FW_CFG_SELECTOR, key);
}

void fw_cfg_read(void *buffer, uint32_t size)
{
    in8_string(FW_CFG_DATA, buffer, size);
}

uint16_t fw_cfg_read16(uint16_t key)
{
    uint16_t value;

    fw_cfg_select(key);
    fw_cfg_read(&value, sizeof(value));
    return value;
}

uint32_t fw_cfg_read32(uint16_t key)
{
    uint32_t value;

    fw_cfg_select(key);
    fw_cfg_read(&value, sizeof(value));
    return value;
}

uint32_t fw_cfg_dma(uint32_t control, uint32_t length, uint32_t address)
{
    volatile struct fw_cfg_dma descriptor;

    descriptor.control = __builtin_bswap32(control);
    descriptor.length = __builtin_bswap32(length);
    descriptor.address_high = 0;
    descriptor.address_low = __builtin_bswap32(address);
    /* The descriptor is below 4 GiB and the device zeroes the high half after each operation. */
    out32(FW_CFG_DMA_LOW, __builtin_bswap32((uint32_t)(uintptr_t)&descriptor));
    return __builtin_bswap32(descriptor.control);
}

uint32_t fw_cfg_directory(void)
{
    return __builtin_bswap32(fw_cfg_read32(FW_CFG_DIRECTORY));
}

void fw_cfg_next(struct fw_cfg_file *file)
{
    fw_cfg_read(file, sizeof(*file));
    file->size = __builtin_bswap32(file->size);
    file->key = __builtin_bswap16(file->key);
}

bool fw_cfg_find(const char *name, struct fw_cfg_file *file)
{
    uint32_t count = fw_cfg_directory();
    size_t length = strlen(name) + 1;

    for (uint32_t i = 0; i < count; i++) {
        fw_cfg_next(file);
        if (length <= sizeof(file->name) && memcmp(file->name, name, length) == 0)
            return true;
    }
    return false;
}

uint32_t fw_cfg_low_ram_end(void)
{
    struct fw_cfg_file file;
    struct fw_cfg_e820 entry;

    if (!fw_cfg_find("etc/e820", &file))
        return 0;
    fw_cfg_select(file.key);
    for (uint32_t i = 0; i < file.size / sizeof(entry); i++) {
        fw_cfg_read(&entry, sizeof(entry));
        if (entry.type == FW_CFG_E820_RAM && !entry.base_low && !entry.base_high && !entry.length_high)
            return entry.length_low;
    }
    return 0;
}

uint32_t fwctl_get32(const char *oid, uint32_t *value)
{
    uint32_t length = (uint32_t)strlen(oid) + 1;
    uint32_t header[4];
    uint32_t size[2];
    uint32_t word;

    out32(FW_CFG_SELECTOR, 3 * sizeof(uint32_t) + ((length + 3) & ~3u));
    out32(FW_CFG_SELECTOR, FWCTL_GET);
    out32(FW_CFG_SELECTOR, 1);
    for (uint32_t i = 0; i < length; i += sizeof(word)) {
        word = 0;
        memcpy(&word, oid + i, length - i < sizeof(word) ? length - i : sizeof(word));
        out32(FW_CFG_SELECTOR, word);
    }
    for (size_t i = 0; i < ARRAY_SIZE(header); i++)
        header[i] = in32(FW_CFG_SELECTOR);
    if (header[0] < sizeof(header) || header[1] != FWCTL_GET || header[2] != 1)
        return FWCTL_BROKEN;
    if (header[3] == 0) {
        if (header[0] != sizeof(header) + sizeof(size) + sizeof(*value))
            return FWCTL_BROKEN;
        size[0] = in32(FW_CFG_SELECTOR);
        size[1] = in32(FW_CFG_SELECTOR);
        *value = in32(FW_CFG_SELECTOR);
        if (size[0] != sizeof(*value) || size[1] != 0)
            return FWCTL_BROKEN;
    }
    return header[3];
}
