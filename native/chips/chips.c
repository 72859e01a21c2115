/* SPDX-License-Identifier: BSD-2-Clause */
/* A machine's chips as the one who executes the guest finds them: struct chips_calls. */
#include "inside.h"

#include <stdlib.h>
#include <time.h>


#define IOAPIC_BASE 0xfec00000u
#define CHIP_SIZE 0x1000u
#define NS_PER_S 1000000000u

#define MSR_APIC_BASE 0x1bu

#define NMI_VECTOR 2

/* One nanosecond a tick. */
uint64_t tsc_now(const struct processor *processor)
{
    return now_ns(processor->chips) + processor->tsc_offset;
}

void chips_go_by(struct chips *chips, const struct guest_clock *clock)
{
    chips->clock = *clock;
    chips->clock_offset = 0 - now_ns(chips);
}

struct chips *chips_new(void)
{
    struct chips *chips = calloc(1, sizeof(*chips));

    if (chips == NULL) {
        return NULL;
    }
    pthread_mutex_init(&chips->lock, NULL);
    chips->clock_offset = 0 - now_ns(chips);
    pic_reset(chips);
    ioapic_reset(chips);
    pit_reset(chips);
    return chips;
}

void chips_free(struct chips *chips)
{
    for (uint32_t i = 0; i < chips->count; i++) {
        pthread_cond_destroy(&chips->processors[i]->changed);
        free(chips->processors[i]->cpuid);
        free(chips->processors[i]);
    }
    pthread_mutex_destroy(&chips->lock);
    free(chips);
}

struct guest_clock *chips_clock(struct chips *chips)
{
    return &chips->clock;
}

struct processor *chips_add(struct chips *chips, uint32_t id)
{
    struct processor *processor = calloc(1, sizeof(*processor));
    pthread_condattr_t monotonic;
    bool room;

    if (processor == NULL) {
        return NULL;
    }
    processor->chips = chips;
    processor->id = id;
    processor->mp_state = id == chips->bsp ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
    processor->xcr0 = 1;
    processor->lapic.base = 0xfee00000 | APIC_BASE_ENABLED | (id == chips->bsp ? APIC_BASE_BSP : 0);
    processor->tsc_offset = 0 - now_ns(chips);
    lapic_reset(processor);
    msrs_reset(processor);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&processor->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_lock(&chips->lock);
    room = chips->count < CHIPS_MAX_CPUS && id < CHIPS_MAX_ID;
    for (uint32_t i = 0; i < chips->count; i++) {
        room = room && chips->processors[i]->id != id;
    }
    if (room) {
        chips->processors[chips->count++] = processor;
    }
    pthread_mutex_unlock(&chips->lock);
    if (!room) {
        pthread_cond_destroy(&processor->changed);
        free(processor);
        return NULL;
    }
    return processor;
}

static void execute(struct processor *processor, void (*wake_it)(void *opaque), void (*smi)(void *opaque), void *opaque)
{
    pthread_mutex_lock(&processor->chips->lock);
    processor->wake = wake_it;
    processor->smi = smi;
    processor->opaque = opaque;
    pthread_mutex_unlock(&processor->chips->lock);
}

static bool takes_pic(const struct processor *processor)
{
    return (lapic_takes_pic(processor) || processor->extint_pending) && pic_has_interrupt(processor->chips);
}

/*
 * The PIT is not seen to by one that only waits to be started: while the one
 * that takes its interrupts gets no time from the host, each of its ticks would
 * find the last one waiting yet, and be lost.
 */
static bool sees_to_pit(struct chips_wanted wanted)
{
    return wanted.interrupt || wanted.nmi;
}

static enum chips_event find(struct processor *processor, struct chips_wanted wanted)
{
    uint64_t now = now_ns(processor->chips);

    processor->looks = true;
    if (sees_to_pit(wanted)) {
        pit_run(processor->chips, now);
    }
    timer_run(processor, now);
    processor->looks = false;
    if (wanted.reset && accept_reset(processor)) {
        return CHIPS_RESET;
    }
    if (wanted.nmi) {
        processor->nmi_in_progress = false;
    }
    if (wanted.nmi && processor->nmi_pending > 0) {
        return CHIPS_NMI;
    }
    return wanted.interrupt && (takes_pic(processor) || lapic_next(processor) >= 0) ? CHIPS_INTERRUPT : CHIPS_NOTHING;
}

