/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside the software CPU: what calls what. The structures are inside.h's. */
#ifndef VMM_SOFTCPU_ENGINE_H
#define VMM_SOFTCPU_ENGINE_H

#include "inside.h"

/*
 * Everything that is outside of a CPU and belongs to it: interrupts, waiting, the other CPUs' INIT and SIPI, accesses
 * to the chips that the core's tables do not have, the time-stamp counter. Two have it, KVM (kvm_boundary.c) and
 * native/chips (own_boundary.c), and nobody beyond these two files knows which. False: core->end says what failed.
 */
struct boundary {
    /* What comes for it, it is told from now on, or no more: it is about to be freed. NULL: it asks by itself. */
    void (*tell)(struct softcpu_vcpu *vcpu, bool wanted);
    /* The vCPU's registers were loaded, or reset: it executes from now on. */
    bool (*begin)(struct softcpu_vcpu *vcpu);
    /* It does no more. */
    bool (*end)(struct softcpu_vcpu *vcpu, bool halted);
    /* Has an INIT or SIPI changed the registers, so that the engine's are void? */
    bool (*find_reset)(struct softcpu_vcpu *vcpu, bool *reset);
    enum found (*look)(struct softcpu_vcpu *vcpu);
    /* Of a timer, one that the vCPU would have taken by now: RDTSC waits for it. Where it takes interrupts; NULL: none is. */
    bool (*tick_is_late)(struct softcpu_vcpu *vcpu);
    /* The vector of an interrupt, at a moment when the guest takes one; -1: there is none. NULL: only `wait` tells. */
    int (*acknowledge)(struct softcpu_vcpu *vcpu);
    /*
     * Until there is an NMI, an interrupt (if the guest takes them), a reset, or somebody kicks; not much longer than
     * that many ticks, or for ever with 0. vcpu->acknowledged says what there is.
     */
    bool (*wait)(struct softcpu_vcpu *vcpu, bool interrupts, uint32_t ticks, bool *reset);
    /* The same of one that waits for INIT and SIPI. */
    bool (*wait_for_start)(struct softcpu_vcpu *vcpu);
    /* To itself. */
    bool (*send_init)(struct softcpu_vcpu *vcpu);
    /* chips_have_port and has_address say where; up to four bytes. */
    bool (*port)(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write);
    bool (*has_address)(const struct softcpu_vcpu *vcpu, uint64_t gpa);
    bool (*memory)(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint32_t *value, bool is_write);
    /* False: #GP. Those that are not the engine's. */
    bool (*read_msr)(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
    bool (*write_msr)(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);
    uint64_t (*tsc)(const struct softcpu_vcpu *vcpu);
};

extern const struct boundary kvm_boundary;
extern const struct boundary own_boundary;

static inline const struct boundary *boundary_of(const struct softcpu_vcpu *vcpu)
{
    return vcpu->softcpu->boundary;
}

static inline uint64_t guest_tsc(const struct softcpu_vcpu *vcpu)
{
    return boundary_of(vcpu)->tsc(vcpu);
}

/* engine.c */
struct softcpu_vcpu *engine_new_vcpu(struct softcpu *softcpu, struct vmm_vcpu *core);
void engine_free_vcpu(struct softcpu_vcpu *vcpu);
/* Execute until something asks to leave; the caller owns the lock. An EXCP_* or a leave_reason. */
int engine_execute(struct softcpu_vcpu *vcpu);
/* The same for one instruction without interrupts, after which the reason is EXCP_DEBUG unless it left by itself. */
int engine_execute_one(struct softcpu_vcpu *vcpu);
/* Would the guest take an interrupt now? */
bool engine_takes_interrupts(const struct softcpu_vcpu *vcpu);
/* The guest's CPUID leaf, or NULL. */
const struct softcpu_cpuid_leaf *engine_cpuid(const struct softcpu_vcpu *vcpu, uint32_t function, uint32_t subleaf);

/* run.c; false: core->end says what ended the vCPU, or else a stop was asked for. */
/* Before it executes, and only then afterwards: what fails there ends the run if nothing else has. */
bool run_begin(struct softcpu_vcpu *vcpu);
void run_finish(struct softcpu_vcpu *vcpu);
/* Until it waits for something, or its turn is over. */
bool run_execute(struct softcpu_vcpu *vcpu);
/* Neither halted nor waiting to be started. */
bool run_is_awake(const struct softcpu_vcpu *vcpu);
/* Of one that is not: whatever has come by now wakes it. */
bool run_look_asleep(struct softcpu_vcpu *vcpu);

/* turns.c */
/* With virtual time, between blocks: is it another vCPU's turn? */
bool turns_is_over(const struct softcpu_vcpu *vcpu);
/* How many vCPUs are awake, and whether all of these do nothing but PAUSE. */
uint32_t turns_count_awake(const struct softcpu *softcpu, bool *all_spin);

/* leave.c */
/* Make a vCPU leave translated code at the start of the next block; from any thread. */
void engine_ask_to_leave(struct softcpu_vcpu *vcpu);
/* By the owner: what it was asked for until now is about to be seen to. */
void engine_forget_to_leave(struct softcpu_vcpu *vcpu);
void QEMU_NORETURN engine_leave(struct softcpu_vcpu *vcpu, int reason);
/* With RIP at the instruction that called from this place in translated code. */
void QEMU_NORETURN engine_leave_before(struct softcpu_vcpu *vcpu, int reason, uintptr_t return_address);

/* exceptions.c */
/* To the guest's handler; a fault on the way leaves by itself, as translated code does. */
void exceptions_deliver(struct softcpu_vcpu *vcpu, int vector);
/* CPUClass.do_unaligned_access. */
void exceptions_unaligned(CPUState *cs, vaddr address, MMUAccessType access, int mmu_index, uintptr_t return_address);

/* breakpoints.c */
/* What of the page at a linear address the guest's debug registers watch: enum debug_kind. */
uint32_t breakpoints_watched(const struct softcpu_vcpu *vcpu, target_ulong page);
/* In front of an access to a page with watched data; kind: DEBUG_READ or DEBUG_WRITE. May leave before the instruction. */
void breakpoints_access(struct softcpu_vcpu *vcpu, uint64_t address, uint64_t length, uint32_t kind,
                        uintptr_t return_address);
/* As engine_execute_one; what the instruction touches is noted, and vcpu->debug_trap says what is due. */
int breakpoints_execute_one(struct softcpu_vcpu *vcpu);
/* The instruction that just ended was a single step of the guest's: #DB is due. */
void breakpoints_single_step(struct softcpu_vcpu *vcpu);
/* One is due, and comes before the next instruction. */
bool breakpoints_trap_is_next(const struct softcpu_vcpu *vcpu);
/* A #DB for another reason comes first, and is it, too. */
void breakpoints_join(struct softcpu_vcpu *vcpu);
/* The #DB that is due. */
void breakpoints_deliver(struct softcpu_vcpu *vcpu);

/* debug.c */
/* Before a run, by the owner: a debugger's breakpoints and watchpoints become the engine's. False: the engine gave up. */
bool debug_begin(struct softcpu_vcpu *vcpu);
bool debug_is_stepping(const struct softcpu_vcpu *vcpu);
/* Which of a debugger's breakpoints is at RIP, or NO_POINT. */
int debug_breakpoint_here(const struct softcpu_vcpu *vcpu);
/* What of the page at a linear address is watched: enum debug_kind. */
uint32_t debug_watched(const struct softcpu *softcpu, target_ulong page);
/* Execute one instruction, as engine_execute does many. LEAVE_DEBUG: done; a delivered exception is one, too. */
int debug_step(struct softcpu_vcpu *vcpu);

/* rescue.c */
/* Call step, which calls into the engine. False: the engine gave up in it or before; softcpu->why_gave_up says why. */
bool rescue_run(struct softcpu *softcpu, void (*step)(void *opaque), void *opaque);

/* lock.c */
int lock_init(struct softcpu *softcpu);
void lock_destroy(struct softcpu *softcpu);
/*
 * Wait for the turn. Also back without it once a stop is requested, as lock_yield is: whoever comes back looks for one
 * before all else. Releasing is right in both cases.
 */
void lock_acquire(struct softcpu_vcpu *vcpu);
void lock_release(struct softcpu_vcpu *vcpu);
/* In builds with a sanitizer: end the process unless the vCPU owns the lock; what calls into the engine begins with it. */
void lock_assert_owner(const struct softcpu_vcpu *vcpu);
/* Let the others run first, if any wait. */
void lock_yield(struct softcpu_vcpu *vcpu);
/* helpers.c */
/* Control register 4's bits that the guest's CPUID offers. */
target_ulong engine_cr4_allowed(const CPUX86State *env);

/* ports.c */
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
/* What is at gpa as the vCPU sees it, or NULL. */
struct engine_region *memory_find(const struct softcpu_vcpu *vcpu, uint64_t gpa);

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
/* Before a run. The caller owns the lock: debug registers drop translations. */
bool state_load(struct softcpu_vcpu *vcpu);
/* After an INIT or SIPI: what it sets, KVM has set. */
bool state_load_reset(struct softcpu_vcpu *vcpu);
/* After a run. */
bool state_store(struct softcpu_vcpu *vcpu);

/* chips.c */
bool chips_have_port(uint32_t port);
bool chips_have_address(const struct softcpu_vcpu *vcpu, uint64_t gpa);
/* Of translated code; where it fails, that is left. */
void chips_port_access(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write,
                       uintptr_t return_address);
void chips_memory_access(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint64_t *value, bool is_write);

/* smm.c */
/* Is there an SMI that the vCPU would take? */
bool smm_has_smi(const struct softcpu_vcpu *vcpu);
/* Take it; of cpu_exec. */
void smm_enter(struct softcpu_vcpu *vcpu);
/* One for each vCPU that a LAPIC's interrupt command names; by any thread. */
void smm_send(struct softcpu *softcpu, bool (*names)(const struct softcpu_vcpu *vcpu, void *opaque), void *opaque);

/* msr.c */
/* EFER's bits of features that the guest's CPUID offers. */
uint64_t msr_efer_allowed(const struct softcpu_vcpu *vcpu);
bool msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
/* As if the guest had written it; 0: nothing is armed. */
bool msr_set_deadline(struct softcpu_vcpu *vcpu, uint64_t value);
bool msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);
/* Of the vCPU as requests give and take them; what counts in TSC ticks, as that TSC does. */
bool msr_read_kept(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value);
bool msr_write_kept(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value);
uint64_t msr_deadline_kept(const struct softcpu_vcpu *vcpu, uint64_t value);

