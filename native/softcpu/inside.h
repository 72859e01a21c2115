/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Inside the software CPU. Unicorn's internal headers are visible here, with
 * its names ending in _x86_64 by way of x86_64.h, which the build force-includes.
 *
 * Locks, as they fit into the order of vmm/machine.h: outermost is the turn
 * to execute, softcpu->owner (lock_acquire), which the vCPU that runs
 * translated code has; device accesses take the core's io_lock below it.
 * map_mutex (the region table and the work that it leaves) and lock_mutex (the
 * turn's queue, the ticker) are leaves, never held together. A thread in the
 * core's memory hooks holds io_lock and never waits for the turn: it leaves
 * work behind for the owner.
 *
 * Only the owner of the turn calls into the engine, each time by way of
 * rescue_run. Exceptions are a machine's making and its end, when nothing runs,
 * and functions that touch one vCPU's registers alone (x86_update_hflags,
 * cpu_set_fpuc, cpu_set_mxcsr).
 *
 * Ownership: softcpu_new and softcpu_add_vcpu allocate, softcpu_free frees all
 * of it. Unicorn owns its engine and its first CPU; the CPU structures that
 * run are ours, and their TLBs with them. Guest memory, vmm_vm and vmm_vcpu
 * are the core's, and outlive this.
 */
#ifndef VMM_SOFTCPU_INSIDE_H
#define VMM_SOFTCPU_INSIDE_H

/* clang-format off */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "exec/cputlb.h"
#include "exec/memory.h"
#include "exec/ram_addr.h"
#include "exec/helper-proto.h"
#include "exec/tb-hash.h"
#include "tcg/tcg.h"
#include "uc_priv.h"
/* clang-format on */

#include <linux/kvm.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include "softcpu.h"
#include "wrapped.h"

/* Why translated code was left, beyond QEMU's own EXCP_*; values at or above EXCP_INTERRUPT end cpu_exec. */
enum leave_reason {
    LEAVE_HALT = 0x10100, /* HLT executed, RIP is behind it */
    LEAVE_PAUSE,          /* PAUSE executed: let another vCPU run */
    LEAVE_WINDOW,         /* an interrupt waits and can be taken now */
    LEAVE_LATE_TICK,      /* KVM is late with a tick of its PIT */
    LEAVE_RESET,          /* KVM has reset the vCPU */
    LEAVE_INIT,           /* out of system management mode, in which an INIT had to wait */
    LEAVE_AGAIN,          /* state changed under the code: look it up afresh */
    LEAVE_BREAKPOINT,     /* the instruction is about to touch what the guest's debug registers watch */
    LEAVE_WATCHPOINT,     /* the instruction is about to touch what a debugger watches, or just did */
    LEAVE_DEBUG,          /* a debugger wants to look: vcpu->point says why */
    LEAVE_ENDED,          /* an ioctl failed: core->end says which */
    LEAVE_SHUTDOWN,       /* triple fault */
    LEAVE_ABORT,          /* the engine cannot represent what the guest set up, or gave up */
};

/* Of MSR 1b; the bits below are flags. */
#define APIC_BASE_ADDRESS (((1ull << 52) - 1) & ~0xfffull)

/* Intel SDM volume 3, 32.4: where SMIs find their handler until it says otherwise. */
#define SMBASE_AT_RESET 0x30000u

#define TICK_NS 1000000
/* Host TSC ticks between two looks at KVM from a loop of PAUSE, which need not wait for the ticker. */
#define PAUSE_LOOK_TSC 500000
/* So many since the last look: not the ticker but the host is late. */
#define LATE_TSC 10000000

#define NOTHING_ACKNOWLEDGED (-1)
#define NO_POINT (-1)

#define HOST_RANGES 64
#define PENDING_WRITES 256

/* One bit per page of host memory that backs guest memory: translated code exists for it. */
struct host_range {
    uintptr_t start;
    uintptr_t size;
    unsigned long *code_pages;
};

/* The engine's copy of the core's region table, plus what it learned about each region. */
struct engine_region {
    uint64_t gpa;
    uint64_t last;
    uint8_t *hva;
    struct host_range *host;
    bool read_only;
    bool present; /* false: a flash device took it over to answer commands */
    bool flips;   /* has been taken over before: data reads ask each time instead of going through the TLB */
    bool fetched; /* code was fetched from here since the last flush */
    bool smm;     /* in front of the others for a vCPU in system management mode, nowhere for the rest */
};

struct pending_write {
    uintptr_t hva;
    uintptr_t length;
};

/* Which values a guest's WRMSR may write; others are #GP. */
enum msr_takes {
    MSR_TAKES_ANYTHING,
    MSR_TAKES_ADDRESSES,    /* canonical ones */
    MSR_TAKES_MEMORY_TYPES, /* PAT: eight of them */
    MSR_TAKES_FEATURES,     /* EFER: bits of features that the guest's CPUID offers */
};

