/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A hostile guest at fw_cfg's ports: accesses of every width, strings, and DMA
 * descriptors with chosen and with stray addresses, through the port table.
 *
 * AddressSanitizer watches the ends of each item and of each piece of guest
 * memory, all of them allocations of their own. Checked besides: read-only
 * items and ROM keep their bytes, the offset stays inside the item, and every
 * readable descriptor gets an answer.
 */
#include <endian.h>
#include <stdlib.h>

#include "records.h"
#include "vmm/fw_cfg.h"

#define LOW_SIZE 0x1000
#define ROM_GPA LOW_SIZE
#define ROM_SIZE 0x100
#define HIGH_GPA 0x2000
#define HIGH_SIZE 0x800
#define TOP_SIZE 0x40 /* the last bytes of the address space: transfers wrap */

#define ITEMS 0x28
#define ARCH_ITEMS 5
#define WRITABLE_KEY 0x22
#define FILL 0x5a

static const uint32_t lengths[ITEMS] = {[0] = 4, [1] = 4, [2] = 16, [0x19] = 324, [0x20] = 1, [0x21] = 37,
                                        [WRITABLE_KEY] = 16, [0x23] = 5000, [0x27] = 100};

static struct guest_memory memory;
static struct io_table ports;
static struct fw_cfg *device;
static struct trace *trace;
static struct fw_cfg_item items[ITEMS];
static struct fw_cfg_item arch_items[ARCH_ITEMS];
static uint8_t *low, *rom, *high, *top;
static uint32_t stop;

static uint8_t *filled(size_t size)
{
    uint8_t *bytes = malloc(size);

    memset(bytes, FILL, size);
    return bytes;
}

static void on_event(void *opaque, uint32_t event, uint32_t key, uint32_t offset, uint32_t length)
{
    (void)opaque;
    PROMISE(event == FW_CFG_EVENT_SELECT || offset + length <= lengths[key]);
    PROMISE(key == WRITABLE_KEY);
}

static void set_up(void)
{
    low = filled(LOW_SIZE);
    rom = filled(ROM_SIZE);
    high = filled(HIGH_SIZE);
    top = filled(TOP_SIZE);
    PROMISE(guest_memory_add(&memory, 0, LOW_SIZE, low, 0) == 0);
    PROMISE(guest_memory_add(&memory, ROM_GPA, ROM_SIZE, rom, GUEST_REGION_READ_ONLY) == 0);
    PROMISE(guest_memory_add(&memory, HIGH_GPA, HIGH_SIZE, high, 0) == 0);
    PROMISE(guest_memory_add(&memory, 0 - (uint64_t)TOP_SIZE, TOP_SIZE, top, 0) == 0);
    for (uint32_t key = 0; key < ITEMS; key++) {
        items[key].length = lengths[key];
        items[key].data = lengths[key] != 0 ? filled(lengths[key]) : NULL;
    }
    items[WRITABLE_KEY].flags = FW_CFG_WRITABLE | FW_CFG_NOTIFY_SELECT | FW_CFG_NOTIFY_WRITE;
    arch_items[2] = (struct fw_cfg_item){.data = filled(4), .length = 4};
    trace = trace_new(2, 16, NULL, NULL);
    device = fw_cfg_new(&memory, &stop, true);
    fw_cfg_listen(device, on_event, NULL);
    fw_cfg_publish(device, items, ITEMS, arch_items, ARCH_ITEMS);
    PROMISE(io_table_add(&ports, FW_CFG_PORT_FIRST, FW_CFG_PORT_LAST, fw_cfg_access, device) == 0);
}

static void port(uint16_t number, uint32_t size, uint32_t count, uint8_t *data, bool is_write)
{
    struct io_access access = {
        .address = number, .size = size, .count = count, .data = data, .vcpu = number & 1, .is_write = is_write,
    };

    io_table_access(&ports, &access);
}