static enum chips_event look(struct processor *processor, struct chips_wanted wanted)
{
    enum chips_event event;

    pthread_mutex_lock(&processor->chips->lock);
    event = find(processor, wanted);
    pthread_mutex_unlock(&processor->chips->lock);
    return event;
}

static int take(struct processor *processor, struct chips_wanted wanted)
{
    if (wanted.nmi && processor->nmi_pending > 0) {
        processor->nmi_pending--;
        processor->nmi_in_progress = true;
        return NMI_VECTOR;
    }
    if (!wanted.interrupt) {
        return -1;
    }
    if (takes_pic(processor)) {
        processor->extint_pending = false;
        return pic_acknowledge(processor->chips);
    }
    return lapic_acknowledge(processor);
}

static int acknowledge(struct processor *processor, struct chips_wanted wanted)
{
    int vector;

    pthread_mutex_lock(&processor->chips->lock);
    vector = take(processor, wanted);
    pthread_mutex_unlock(&processor->chips->lock);
    return vector;
}

static void wait_for_change(struct processor *processor, struct chips_wanted wanted)
{
    uint64_t due = timer_due(processor);
    uint64_t pit = sees_to_pit(wanted) ? pit_due(processor->chips) : UINT64_MAX;
    uint64_t soon = now_ns(processor->chips) + SHORTEST_WAIT_NS;
    struct timespec until;

    due = pit < due ? pit : due;
    due = due < soon ? soon : due;
    processor->waits_until = due;
    due = due == UINT64_MAX ? due : due - processor->chips->clock.offset_ns; /* CLOCK_MONOTONIC's */
    if (due == UINT64_MAX) {
        pthread_cond_wait(&processor->changed, &processor->chips->lock);
        return;
    }
    until = (struct timespec){.tv_sec = (time_t)(due / NS_PER_S), .tv_nsec = (long)(due % NS_PER_S)};
    pthread_cond_timedwait(&processor->changed, &processor->chips->lock, &until);
}

static enum chips_event wait_for(struct processor *processor, struct chips_wanted wanted)
{
    enum chips_event event;

    pthread_mutex_lock(&processor->chips->lock);
    while ((event = find(processor, wanted)) == CHIPS_NOTHING && !processor->nudged) {
        wait_for_change(processor, wanted);
        processor->waits_until = 0;
    }
    processor->nudged = false;
    pthread_mutex_unlock(&processor->chips->lock);
    return event;
}

static uint64_t next_due(struct processor *processor)
{
    uint64_t timer;
    uint64_t pit;

    pthread_mutex_lock(&processor->chips->lock);
    timer = timer_due(processor);
    pit = pit_due(processor->chips);
    pthread_mutex_unlock(&processor->chips->lock);
    return timer < pit ? timer : pit;
}

static void nudge(struct processor *processor)
{
    pthread_mutex_lock(&processor->chips->lock);
    processor->nudged = true;
    pthread_cond_signal(&processor->changed);
    pthread_mutex_unlock(&processor->chips->lock);
}

static void set_priority(struct processor *processor, uint32_t cr8)
{
    pthread_mutex_lock(&processor->chips->lock);
    lapic_set_priority(processor, cr8 << 4);
    pthread_mutex_unlock(&processor->chips->lock);
}

static uint32_t priority(struct processor *processor)
{
    uint32_t value;

    pthread_mutex_lock(&processor->chips->lock);
    value = lapic_priority(processor) >> 4;
    pthread_mutex_unlock(&processor->chips->lock);
    return value;
}

static void send_init(struct processor *processor)
{
    const struct message message = {.delivery = DELIVER_INIT, .shorthand = TO_SELF, .assert = true, .sender = processor};

    pthread_mutex_lock(&processor->chips->lock);
    deliver(processor->chips, &message);
    pthread_mutex_unlock(&processor->chips->lock);
}

static bool has_lapic(const struct processor *processor, uint64_t gpa)
{
    uint64_t mode = processor->lapic.base & (APIC_BASE_ENABLED | APIC_BASE_X2APIC);

    return mode == APIC_BASE_ENABLED && gpa - (processor->lapic.base & APIC_BASE_ADDRESS) < CHIP_SIZE;
}

