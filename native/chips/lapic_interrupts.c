/* SPDX-License-Identifier: BSD-2-Clause */
/* Which interrupts a local APIC takes, which of them it has for its CPU, and how one ends (Intel SDM volume 3, chapter 11). */
#include "lapic.h"

#define DFR_FLAT 15u

#define BROADCAST 0xffu
#define WIDE_BROADCAST UINT32_MAX

bool lapic_is_enabled(const struct processor *processor)
{
    return is_on(processor) && (REG(processor, SPURIOUS) & SPURIOUS_ENABLED);
}

static uint32_t own_id(const struct processor *processor)
{
    return is_x2apic(processor) ? processor->id : REG(processor, ID) >> 24;
}

static int highest(const struct processor *processor, uint32_t offset)
{
    for (uint32_t word = 8; word-- > 0;) {
        uint32_t bits = REG(processor, offset + 16 * word);

        if (bits != 0) {
            return (int)(word * 32 + 31 - (uint32_t)__builtin_clz(bits));
        }
    }
    return -1;
}

static uint32_t *vector_word(struct processor *processor, uint32_t offset, uint32_t vector)
{
    return &REG(processor, offset + 16 * (vector / 32));
}

static bool has_vector(const struct processor *processor, uint32_t offset, uint32_t vector)
{
    return REG(processor, offset + 16 * (vector / 32)) >> (vector % 32) & 1;
}

uint32_t lapic_processor_priority(const struct processor *processor)
{
    int in_service = highest(processor, IN_SERVICE);
    uint32_t class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
    uint32_t task = REG(processor, TASK_PRIORITY);

    return (task & 0xf0) >= class ? task : class;
}

int lapic_next(const struct processor *processor)
{
    int vector;

    if (!lapic_is_enabled(processor)) {
        return -1;
    }
    vector = highest(processor, REQUESTED);
    return vector >= 0 && ((uint32_t)vector & 0xf0) > (lapic_processor_priority(processor) & 0xf0) ? vector : -1;
}

int lapic_acknowledge(struct processor *processor)
{
    int vector = lapic_next(processor);

    if (vector >= 0) {
        *vector_word(processor, REQUESTED, (uint32_t)vector) &= ~(1u << (vector % 32));
        *vector_word(processor, IN_SERVICE, (uint32_t)vector) |= 1u << (vector % 32);
    }
    return vector;
}

bool lapic_takes_pic(const struct processor *processor)
{
    uint32_t lint0 = REG(processor, LVT_LINT0);

    return !is_on(processor) || (!(lint0 & LVT_MASKED) && LVT_DELIVERY(lint0) == DELIVER_EXTINT);
}

bool lapic_is_requested(const struct processor *processor, uint8_t vector)
{
    return has_vector(processor, REQUESTED, vector);
}

bool lapic_is_busy(const struct processor *processor, uint8_t vector)
{
    return has_vector(processor, REQUESTED, vector) || has_vector(processor, IN_SERVICE, vector);
}

void lapic_report_error(struct processor *processor, uint32_t error)
{
    uint32_t lvt = REG(processor, LVT_ERROR);
    bool known = REG(processor, LATCHED_ERRORS) & error;

    REG(processor, LATCHED_ERRORS) |= error;
    if (!known && !(lvt & LVT_MASKED) && LVT_VECTOR(lvt) >= 16) {
        lapic_accept(processor, LVT_VECTOR(lvt), false);
    }
}

bool lapic_accept(struct processor *processor, uint8_t vector, bool level)
{
    uint32_t bit = 1u << (vector % 32);
    uint32_t *triggers = vector_word(processor, TRIGGER_MODE, vector);

    if (!lapic_is_enabled(processor)) {
        return false;
    }
    if (vector < 16) {
        lapic_report_error(processor, ESR_RECEIVE_ILLEGAL_VECTOR);
        return true;
    }
    *triggers = level ? *triggers | bit : *triggers & ~bit;
    *vector_word(processor, REQUESTED, vector) |= bit;
    wake(processor);
    return true;
}

/* 255 may be a CPU's own id, as with KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK (Documentation/virt/kvm/api.rst). */
static bool is_for_all(const struct processor *processor, const struct message *message)
{
    bool from_device = message->sender == NULL;

    if (message->wide) {
        return message->destination == WIDE_BROADCAST;
    }
    return message->destination == BROADCAST &&
           !(from_device && processor->chips->wide_messages && is_x2apic(processor));
}

bool lapic_is_named(const struct processor *processor, const struct message *message)
{
    uint32_t destination = message->destination;
    uint32_t logical = REG(processor, LOGICAL_DESTINATION) >> 24;

    if (!is_on(processor)) {
        return false;
    }
    switch (message->shorthand) {
    case TO_SELF:
        return processor == message->sender;
    case TO_ALL:
        return true;
    case TO_OTHERS:
        return processor != message->sender;
    default:
        break;
    }
    if (is_for_all(processor, message)) {
        return true;
    }
    if (!message->logical) {
        /* A CPU that was plugged in is in xAPIC mode: its id is how it is reached there, too, as with KVM. */
        return destination == (destination > BROADCAST ? processor->id : own_id(processor));
    }
    if (is_x2apic(processor)) {
        uint32_t own = x2apic_logical_id(processor);

        return destination >> 16 == own >> 16 && (destination & own & 0xffff) != 0;
    }
    if (REG(processor, DESTINATION_FORMAT) >> 28 == DFR_FLAT) {
        return (destination & logical) != 0;
    }
    return destination >> 4 == logical >> 4 && (destination & logical & 15) != 0;
}

void lapic_end_of_interrupt(struct processor *processor)
{
    int vector = highest(processor, IN_SERVICE);

    if (vector < 0) {
        return;
    }
    *vector_word(processor, IN_SERVICE, (uint32_t)vector) &= ~(1u << (vector % 32));
    if (has_vector(processor, TRIGGER_MODE, (uint32_t)vector)) {
        ioapic_end_of_interrupt(processor->chips, (uint8_t)vector);
    }
    pit_interrupt_ended(processor->chips);
    if (processor->lapic.missed > 0 || lapic_next(processor) >= 0) {
        wake(processor);
    }
}