/* An MSR that lives in the engine's CPU structure. */
struct engine_msr {
    uint32_t index;
    uint16_t offset; /* of its place in CPUX86State */
    uint8_t width;   /* bytes that count; the others read as zeros */
    enum msr_takes takes;
    bool in_sregs; /* KVM gives and takes it with the special registers */
};

/* The last read of the PIT's output; writes to the PIT and HLT end it. */
struct port61_read {
    bool there;
    uint32_t value;
    uint64_t tsc; /* the host's */
    uint64_t instructions;
};

struct softcpu_vcpu {
    X86CPU cpu; /* first: the engine hands out pointers to it */
    struct softcpu *softcpu;
    struct vmm_vcpu *core;
    struct softcpu_cpuid_leaf *cpuid;
    uint32_t cpuid_count;
    uint32_t physical_bits; /* of a guest physical address, as CPUID says */

    struct kvm_sregs kvm_sregs; /* KVM's while it executes nothing but stubs */
    uint32_t debugging;         /* KVM_SET_GUEST_DEBUG's control, as last set */
    uint32_t msrs_of_kvm;       /* a bit each: the engine's MSRs that KVM has, too */
    uint64_t apic_base;         /* MSR 1b as the guest finds it; KVM's LAPIC is always at APIC_DEFAULT_ADDRESS */

    /* Between two runs: what KVM made of the guest's registers. While it says the same, the engine's own are the truth. */
    bool stored;
    struct kvm_regs stored_regs;
    struct kvm_sregs stored_sregs;

    uint64_t tsc_offset; /* of the guest's TSC to the host's, modulo 2^64 */
    uint64_t tsc_ahead;  /* of the guest's TSC to the one that KVM's timers go by, where KVM takes no offset */
    uint64_t tsc_deadline; /* MSR 6e0 as the guest last wrote it; 0: disarmed or fired */
    uint64_t timer_due_ns; /* CLOCK_MONOTONIC when the LAPIC's count reaches 0; 0: not counting */
    uint64_t timer_period_ns;
    bool timer_held;       /* it was due while the guest would take no interrupt */
    uint32_t timer_missed; /* ticks that the host was too late for */
    uint64_t looked_tsc; /* host TSC at the last look at KVM */
    uint64_t interrupted_ns; /* CLOCK_MONOTONIC at its last interrupt while KVM's PIT ticks */
    uint32_t late_ticks;     /* that RDTSC is still to wait for */
    bool no_tick_came;       /* when it did: there is no use in that before the next interrupt */
    bool nmi_masked; /* KVM delivered an NMI whose IRET the engine will execute */
    bool parked; /* waits for INIT or SIPI */
    bool smi_pending; /* atomic: set by any thread */
    bool init_latched; /* one came in system management mode */
    uint32_t logical_destination; /* of its LAPIC, as last read: LDR and DFR */
    uint32_t destination_format;
    bool halted; /* executed HLT: KVM waits for what ends it */
    int acknowledged; /* a vector that KVM has acknowledged and the engine is to deliver, or NOTHING_ACKNOWLEDGED */
    bool executes_one;         /* one instruction, which nothing that it touches may stop */
    uint32_t data_breakpoints; /* DR6's bits: what that instruction touched of the guest's watched data */
    uint32_t debug_trap;       /* DR6's bits of a #DB that comes before the next instruction; 0: none */
    int point; /* of a debugger's: come to, or NO_POINT */
    bool shutdown; /* set below a triple fault, on the way out */
    bool abort;

    uint32_t priority; /* CR8 as chips of our own have it */
    struct processor *tells; /* of those chips: wakes it */
    bool look_at_kvm; /* atomic: another vCPU may have sent something */

    /* Of virtual time, with its own count of instructions. */
    uint64_t paused_at; /* its last PAUSE */
    bool spins;         /* and it has done nothing else in its last turn */

    bool flush_tlb; /* atomic: set by any thread, cleared by the vCPU's as the owner */
    uint32_t code_generation;
    uint32_t tb_flushes;

    /* Queue of the lock. */
    bool queued;
    struct softcpu_vcpu *next_waiting;
    pthread_cond_t turn;

    /* Bounded stay in KVM_RUN: the ticker kicks the thread when it is over. */
    pthread_t thread;
    uint32_t kick_after_ticks; /* atomic; 0: as long as it takes */

    struct port61_read port61;
    uintptr_t io_return; /* where in translated code a port access was made that is being served; else 0 */

    uint64_t kvm_steps;
    uint64_t interrupts;
    uint64_t halts;
};

#define SOFTCPU_MAX_VCPUS 1024

struct boundary;

/* What the guest wrote to channel 0 of KVM's PIT. */
struct pit_writes {
    uint8_t control;
    uint8_t low;
    bool low_came;
    uint64_t period_ns; /* 0: it does not tick */
};
struct guest_clock;

