/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside the software CPU: what calls what. The structures are inside.h's. */
#ifndef VMM_SOFTCPU_ENGINE_H
#define VMM_SOFTCPU_ENGINE_H

#include "inside.h"

/* engine.c */
struct softcpu_vcpu *engine_new_vcpu(struct softcpu *softcpu, struct vmm_vcpu *core);
void engine_free_vcpu(struct softcpu_vcpu *vcpu);
/* Execute until something asks to leave; the caller owns the lock. An EXCP_* or a leave_reason. */
int engine_execute(struct softcpu_vcpu *vcpu);
/* The guest's CPUID leaf, or NULL. */
const struct softcpu_cpuid_leaf *engine_cpuid(const struct softcpu_vcpu *vcpu, uint32_t function, uint32_t subleaf);

/* leave.c */
/* Make a vCPU leave translated code at the start of the next block; from any thread. */
void engine_ask_to_leave(struct softcpu_vcpu *vcpu);
void QEMU_NORETURN engine_leave(struct softcpu_vcpu *vcpu, int reason);

/* rescue.c */
/* Call step, which calls into the engine. False: the engine gave up in it or before; softcpu->why_gave_up says why. */
bool rescue_run(struct softcpu *softcpu, void (*step)(void *opaque), void *opaque);

/* lock.c */
int lock_init(struct softcpu *softcpu);
void lock_destroy(struct softcpu *softcpu);
void lock_acquire(struct softcpu_vcpu *vcpu);
void lock_release(struct softcpu_vcpu *vcpu);
/* In builds with a sanitizer: end the process unless the vCPU owns the lock; what calls into the engine begins with it. */
void lock_assert_owner(const struct softcpu_vcpu *vcpu);
/* Let the others run first, if any wait. */
void lock_yield(struct softcpu_vcpu *vcpu);
/* KVM_RUN that returns with EINTR after about this many ticks; 0: unbounded. */
int bounded_kvm_run(struct softcpu_vcpu *vcpu, uint32_t ticks);

/* helpers.c */
/* RIP of the port access that is being served, for the core's access log. */
uint64_t engine_io_rip(struct vmm_vcpu *core);

/* memory.c */
/* False: the engine gave up. */
bool memory_attach(struct softcpu *softcpu);
void memory_detach(struct softcpu *softcpu);
/* The caller owns the lock. False: the engine gave up. */
bool memory_apply_work(struct softcpu *softcpu);
/* After a device access on the owner's thread: what it changed takes effect before the next instruction's access. */
void memory_after_device(struct softcpu_vcpu *vcpu);
/* All translations go before the next block; from the owner's thread. */
void memory_drop_all_code(struct softcpu *softcpu);
struct engine_region *memory_find(struct softcpu *softcpu, uint64_t gpa);

/* tlb.c */
/* CPUClass.tlb_fill. */
bool tlb_fill_noting_access(CPUState *cs, vaddr addr, int size, MMUAccessType access, int mmu_idx, bool probe,
                            uintptr_t return_address);

/* code_pages.c */
/* The range that holds [hva, hva + size), new or not; NULL: no memory, or no room. Needs map_mutex. */
struct host_range *code_pages_range(struct softcpu *softcpu, uintptr_t hva, uintptr_t size);
bool code_pages_has(const struct host_range *range, uintptr_t hva);
void code_pages_free(struct softcpu *softcpu);

/* state.c; false where KVM fails: core->end says how. */
bool state_load(struct softcpu_vcpu *vcpu);
bool state_store(struct softcpu_vcpu *vcpu);
/*
 * Also FPU, MSRs, debug registers: when the vCPU changes hands for longer than a
 * step. To load, the caller owns the lock: debug registers drop translations.
 */
bool state_load_all(struct softcpu_vcpu *vcpu);
bool state_store_all(struct softcpu_vcpu *vcpu);

/* msr.c */
bool msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
bool msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);

/* engine_msr.c */
/* NULL: the MSR is KVM's. */
const struct engine_msr *engine_msr_find(uint32_t index);
uint64_t engine_msr_read(const struct softcpu_vcpu *vcpu, const struct engine_msr *msr);
void engine_msr_write(struct softcpu_vcpu *vcpu, const struct engine_msr *msr, uint64_t value);
/* From KVM and back, without those in its special registers. False: KVM does not take one back; core->end says so. */
void engine_msrs_load(struct softcpu_vcpu *vcpu);
bool engine_msrs_store(struct softcpu_vcpu *vcpu);

/* kvm_msr.c */
bool kvm_msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
bool kvm_msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);

/* interrupts.c; false where KVM fails: core->end says how. */
enum found interrupts_look(struct softcpu_vcpu *vcpu);
/* Read the LAPIC timer's state after KVM executed something that may have changed it. */
bool interrupts_note_timer(struct softcpu_vcpu *vcpu);
/* After KVM_RUN: a timer that was due has been seen to. */
bool interrupts_after_delivery(struct softcpu_vcpu *vcpu);
/* After a LAPIC access: any other vCPU may have got an interrupt, INIT or SIPI. */
void interrupts_wake_others(struct softcpu_vcpu *vcpu);
uint64_t guest_tsc(const struct softcpu_vcpu *vcpu);

#endif
