/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/msix.h"

#include <string.h>

#define CONTROL_ENABLE (1u << 15)
#define CONTROL_FUNCTION_MASK (1u << 14)

/* An entry: address, upper address, data, vector control. */
#define ENTRY_DATA 8
#define ENTRY_CONTROL 12
#define VECTOR_MASKED 1u

static bool is_masked(const struct msix *msix, uint32_t vector)
{
    return msix->masked || msix->table[vector * MSIX_ENTRY_SIZE + ENTRY_CONTROL] & VECTOR_MASKED;
}

bool msix_message(const struct msix *msix, uint32_t vector, uint64_t *address, uint32_t *data)
{
    const uint8_t *entry;

    if (!msix->enabled || vector >= msix->vectors || is_masked(msix, vector)) {
        return false;
    }
    entry = &msix->table[vector * MSIX_ENTRY_SIZE];
    memcpy(address, entry, sizeof(*address));
    memcpy(data, entry + ENTRY_DATA, sizeof(*data));
    return true;
}

static bool send(struct msix *msix, uint32_t vector)
{
    uint64_t address;
    uint32_t data;

    if (!msix_message(msix, vector, &address, &data)) {
        return false;
    }
    msix->sink->message(msix->sink->opaque, address, data);
    return true;
}

/* Send what is pending and not masked. */
static void send_pending(struct msix *msix)
{
    for (uint32_t vector = 0; vector < msix->vectors; vector++) {
        if (msix->pending >> vector & 1 && send(msix, vector)) {
            msix->pending &= ~(UINT64_C(1) << vector);
        }
    }
}

void msix_reset(struct msix *msix)
{
    msix->enabled = false;
    msix->masked = false;
    msix->pending = 0;
    memset(msix->table, 0, sizeof(msix->table));
    for (uint32_t vector = 0; vector < msix->vectors; vector++) {
        msix->table[vector * MSIX_ENTRY_SIZE + ENTRY_CONTROL] = VECTOR_MASKED;
    }
}

void msix_set_control(struct msix *msix, uint16_t control)
{
    msix->enabled = control & CONTROL_ENABLE;
    msix->masked = control & CONTROL_FUNCTION_MASK;
    send_pending(msix);
}

void msix_raise(struct msix *msix, uint32_t vector)
{
    if (msix->enabled && vector < msix->vectors && !send(msix, vector)) {
        msix->pending |= UINT64_C(1) << vector;
    }
}

static uint8_t read_byte(const struct msix *msix, uint64_t at)
{
    if (at < msix->vectors * MSIX_ENTRY_SIZE) {
        return msix->table[at];
    }
    if (at >= MSIX_PBA_OFFSET && at < MSIX_PBA_OFFSET + sizeof(msix->pending)) {
        return (uint8_t)(msix->pending >> 8 * (at - MSIX_PBA_OFFSET));
    }
    return 0;
}

static void write_byte(struct msix *msix, uint64_t at, uint8_t value)
{
    uint64_t register_byte = at % MSIX_ENTRY_SIZE;

    if (at >= msix->vectors * MSIX_ENTRY_SIZE) {
        return;
    }
    if (register_byte == 0) {
        value &= 0xfc; /* addresses are those of double words */
    } else if (register_byte >= ENTRY_CONTROL) {
        value = register_byte == ENTRY_CONTROL ? value & VECTOR_MASKED : 0;
    }
    msix->table[at] = value;
}

void msix_access(void *opaque, struct io_access *access)
{
    struct msix *msix = opaque;

    for (uint32_t i = 0; i < access->size; i++) {
        if (access->is_write) {
            write_byte(msix, access->offset + i, access->data[i]);
        } else {
            access->data[i] = read_byte(msix, access->offset + i);
        }
    }
    if (access->is_write) {
        send_pending(msix);
    }
}