/* engine_msr.c */
/* NULL: the MSR is KVM's. */
const struct engine_msr *engine_msr_find(uint32_t index);
uint64_t engine_msr_read(const struct softcpu_vcpu *vcpu, const struct engine_msr *msr);
void engine_msr_write(struct softcpu_vcpu *vcpu, const struct engine_msr *msr, uint64_t value);
/* From KVM and back, without those in its special registers. False: KVM does not take one back; core->end says so. */
void engine_msrs_load(struct softcpu_vcpu *vcpu);
bool engine_msrs_store(struct softcpu_vcpu *vcpu);
/* All of them, to and from as many values as there are; returns how many. */
uint32_t engine_msrs_save(const struct softcpu_vcpu *vcpu, uint64_t *values);
void engine_msrs_restore(struct softcpu_vcpu *vcpu, const uint64_t *values);

/* strings.c: of REP INS, MOVS and STOS; sizes: MemOps, of an element, and above two bits of the registers. */
/* Where in host memory the byte at a linear address is, if such accesses to its page are nothing but that; else NULL. */
uint8_t *strings_plain_ram(CPUX86State *env, target_ulong address, MMUAccessType access);
/* Elements upwards from there, of so many bytes at the most, before RCX, the page, or the register with the address ends. */
target_ulong strings_run(const CPUX86State *env, target_ulong address, int reg, uint32_t sizes, uint32_t bytes);
/* So many are over, for the register with their address; and for RCX and the counter of instructions, which returns it. */
void strings_advance(CPUX86State *env, int reg, uint32_t sizes, target_ulong count);
target_ulong strings_end(CPUX86State *env, uint32_t sizes, target_ulong count);

