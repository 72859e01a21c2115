/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Guest physical memory: a sorted table of regions, GPA to HVA, and checked
 * copies. Everything that the guest names by address goes through here.
 *
 * A copy never touches a byte outside a region. It stops at the first byte
 * that no region backs (or, for a write, that a read-only region backs) and
 * returns how many bytes were done, so that a caller can tell the guest.
 *
 * The table changes only while io_lock of the machine is held or no vCPU runs.
 */
#ifndef VMM_GUEST_MEMORY_H
#define VMM_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_MEMORY_MAX_REGIONS 64
#define GUEST_MEMORY_SMM_REGIONS 4

enum guest_region_flags {
    GUEST_REGION_READ_ONLY = 1u << 0,
    GUEST_REGION_SMM = 1u << 1, /* only a vCPU in system management mode sees it, and sees it first */
};

struct guest_region {
    uint64_t gpa;
    uint64_t size;
    uint8_t *hva;
    uint32_t flags;
};

struct guest_memory {
    uint32_t count;
    struct guest_region regions[GUEST_MEMORY_MAX_REGIONS];
    /* What a vCPU in system management mode sees in front of those; no copy here ever does. */
    uint32_t smm_count;
    struct guest_region smm_regions[GUEST_MEMORY_SMM_REGIONS];
    /* Called after a device stored into guest RAM: a software CPU drops code it translated from there. */
    void (*written)(void *opaque, uint64_t gpa, uint64_t length);
    /* Called after the table changed in [gpa, gpa + size). */
    void (*changed)(void *opaque, uint64_t gpa, uint64_t size);
    void *opaque;
};

/* 0, or -EINVAL (empty, wraps), -EEXIST (overlaps a region), -ENOSPC (table full). */
int guest_memory_add(struct guest_memory *memory, uint64_t gpa, uint64_t size, uint8_t *hva, uint32_t flags);

/* Remove the region that starts at gpa: 0 or -ENOENT. */
int guest_memory_remove(struct guest_memory *memory, uint64_t gpa);

/* The same for memory of system management mode: it may lie over other regions, but not over its own kind. */
int guest_memory_add_smm(struct guest_memory *memory, uint64_t gpa, uint64_t size, uint8_t *hva);
int guest_memory_remove_smm(struct guest_memory *memory, uint64_t gpa);

/* The region that contains gpa, or NULL. */
const struct guest_region *guest_memory_find(const struct guest_memory *memory, uint64_t gpa);

/* Host address of gpa; *length shrinks to what is contiguous there. NULL where nothing (writable) is. */
uint8_t *guest_memory_span(const struct guest_memory *memory, uint64_t gpa, uint64_t *length, bool writable);

/* Bytes copied from the guest, counted from gpa: less than length only where memory ends. */
uint64_t guest_memory_read(const struct guest_memory *memory, uint64_t gpa, void *to, uint64_t length);

/* Bytes copied to the guest, counted from gpa: less than length only where writable memory ends. */
uint64_t guest_memory_write(const struct guest_memory *memory, uint64_t gpa, const void *from, uint64_t length);

/*
 * As a bus master stores: what isn't writable memory swallows its part and the
 * rest still arrives, addresses continue at 0 behind 2^64. from == NULL stores
 * zeros. Ends early once `limit` bytes arrived. Returns how far it came; adds
 * to *stored how many bytes arrived.
 */
uint64_t guest_memory_scatter(const struct guest_memory *memory, uint64_t gpa, const void *from, uint64_t length,
                              uint64_t limit, uint64_t *stored);

/* Whether every byte of a range can be read. */
bool guest_memory_readable(const struct guest_memory *memory, uint64_t gpa, uint64_t length);

/* Whether every byte of a range can be written. */
bool guest_memory_writable(const struct guest_memory *memory, uint64_t gpa, uint64_t length);

/* One 16-bit load, what is read after it included (acquire). False: there is no memory. */
bool guest_memory_load16(const struct guest_memory *memory, uint64_t gpa, uint16_t *value);

/* One 16-bit store, what was written before it included (release). False: there is no writable memory. */
bool guest_memory_store16(const struct guest_memory *memory, uint64_t gpa, uint16_t value);

/*
 * For each host page of a range in one region, into pages[]: bit 0 says whether
 * anything is there yet, other than the zeros that a look at it would allocate.
 * False: that is not known.
 */
bool guest_memory_touched(const struct guest_memory *memory, uint64_t gpa, uint64_t length, uint8_t *pages);

/* One 32-bit store, or byte by byte what of it is writable memory, if that isn't all in one region. */
void guest_memory_store32(const struct guest_memory *memory, uint64_t gpa, uint32_t value);

#endif
