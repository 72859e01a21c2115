/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The local APIC's timer (Intel SDM volume 3, 11.5.4): a count of nanoseconds,
 * as KVM's, or a TSC deadline. The count is a deadline; what it shows is worked
 * out when somebody looks.
 */
#include "inside.h"

#include "lapic.h"

#define ONE_SHOT 0u
#define PERIODIC 1u
#define TSC_DEADLINE 2u

/* Then it is looked at again. */
#define LONGEST_WAIT_NS (1ull << 40)

static uint32_t mode(const struct processor *processor)
{
    return LVT_TIMER_MODE(REG(processor, LVT_TIMER));
}

/* Figure 11-10: 000 is 2, 001 is 4, ... 111 is 1. */
static uint32_t shift(const struct processor *processor)
{
    uint32_t divide = REG(processor, TIMER_DIVIDE);

    return (((divide & 3) | (divide & 8) >> 1) + 1) & 7;
}

static uint64_t period(const struct processor *processor)
{
    return (uint64_t)REG(processor, TIMER_INITIAL) << shift(processor);
}

/* 0 for now: the time of day. */
uint32_t timer_current(const struct processor *processor, uint64_t now)
{
    uint64_t due = processor->lapic.due_ns;

    if (due == 0) {
        return 0;
    }
    now = now == 0 ? now_ns(processor->chips) : now;
    if (now >= due) {
        if (mode(processor) != PERIODIC) {
            return 0;
        }
        due = now + period(processor) - (now - due) % period(processor);
    }
    return (uint32_t)((due - now) >> shift(processor));
}

void timer_write_initial(struct processor *processor, uint32_t value)
{
    if (mode(processor) == TSC_DEADLINE) {
        return;
    }
    REG(processor, TIMER_INITIAL) = value;
    processor->lapic.missed = 0;
    processor->lapic.due_ns = value == 0 ? 0 : now_ns(processor->chips) + period(processor);
}

void timer_write_divide(struct processor *processor, uint32_t value)
{
    uint64_t now = now_ns(processor->chips);
    uint32_t left = timer_current(processor, now);
    bool runs = processor->lapic.due_ns != 0 && (left != 0 || mode(processor) == PERIODIC);

    REG(processor, TIMER_DIVIDE) = value & TIMER_DIVIDE_BITS;
    /* It counts on, at another speed. One that is due already stays so. */
    if (runs) {
        processor->lapic.due_ns = now + ((uint64_t)left << shift(processor));
    }
}

void timer_write_lvt(struct processor *processor, uint32_t value)
{
    uint32_t before = mode(processor);
    uint32_t after = LVT_TIMER_MODE(value);

    /* What was due until now is due in the mode that it was in. */
    timer_run(processor, now_ns(processor->chips));
    REG(processor, LVT_TIMER) = value & LVT_TIMER_BITS;
    if ((before == TSC_DEADLINE) != (after == TSC_DEADLINE)) {
        REG(processor, TIMER_INITIAL) = 0;
        processor->lapic.due_ns = 0;
        processor->lapic.missed = 0;
        processor->lapic.tsc_deadline = 0;
    }
}

void timer_write_deadline(struct processor *processor, uint64_t value)
{
    if (mode(processor) == TSC_DEADLINE) {
        processor->lapic.tsc_deadline = value;
        if (value != 0 && tsc_now(processor) >= value) {
            wake(processor);
        }
    }
}

static void interrupt(struct processor *processor)
{
    uint32_t lvt = REG(processor, LVT_TIMER);

    if (!(lvt & LVT_MASKED)) {
        lapic_accept(processor, LVT_VECTOR(lvt), false);
    }
}

static void run_period(struct processor *processor, uint64_t now)
{
    struct lapic *lapic = &processor->lapic;
    uint64_t length = period(processor);
    uint64_t due = now >= lapic->due_ns ? (now - lapic->due_ns) / length + 1 : 0;
    uint32_t lvt = REG(processor, LVT_TIMER);
    uint64_t more = 0;

    lapic->due_ns += due * length;
    if (lvt & LVT_MASKED) {
        lapic->missed = 0;
        return;
    }
    if (due > 0) {
        /* While one waits, more are lost, as on a CPU: the guest is late, not the host. */
        more = lapic_is_requested(processor, LVT_VECTOR(lvt)) ? 0 : due - 1;
        interrupt(processor);
    } else if (lapic->missed > 0 && !lapic_is_busy(processor, LVT_VECTOR(lvt))) {
        lapic->missed--;
        interrupt(processor);
    }
    more += lapic->missed;
    lapic->missed = (uint32_t)(more < MISSED_TICKS ? more : MISSED_TICKS);
}

void timer_run(struct processor *processor, uint64_t now)
{
    struct lapic *lapic = &processor->lapic;

    if (lapic->tsc_deadline != 0 && tsc_now(processor) >= lapic->tsc_deadline) {
        lapic->tsc_deadline = 0;
        interrupt(processor);
    }
    if (lapic->due_ns == 0) {
        return;
    }
    if (mode(processor) == PERIODIC) {
        run_period(processor, now);
    } else if (now >= lapic->due_ns) {
        lapic->due_ns = 0;
        interrupt(processor);
    }
}

uint64_t timer_due(const struct processor *processor)
{
    const struct lapic *lapic = &processor->lapic;
    uint64_t now;
    uint64_t left;

    if (REG(processor, LVT_TIMER) & LVT_MASKED) {
        return UINT64_MAX;
    }
    if (lapic->tsc_deadline != 0) {
        now = tsc_now(processor);
        left = lapic->tsc_deadline <= now ? 0 : lapic->tsc_deadline - now;
        return now_ns(processor->chips) + (left < LONGEST_WAIT_NS ? left : LONGEST_WAIT_NS);
    }
    return lapic->due_ns == 0 ? UINT64_MAX : lapic->due_ns;
}

void timer_load(struct processor *processor, uint32_t current)
{
    struct lapic *lapic = &processor->lapic;

    REG(processor, TIMER_CURRENT) = 0;
    lapic->missed = 0;
    lapic->tsc_deadline = 0;
    lapic->due_ns = 0;
    if (mode(processor) != TSC_DEADLINE && REG(processor, TIMER_INITIAL) != 0 &&
        (current != 0 || mode(processor) == PERIODIC)) {
        lapic->due_ns = now_ns(processor->chips) + ((uint64_t)current << shift(processor));
    }
}
