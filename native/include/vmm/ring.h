/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A ring of records of one size: one thread at a time adds them, another takes
 * them, neither waits. A full ring drops the new record and counts it.
 */
#ifndef VMM_RING_H
#define VMM_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct ring {
    uint32_t capacity; /* records: a power of two */
    uint32_t size;     /* bytes of a record */
    uint64_t produced; /* accessed atomically */
    uint64_t consumed; /* accessed atomically */
    uint64_t dropped;  /* accessed atomically */
    unsigned char records[];
};

/* NULL: there is no memory. */
static inline struct ring *ring_new(uint32_t capacity, uint32_t size)
{
    struct ring *ring = calloc(1, sizeof(*ring) + (size_t)capacity * size);

    if (ring != NULL) {
        ring->capacity = capacity;
        ring->size = size;
    }
    return ring;
}

static inline void ring_free(struct ring *ring)
{
    free(ring);
}

static inline void *ring_place(struct ring *ring, uint64_t number)
{
    return ring->records + (size_t)(number & (ring->capacity - 1)) * ring->size;
}

static inline void ring_add(struct ring *ring, const void *record)
{
    uint64_t produced = ring->produced;

    if (produced - __atomic_load_n(&ring->consumed, __ATOMIC_ACQUIRE) == ring->capacity) {
        __atomic_store_n(&ring->dropped, ring->dropped + 1, __ATOMIC_RELAXED);
        return;
    }
    memcpy(ring_place(ring, produced), record, ring->size);
    __atomic_store_n(&ring->produced, produced + 1, __ATOMIC_RELEASE);
}

/* Move up to `count` records out, the oldest first; returns how many. */
static inline uint32_t ring_take(struct ring *ring, void *records, uint32_t count)
{
    uint64_t consumed = ring->consumed;
    uint64_t available = __atomic_load_n(&ring->produced, __ATOMIC_ACQUIRE) - consumed;
    uint32_t taken = available < count ? (uint32_t)available : count;

    for (uint32_t i = 0; i < taken; i++) {
        memcpy((unsigned char *)records + (size_t)i * ring->size, ring_place(ring, consumed + i), ring->size);
    }
    __atomic_store_n(&ring->consumed, consumed + taken, __ATOMIC_RELEASE);
    return taken;
}

static inline uint64_t ring_dropped(const struct ring *ring)
{
    return __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED);
}

#endif
