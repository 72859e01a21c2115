/* Records for the host, gathered in a buffer. See report.h. */
#include "report.h"

#define REPORT_FILE "opt/vmm/report"

static uint8_t buffer[0x10000];
static size_t fill;
static size_t limit;
static uint16_t report_key; /* 0: use the debug port */

uint32_t client_dma(uint32_t control, uint32_t length, const void *address)
{
    static volatile struct fw_cfg_dma descriptor;
    uint64_t target = (uintptr_t)address;
    uint64_t self = (uintptr_t)&descriptor;

    descriptor.control = __builtin_bswap32(control);
    descriptor.length = __builtin_bswap32(length);
    descriptor.address_high = __builtin_bswap32((uint32_t)(target >> 32));
    descriptor.address_low = __builtin_bswap32((uint32_t)target);
    out32(FW_CFG_DMA_HIGH, __builtin_bswap32((uint32_t)(self >> 32)));
    out32(FW_CFG_DMA_LOW, __builtin_bswap32((uint32_t)self));
    return __builtin_bswap32(descriptor.control);
}

static void flush(void)
{
    const uint8_t *from = buffer;
    size_t count = fill;

    if (report_key)
        client_dma(FW_CFG_DMA_KEY(report_key) | FW_CFG_DMA_WRITE, (uint32_t)fill, buffer);
    else
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"((uint16_t)DEBUGCON) : "memory");
    fill = 0;
}

bool stream_open(enum report_kind kind)
{
    uint32_t head[2] = {REPORT_VERSION, (uint32_t)kind};
    struct fw_cfg_file file;
    char signature[5];

    limit = sizeof(buffer);
    if (interface_detect(signature) == INTERFACE_FW_CFG && fw_cfg_read32(FW_CFG_ID) & FW_CFG_ID_DMA &&
        fw_cfg_find(REPORT_FILE, &file) && file.size) {
        report_key = file.key;
        if (file.size < limit)
            limit = file.size;
    } else if (in8(DEBUGCON) != DEBUGCON_ANSWER) {
        return false;
    }
    stream_record("VMMR", sizeof(head));
    stream_bytes(head, sizeof(head));
    flush(); /* so that the host hears of us before we read any item */
    return true;
}

void stream_bytes(const void *data, size_t size)
{
    const uint8_t *from = data;

    while (size) {
        size_t part = limit - fill < size ? limit - fill : size;

        memcpy(buffer + fill, from, part);
        fill += part;
        from += part;
        size -= part;
        if (fill == limit)
            flush();
    }
}

void stream_record(const char *tag, uint64_t size)
{
    stream_bytes(tag, 4);
    stream_bytes(&size, sizeof(size));
}

void stream_memory(const char *tag, uintptr_t address, size_t size)
{
    uint64_t gpa = address;

    stream_record(tag, sizeof(gpa) + size);
    stream_bytes(&gpa, sizeof(gpa));
    stream_bytes((const void *)address, size);
}

void stream_close(void)
{
    stream_record("END ", 0);
    if (fill)
        flush();
}
