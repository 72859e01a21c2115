/* SPDX-License-Identifier: BSD-2-Clause */
/* Registers of the local APIC, by their offsets: Intel SDM volume 3, table 11-1. */
#ifndef VMM_CHIPS_LAPIC_H
#define VMM_CHIPS_LAPIC_H

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
#define LVT_VECTOR(lvt) ((uint8_t)(lvt))
#define LVT_DELIVERY(lvt) ((lvt) >> 8 & 7)
#define LVT_TIMER_MODE(lvt) ((lvt) >> 17 & 3)

#endif
