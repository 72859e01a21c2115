/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The last accesses to devices of a machine, for whoever asks why its guest
 * ended. Always kept, so it is next to nothing: no time, no RIP, no lock but
 * io_lock, which an access has anyway. An access that is made again and again
 * is one entry, or a guest that polls would leave nothing else.
 */
#ifndef VMM_RECENT_H
#define VMM_RECENT_H

#include <string.h>

#include "vmm/io_table.h"

#define RECENT_ACCESSES 32u /* a power of two */
#define RECENT_UNKNOWN_VCPU UINT16_MAX

struct recent_access {
    uint64_t address;
    uint64_t value; /* of the last element of the last of them, zero-extended; 0 while a read is being served */
    uint64_t times; /* in a row; 0: no access was made yet */
    uint16_t count; /* elements of a string instruction, else 1: KVM has no more than a page of them at once */
    uint16_t vcpu;
    uint8_t size; /* bytes of an element */
    bool is_write;
    bool is_mmio;
};

struct recent {
    uint32_t latest; /* modulo RECENT_ACCESSES the index of the last one */
    struct recent_access accesses[RECENT_ACCESSES];
};

static inline void recent_take_value(struct recent_access *entry, const struct io_access *access)
{
    const uint8_t *data = access->data + (size_t)access->size * (access->count - 1);

    if (access->size == 1) {
        entry->value = *data;
        return;
    }
    entry->value = 0;
    memcpy(&entry->value, data, access->size <= sizeof(entry->value) ? access->size : sizeof(entry->value));
}

/* An access is about to be served. io_lock is held, and recent_end follows, unless the access ends its thread. */
static inline struct recent_access *recent_begin(struct recent *recent, const struct io_access *access, uint16_t vcpu,
                                                 bool is_mmio)
{
    struct recent_access *entry = &recent->accesses[recent->latest % RECENT_ACCESSES];

    if (entry->address == access->address && entry->size == access->size && entry->count == access->count &&
        entry->vcpu == vcpu && entry->is_write == access->is_write && entry->is_mmio == is_mmio) {
        entry->times++;
    } else {
        entry = &recent->accesses[++recent->latest % RECENT_ACCESSES];
        *entry = (struct recent_access){
            .address = access->address, .times = 1, .count = (uint16_t)access->count, .vcpu = vcpu,
            .size = (uint8_t)access->size, .is_write = access->is_write, .is_mmio = is_mmio,
        };
    }
    if (access->is_write) {
        recent_take_value(entry, access);
    }
    return entry;
}

static inline void recent_end(struct recent_access *entry, const struct io_access *access)
{
    if (!access->is_write) {
        recent_take_value(entry, access);
    }
}

#endif
