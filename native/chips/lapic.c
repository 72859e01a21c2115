/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The local APIC's registers (Intel SDM volume 3, chapter 11), in memory and as
 * MSRs. Which interrupt it has for its CPU is lapic_interrupts.c's, its timer
 * lapic_timer.c's, where messages go deliver.c's.
 */
#include "lapic.h"

#include <string.h>

/* 0x14: an APIC of a processor; six LVT entries; no EOI-broadcast suppression (11.4.8). */
#define VERSION_VALUE 0x50014u

#define SPURIOUS_BITS 0x3ffu
#define DFR_ONES 0x0fffffffu
#define ICR_BITS 0x000ccfffu

/* 11.6.1. */
static void send_command(struct processor *processor, uint32_t command, uint32_t destination)
{
    const struct message message = {
        .delivery = (enum delivery)(command >> 8 & 7),
        .shorthand = (enum shorthand)(command >> 18 & 3),
        .destination = destination,
        .vector = command & 0xff,
        .logical = command >> 11 & 1,
        .level = command >> 15 & 1,
        .assert = command >> 14 & 1,
        .wide = is_x2apic(processor),
        .sender = processor,
    };

    if ((message.delivery == DELIVER_FIXED || message.delivery == DELIVER_LOWEST) && message.vector < 16) {
        lapic_report_error(processor, ESR_SEND_ILLEGAL_VECTOR);
    }
    deliver(processor->chips, &message);
}

static void write_lvt(struct processor *processor, uint32_t offset, uint32_t value, uint32_t bits)
{
    value &= bits;
    if (!(REG(processor, SPURIOUS) & SPURIOUS_ENABLED)) {
        value |= LVT_MASKED;
    }
    REG(processor, offset) = value;
    if (offset == LVT_LINT0 && lapic_takes_pic(processor) && pic_has_interrupt(processor->chips)) {
        wake(processor);
    }
}

static void write_spurious(struct processor *processor, uint32_t value)
{
    REG(processor, SPURIOUS) = value & SPURIOUS_BITS;
    if (!(value & SPURIOUS_ENABLED)) {
        /* 11.4.7.2 */
        for (uint32_t lvt = LVT_TIMER; lvt <= LVT_ERROR; lvt += 16) {
            REG(processor, lvt) |= LVT_MASKED;
        }
    } else if (lapic_next(processor) >= 0) {
        wake(processor);
    }
}

static void write_register(struct processor *processor, uint32_t offset, uint32_t value)
{
    switch (offset) {
    case ID:
        REG(processor, ID) = value & 0xff000000;
        break;
    case TASK_PRIORITY:
        REG(processor, TASK_PRIORITY) = value & 0xff;
        if (lapic_next(processor) >= 0) {
            wake(processor);
        }
        break;
    case END_OF_INTERRUPT:
        lapic_end_of_interrupt(processor);
        break;
    case LOGICAL_DESTINATION:
        REG(processor, LOGICAL_DESTINATION) = value & 0xff000000;
        break;
    case DESTINATION_FORMAT:
        REG(processor, DESTINATION_FORMAT) = value | DFR_ONES;
        break;
    case SPURIOUS:
        write_spurious(processor, value);
        break;
    case ERROR_STATUS:
        REG(processor, ERROR_STATUS) = REG(processor, LATCHED_ERRORS);
        REG(processor, LATCHED_ERRORS) = 0;
        break;
    case COMMAND:
        REG(processor, COMMAND) = value & ICR_BITS;
        send_command(processor, value, REG(processor, COMMAND_HIGH) >> 24);
        break;
    case COMMAND_HIGH:
        REG(processor, COMMAND_HIGH) = value & 0xff000000;
        break;
    case LVT_TIMER:
        if (!(REG(processor, SPURIOUS) & SPURIOUS_ENABLED)) {
            value |= LVT_MASKED;
        }
        timer_write_lvt(processor, value);
        break;
    case LVT_THERMAL:
    case LVT_COUNTER:
        write_lvt(processor, offset, value, LVT_BITS);
        break;
    case LVT_LINT0:
    case LVT_LINT1:
        write_lvt(processor, offset, value, LVT_LINT_BITS);
        break;
    case LVT_ERROR:
        write_lvt(processor, offset, value, LVT_ERROR_BITS);
        break;
    case TIMER_INITIAL:
        timer_write_initial(processor, value);
        break;
    case TIMER_DIVIDE:
        timer_write_divide(processor, value);
        break;
    default:
        lapic_report_error(processor, ESR_ILLEGAL_REGISTER);
        break;
    }
}

