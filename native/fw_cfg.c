/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/fw_cfg.h"

#include <endian.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/clock.h"
#include "vmm/stop.h"

/* Offsets in the 12 ports. */
#define SELECTOR 0
#define DATA 1
#define UNASSIGNED 2
#define DMA_HIGH (FW_CFG_PORT_DMA_HIGH - FW_CFG_PORT_FIRST)
#define DMA_LOW (FW_CFG_PORT_DMA_LOW - FW_CFG_PORT_FIRST)

/* What the DMA register reads as, so that a guest can tell that it is there. */
static const uint8_t dma_signature[8] = {'Q', 'E', 'M', 'U', ' ', 'C', 'F', 'G'};

/* A transfer looks for a stop request this often... */
#define DMA_CHUNK ((uint64_t)4 << 20)
/* ...and goes on for this long in spite of one, so that only absurd transfers are ever cut. */
#define STOP_GRACE_NS 30000000u

struct dma_descriptor {
    uint32_t control;
    uint32_t length;
    uint64_t address;
};

struct fw_cfg *fw_cfg_new(struct guest_memory *memory, const uint32_t *stop, bool dma)
{
    struct fw_cfg *fw_cfg = calloc(1, sizeof(*fw_cfg));

    if (fw_cfg != NULL) {
        fw_cfg->memory = memory;
        fw_cfg->stop = stop;
        fw_cfg->dma = dma;
        fw_cfg->key = FW_CFG_KEY_INVALID;
    }
    return fw_cfg;
}

void fw_cfg_free(struct fw_cfg *fw_cfg)
{
    free(fw_cfg);
}

void fw_cfg_listen(struct fw_cfg *fw_cfg, fw_cfg_notify *notify, void *opaque)
{
    fw_cfg->notify = notify;
    fw_cfg->opaque = opaque;
}

static void count(uint64_t *counter, uint64_t by)
{
    /* One writer at a time (io_lock), readers without a lock. */
    __atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED);
}

static struct fw_cfg_item *item_of(const struct fw_cfg *fw_cfg, uint32_t key)
{
    uint32_t index = key & FW_CFG_INDEX_MASK;

    if (key & FW_CFG_ARCH_LOCAL) {
        return index < fw_cfg->arch_item_count ? &fw_cfg->arch_items[index] : NULL;
    }
    return index < fw_cfg->item_count ? &fw_cfg->items[index] : NULL;
}

static void set_selection(struct fw_cfg *fw_cfg, uint32_t key)
{
    fw_cfg->selected = item_of(fw_cfg, key);
    fw_cfg->key = fw_cfg->selected != NULL ? key & ~(uint32_t)FW_CFG_WRITE_CHANNEL : FW_CFG_KEY_INVALID;
    fw_cfg->offset = 0;
}

static void select_key(struct fw_cfg *fw_cfg, uint32_t key)
{
    set_selection(fw_cfg, key);
    if (fw_cfg->selected == NULL) {
        return;
    }
    if (fw_cfg->selected->selects == 0) {
        fw_cfg->selected->first_ns = monotonic_ns();
        fw_cfg->selected->first_instructions = fw_cfg->clock == NULL ? 0 : fw_cfg->clock->instructions;
    }
    count(&fw_cfg->selected->selects, 1);
    if (fw_cfg->selected->flags & FW_CFG_NOTIFY_SELECT) {
        fw_cfg->notify(fw_cfg->opaque, FW_CFG_EVENT_SELECT, fw_cfg->key, 0, 0);
    }
}

void fw_cfg_publish(struct fw_cfg *fw_cfg, struct fw_cfg_item *items, uint32_t item_count,
                    struct fw_cfg_item *arch_items, uint32_t arch_item_count)
{
    fw_cfg->items = items;
    fw_cfg->item_count = item_count;
    fw_cfg->arch_items = arch_items;
    fw_cfg->arch_item_count = arch_item_count;
    fw_cfg_reset(fw_cfg);
}

bool fw_cfg_replace(struct fw_cfg *fw_cfg, uint32_t key, uint8_t *data, uint32_t length)
{
    struct fw_cfg_item *item = item_of(fw_cfg, key);

    if (item == NULL) {
        return false;
    }
    item->data = data;
    item->length = length;
    if (item == fw_cfg->selected && fw_cfg->offset > length) {
        fw_cfg->offset = length;
    }
    return true;
}

void fw_cfg_reset(struct fw_cfg *fw_cfg)
{
    set_selection(fw_cfg, FW_CFG_SIGNATURE_KEY);
    fw_cfg->dma_address = 0;
}

void fw_cfg_restore(struct fw_cfg *fw_cfg, uint32_t key, uint32_t offset, uint64_t dma_address)
{
    set_selection(fw_cfg, key);
    if (fw_cfg->selected != NULL) {
        fw_cfg->offset = offset < fw_cfg->selected->length ? offset : fw_cfg->selected->length;
    }
    fw_cfg->dma_address = dma_address;
}

