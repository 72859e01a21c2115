/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How long the VMM took for what the guest asked, as histograms: one for each
 * KVM exit reason, and one for each port or MMIO page and direction.
 *
 * A vCPU that has no table (a NULL pointer) pays one predicted branch. With
 * one, only the vCPU's own thread writes; readers look when it does not run.
 */
#ifndef VMM_EXIT_TIMES_H
#define VMM_EXIT_TIMES_H

#include <stdbool.h>
#include <stdint.h>

/* Each power of two is cut into so many buckets, so a value is known to one part in eight. */
#define HISTOGRAM_SUB_BUCKETS 8
/* Nanoseconds from 2^40 on (18 minutes) share the last bucket. */
#define HISTOGRAM_LIMIT_LOG2 40
#define HISTOGRAM_BUCKETS ((HISTOGRAM_LIMIT_LOG2 - 2) * HISTOGRAM_SUB_BUCKETS)

struct histogram {
    uint64_t count;
    uint64_t total_ns;
    uint64_t max_ns;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

enum exit_times_kind {
    EXIT_TIMES_UNUSED,
    EXIT_TIMES_REASON, /* address is the KVM exit reason; from KVM_RUN's return until the loop is ready to go back */
    EXIT_TIMES_PORT,   /* address is the port; waiting for io_lock and the device */
    EXIT_TIMES_MMIO,   /* address is the GPA of the 4 KiB page; likewise */
};

struct exit_times_row {
    uint64_t address;
    uint32_t kind; /* enum exit_times_kind */
    bool is_write;
    struct histogram times;
};

/* Of one vCPU's table, a power of two: open addressing. More than an OVMF boot needs. */
#define EXIT_TIMES_ROWS 512

struct exit_times {
    uint64_t lost; /* measurements for which no row was left */
    struct exit_times_row rows[EXIT_TIMES_ROWS];
};

/* NULL without memory. */
struct exit_times *exit_times_new(void);
void exit_times_free(struct exit_times *times);

void exit_times_add(struct exit_times *times, enum exit_times_kind kind, uint64_t address, bool is_write, uint64_t ns);

/* The lowest value, in ns, that falls into bucket `index`. */
uint64_t histogram_bucket_start(uint32_t index);

#endif
