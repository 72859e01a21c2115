/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The 8254 (Intel 231164-005) at the PC's 1.193182 MHz, and port 61 with its
 * channel 2's gate and output, in struct kvm_pit_state2. A counter is when it
 * was loaded, and with what; what it shows is worked out when somebody looks.
 * As in KVM and QEMU, a low gate does not stop a count, the null count bit is
 * never set, and in mode 2 the output is high where the data sheet has it low,
 * which moves no edge.
 */
#include "inside.h"

#define PIT_HZ 1193182ull
#define NS_PER_S 1000000000ull

#define LATCH_COMMAND 0
#define READ_BACK 3
#define SPEAKER_CHANNEL 2

/* RW: which byte of the count; both alternate. */
enum { RW_LOW = 1, RW_HIGH, RW_BOTH, RW_BOTH_SECOND };

/* Of the read-back command; these select if they are 0. */
#define READ_BACK_STATUS 0x10
#define READ_BACK_COUNT 0x20

#define STATUS_OUTPUT 0x80

/* A mode, as KVM has it. */
#define NOT_PROGRAMMED 0xff

#define PORT61_GATE 0x01
#define PORT61_SPEAKER 0x02
#define PORT61_REFRESH_SHIFT 14 /* of nanoseconds: about as often as a PC refreshes memory */

static uint64_t scale(uint64_t value, uint64_t by, uint64_t over)
{
    return (uint64_t)((unsigned __int128)value * by / over);
}

static uint64_t to_ns(uint64_t ticks)
{
    /* Rounded up, so that the tick has come by then. */
    return scale(ticks, NS_PER_S, PIT_HZ) + 1;
}

static uint64_t elapsed(const struct kvm_pit_channel_state *channel, uint64_t now)
{
    int64_t ns = (int64_t)(now - (uint64_t)channel->count_load_time);

    return ns < 0 ? 0 : scale((uint64_t)ns, PIT_HZ, NS_PER_S);
}

/* As the guest counts: in binary, or four decimal digits. */
static uint32_t range(const struct kvm_pit_channel_state *channel)
{
    return channel->bcd ? 10000 : 65536;
}

static uint32_t from_guest(const struct kvm_pit_channel_state *channel, uint32_t value)
{
    if (channel->bcd) {
        value = (value >> 12 & 15) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15);
    }
    return value == 0 ? range(channel) : value;
}

static uint16_t to_guest(const struct kvm_pit_channel_state *channel, uint32_t value)
{
    if (!channel->bcd) {
        return (uint16_t)value;
    }
    value %= 10000;
    return (uint16_t)(value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10);
}

/* 6 and 7 are 2 and 3. */
static uint32_t mode_of(const struct kvm_pit_channel_state *channel)
{
    return channel->mode == 6 || channel->mode == 7 ? channel->mode - 4 : channel->mode;
}

static bool is_periodic(const struct kvm_pit_channel_state *channel)
{
    return mode_of(channel) == 2 || mode_of(channel) == 3;
}

/* Counts from a rising gate on, and channel 0's is always high. */
static bool is_gated(const struct kvm_pit_channel_state *channel)
{
    return channel->mode == 1 || channel->mode == 5;
}

static uint16_t current(const struct kvm_pit_channel_state *channel, uint64_t now)
{
    uint64_t ticks = elapsed(channel, now);
    uint32_t whole = range(channel);

    switch (mode_of(channel)) {
    case 2:
        return to_guest(channel, (uint32_t)(channel->count - ticks % channel->count));
    case 3:
        /* By two, twice in a period. */
        return to_guest(channel, (uint32_t)(channel->count - 2 * ticks % channel->count));
    default:
        return to_guest(channel, (uint32_t)((channel->count + whole - ticks % whole) % whole));
    }
}

static bool output(const struct kvm_pit_channel_state *channel, uint64_t now)
{
    uint64_t ticks = elapsed(channel, now);

    switch (mode_of(channel)) {
    case 0:
        return ticks >= channel->count;
    case 1:
        return ticks < channel->count;
    case 2:
        return ticks % channel->count == 0 && ticks != 0;
    case 3:
        return ticks % channel->count < (channel->count + 1) / 2;
    default:
        return ticks == channel->count;
    }
}

static void load(struct chips *chips, struct kvm_pit_channel_state *channel, uint32_t value)
{
    channel->count = from_guest(channel, value);
    channel->count_load_time = (int64_t)now_ns(chips);
    if (channel == &chips->pit.channels[0]) {
        chips->ticks = (struct pit_ticks){.high = chips->ticks.high};
        wake_for_pit(chips, pit_due(chips));
    }
}

static void latch_count(struct kvm_pit_channel_state *channel, uint64_t now)
{
    if (!channel->count_latched) {
        channel->latched_count = current(channel, now);
        channel->count_latched = channel->rw_mode;
    }
}