/* Bytes of the selected item from the offset on. */
static uint32_t remaining(const struct fw_cfg *fw_cfg)
{
    const struct fw_cfg_item *item = fw_cfg->selected;

    if (item == NULL || item->data == NULL) {
        return 0;
    }
    return item->length - fw_cfg->offset;
}

/* `moved` bytes of the selected item were read. */
static void advance_read(struct fw_cfg *fw_cfg, uint32_t moved)
{
    struct fw_cfg_item *item = fw_cfg->selected;

    fw_cfg->offset += moved;
    count(&item->reads, 1);
    count(&item->bytes_read, moved);
    if (fw_cfg->offset == item->length) {
        count(&item->ends, 1);
    }
}

static void trace_access(struct fw_cfg *fw_cfg, const struct trace_record *record)
{
    if (__builtin_expect(fw_cfg->trace != NULL, 0)) {
        trace_add(fw_cfg->trace, record);
    }
}

/* Data port: `length` successive one-byte reads. */
static void read_bytes(struct fw_cfg *fw_cfg, uint8_t *to, uint32_t length, uint32_t vcpu)
{
    uint32_t offset = fw_cfg->offset;
    uint32_t left = remaining(fw_cfg);
    uint32_t moved = length < left ? length : left;

    if (moved == 1) {
        *to = fw_cfg->selected->data[offset];
        advance_read(fw_cfg, 1);
    } else if (moved > 0) {
        memcpy(to, fw_cfg->selected->data + offset, moved);
        advance_read(fw_cfg, moved);
    }
    if (moved < length) {
        memset(to + moved, 0, length - moved);
    }
    trace_access(fw_cfg, &(struct trace_record){
                             .operation = TRACE_PORT_READ, .key = fw_cfg->key, .offset = offset, .length = length,
                             .moved = moved, .vcpu = vcpu,
                         });
}

/*
 * Item bytes (or zeros) to the guest. False if some of them had nowhere to go,
 * or if a stop of the machine cut a transfer that takes too long to wait for.
 */
static bool store_to_guest(const struct fw_cfg *fw_cfg, uint64_t gpa, const uint8_t *from, uint64_t length)
{
    uint64_t stored = 0;
    uint64_t stop_seen_ns = 0;

    for (uint64_t done = 0; done < length;) {
        done += guest_memory_scatter(fw_cfg->memory, gpa + done, from != NULL ? from + done : NULL, length - done,
                                     DMA_CHUNK, &stored);
        if (done < length && vmm_stop_is_set(fw_cfg->stop)) {
            uint64_t now = monotonic_ns();

            stop_seen_ns = stop_seen_ns != 0 ? stop_seen_ns : now;
            if (now - stop_seen_ns > STOP_GRACE_NS) {
                return false;
            }
        }
    }
    return stored == length;
}

/* The transfers return the control word's answer: 0 or FW_CFG_DMA_ERROR. */

static uint32_t dma_read(struct fw_cfg *fw_cfg, uint64_t gpa, uint32_t length)
{
    uint32_t left = remaining(fw_cfg);
    uint32_t moved = length < left ? length : left;

    if (moved > 0) {
        const uint8_t *from = fw_cfg->selected->data + fw_cfg->offset;

        advance_read(fw_cfg, moved);
        if (!store_to_guest(fw_cfg, gpa, from, moved)) {
            return FW_CFG_DMA_ERROR;
        }
    }
    return store_to_guest(fw_cfg, gpa + moved, NULL, length - moved) ? 0 : FW_CFG_DMA_ERROR;
}

static uint32_t dma_write(struct fw_cfg *fw_cfg, uint64_t gpa, uint32_t length)
{
    struct fw_cfg_item *item = fw_cfg->selected;
    uint32_t offset = fw_cfg->offset;
    uint32_t left = remaining(fw_cfg);

    if (length == 0) {
        return 0;
    }
    if (left == 0) {
        return FW_CFG_DMA_ERROR;
    }
    fw_cfg->offset += length < left ? length : left;
    if (!(item->flags & FW_CFG_WRITABLE) || length > left || !guest_memory_readable(fw_cfg->memory, gpa, length)) {
        return FW_CFG_DMA_ERROR;
    }
    guest_memory_read(fw_cfg->memory, gpa, item->data + offset, length);
    count(&item->writes, 1);
    if (item->flags & FW_CFG_NOTIFY_WRITE) {
        fw_cfg->notify(fw_cfg->opaque, FW_CFG_EVENT_WRITE, fw_cfg->key, offset, length);
    }
    return 0;
}

static void dma_skip(struct fw_cfg *fw_cfg, uint32_t length)
{
    uint32_t left = remaining(fw_cfg);

    fw_cfg->offset += length < left ? length : left;
}

