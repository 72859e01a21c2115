/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which handler answers a port or an MMIO address. One table per bus, for KVM's
 * exits and the software CPU.
 *
 * An access goes to the one range that contains all of it. One that touches
 * several ranges is split into naturally aligned pieces, each of one range or
 * of none; what nobody owns reads as all-ones and swallows writes, as on a
 * PC's bus.
 */
#ifndef VMM_IO_TABLE_H
#define VMM_IO_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#define IO_TABLE_MAX_RANGES 128

struct io_access {
    uint64_t address; /* first port or GPA of one element */
    uint64_t offset;  /* address, counted from the first address of the range */
    uint8_t *data;    /* size * count bytes, little-endian elements: read into, or written from */
    uint32_t size;    /* bytes of one element: 1, 2, 4; MMIO also 3, 5..8 */
    uint32_t count;   /* elements of a string instruction, all at the same address; else 1 */
    uint32_t vcpu;    /* index of the vCPU that asks */
    bool is_write;
    bool smm; /* it is in system management mode */
};

typedef void io_handler(void *opaque, struct io_access *access);

/* The head of the state of a handler that stands before another one, and passes on what it does not serve itself. */
struct io_behind {
    io_handler *handler;
    void *opaque;
};

struct io_range {
    uint64_t first;
    uint64_t last; /* inclusive */
    io_handler *handler;
    void *opaque;
    uint64_t reads;  /* accesses, a string instruction's batch counting once */
    uint64_t writes;
};

struct io_table {
    uint32_t count;
    uint32_t recent; /* index of the range that answered last; a hint */
    struct io_range ranges[IO_TABLE_MAX_RANGES]; /* sorted by first, disjoint */
    uint64_t unassigned_reads;
    uint64_t unassigned_writes;
};

/* 0, or -EINVAL (first > last), -EEXIST (overlaps a range), -ENOSPC (table full). */
int io_table_add(struct io_table *table, uint64_t first, uint64_t last, io_handler *handler, void *opaque);

/* Remove the range that starts at first: 0 or -ENOENT. */
int io_table_remove(struct io_table *table, uint64_t first);

/* Serve one access; the caller holds the machine's io_lock. */
void io_table_access(struct io_table *table, struct io_access *access);

#endif