/* Only the CPU itself moves its local APIC: no lock is needed to ask for it. */
static bool has_address(const struct processor *processor, uint64_t gpa)
{
    return gpa - IOAPIC_BASE < CHIP_SIZE || has_lapic(processor, gpa);
}

static uint32_t sized(uint32_t value, uint32_t size)
{
    return size >= 4 ? value : value & ((1u << 8 * size) - 1);
}

static uint32_t load(struct processor *processor, uint64_t gpa, uint32_t size)
{
    uint32_t value;

    pthread_mutex_lock(&processor->chips->lock);
    value = has_lapic(processor, gpa) ? lapic_load(processor, gpa & (CHIP_SIZE - 1))
                                      : ioapic_load(processor->chips, gpa & (CHIP_SIZE - 1));
    pthread_mutex_unlock(&processor->chips->lock);
    return sized(value, size);
}

static void store(struct processor *processor, uint64_t gpa, uint32_t size, uint32_t value)
{
    pthread_mutex_lock(&processor->chips->lock);
    if (!has_lapic(processor, gpa)) {
        ioapic_store(processor->chips, gpa & (CHIP_SIZE - 1), value);
    } else if (size == 4) {
        lapic_store(processor, gpa & (CHIP_SIZE - 1), value);
    }
    pthread_mutex_unlock(&processor->chips->lock);
}

static uint8_t in_byte(struct chips *chips, uint32_t port)
{
    switch (port) {
    case 0x20:
    case 0x21:
    case 0xa0:
    case 0xa1:
        return pic_read(chips, port);
    case 0x40:
    case 0x41:
    case 0x42:
    case 0x43:
        return pit_read(chips, port);
    case 0x61:
        return port61_read(chips);
    case 0x4d0:
    case 0x4d1:
        return elcr_read(chips, port);
    default:
        return 0xff;
    }
}

static void out_byte(struct chips *chips, uint32_t port, uint8_t value)
{
    switch (port) {
    case 0x20:
    case 0x21:
    case 0xa0:
    case 0xa1:
        pic_write(chips, port, value);
        break;
    case 0x40:
    case 0x41:
    case 0x42:
    case 0x43:
        pit_write(chips, port, value);
        break;
    case 0x61:
        port61_write(chips, value);
        break;
    case 0x4d0:
    case 0x4d1:
        elcr_write(chips, port, value);
        break;
    default:
        break;
    }
}

/* ISA cuts an access into bytes. What is due comes first, for a read may show it. */
static uint32_t in(struct chips *chips, uint32_t port, uint32_t size)
{
    uint32_t value = 0;

    pthread_mutex_lock(&chips->lock);
    pit_run(chips, now_ns(chips));
    for (uint32_t i = 0; i < size; i++) {
        value |= (uint32_t)in_byte(chips, port + i) << 8 * i;
    }
    pthread_mutex_unlock(&chips->lock);
    return value;
}

static void out(struct chips *chips, uint32_t port, uint32_t size, uint32_t value)
{
    pthread_mutex_lock(&chips->lock);
    pit_run(chips, now_ns(chips));
    for (uint32_t i = 0; i < size; i++) {
        out_byte(chips, port + i, (uint8_t)(value >> 8 * i));
    }
    pthread_mutex_unlock(&chips->lock);
}

static bool read_msr(struct processor *processor, uint32_t index, uint64_t *value)
{
    bool exists;

    pthread_mutex_lock(&processor->chips->lock);
    exists = msr_get(processor, index, value);
    pthread_mutex_unlock(&processor->chips->lock);
    return exists;
}

static bool write_msr(struct processor *processor, uint32_t index, uint64_t value)
{
    bool taken;

    pthread_mutex_lock(&processor->chips->lock);
    taken = index == MSR_APIC_BASE ? lapic_set_base(processor, value) : msr_set(processor, index, value);
    pthread_mutex_unlock(&processor->chips->lock);
    return taken;
}

const struct chips_calls chips_calls = {
    .execute = execute,
    .look = look,
    .acknowledge = acknowledge,
    .wait = wait_for,
    .due = next_due,
    .clock = chips_clock,
    .nudge = nudge,
    .set_priority = set_priority,
    .priority = priority,
    .tsc = tsc_now,
    .send_init = send_init,
    .has_address = has_address,
    .load = load,
    .store = store,
    .in = in,
    .out = out,
    .read_msr = read_msr,
    .write_msr = write_msr,
};