static bool exists(uint32_t offset)
{
    return (offset >= IN_SERVICE && offset <= ERROR_STATUS) || offset == ID || offset == VERSION ||
           (offset >= TASK_PRIORITY && offset <= SPURIOUS) || (offset >= COMMAND && offset <= TIMER_CURRENT) ||
           offset == TIMER_DIVIDE;
}

static uint32_t read_register(struct processor *processor, uint32_t offset)
{
    switch (offset) {
    case PROCESSOR_PRIORITY:
        return lapic_processor_priority(processor);
    case TIMER_CURRENT:
        return timer_current(processor, 0);
    case ARBITRATION_PRIORITY:
    case END_OF_INTERRUPT:
    case REMOTE_READ:
        return 0;
    default:
        if (!exists(offset)) {
            lapic_report_error(processor, ESR_ILLEGAL_REGISTER);
            return 0;
        }
        return REG(processor, offset);
    }
}

/* 11.4.1: 32 bits wide, at multiples of 16 bytes; what of a register another access gets is undefined. */
uint32_t lapic_load(struct processor *processor, uint32_t offset)
{
    return read_register(processor, offset & ~15u) >> 8 * (offset & 3);
}

void lapic_store(struct processor *processor, uint32_t offset, uint32_t value)
{
    if ((offset & 15) == 0) {
        write_register(processor, offset, value);
    }
}

#define MSR_X2APIC 0x800u
#define MSR_OFFSET(index) (((index) - MSR_X2APIC) << 4)
#define SELF_IPI 0x3f0u

bool lapic_read_msr(struct processor *processor, uint32_t index, uint64_t *value)
{
    uint32_t offset = MSR_OFFSET(index);

    if (!is_x2apic(processor) || !exists(offset) || offset == ARBITRATION_PRIORITY || offset == END_OF_INTERRUPT ||
        offset == REMOTE_READ || offset == DESTINATION_FORMAT || offset == COMMAND_HIGH) {
        return false;
    }
    switch (offset) {
    case ID:
        *value = processor->id;
        break;
    case LOGICAL_DESTINATION:
        *value = x2apic_logical_id(processor);
        break;
    case COMMAND:
        *value = REG(processor, COMMAND) | (uint64_t)REG(processor, COMMAND_HIGH) << 32;
        break;
    default:
        *value = read_register(processor, offset);
        break;
    }
    return true;
}

bool lapic_write_msr(struct processor *processor, uint32_t index, uint64_t value)
{
    uint32_t offset = MSR_OFFSET(index);

    if (!is_x2apic(processor) || (offset != COMMAND && value >> 32 != 0)) {
        return false;
    }
    switch (offset) {
    case COMMAND:
        REG(processor, COMMAND) = (uint32_t)value & ICR_BITS;
        REG(processor, COMMAND_HIGH) = (uint32_t)(value >> 32);
        send_command(processor, (uint32_t)value, (uint32_t)(value >> 32));
        return true;
    case SELF_IPI:
        if (value > 0xff) {
            return false;
        }
        send_command(processor, TO_SELF << 18 | (uint32_t)value, 0);
        return true;
    case END_OF_INTERRUPT:
    case ERROR_STATUS:
        if (value != 0) {
            return false;
        }
        break;
    case TASK_PRIORITY:
        if (value > 0xff) {
            return false;
        }
        break;
    case SPURIOUS:
    case LVT_TIMER:
    case LVT_THERMAL:
    case LVT_COUNTER:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR:
    case TIMER_INITIAL:
    case TIMER_DIVIDE:
        break;
    default:
        return false;
    }
    write_register(processor, offset, (uint32_t)value);
    return true;
}

void lapic_load_base(struct processor *processor, uint64_t value)
{
    bool was_on = is_on(processor);

    processor->lapic.base = value;
    if (was_on && !is_on(processor)) {
        /* 11.4.3: as after power-on when it is enabled again. */
        lapic_reset(processor);
        processor->lapic.base = value;
    }
}

