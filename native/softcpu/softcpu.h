/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The software CPU beside KVM, for hosts whose KVM has no hardware
 * virtualization: one engine (Unicorn's x86 translator) executes the
 * instructions of all vCPUs of one machine on the machine's own RAM, while KVM
 * keeps interrupt controllers, timers, HLT, INIT/SIPI and most MSRs.
 *
 * Everything that Python and the core need; inside.h and engine.h are for the inside.
 */
#ifndef VMM_SOFTCPU_H
#define VMM_SOFTCPU_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/vcpu_run.h"

struct softcpu;

/* Counters of one machine, summed over its vCPUs. */
struct softcpu_counters {
    uint64_t instructions;  /* begun in the engine, counted by whole blocks: a block left by a fault counts in full */
    uint64_t kvm_steps;     /* accesses to the interrupt controllers and the 8254, wherever they are */
    uint64_t interrupts;    /* delivered, injections and wake-ups from HLT */
    uint64_t halts;         /* HLT instructions that waited */
    uint64_t swaps;         /* times the engine went from one vCPU to another */
    uint64_t invalidations; /* device writes and memory-map changes that dropped translated code */
    uint64_t translations_flushed; /* times the buffer of translated code was full */
};

/* NULL: the engine linked in is the one that this module was written for, and works. Else what is wrong. */
const char *softcpu_self_test(void);

/* Was this module built for that core? If not, nothing else here may be called. */
bool softcpu_fits(const struct vmm_core *core);

/* Unicorn's version that is linked in: major << 24 | minor << 16 | patch << 8. */
uint32_t softcpu_engine_version(void);

/*
 * An engine for the machine, whose memory hooks it takes over. NULL: no memory.
 * core stays valid as long as the engine.
 */
struct softcpu *softcpu_new(struct vmm_vm *vm, const struct vmm_core *core);

#define SOFTCPU_STUB_PAGE_BYTES 4096u

/*
 * Before vCPUs run: KVM shows this page of memory at gpa, below 4 GiB, and the
 * guest's own memory map does not. Filled here with what KVM executes.
 */
void softcpu_set_stubs(struct softcpu *softcpu, uint8_t *page, uint32_t gpa);

/* Stops nothing: every vCPU's run has returned. */
void softcpu_free(struct softcpu *softcpu);

struct softcpu_cpuid_leaf {
    uint32_t function;
    uint32_t subleaf; /* counts if indexed */
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    bool indexed;
};

/*
 * Let the engine run this vCPU, whose guest finds these CPUID leaves: the ones
 * given to KVM_SET_CPUID2, not what KVM_GET_CPUID2 returns, for a KVM without
 * hardware virtualization adds what user programs would see natively.
 * 0 or a negative errno.
 */
int softcpu_add_vcpu(struct softcpu *softcpu, struct vmm_vcpu *vcpu, const struct softcpu_cpuid_leaf *leaves,
                    uint32_t count);

/*
 * Between runs, once KVM's vCPU is as after power-on: forget what the engine
 * knows of the guest beyond that. Of all vCPUs, the first one first: the others
 * get its TSC offset again. 0 or a negative errno.
 */
int softcpu_reset_vcpu(struct vmm_vcpu *vcpu);

/* vcpu_end.detail where the outcome is VCPU_INTERNAL_ERROR: none of KVM's suberrors, which are small. */
enum softcpu_end {
    SOFTCPU_END_UNREPRESENTABLE = 0x10001, /* the engine cannot run what the guest set up */
    SOFTCPU_END_GAVE_UP = 0x10002,         /* the engine stopped in the middle of something: end.why says where */
};

/* In place of vmm_vcpu_run, and like it: returns vcpu->end.outcome. Not with virtual time. */
int softcpu_vcpu_run(struct vmm_vcpu *vcpu);

/*
 * With virtual time: run all vCPUs on this thread, in turn, until the guest or a stop ends one of them. Each has its
 * end.outcome then, at most one another than VCPU_STOPPED.
 */
void softcpu_run_in_turn(struct softcpu *softcpu);

/*
 * Between runs: what KVM_GET_SREGS gave becomes what the guest has, which KVM
 * cannot always represent; what somebody has set meanwhile stays.
 */
void softcpu_amend_sregs(const struct vmm_vcpu *vcpu, struct kvm_sregs *sregs);

/* What KVM does not hold of a vCPU, between two runs; the fields are the inside's own. */
struct softcpu_vcpu_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    uint32_t segment_flags[8];
    uint32_t hflags;
    uint32_t hflags2;
    int32_t acknowledged;
    uint32_t debug_trap;
    uint32_t msr_count;
    uint64_t msrs[16];
    uint64_t tsc_deadline;
    uint32_t smbase;
    bool smi_pending;
    bool init_latched;
    bool has_registers; /* false: it never ran, or waits for its start, and KVM's are the guest's */
    bool nmi_masked;
    bool timer_runs;
};

/*
 * Send an SMI, to the vCPU with this index or to all: whichever is in a device's access takes it before its next
 * instruction. From any thread.
 */
#define SOFTCPU_ALL_VCPUS UINT32_MAX
void softcpu_smi(struct softcpu *softcpu, uint32_t index);

/* False: KVM does not give or take registers; core->end says why. */
bool softcpu_save_vcpu(struct vmm_vcpu *vcpu, struct softcpu_vcpu_state *state);

/* For one that has not run yet, of a machine whose CPUs are the same; KVM has everything else of it by then. */
bool softcpu_restore_vcpu(struct vmm_vcpu *vcpu, const struct softcpu_vcpu_state *state);

/* The guest's TSC is the host's and this from now on. 0 or a negative errno. */
int softcpu_set_tsc_offset(struct vmm_vcpu *vcpu, uint64_t offset);
uint64_t softcpu_get_tsc_offset(const struct vmm_vcpu *vcpu);

struct guest_clock;

/*
 * Let time go by what the guest executes, from where the clock stands; for a
 * machine with chips of its own, before vCPUs are added. `call` is called on
 * the thread that executes them, between two instructions, when a device's
 * deadline has come, and, with `takes`, when the guest is to get what was
 * typed: it says by the functions below what comes next.
 */
void softcpu_set_virtual_time(struct softcpu *softcpu, struct guest_clock *clock, void (*call)(void *opaque, bool takes),
                              void *opaque);
/* The next deadline of a device, by that clock; UINT64_MAX: there is none. */
void softcpu_set_due(struct softcpu *softcpu, uint64_t device_ns);
/* When the guest is to get what was recorded: at that instruction, or, if it waits there, that time. UINT64_MAX: never. */
void softcpu_set_replay(struct softcpu *softcpu, uint64_t count, uint64_t ns);
/* There is something to type, or the like; from any thread. */
void softcpu_note_input(struct softcpu *softcpu);
/* A hash of all accesses to devices and interrupts, each with its instruction, and how many there were. */
void softcpu_read_trace(const struct softcpu *softcpu, uint64_t *hash, uint64_t *count_of);

void softcpu_read_counters(const struct softcpu *softcpu, struct softcpu_counters *counters);

#endif