/* virtual_time.c; where time is the host's, nobody calls those of looks, turns and waits, and the others do nothing. */
#define VIRTUAL_ACCESS_NS 1000u /* about what a port of a PC's southbridge takes */
#define VIRTUAL_LONGEST_PAUSE_NS 64000u
#define VIRTUAL_LOOP_INSTRUCTIONS 256u /* between two PAUSEs of one loop, at the most */
#define VIRTUAL_TURN_NS 50000u         /* where there are several vCPUs */

enum traced { TRACED_IN = 1, TRACED_OUT, TRACED_LOAD, TRACED_STORE, TRACED_INTERRUPT };

bool virtual_time_is_on(const struct softcpu_vcpu *vcpu);
uint64_t virtual_time_now(const struct softcpu *softcpu);
/* How many instructions more may be counted before the next look. */
uint64_t virtual_time_left(const struct softcpu_vcpu *vcpu);
/* An access to a device or a clock. */
void virtual_time_spend(struct softcpu_vcpu *vcpu);
/*
 * PAUSE: another vCPU's turn. Where all that are awake do nothing else, each takes twice as long as the one before it,
 * up to a bound for all of them together.
 */
void virtual_time_pause(struct softcpu_vcpu *vcpu);
/* One more event for the hash of all of them, behind it: if that has asked for a stop, the block is the last one. */
void virtual_time_trace(struct softcpu_vcpu *vcpu, enum traced what, uint64_t where, uint64_t value);
/* Their timers may have changed. */
void virtual_time_chips_written(struct softcpu_vcpu *vcpu);
/* Of a run: the clock shows what the guest has executed. */
void virtual_time_end(const struct softcpu_vcpu *vcpu);
/* Around a look at the chips, between blocks: see to what is outside of them, and say when the next look is. */
void virtual_time_begin_look(struct softcpu *softcpu, bool waits);
void virtual_time_end_look(struct softcpu_vcpu *vcpu);
/* From now on the vCPU executes, for a turn. */
void virtual_time_give_turn(struct softcpu_vcpu *vcpu);
/* While all wait: to the next deadline, or, without any, until something is typed or somebody stops them. */
void virtual_time_wait(struct softcpu *softcpu);

#endif
