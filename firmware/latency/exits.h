/* Single exits, timed in flat protected mode: what exits.c and latency.c agree on. */
#ifndef EXITS_H
#define EXITS_H

#include "guest.h"

struct exit_test {
    const char *name; /* kvm-unit-tests' (x86/vmexit.c) where it has one */
    void (*once)(void);
    void (*prepare)(void); /* before each repetition, not timed; or NULL */
    bool needs_cpu;        /* a second one */
};

#define EXIT_TESTS 22
extern const struct exit_test exit_tests[EXIT_TESTS];

/* To be called once: interrupts, the second CPU if one of `expected` is there, fresh RAM from `ram` to `ram_end`. */
void exits_init(uint32_t expected, uint32_t ram, uint32_t ram_end);

/* Why a test cannot be made here; NULL: it can. */
const char *exits_unable(const struct exit_test *test);

/* TSC ticks of one repetition. */
uint32_t exits_time(const struct exit_test *test);

#endif
