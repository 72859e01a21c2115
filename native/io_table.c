/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/io_table.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* Index of the first range that ends at or above address. */
static uint32_t first_ending_at(const struct io_table *table, uint64_t address)
{
    uint32_t low = 0;
    uint32_t high = table->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (table->ranges[middle].last < address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int io_table_add(struct io_table *table, uint64_t first, uint64_t last, io_handler *handler, void *opaque)
{
    uint32_t at;

    if (first > last || handler == NULL) {
        return -EINVAL;
    }
    at = first_ending_at(table, first);
    if (at < table->count && table->ranges[at].first <= last) {
        return -EEXIST;
    }
    if (table->count == IO_TABLE_MAX_RANGES) {
        return -ENOSPC;
    }
    memmove(&table->ranges[at + 1], &table->ranges[at], (table->count - at) * sizeof(table->ranges[0]));
    table->ranges[at] = (struct io_range){.first = first, .last = last, .handler = handler, .opaque = opaque};
    table->count++;
    table->recent = 0;
    return 0;
}

int io_table_remove(struct io_table *table, uint64_t first)
{
    uint32_t at = first_ending_at(table, first);

    if (at == table->count || table->ranges[at].first != first) {
        return -ENOENT;
    }
    table->count--;
    table->recent = 0;
    memmove(&table->ranges[at], &table->ranges[at + 1], (table->count - at) * sizeof(table->ranges[0]));
    return 0;
}

static struct io_range *range_at(struct io_table *table, uint64_t address)
{
    uint32_t at = first_ending_at(table, address);

    if (at == table->count || table->ranges[at].first > address) {
        return NULL;
    }
    return &table->ranges[at];
}

static void access_unassigned(struct io_table *table, struct io_access *access)
{
    if (access->is_write) {
        table->unassigned_writes++;
    } else {
        table->unassigned_reads++;
        memset(access->data, 0xff, (size_t)access->size * access->count);
    }
}

static void access_range(struct io_range *range, struct io_access *access)
{
    if (access->is_write) {
        range->writes++;
    } else {
        range->reads++;
    }
    access->offset = access->address - range->first;
    range->handler(range->opaque, access);
}

/* The largest naturally aligned part of [address, address + size) that all belongs to *owner: a range, or nobody. */
static uint32_t piece_size(struct io_table *table, uint64_t address, uint32_t size, struct io_range **owner)
{
    uint32_t at = first_ending_at(table, address);
    struct io_range *next = at < table->count ? &table->ranges[at] : NULL;
    uint64_t last = next == NULL ? UINT64_MAX : next->first <= address ? next->last : next->first - 1;
    uint32_t piece = 1;

    *owner = range_at(table, address);
    while (piece * 2 <= size && address % (piece * 2) == 0 && piece * 2 - 1 <= last - address) {
        piece *= 2;
    }
    return piece;
}

static void access_by_pieces(struct io_table *table, const struct io_access *whole)
{
    for (uint32_t element = 0; element < whole->count; element++) {
        for (uint32_t done = 0, size; done < whole->size; done += size) {
            struct io_range *range;
            struct io_access part = {
                .address = whole->address + done,
                .data = whole->data + (size_t)element * whole->size + done,
                .count = 1,
                .vcpu = whole->vcpu,
                .is_write = whole->is_write,
            };

            size = piece_size(table, part.address, whole->size - done, &range);
            part.size = size;
            if (range == NULL) {
                access_unassigned(table, &part);
            } else {
                access_range(range, &part);
            }
        }
    }
}

void io_table_access(struct io_table *table, struct io_access *access)
{
    uint64_t last = access->address + (access->size - 1);
    uint32_t at = table->recent;
    struct io_range *range = &table->ranges[at];

    /* Guests ask one device many times in a row. */
    if (at < table->count && range->first <= access->address && access->address <= last && last <= range->last) {
        access_range(range, access);
        return;
    }
    at = first_ending_at(table, access->address);
    range = at < table->count ? &table->ranges[at] : NULL;
    if (range == NULL || range->first > last) {
        access_unassigned(table, access);
    } else if (range->first <= access->address && last <= range->last) {
        table->recent = at;
        access_range(range, access);
    } else {
        access_by_pieces(table, access);
    }
}
