/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/exit_times.h"

#include <stdlib.h>

#define SUB_BUCKETS_LOG2 3

_Static_assert(1 << SUB_BUCKETS_LOG2 == HISTOGRAM_SUB_BUCKETS, "a power of two");

struct exit_times *exit_times_new(void)
{
    return calloc(1, sizeof(struct exit_times));
}

void exit_times_free(struct exit_times *times)
{
    free(times);
}

/* Values below HISTOGRAM_SUB_BUCKETS have a bucket each; above, the three bits behind the leading one choose. */
static uint32_t bucket_of(uint64_t ns)
{
    uint32_t log2;

    if (ns < HISTOGRAM_SUB_BUCKETS) {
        return (uint32_t)ns;
    }
    log2 = 63 - (uint32_t)__builtin_clzll(ns);
    if (log2 >= HISTOGRAM_LIMIT_LOG2) {
        return HISTOGRAM_BUCKETS - 1;
    }
    return (log2 - SUB_BUCKETS_LOG2) * HISTOGRAM_SUB_BUCKETS + (uint32_t)(ns >> (log2 - SUB_BUCKETS_LOG2));
}

uint64_t histogram_bucket_start(uint32_t index)
{
    uint32_t shift;

    if (index < 2 * HISTOGRAM_SUB_BUCKETS) {
        return index;
    }
    shift = index / HISTOGRAM_SUB_BUCKETS - 1;
    return (uint64_t)(index - shift * HISTOGRAM_SUB_BUCKETS) << shift;
}

static void histogram_add(struct histogram *histogram, uint64_t ns)
{
    histogram->count++;
    histogram->total_ns += ns;
    if (ns > histogram->max_ns) {
        histogram->max_ns = ns;
    }
    histogram->buckets[bucket_of(ns)]++;
}

static uint32_t slot_of(enum exit_times_kind kind, uint64_t address, bool is_write)
{
    uint64_t mixed = (address << 3 | (uint64_t)kind << 1 | is_write) * 0x9e3779b97f4a7c15u;

    return (uint32_t)(mixed >> 32) & (EXIT_TIMES_ROWS - 1);
}

void exit_times_add(struct exit_times *times, enum exit_times_kind kind, uint64_t address, bool is_write, uint64_t ns)
{
    uint32_t slot = slot_of(kind, address, is_write);

    for (uint32_t tried = 0; tried < EXIT_TIMES_ROWS; tried++) {
        struct exit_times_row *row = &times->rows[(slot + tried) & (EXIT_TIMES_ROWS - 1)];

        if (row->kind == EXIT_TIMES_UNUSED) {
            row->address = address;
            row->kind = kind;
            row->is_write = is_write;
        }
        if (row->kind == kind && row->address == address && row->is_write == is_write) {
            histogram_add(&row->times, ns);
            return;
        }
    }
    times->lost++;
}
