/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef VMM_CLOCK_H
#define VMM_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC, the clock of every time that the core notes; Python's time.monotonic_ns() is the same. */
static inline uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The time of one guest, which every counter and deadline of its devices goes by: so it can be set as a whole. */
struct guest_clock {
    uint64_t offset_ns; /* to CLOCK_MONOTONIC, modulo 2^64 */
    bool stands;        /* offset_ns is the time, and whoever set this moves it */
    uint64_t instructions; /* that the guest has executed by then, where time goes by them; else 0 */
};

static inline uint64_t guest_clock_ns(const struct guest_clock *clock)
{
    return clock->offset_ns + (clock->stands ? 0 : monotonic_ns());
}

#endif