static void latch_status(struct kvm_pit_channel_state *channel, uint64_t now)
{
    if (!channel->status_latched) {
        channel->status = (uint8_t)((output(channel, now) ? STATUS_OUTPUT : 0) | channel->rw_mode << 4 |
                                    (channel->mode & 7) << 1 | channel->bcd);
        channel->status_latched = 1;
    }
}

static void write_control(struct chips *chips, uint8_t value)
{
    uint64_t now = now_ns(chips);
    struct kvm_pit_channel_state *channel;

    if (value >> 6 == READ_BACK) {
        for (uint32_t i = 0; i < 3; i++) {
            channel = &chips->pit.channels[i];
            if (!(value >> (i + 1) & 1)) {
                continue;
            }
            if (!(value & READ_BACK_COUNT)) {
                latch_count(channel, now);
            }
            if (!(value & READ_BACK_STATUS)) {
                latch_status(channel, now);
            }
        }
        return;
    }
    channel = &chips->pit.channels[value >> 6];
    if ((value >> 4 & 3) == LATCH_COMMAND) {
        latch_count(channel, now);
        return;
    }
    channel->rw_mode = value >> 4 & 3;
    channel->read_state = channel->rw_mode;
    channel->write_state = channel->rw_mode;
    channel->mode = value >> 1 & 7;
    channel->bcd = value & 1;
    if (channel == &chips->pit.channels[0]) {
        /* Counting goes on from the next count on (231164-005, "Write Operations"). */
        chips->ticks.done = UINT64_MAX;
        chips->ticks.missed = 0;
    }
}

void pit_write(struct chips *chips, uint32_t port, uint8_t value)
{
    struct kvm_pit_channel_state *channel;

    if ((port & 3) == 3) {
        write_control(chips, value);
        return;
    }
    channel = &chips->pit.channels[port & 3];
    switch (channel->write_state) {
    case RW_HIGH:
        load(chips, channel, (uint32_t)value << 8);
        break;
    case RW_BOTH:
        channel->write_latch = value;
        channel->write_state = RW_BOTH_SECOND;
        break;
    case RW_BOTH_SECOND:
        load(chips, channel, channel->write_latch | (uint32_t)value << 8);
        channel->write_state = RW_BOTH;
        break;
    default:
        load(chips, channel, value);
        break;
    }
}

static uint8_t read_latched(struct kvm_pit_channel_state *channel)
{
    uint32_t which = channel->count_latched;

    channel->count_latched = which == RW_BOTH ? RW_HIGH : 0;
    return (uint8_t)(channel->latched_count >> (which == RW_HIGH ? 8 : 0));
}

uint8_t pit_read(struct chips *chips, uint32_t port)
{
    struct kvm_pit_channel_state *channel;
    uint16_t value;

    if ((port & 3) == 3) {
        return 0;
    }
    channel = &chips->pit.channels[port & 3];
    if (channel->status_latched) {
        channel->status_latched = 0;
        return channel->status;
    }
    if (channel->count_latched) {
        return read_latched(channel);
    }
    value = current(channel, now_ns(chips));
    switch (channel->read_state) {
    case RW_BOTH:
        channel->read_state = RW_BOTH_SECOND;
        return (uint8_t)value;
    case RW_BOTH_SECOND:
        channel->read_state = RW_BOTH;
        return (uint8_t)(value >> 8);
    case RW_HIGH:
        return (uint8_t)(value >> 8);
    default:
        return (uint8_t)value;
    }
}

uint8_t port61_read(struct chips *chips)
{
    const struct kvm_pit_channel_state *channel = &chips->pit.channels[SPEAKER_CHANNEL];
    uint64_t now = now_ns(chips);
    uint32_t refresh = now >> PORT61_REFRESH_SHIFT & 1;
    uint32_t speaker = (chips->pit.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON) ? PORT61_SPEAKER : 0;

    return (uint8_t)(channel->gate | speaker | refresh << 4 | (output(channel, now) ? 1u : 0u) << 5);
}

void port61_write(struct chips *chips, uint8_t value)
{
    struct kvm_pit_channel_state *channel = &chips->pit.channels[SPEAKER_CHANNEL];
    bool gate = value & PORT61_GATE;

    /* A rising gate starts these anew; the others count on. */
    if (gate && !channel->gate && channel->mode != 0 && channel->mode != 4) {
        channel->count_load_time = (int64_t)now_ns(chips);
    }
    channel->gate = gate;
    chips->pit.flags &= ~(uint32_t)KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    chips->pit.flags |= (value & PORT61_SPEAKER) ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0;
}

/* How many interrupts channel 0 has made since its count was loaded. */
static uint64_t ticks_until(const struct kvm_pit_channel_state *channel, uint64_t now)
{
    uint64_t ticks = elapsed(channel, now) / channel->count;

    if (is_gated(channel)) {
        return 0;
    }
    return is_periodic(channel) || ticks == 0 ? ticks : 1;
}

