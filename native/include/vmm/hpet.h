/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a guest reads of the High Precision Event Timer (IA-PC HPET 1.0a,
 * 2.3). In C because a timer interrupt's handler reads the main counter, and
 * clocks do little else. Writes, and so all that the registers mean, are
 * vmm/devices/hpet.py's, which stands behind this.
 */
#ifndef VMM_HPET_H
#define VMM_HPET_H

#include "vmm/clock.h"
#include "vmm/io_table.h"

#define HPET_SIZE 1024 /* bytes of a block */
#define HPET_TICK_NS 10
#define HPET_COUNTER 0xf0

struct hpet {
    struct io_behind device;           /* first: the bus fills it in. Gets writes */
    uint64_t registers[HPET_SIZE / 8]; /* as they read; the main counter's: where it stood at since_ns */
    uint64_t since_ns;                 /* if running */
    const struct guest_clock *clock;
    bool running;
};

/* The main counter now. */
uint64_t hpet_counter(const struct hpet *hpet);

/* An io_handler over a struct hpet; HPET_SIZE bytes, any width. */
void hpet_access(void *opaque, struct io_access *access);

#endif