/* virtual_time.c; the thread that executes all vCPUs has all of it meanwhile, but for input_waits. */
struct virtual_time {
    struct guest_clock *clock; /* of the machine's devices; NULL: time is the host's */
    uint64_t start_ns;
    uint64_t spent_ns; /* beside what instructions take */
    struct softcpu_vcpu *turn; /* who executes, or did last */
    uint64_t turn_ends_ns;
    uint64_t others;   /* instructions of the vCPUs that do not have the turn */
    uint64_t pause_ns; /* what the last PAUSE took */
    void (*call)(void *opaque, bool takes);
    void *opaque;
    uint64_t device_ns; /* the next deadline of a device; UINT64_MAX: none */
    bool input_waits;   /* atomic: nobody has decided yet when the guest gets it */
    uint64_t queued_at; /* the instruction at which it does; UINT64_MAX: there is none */
    uint64_t replay_at; /* the same of what was recorded, and not before that time */
    uint64_t replay_ns;
    uint64_t trace_hash;
    uint64_t traced;
};

struct softcpu {
    struct vmm_vm *vm;
    const struct boundary *boundary;
    const struct vmm_core *core;
    struct uc_struct *uc;
    uc_hook hook;
    CPUState *template_cpu; /* the engine's first CPU: copied, never run */
    uint32_t vcpu_count;
    struct softcpu_vcpu *vcpus[SOFTCPU_MAX_VCPUS];
    struct pit_writes pit;
    uint32_t stubs_gpa; /* of the page with the code that KVM executes, of which the guest knows nothing */

    /* The fair lock: which vCPU executes. */
    pthread_mutex_t lock_mutex;
    struct softcpu_vcpu *owner; /* stored atomically: lock_assert_owner reads it without the mutex */
    struct softcpu_vcpu *first_waiting;
    struct softcpu_vcpu *last_waiting;
    uint32_t waiting; /* atomic */
    struct softcpu_vcpu *last_owner;

    pthread_t ticker;
    pthread_cond_t ticker_wake;
    pthread_cond_t ticker_end;
    bool ticker_stop;
    uint32_t bounded_stays; /* atomic: vCPUs with kick_after_ticks */

    /* Memory; regions are the owner's, changed under map_mutex. */
    pthread_mutex_t map_mutex;
    bool map_work; /* atomic: the fields below ask for apply_map_work */
    bool table_stale;
    uint32_t table_count;
    struct guest_region table[GUEST_MEMORY_MAX_REGIONS + GUEST_MEMORY_SMM_REGIONS];
    uint32_t region_count;
    struct engine_region regions[2 * (GUEST_MEMORY_MAX_REGIONS + GUEST_MEMORY_SMM_REGIONS)];
    struct engine_region *last_region;
    uint32_t host_count;
    struct host_range hosts[HOST_RANGES];
    uint32_t pending_count; /* PENDING_WRITES + 1: overrun, drop everything */
    struct pending_write pending[PENDING_WRITES];
    uint32_t code_generation; /* counts pages that got their first translated block */
    bool fill_is_fetch; /* the TLB fill under way is for an instruction fetch */
    MemoryRegion any_region;
    MemoryRegionSection io_section;

    uint32_t debug_generation; /* of the core's debug points, as the engine has them */
    uint32_t watched;          /* how many of them watch data */

    bool gave_up; /* atomic: the engine stopped in the middle of something, and is not entered again */
    char why_gave_up[160]; /* written before gave_up, by one thread at a time */

    struct virtual_time virtual_time;

    uint64_t swaps;
    uint64_t invalidations;
};

/* Accesses to KVM's chips that there is a stub for. */
enum stub_access {
    STUB_LOAD,
    STUB_STORE,
    STUB_IN,
    STUB_OUT,
};

#define STUB_PAGE_BYTES SOFTCPU_STUB_PAGE_BYTES

/* What a look at KVM found. */
enum found {
    FOUND_NOTHING,
    FOUND_INTERRUPT,
    FOUND_NMI,
    FOUND_RESET,
    FOUND_ERROR, /* it could not be looked at: core->end says why */
};

#define CODE_PAGE_BITS 12
#define CODE_PAGE_BYTES (1ul << CODE_PAGE_BITS)

static inline struct softcpu_vcpu *owner_of(CPUX86State *env)
{
    return (struct softcpu_vcpu *)env_archcpu(env);
}

static inline bool in_smm(const struct softcpu_vcpu *vcpu)
{
    return (vcpu->cpu.env.hflags & HF_SMM_MASK) != 0;
}

/* Of one writer, read by any thread: the vCPU's thread, or the owner. */
static inline void count(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

static inline bool engine_gave_up(const struct softcpu *softcpu)
{
    return __atomic_load_n(&softcpu->gave_up, __ATOMIC_ACQUIRE);
}

static inline bool memory_has_work(const struct softcpu *softcpu)
{
    return __atomic_load_n(&softcpu->map_work, __ATOMIC_ACQUIRE);
}

#endif