bool lapic_set_base(struct processor *processor, uint64_t value)
{
    const uint64_t modes = APIC_BASE_ENABLED | APIC_BASE_X2APIC;
    uint64_t from = processor->lapic.base & modes;
    uint64_t to = value & modes;

    /* Figure 11-27. */
    if (!apic_base_is_valid(value) || (from == 0 && to == modes) || (from == modes && to == APIC_BASE_ENABLED)) {
        return false;
    }
    lapic_load_base(processor, value);
    return true;
}

void lapic_reset(struct processor *processor)
{
    struct lapic *lapic = &processor->lapic;

    *lapic = (struct lapic){.base = lapic->base};
    REG(processor, ID) = processor->id << 24;
    REG(processor, VERSION) = VERSION_VALUE;
    REG(processor, DESTINATION_FORMAT) = UINT32_MAX;
    REG(processor, SPURIOUS) = 0xff;
    for (uint32_t lvt = LVT_TIMER; lvt <= LVT_ERROR; lvt += 16) {
        REG(processor, lvt) = LVT_MASKED;
    }
}

void lapic_init(struct processor *processor)
{
    uint32_t id = REG(processor, ID);

    lapic_reset(processor);
    REG(processor, ID) = id;
}

uint32_t lapic_priority(const struct processor *processor)
{
    return REG(processor, TASK_PRIORITY);
}

void lapic_set_priority(struct processor *processor, uint32_t value)
{
    REG(processor, TASK_PRIORITY) = value & 0xff;
}

void lapic_get(struct processor *processor, struct kvm_lapic_state *state)
{
    memset(state, 0, sizeof(*state));
    for (uint32_t i = 0; i < LAPIC_REGISTERS; i++) {
        memcpy(state->regs + 16 * i, &processor->lapic.reg[i], sizeof(uint32_t));
    }
    memcpy(state->regs + PROCESSOR_PRIORITY, &(uint32_t){lapic_processor_priority(processor)}, sizeof(uint32_t));
    memcpy(state->regs + TIMER_CURRENT, &(uint32_t){timer_current(processor, 0)}, sizeof(uint32_t));
    memcpy(state->regs + MISSED_TICKS_OF_TIMER, &processor->lapic.missed, sizeof(uint32_t));
    memcpy(state->regs + EXTINT_PENDING, &(uint32_t){processor->extint_pending}, sizeof(uint32_t));
    if (is_x2apic(processor)) {
        memcpy(state->regs + ID, &processor->id, sizeof(uint32_t));
    }
}

/* Which bits of a register can be set; of what is no register, all. */
static uint32_t state_bits(uint32_t offset)
{
    switch (offset) {
    case TASK_PRIORITY:
        return 0xff;
    case LOGICAL_DESTINATION:
        return 0xff000000;
    case SPURIOUS:
        return SPURIOUS_BITS;
    case COMMAND:
        return ICR_BITS;
    case IN_SERVICE:
    case TRIGGER_MODE:
    case REQUESTED:
        return 0xffff0000; /* 0 to 15 are no interrupts: 11.5.2 */
    case LVT_TIMER:
        return LVT_TIMER_BITS;
    case LVT_THERMAL:
    case LVT_COUNTER:
        return LVT_BITS;
    case LVT_LINT0:
    case LVT_LINT1:
        return LVT_LINT_BITS;
    case LVT_ERROR:
        return LVT_ERROR_BITS;
    case TIMER_DIVIDE:
        return TIMER_DIVIDE_BITS;
    default:
        return UINT32_MAX;
    }
}

void lapic_set(struct processor *processor, const struct kvm_lapic_state *state)
{
    for (uint32_t i = 0; i < LAPIC_REGISTERS; i++) {
        memcpy(&processor->lapic.reg[i], state->regs + 16 * i, sizeof(uint32_t));
        REG(processor, 16 * i) &= state_bits(16 * i);
    }
    REG(processor, VERSION) = VERSION_VALUE;
    REG(processor, DESTINATION_FORMAT) |= DFR_ONES;
    timer_load(processor, REG(processor, TIMER_CURRENT));
    processor->lapic.missed = REG(processor, MISSED_TICKS_OF_TIMER);
    processor->lapic.missed = processor->lapic.missed < MISSED_TICKS ? processor->lapic.missed : MISSED_TICKS;
    processor->extint_pending = REG(processor, EXTINT_PENDING) != 0;
    REG(processor, MISSED_TICKS_OF_TIMER) = 0;
    REG(processor, EXTINT_PENDING) = 0;
    wake(processor);
}
