/* SPDX-License-Identifier: BSD-2-Clause */
/* From a wire or a message to the CPUs that it is for. */
#include "inside.h"

#include <string.h>

void wake(struct processor *processor)
{
    pthread_cond_signal(&processor->changed);
    if (processor->wake != NULL && !processor->looks) {
        processor->wake(processor->opaque);
    }
}

void wake_for_pic(struct chips *chips)
{
    for (uint32_t i = 0; i < chips->count; i++) {
        if (lapic_takes_pic(chips->processors[i]) || chips->processors[i]->extint_pending) {
            wake(chips->processors[i]);
        }
    }
}

void wake_for_pit(struct chips *chips, uint64_t due)
{
    uint64_t soon = now_ns(chips) + SHORTEST_WAIT_NS;

    due = due < soon ? soon : due;
    for (uint32_t i = 0; i < chips->count; i++) {
        struct processor *processor = chips->processors[i];

        if (processor->waits_until == 0 || processor->waits_until > due) {
            processor->waits_until = processor->waits_until == 0 ? 0 : due;
            wake(processor);
        }
    }
}

/* One is held while another is in progress; else two, for the first would be in progress if the CPU had its turn. */
void accept_nmi(struct processor *processor)
{
    uint8_t most = processor->nmi_in_progress ? 1 : 2;

    if (processor->nmi_pending < most) {
        processor->nmi_pending++;
    }
}

static bool accept(struct processor *processor, const struct message *message)
{
    switch (message->delivery) {
    case DELIVER_FIXED:
    case DELIVER_LOWEST:
        return lapic_accept(processor, message->vector, message->level);
    case DELIVER_SMI:
        if (processor->smi != NULL) {
            processor->smi(processor->opaque);
        }
        processor->nudged = true;
        break;
    case DELIVER_NMI:
        accept_nmi(processor);
        break;
    case DELIVER_INIT:
        if (message->level && !message->assert) {
            return true;
        }
        processor->init_pending = true;
        processor->startup_pending = false;
        break;
    case DELIVER_STARTUP:
        processor->startup_pending = true;
        processor->startup_vector = message->vector;
        break;
    case DELIVER_EXTINT:
        processor->extint_pending = true;
        break;
    default:
        return false;
    }
    wake(processor);
    return true;
}

/* Intel SDM volume 3, 11.6.2.4: of those named, the one that does the least important; the first of several. */
static uint32_t deliver_lowest(struct chips *chips, const struct message *message)
{
    struct processor *lowest = NULL;

    for (uint32_t i = 0; i < chips->count; i++) {
        struct processor *processor = chips->processors[i];

        if (lapic_is_named(processor, message) && lapic_is_enabled(processor) &&
            (lowest == NULL || lapic_processor_priority(processor) < lapic_processor_priority(lowest))) {
            lowest = processor;
        }
    }
    return lowest != NULL && accept(lowest, message);
}

uint32_t deliver(struct chips *chips, const struct message *message)
{
    uint32_t taken = 0;

    if (message->delivery == DELIVER_LOWEST) {
        return deliver_lowest(chips, message);
    }
    for (uint32_t i = 0; i < chips->count; i++) {
        if (lapic_is_named(chips->processors[i], message)) {
            taken += accept(chips->processors[i], message);
        }
    }
    return taken;
}

#define MSI_ADDRESS 0xfee00000u
#define MSI_ADDRESS_BITS 0xfff00000u

uint32_t long_destination(const struct chips *chips, uint32_t low, uint32_t high)
{
    bool for_remapping = (high & 1) != 0;

    return low | (chips->wide_messages && !for_remapping ? (high >> 1 & 0x7f) << 8 : 0);
}

/*
 * Intel SDM volume 3, 11.11: figures 11-14 and 11-15. Where the machine wants it so, bits 40 and up of the address are
 * more of the destination, as with KVM_X2APIC_API_USE_32BIT_IDS (Documentation/virt/kvm/api.rst). Guests that know
 * nothing of those have bits 5 to 11.
 */
uint32_t deliver_msi(struct chips *chips, uint64_t address, uint32_t data)
{
    uint32_t high = (uint32_t)(address >> 32);
    uint32_t low = (uint32_t)address >> 12 & 0xff;
    const struct message message = {
        .delivery = (enum delivery)(data >> 8 & 7),
        .destination = high == 0 ? long_destination(chips, low, (uint32_t)address >> 4) : (high & ~0xffu) | low,
        .vector = data & 0xff,
        .logical = address >> 2 & 1,
        .level = data >> 15 & 1,
        .assert = data >> 14 & 1,
    };

    if (((uint32_t)address & MSI_ADDRESS_BITS) != MSI_ADDRESS || (high & (chips->wide_messages ? 0xff : UINT32_MAX)) != 0) {
        return 0;
    }
    return deliver(chips, &message);
}

/* The PC's wiring, as `vmm.kvm.pc_routes` has it for KVM. */
void set_line(struct chips *chips, uint32_t gsi, bool level)
{
    if (gsi < 16) {
        pic_set_line(chips, gsi, level);
    }
    if (gsi != 2) {
        ioapic_set_line(chips, gsi == 0 ? 2 : gsi, level);
    }
}

/* Intel SDM volume 3, table 10-1. */
static void take_init(struct processor *processor)
{
    const struct kvm_segment data = {.limit = 0xffff, .type = 3, .present = 1, .s = 1};
    uint64_t rdx = 0x600;

    for (uint32_t i = 0; i < processor->cpuid_count; i++) {
        if (processor->cpuid[i].function == 1) {
            rdx = processor->cpuid[i].eax;
        }
    }
    processor->regs = (struct kvm_regs){.rip = 0xfff0, .rflags = 2, .rdx = rdx};
    processor->sregs = (struct kvm_sregs){
        .cs = {.base = 0xffff0000, .limit = 0xffff, .selector = 0xf000, .type = 11, .present = 1, .s = 1},
        .ds = data,
        .es = data,
        .fs = data,
        .gs = data,
        .ss = data,
        .tr = {.limit = 0xffff, .type = 11, .present = 1},
        .ldt = {.limit = 0xffff, .type = 2, .present = 1},
        .gdt = {.limit = 0xffff},
        .idt = {.limit = 0xffff},
        .cr0 = 0x60000010,
    };
    processor->debugregs = (struct kvm_debugregs){.dr6 = 0xffff0ff0, .dr7 = 0x400};
    memset(&processor->events, 0, sizeof(processor->events));
    processor->nmi_pending = 0;
    processor->nmi_in_progress = false;
    processor->extint_pending = false;
    lapic_init(processor);
    processor->mp_state =
        (processor->lapic.base & APIC_BASE_BSP) ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
}

bool accept_reset(struct processor *processor)
{
    bool reset = false;

    if (processor->init_pending) {
        processor->init_pending = false;
        take_init(processor);
        reset = true;
    }
    if (processor->startup_pending) {
        processor->startup_pending = false;
        if (processor->mp_state == KVM_MP_STATE_INIT_RECEIVED) {
            processor->sregs.cs.selector = (uint16_t)(processor->startup_vector << 8);
            processor->sregs.cs.base = (uint64_t)processor->startup_vector << 12;
            processor->regs.rip = 0;
            processor->mp_state = KVM_MP_STATE_RUNNABLE;
            reset = true;
        }
    }
    return reset;
}