static void dma_transfer(struct fw_cfg *fw_cfg, uint32_t vcpu)
{
    uint64_t gpa = fw_cfg->dma_address;
    struct dma_descriptor descriptor;
    struct trace_record record = {.operation = TRACE_DMA_SELECT, .vcpu = vcpu};
    uint32_t control;
    uint32_t result = 0;

    fw_cfg->dma_address = 0;
    if (guest_memory_read(fw_cfg->memory, gpa, &descriptor, sizeof(descriptor)) != sizeof(descriptor)) {
        guest_memory_store32(fw_cfg->memory, gpa, htobe32(FW_CFG_DMA_ERROR));
        trace_access(fw_cfg, &(struct trace_record){
                                 .operation = TRACE_DMA_LOST, .key = fw_cfg->key, .offset = fw_cfg->offset,
                                 .gpa = gpa, .control = FW_CFG_DMA_ERROR, .vcpu = vcpu,
                             });
        return;
    }
    control = be32toh(descriptor.control);
    record.gpa = be64toh(descriptor.address);
    record.length = be32toh(descriptor.length);
    if (control & FW_CFG_DMA_SELECT) {
        select_key(fw_cfg, control >> 16);
    }
    record.key = fw_cfg->key;
    record.offset = fw_cfg->offset;
    if (control & FW_CFG_DMA_READ) {
        record.operation = TRACE_DMA_READ;
        result = dma_read(fw_cfg, record.gpa, (uint32_t)record.length);
    } else if (control & FW_CFG_DMA_WRITE) {
        record.operation = TRACE_DMA_WRITE;
        result = dma_write(fw_cfg, record.gpa, (uint32_t)record.length);
    } else if (control & FW_CFG_DMA_SKIP) {
        record.operation = TRACE_DMA_SKIP;
        dma_skip(fw_cfg, (uint32_t)record.length);
    }
    guest_memory_store32(fw_cfg->memory, gpa, htobe32(result));
    record.moved = fw_cfg->offset > record.offset ? fw_cfg->offset - record.offset : 0;
    record.control = (uint16_t)result;
    trace_access(fw_cfg, &record);
}

static uint64_t little_endian(const uint8_t *bytes, uint32_t size)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < size; i++) {
        value |= (uint64_t)bytes[i] << (8 * i);
    }
    return value;
}

/*
 * How many bytes of an access that starts at `offset` arrive there as one:
 * 1, 2 or 4, naturally aligned in the register block. The selector's block is
 * at its start aligned to anything, even to a width that reaches beyond it.
 */
static uint32_t piece_size(uint32_t offset, uint32_t size)
{
    uint32_t block = offset >= DMA_HIGH ? offset - DMA_HIGH : offset;
    uint32_t aligned = block == 0 ? 4 : block & -block;
    uint32_t piece = 1;

    while (piece * 2 <= size && piece * 2 <= aligned) {
        piece *= 2;
    }
    return piece;
}

static void read_piece(struct fw_cfg *fw_cfg, uint32_t offset, uint8_t *data, uint32_t size, uint32_t vcpu)
{
    if (offset < UNASSIGNED && size == 1) {
        read_bytes(fw_cfg, data, 1, vcpu);
    } else if (offset < UNASSIGNED) {
        memset(data, 0, size);
    } else if (offset < DMA_HIGH || !fw_cfg->dma) {
        memset(data, 0xff, size);
    } else {
        memcpy(data, dma_signature + (offset - DMA_HIGH), size);
    }
}

static void write_piece(struct fw_cfg *fw_cfg, uint32_t offset, const uint8_t *data, uint32_t size, uint32_t vcpu)
{
    if (offset == SELECTOR && size == 2) {
        select_key(fw_cfg, (uint32_t)little_endian(data, 2));
        trace_access(fw_cfg, &(struct trace_record){
                                 .operation = TRACE_SELECT, .key = fw_cfg->key,
                                 .length = (uint32_t)little_endian(data, 2), .vcpu = vcpu,
                             });
    } else if (size == 4 && fw_cfg->dma && (offset == DMA_HIGH || offset == DMA_LOW)) {
        uint64_t half = be32toh((uint32_t)little_endian(data, 4));

        if (offset == DMA_HIGH) {
            fw_cfg->dma_address = half << 32;
        } else {
            fw_cfg->dma_address |= half;
            dma_transfer(fw_cfg, vcpu);
        }
    }
}

void fw_cfg_access(void *opaque, struct io_access *access)
{
    struct fw_cfg *fw_cfg = opaque;
    uint32_t first = (uint32_t)access->offset;

    if (access->size == 1 && first <= DATA) {
        if (!access->is_write) {
            read_bytes(fw_cfg, access->data, access->count, access->vcpu);
        }
        return;
    }
    for (uint32_t element = 0; element < access->count; element++) {
        uint8_t *data = access->data + (size_t)element * access->size;

        for (uint32_t done = 0, size; done < access->size; done += size) {
            size = piece_size(first + done, access->size - done);
            if (access->is_write) {
                write_piece(fw_cfg, first + done, data + done, size, access->vcpu);
            } else {
                read_piece(fw_cfg, first + done, data + done, size, access->vcpu);
            }
        }
    }
}
