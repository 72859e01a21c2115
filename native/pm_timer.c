/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/pm_timer.h"

#define PM_TIMER_HZ 3579545u
#define NS_PER_S 1000000000u

void pm_timer_init(struct pm_timer *timer, const struct guest_clock *clock, uint32_t bits)
{
    timer->clock = clock;
    timer->start_ns = guest_clock_ns(clock);
    timer->mask = bits == 32 ? UINT32_MAX : (1u << 24) - 1;
}

static uint32_t counter(const struct pm_timer *timer)
{
    uint64_t elapsed = guest_clock_ns(timer->clock) - timer->start_ns;
    /* Whole seconds apart: elapsed * PM_TIMER_HZ would pass 64 bits after 85 minutes. */
    uint64_t ticks = elapsed / NS_PER_S * PM_TIMER_HZ + elapsed % NS_PER_S * PM_TIMER_HZ / NS_PER_S;

    return (uint32_t)ticks & timer->mask;
}

void pm_timer_access(void *opaque, struct io_access *access)
{
    if (access->is_write) {
        return;
    }
    for (uint32_t element = 0; element < access->count; element++) {
        uint32_t value = counter(opaque) >> (8 * (access->offset & 3));
        for (uint32_t byte = 0; byte < access->size; byte++) {
            access->data[(uint64_t)element * access->size + byte] = (uint8_t)(byte < 4 ? value >> (8 * byte) : 0);
        }
    }
}