static bool is_off(const struct chips *chips)
{
    return !chips->has_pit || chips->ticks.done == UINT64_MAX || chips->pit.channels[0].mode == NOT_PROGRAMMED;
}

/* Where IRQ 0 goes (set_line). */
#define IRQ 0
#define PIN 2

static bool line_is_heard(const struct chips *chips)
{
    return pic_is_heard(chips, IRQ) || ioapic_is_heard(chips, PIN);
}

static bool line_is_requested(const struct chips *chips)
{
    return pic_is_requested(chips, IRQ) || ioapic_is_requested(chips, PIN);
}

/* Also if it is being served. */
static bool line_is_busy(const struct chips *chips)
{
    return pic_is_busy(chips, IRQ) || ioapic_is_busy(chips, PIN);
}

static void set_output(struct chips *chips, bool high)
{
    if (chips->ticks.high != high) {
        chips->ticks.high = high;
        set_line(chips, IRQ, high || (chips->lines >> IRQ & 1));
    }
}

/* Channel 0's output; an interrupt is its rising. */
static void drive(struct chips *chips, uint64_t now, bool rising)
{
    if (rising) {
        set_output(chips, false);
        set_output(chips, true);
    }
    set_output(chips, output(&chips->pit.channels[0], now));
}

void pit_run(struct chips *chips, uint64_t now)
{
    uint64_t more = 0;
    uint64_t ticks;
    uint64_t due;

    if (is_off(chips)) {
        return;
    }
    ticks = ticks_until(&chips->pit.channels[0], now);
    due = ticks - chips->ticks.done;
    chips->ticks.done = ticks;
    if (due > 0) {
        /* While one waits, more are lost, as on a PC: the guest is late, not the host. */
        more = line_is_requested(chips) ? 0 : due - 1;
        drive(chips, now, true);
    } else if (chips->ticks.missed > 0 && !line_is_busy(chips)) {
        chips->ticks.missed--;
        drive(chips, now, true);
    } else {
        drive(chips, now, false);
    }
    more += chips->ticks.missed;
    chips->ticks.missed = !line_is_heard(chips) ? 0 : (uint32_t)(more < MISSED_TICKS ? more : MISSED_TICKS);
}

void pit_interrupt_ended(struct chips *chips)
{
    if (chips->ticks.missed > 0) {
        wake_for_pit(chips, 0);
    }
}

uint64_t pit_due(const struct chips *chips)
{
    const struct kvm_pit_channel_state *channel = &chips->pit.channels[0];

    if (is_off(chips) || is_gated(channel) || (!is_periodic(channel) && chips->ticks.done > 0)) {
        return UINT64_MAX;
    }
    return (uint64_t)channel->count_load_time + to_ns((chips->ticks.done + 1) * channel->count);
}

static uint64_t ticks_done(const struct chips *chips, bool interrupted)
{
    const struct kvm_pit_channel_state *channel = &chips->pit.channels[0];

    if (channel->mode == NOT_PROGRAMMED) {
        return UINT64_MAX;
    }
    /* Of one that ends once, time alone does not say: time may have gone on since the state was taken. */
    return is_periodic(channel) ? ticks_until(channel, now_ns(chips)) : interrupted;
}

void pit_loaded(struct chips *chips)
{
    bool interrupted = chips->pit.reserved[PIT_INTERRUPTED] != 0;
    uint32_t missed = chips->pit.reserved[PIT_MISSED];

    chips->pit.reserved[PIT_INTERRUPTED] = 0;
    chips->pit.reserved[PIT_MISSED] = 0;
    for (uint32_t i = 0; i < 3; i++) {
        struct kvm_pit_channel_state *channel = &chips->pit.channels[i];

        /* From outside, anything may come; these are divisors and indices. */
        channel->mode = channel->mode > 7 ? NOT_PROGRAMMED : channel->mode;
        channel->bcd &= 1;
        channel->gate = channel->gate != 0;
        if (channel->count == 0 || channel->count > 65536) {
            channel->count = range(channel);
        }
    }
    chips->ticks = (struct pit_ticks){
        .done = ticks_done(chips, interrupted),
        .missed = missed < MISSED_TICKS ? missed : MISSED_TICKS,
        /* What interrupted and is high yet raises nothing again. */
        .high = chips->ticks.high || (interrupted && output(&chips->pit.channels[0], now_ns(chips))),
    };
    wake_for_pit(chips, 0);
}

void pit_reset(struct chips *chips)
{
    uint64_t now = now_ns(chips);

    chips->pit = (struct kvm_pit_state2){0};
    for (uint32_t i = 0; i < 3; i++) {
        chips->pit.channels[i] = (struct kvm_pit_channel_state){
            .mode = NOT_PROGRAMMED,
            .count = 65536,
            .gate = i != SPEAKER_CHANNEL,
            .count_load_time = (int64_t)now,
        };
    }
    chips->ticks = (struct pit_ticks){.done = UINT64_MAX};
}