/* Addresses near everything that has an end. */
static uint64_t address_of(const struct record *record)
{
    static const uint64_t places[] = {0, LOW_SIZE, ROM_GPA + ROM_SIZE, HIGH_GPA, HIGH_GPA + HIGH_SIZE, 0 - (uint64_t)TOP_SIZE};
    uint32_t place = record->place % 8;

    return place < 6 ? places[place] + (uint64_t)(int64_t)(int8_t)record->address
                     : place == 6 ? record->address % HIGH_GPA : record->address;
}

static void transfer(const struct record *record)
{
    uint64_t gpa = address_of(record);
    uint32_t control = (uint32_t)record->number << 16 | (uint32_t)record->bytes[1] << 8 | (record->bytes[0] & 0x1f);
    /* Transfers of gigabytes are rare here, for each takes as long as a thousand others. */
    uint32_t length = record->bytes[4] == 0xff ? record->length : record->length % 0x2000;
    uint32_t words[4] = {htobe32(control), htobe32(length)};
    uint64_t buffer = htobe64(record->bytes[2] & 1 ? record->address >> 8 : record->bytes[3] * (uint64_t)64);
    uint64_t span = sizeof(words);
    uint8_t *descriptor = guest_memory_span(&memory, gpa, &span, true);
    uint32_t half;

    memcpy(&words[2], &buffer, sizeof(buffer));
    guest_memory_write(&memory, gpa, words, sizeof(words));
    half = htobe32((uint32_t)(gpa >> 32));
    port(FW_CFG_PORT_DMA_HIGH, 4, 1, (uint8_t *)&half, true);
    half = htobe32((uint32_t)gpa);
    port(FW_CFG_PORT_DMA_LOW, 4, 1, (uint8_t *)&half, true);
    if (descriptor != NULL && span == sizeof(words)) {
        PROMISE(descriptor[0] == 0 && descriptor[1] == 0 && descriptor[2] == 0 && descriptor[3] <= FW_CFG_DMA_ERROR);
    }
    PROMISE(device->dma_address == 0);
}

static void check_unchanged(const uint8_t *bytes, size_t size)
{
    /* All equal to the first: compared with itself, one further on. */
    PROMISE(bytes[0] == FILL && memcmp(bytes, bytes + 1, size - 1) == 0);
}

static void check(void)
{
    check_unchanged(rom, ROM_SIZE);
    for (uint32_t key = 0; key < ITEMS; key++) {
        PROMISE(items[key].length == lengths[key]);
        if (key != WRITABLE_KEY && lengths[key] != 0 && lengths[key] <= 400) {
            check_unchanged(items[key].data, lengths[key]);
        }
    }
}

static void perform(const struct record *record)
{
    uint8_t data[256];
    struct trace_record taken[4];
    uint32_t size = 1u << (record->length >> 16) % 3;
    uint32_t count = 1 + record->length % (sizeof(data) / 4);
    uint16_t number = (uint16_t)(0x50d + record->place % 18);

    switch (record->operation % 8) {
    case 0:
        memcpy(data, &record->number, 2);
        port(FW_CFG_PORT_FIRST, 2, 1, data, true);
        break;
    case 1:
        port(FW_CFG_PORT_DATA, 1, count, data, false);
        break;
    case 2:
        port(number, size, count, data, false);
        break;
    case 3:
        for (size_t i = 0; i < sizeof(data); i++) {
            data[i] = record->bytes[i % 8];
        }
        port(number, size, count, data, true);
        break;
    case 4:
        fw_cfg_reset(device);
        break;
    case 5:
        device->trace = record->place & 1 ? trace : NULL;
        trace_flush(trace);
        trace_take(trace, record->number & 3, taken, record->length % 5);
        break;
    default:
        transfer(record);
        break;
    }
    PROMISE(device->selected == NULL ? device->offset == 0 : device->offset <= device->selected->length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct record record;

    if (device == NULL) {
        set_up();
    }
    fw_cfg_reset(device);
    for (size_t at = 0; at + sizeof(record) <= size && at < MAX_RECORDS * sizeof(record); at += sizeof(record)) {
        memcpy(&record, data + at, sizeof(record));
        perform(&record);
    }
    check();
    return 0;
}
