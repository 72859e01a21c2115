/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ACPI power-management timer: a free-running counter at 3.579545 MHz
 * (ACPI 6.5, section 4.8.2.1). In C because firmware polls it in delay loops,
 * millions of times a boot.
 */
#ifndef VMM_PM_TIMER_H
#define VMM_PM_TIMER_H

#include "vmm/clock.h"
#include "vmm/io_table.h"

struct pm_timer {
    const struct guest_clock *clock;
    uint64_t start_ns; /* when the counter was 0 */
    uint32_t mask;     /* 0xffffff: 24 bits wide, 0xffffffff: 32 bits */
};

/* The counter starts at 0 now; bits is 24 or 32. */
void pm_timer_init(struct pm_timer *timer, const struct guest_clock *clock, uint32_t bits);

/* An io_handler over a struct pm_timer; four bytes, any width, writes ignored. */
void pm_timer_access(void *opaque, struct io_access *access);

#endif
