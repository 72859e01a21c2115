/* SPDX-License-Identifier: BSD-2-Clause */
/* What the software CPU has translated, which is what it then executes: a struct ring of these for a machine. */
#ifndef VMM_COVERAGE_H
#define VMM_COVERAGE_H

#include <stdint.h>

struct coverage_block {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t address; /* linear, of the first instruction */
    uint64_t size;    /* bytes */
};

#endif
