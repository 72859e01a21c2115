/* SPDX-License-Identifier: BSD-2-Clause */
/* What only those files know that have KVM around the CPU: kvm_boundary.c and what it consists of (and softcpu.c, a page). */
#ifndef VMM_SOFTCPU_KVM_AROUND_H
#define VMM_SOFTCPU_KVM_AROUND_H

#include "engine.h"

/* stubs.c; false where KVM fails: core->end says how. */
void stubs_write(uint8_t *page, uint32_t gpa);
/* From the guest's registers, or those of a reset, to the stubs', and back to none in particular. */
bool stubs_enter(struct softcpu_vcpu *vcpu);
bool stubs_leave(struct softcpu_vcpu *vcpu, bool halted);
/* Has an INIT or SIPI reset KVM's vCPU? */
bool stubs_find_reset(struct softcpu_vcpu *vcpu, bool *reset);
/* The engine's task priority (CR8) becomes that of KVM's LAPIC. */
bool stubs_set_priority(struct softcpu_vcpu *vcpu);
/* KVM_RUN; also true where a signal ended it. */
bool stubs_run_kvm(struct softcpu_vcpu *vcpu, uint32_t ticks);
/* Load, store, IN, OUT at a chip of KVM's; after a reset meanwhile, all ones. */
bool stubs_access(struct softcpu_vcpu *vcpu, enum stub_access kind, uint32_t address, uint32_t size, uint32_t *value);
/* Halt until there is an NMI, an interrupt (if the guest takes them), a reset, or a signal; vcpu->acknowledged says. */
bool stubs_wait(struct softcpu_vcpu *vcpu, bool interrupts, uint32_t ticks, bool *reset);

/* kvm_chips.c */
bool kvm_chips_have_address(const struct softcpu_vcpu *vcpu, uint64_t gpa);
/* Of the PIT's ticks, one that the vCPU would have taken by now; to be asked where it takes interrupts. */
bool kvm_chips_pit_is_late(struct softcpu_vcpu *vcpu);
void kvm_chips_note_interrupt(struct softcpu_vcpu *vcpu);
bool kvm_chips_port(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write);
bool kvm_chips_memory(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint32_t *value, bool is_write);
/* An interrupt command that no LAPIC of KVM's is to see, for it would refuse it: an SMI. Sends it. */
bool kvm_chips_take_command(struct softcpu_vcpu *vcpu, uint32_t command, uint32_t destination);
bool kvm_chips_send_init(struct softcpu_vcpu *vcpu);

/* kvm_msr.c */
/* Of a guest that has KVM's chips. */
bool kvm_guest_msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
bool kvm_guest_msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);

/* interrupts.c; false where KVM fails: core->end says how. */
enum found interrupts_look(struct softcpu_vcpu *vcpu);
/* Read the LAPIC's timer and addresses after something that may have changed them; armed: its initial count was written. */
bool interrupts_note_lapic(struct softcpu_vcpu *vcpu, bool armed);
/* After a wait: a timer that was due has been seen to. */
void interrupts_after_wait(struct softcpu_vcpu *vcpu);
/* After a LAPIC access: any other vCPU may have got an interrupt, INIT or SIPI. */
void interrupts_wake_others(struct softcpu_vcpu *vcpu);
/* After an INIT may have been sent: the others leave KVM_RUN, before a SIPI would make KVM execute their code. */
void interrupts_fetch_others(struct softcpu_vcpu *vcpu);

#endif
