/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The machine as C sees it: how it is made, asked and stopped.
 *
 * Locks of a machine, outermost first; a thread may take any number of them in
 * this order:
 *   1. the software CPU's turn to execute, if there is one (softcpu/inside.h)
 *   2. vmm_vm.io_lock: devices, their tables and guest memory's
 *   3. Python's GIL. A thread that holds it must let go of it before it takes
 *      io_lock (every cffi call does).
 *   4. vmm_vcpu.thread_lock
 *   5. leaves, under which nothing else is taken: the lock of chips without KVM,
 *      and the software CPU's map_mutex and lock_mutex
 * io_lock is recursive because devices change the tables that they are called
 * from: a chipset that maps RAM or moves a BAR does so in the middle of the
 * access that asks for it, on the thread that took io_lock for that access.
 *
 * Ownership: Python owns everything. It makes and frees vmm_vm, vmm_vcpu and
 * exit_times, closes the descriptors, and keeps what the tables point at
 * (guest memory, handlers' opaque, items) until no vCPU runs any more and the
 * table has let go of it. C frees only what it allocated itself, in the _free
 * function of the same name. The software CPU goes before the vmm_vm whose
 * hooks it has and the vmm_vcpu that it runs; among those, any order will do.
 */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "vmm/chips.h"
#include "vmm/coalesced.h"
#include "vmm/exit_times.h"
#include "vmm/guest_memory.h"
#include "vmm/io_table.h"
#include "vmm/profile.h"
#include "vmm/recent.h"
#include "vmm/stop.h"

#define VCPU_EXIT_REASONS 64

/*
 * Only makes KVM_RUN return; from a timer, whose value is the vCPU's struct kvm_run, the next one, too, if it comes in
 * front of it. SIGRTMIN itself is taken by some threading libraries.
 */
#define VMM_KICK_SIGNAL (SIGRTMIN + 4)

/* Why vmm_vcpu_run returned. */
enum vcpu_outcome {
    VCPU_STOPPED,           /* vmm_vm_stop */
    VCPU_SHUTDOWN,          /* triple fault: KVM_EXIT_SHUTDOWN */
    VCPU_EMULATION_FAILURE, /* KVM_EXIT_INTERNAL_ERROR, suberror 1: instruction[] holds what KVM gave */
    VCPU_INTERNAL_ERROR,    /* KVM_EXIT_INTERNAL_ERROR, other suberrors: detail */
    VCPU_FAIL_ENTRY,        /* KVM_EXIT_FAIL_ENTRY: detail is the hardware's reason */
    VCPU_SYSTEM_EVENT,      /* KVM_EXIT_SYSTEM_EVENT: detail is the type */
    VCPU_DEBUG,             /* KVM_EXIT_DEBUG: detail is DR6; of the software CPU, point says */
    VCPU_UNSUPPORTED,       /* an exit reason we don't know: detail */
    VCPU_REFUSED,           /* the sandbox refused its thread a system call: detail is the number */
    VCPU_ERROR,             /* an ioctl failed: detail is its request, error is errno */
};

struct vcpu_end {
    uint32_t outcome; /* enum vcpu_outcome */
    uint64_t detail;
    int32_t error;
    uint32_t instruction_size; /* bytes valid in instruction[], 0 to 15 */
    uint8_t instruction[16];
    int32_t point;   /* which of debug_points the software CPU came to; -1: none, it made a single step */
    const char *why; /* more words on detail, or NULL; the software CPU's, as long as it lives */
};

struct vmm_vcpu;

/* What a debugger waits for: kinds is a sum of these. */
enum debug_kind {
    DEBUG_READ = 1,
    DEBUG_WRITE = 2,
    DEBUG_EXECUTE = 4,
};

struct debug_point {
    uint64_t address; /* linear */
    uint64_t length;
    uint32_t kinds;
};

#define VMM_DEBUG_POINTS 256

#define VCPU_EXCEPTIONS 8u /* a power of two */

/* An exception of the guest's that was on its way to its handler. */
struct vcpu_exception {
    uint64_t rip; /* linear, of the instruction */
    uint64_t cr2; /* of a page fault: the address; else what was there */
    uint32_t error_code;
    uint32_t vector;
};

struct vmm_vm {
    int fd; /* of KVM_CREATE_VM; owned by Python; -1: there is none */
    /* ioctl(2) of the machine, or what takes its place: the result, or a negative errno. */
    int (*request)(struct vmm_vm *vm, unsigned long request, void *argument);
    struct chips *chips; /* NULL: they are KVM's */
    struct guest_memory memory;
    struct io_table ports;
    struct io_table mmio;
    pthread_mutex_t io_lock;
    uint32_t stop; /* accessed atomically */
    uint32_t io_depth; /* how often the thread that has io_lock took it by vmm_io_lock or vmm_io_trylock */
    uint32_t accessing; /* index of the vCPU whose access a device serves; io_lock is held */
    struct recent recent; /* io_lock is held */
    struct ring *coverage; /* of struct coverage_block, for the software CPU; NULL: nobody asks; set while no vCPU runs */
    uint32_t polled; /* where the ring began when vmm_vm_poll last looked */
    struct kvm_coalesced_mmio_ring *ring; /* of writes that did not leave the kernel; NULL: all of them do */
    /* A debugger's, for the software CPU; changed while no vCPU runs, each time with another generation. */
    uint32_t debug_count;
    uint32_t debug_generation;
    struct debug_point debug_points[VMM_DEBUG_POINTS];
};

struct vmm_vcpu {
    struct vmm_vm *vm;
    struct kvm_run *run;
    int fd; /* of KVM_CREATE_VCPU; owned by Python; -1: there is none */
    /* As the machine's. */
    int (*request)(struct vmm_vcpu *vcpu, unsigned long request, void *argument);
    struct processor *processor;          /* of the machine's chips */
    void (*nudge)(struct vmm_vcpu *vcpu); /* ends its wait for an interrupt; NULL: a signal does that, in KVM_RUN */
    uint32_t index;
    uint32_t apic_id; /* of the index, unless Python says otherwise before it runs */
    struct vcpu_end end;
    /* What a debugger has asked of KVM; of the software CPU, whether it makes a single step. Zeros: there is none. */
    struct kvm_guest_debug debug;
    /* Counters: written by the vCPU's thread, read by any; accessed atomically. */
    uint64_t exits[VCPU_EXIT_REASONS]; /* by KVM exit reason; the last counts all beyond */
    uint64_t interrupted;              /* KVM_RUN ended by a signal */
    uint64_t started_ns;               /* CLOCK_MONOTONIC when it first left the wait-for-SIPI state; 0 before */
    uint64_t started_at;               /* with virtual time, how many instructions the machine had executed by then */
    /* The last ones, which only the software CPU sees; the vCPU's thread writes them. */
    uint64_t exception_count;
    struct vcpu_exception exceptions[VCPU_EXCEPTIONS];
    bool start_watched; /* a single step is armed that shows an AP's first instruction */
    struct exit_times *times; /* NULL: not measured; set while the vCPU does not run */
    struct ring *profile;     /* NULL: not sampled; set while the vCPU does not run */
    timer_t profile_timer;    /* while it is armed */
    bool profile_armed;
    pthread_mutex_t thread_lock;
    pthread_t thread;
    bool running;
    bool smm; /* of the software CPU: it is in system management mode; the vCPU's thread writes it */
    void *engine; /* of the software CPU, if one runs this vCPU */
    uint64_t (*engine_rip)(struct vmm_vcpu *vcpu); /* what vmm_vcpu_rip asks then */
};

struct vmm_vm *vmm_vm_new(int fd);
void vmm_vm_free(struct vmm_vm *vm);

struct vmm_vcpu *vmm_vcpu_new(struct vmm_vm *vm, int fd, struct kvm_run *run, uint32_t index);
void vmm_vcpu_free(struct vmm_vcpu *vcpu);

/* What ioctl(2) says of them: the result, or a negative errno. */
int vmm_kvm_vm_request(struct vmm_vm *vm, unsigned long request, void *argument);
int vmm_kvm_vcpu_request(struct vmm_vcpu *vcpu, unsigned long request, void *argument);

/* RIP of the instruction that a device now serves, or right behind it; on the vCPU's thread. 0: not to be had. */
uint64_t vmm_vcpu_rip(struct vmm_vcpu *vcpu);

/* The same as a trace_rip: vcpus is an array of struct vmm_vcpu *. */
uint64_t vmm_vcpu_rip_of(void *vcpus, uint32_t index);

/*
 * Make every running vcpu of this machine return VCPU_STOPPED, now and when it
 * is next run, until vmm_vm_resume, which is for when none runs any more.
 */
void vmm_vm_stop(struct vmm_vm *vm, struct vmm_vcpu **vcpus, uint32_t count);
void vmm_vm_resume(struct vmm_vm *vm);

static inline bool vmm_stop_requested(const struct vmm_vm *vm)
{
    return vmm_stop_is_set(&vm->stop);
}

/* End the run; the first reason stays. False, for the caller to return. */
static inline __attribute__((cold)) bool vmm_vcpu_end(struct vmm_vcpu *vcpu, enum vcpu_outcome outcome, uint64_t detail)
{
    if (vcpu->end.outcome == VCPU_STOPPED) {
        vcpu->end.outcome = outcome;
        vcpu->end.detail = detail;
    }
    return false;
}

/* End the run because of an ioctl that failed with `error`, an errno. */
static inline __attribute__((cold)) bool vmm_vcpu_fail(struct vmm_vcpu *vcpu, unsigned long request, int error)
{
    if (vcpu->end.outcome == VCPU_STOPPED) {
        vcpu->end.error = error;
    }
    return vmm_vcpu_end(vcpu, VCPU_ERROR, request);
}

/* A request of the vCPU that a run cannot do without. False: it failed, which ends the run. */
static inline bool vmm_vcpu_ioctl(struct vmm_vcpu *vcpu, unsigned long request, void *argument)
{
    int result = vcpu->request(vcpu, request, argument);

    return result == 0 || vmm_vcpu_fail(vcpu, request, -result);
}

#endif
