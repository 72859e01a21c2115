/* SPDX-License-Identifier: BSD-2-Clause */
/* The local APIC, for its own files. Registers by their offsets: Intel SDM volume 3, table 11-1. */
#ifndef VMM_CHIPS_LAPIC_H
#define VMM_CHIPS_LAPIC_H

#include "inside.h"

#define ID 0x020u
#define VERSION 0x030u
#define TASK_PRIORITY 0x080u
#define ARBITRATION_PRIORITY 0x090u
#define PROCESSOR_PRIORITY 0x0a0u
#define END_OF_INTERRUPT 0x0b0u
#define REMOTE_READ 0x0c0u
#define LOGICAL_DESTINATION 0x0d0u
#define DESTINATION_FORMAT 0x0e0u
#define SPURIOUS 0x0f0u
#define IN_SERVICE 0x100u /* eight of each */
#define TRIGGER_MODE 0x180u
#define REQUESTED 0x200u
#define ERROR_STATUS 0x280u
#define COMMAND 0x300u
#define COMMAND_HIGH 0x310u
#define LVT_TIMER 0x320u
#define LVT_THERMAL 0x330u
#define LVT_COUNTER 0x340u
#define LVT_LINT0 0x350u
#define LVT_LINT1 0x360u
#define LVT_ERROR 0x370u
#define TIMER_INITIAL 0x380u
#define TIMER_CURRENT 0x390u
#define TIMER_DIVIDE 0x3e0u

#define REG(processor, offset) ((processor)->lapic.reg[(offset) / 16])

/* Entries of the local vector table: figure 11-8. */
#define LVT_MASKED (1u << 16)
#define LVT_BITS (LVT_MASKED | 0x7ffu)
#define LVT_LINT_BITS (LVT_MASKED | 0xa7ffu)
#define LVT_ERROR_BITS (LVT_MASKED | 0xffu)
#define LVT_TIMER_BITS (LVT_MASKED | 3u << 17 | 0xffu)
#define TIMER_DIVIDE_BITS 0xbu
#define LVT_VECTOR(lvt) ((uint8_t)(lvt))
#define LVT_DELIVERY(lvt) ((lvt) >> 8 & 7)
#define LVT_TIMER_MODE(lvt) ((lvt) >> 17 & 3)

/* Where software does not look, until a write of ERROR_STATUS shows them. */
#define LATCHED_ERRORS 0x290u
/* In struct kvm_lapic_state alone. */
#define MISSED_TICKS_OF_TIMER 0x2a0u
#define EXTINT_PENDING 0x2b0u
/* 11.5.3 */
#define ESR_SEND_ILLEGAL_VECTOR 0x20u
#define ESR_RECEIVE_ILLEGAL_VECTOR 0x40u
#define ESR_ILLEGAL_REGISTER 0x80u

#define SPURIOUS_ENABLED 0x100u

static inline bool is_x2apic(const struct processor *processor)
{
    return (processor->lapic.base & APIC_BASE_X2APIC) != 0;
}

static inline bool is_on(const struct processor *processor)
{
    return (processor->lapic.base & APIC_BASE_ENABLED) != 0;
}

/* 11.12.10.2: derived from the ID. */
static inline uint32_t x2apic_logical_id(const struct processor *processor)
{
    return (processor->id >> 4) << 16 | 1u << (processor->id & 15);
}

/* lapic_interrupts.c, for lapic.c */
void lapic_report_error(struct processor *processor, uint32_t error);
void lapic_end_of_interrupt(struct processor *processor);

#endif
