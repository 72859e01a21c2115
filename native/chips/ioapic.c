/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The I/O APIC: 82093AA (290566), with the 24 pins of every chipset since and
 * struct kvm_ioapic_state's registers. irr is how the wires are.
 */
#include "inside.h"

#define REGISTER_SELECT 0x00u
#define WINDOW 0x10u

#define ID 0u
#define VERSION 1u
#define ARBITRATION 2u
#define FIRST_ENTRY 0x10u

#define VERSION_82093AA 0x11u

/* Of an entry: delivery status and remote IRR are read-only (3.2.4). */
#define ENTRY_READ_ONLY 0x5000u
#define ENTRY_LOW 0xffffffffull

/* Did any CPU take it? */
static bool send(struct chips *chips, uint32_t pin)
{
    const ioapic_entry entry = chips->ioapic.redirtbl[pin];
    const struct message message = {
        .delivery = (enum delivery)entry.fields.delivery_mode,
        .destination = long_destination(chips, entry.fields.dest_id, (uint32_t)(entry.bits >> 48)),
        .vector = entry.fields.vector,
        .logical = entry.fields.dest_mode,
        .level = entry.fields.trig_mode,
        .assert = true,
    };

    return deliver(chips, &message) > 0;
}

static void serve(struct chips *chips, uint32_t pin)
{
    ioapic_entry *entry = &chips->ioapic.redirtbl[pin];

    if (entry->fields.mask || (entry->fields.trig_mode && entry->fields.remote_irr)) {
        return;
    }
    /* Where no local APIC accepts it (3.2.4), none will end it. */
    entry->fields.remote_irr = send(chips, pin) && entry->fields.trig_mode;
}

void ioapic_set_line(struct chips *chips, uint32_t pin, bool level)
{
    uint32_t before = chips->ioapic.irr;
    uint32_t bit = 1u << pin;

    chips->ioapic.irr = level ? before | bit : before & ~bit;
    if (level && (chips->ioapic.redirtbl[pin].fields.trig_mode || !(before & bit))) {
        serve(chips, pin);
    }
}

void ioapic_end_of_interrupt(struct chips *chips, uint8_t vector)
{
    for (uint32_t pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        ioapic_entry *entry = &chips->ioapic.redirtbl[pin];

        if (entry->fields.vector != vector || !entry->fields.trig_mode || !entry->fields.remote_irr) {
            continue;
        }
        entry->fields.remote_irr = 0;
        if (chips->ioapic.irr >> pin & 1) {
            serve(chips, pin);
        }
    }
}

bool ioapic_is_heard(const struct chips *chips, uint32_t pin)
{
    return !chips->ioapic.redirtbl[pin].fields.mask;
}

static bool any(const struct chips *chips, uint32_t pin, bool (*is)(const struct processor *processor, uint8_t vector))
{
    for (uint32_t i = 0; ioapic_is_heard(chips, pin) && i < chips->count; i++) {
        if (is(chips->processors[i], chips->ioapic.redirtbl[pin].fields.vector)) {
            return true;
        }
    }
    return false;
}

bool ioapic_is_requested(const struct chips *chips, uint32_t pin)
{
    return any(chips, pin, lapic_is_requested);
}

bool ioapic_is_busy(const struct chips *chips, uint32_t pin)
{
    return any(chips, pin, lapic_is_busy);
}

static uint32_t read_register(const struct chips *chips)
{
    uint32_t index = chips->ioapic.ioregsel;
    uint32_t pin = (index - FIRST_ENTRY) / 2;

    switch (index) {
    case ID:
    case ARBITRATION:
        return (chips->ioapic.id & 15) << 24;
    case VERSION:
        return (KVM_IOAPIC_NUM_PINS - 1) << 16 | VERSION_82093AA;
    default:
        if (index < FIRST_ENTRY || pin >= KVM_IOAPIC_NUM_PINS) {
            return 0;
        }
        return (uint32_t)(chips->ioapic.redirtbl[pin].bits >> (index & 1 ? 32 : 0));
    }
}

static void write_register(struct chips *chips, uint32_t value)
{
    uint32_t index = chips->ioapic.ioregsel;
    uint32_t pin = (index - FIRST_ENTRY) / 2;
    ioapic_entry *entry;

    if (index == ID) {
        chips->ioapic.id = value >> 24 & 15;
        return;
    }
    if (index < FIRST_ENTRY || pin >= KVM_IOAPIC_NUM_PINS) {
        return;
    }
    entry = &chips->ioapic.redirtbl[pin];
    if (index & 1) {
        entry->bits = (entry->bits & ENTRY_LOW) | (uint64_t)value << 32;
        return;
    }
    entry->bits = (entry->bits & (~ENTRY_LOW | ENTRY_READ_ONLY)) | (value & ~ENTRY_READ_ONLY);
    if (!entry->fields.trig_mode) {
        entry->fields.remote_irr = 0;
    } else if (chips->ioapic.irr >> pin & 1) {
        serve(chips, pin);
    }
}

uint32_t ioapic_load(const struct chips *chips, uint32_t offset)
{
    switch (offset & 0xff) {
    case REGISTER_SELECT:
        return chips->ioapic.ioregsel;
    case WINDOW:
        return read_register(chips);
    default:
        return 0;
    }
}

void ioapic_store(struct chips *chips, uint32_t offset, uint32_t value)
{
    switch (offset & 0xff) {
    case REGISTER_SELECT:
        chips->ioapic.ioregsel = value & 0xff;
        break;
    case WINDOW:
        write_register(chips, value);
        break;
    default:
        break;
    }
}

void ioapic_reset(struct chips *chips)
{
    chips->ioapic = (struct kvm_ioapic_state){.base_address = 0xfec00000};
    for (uint32_t pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        chips->ioapic.redirtbl[pin].fields.mask = 1;
    }
}
