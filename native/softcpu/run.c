/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One vCPU's thread: translated code as long as nothing else is needed, KVM_RUN
 * for the rest. KVM is entered in four ways only:
 *
 *   waiting   the vCPU waits for INIT/SIPI
 *   halted    it executed HLT and waits for an interrupt
 *   delivery  it is declared halted while an interrupt waits that it can take,
 *             so that KVM delivers before it would execute anything
 *   step      one instruction of ring 0 that reaches a chip inside KVM
 *
 * Always single-stepping: at most one instruction runs in KVM each time. KVM
 * never runs ring 3, whose pages it would look up in tables of its own that
 * know nothing of what the engine wrote.
 */
#include "engine.h"

#include <errno.h>

#define DELIVERY_TICKS 2
#define STEP_TICKS 50

enum ran {
    RAN_INSTRUCTION, /* or an interrupt was delivered and its handler's first instruction ran */
    RAN_REFUSED,     /* KVM cannot execute the instruction at RIP */
    RAN_NOTHING,     /* a signal, or woken without having run */
    RAN_END,         /* core->end says what ended the run */
};

static bool stop_requested(const struct softcpu_vcpu *vcpu)
{
    return vmm_stop_requested(vcpu->softcpu->vm);
}

static bool set_mp_state(struct softcpu_vcpu *vcpu, uint32_t value)
{
    struct kvm_mp_state state = {.mp_state = value};

    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_MP_STATE, &state);
}

static bool get_mp_state(struct softcpu_vcpu *vcpu, uint32_t *value)
{
    struct kvm_mp_state state;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_MP_STATE, &state)) {
        return false;
    }
    *value = state.mp_state;
    return true;
}

static bool set_stepping(struct softcpu_vcpu *vcpu, uint32_t control)
{
    struct kvm_guest_debug debug = {.control = control};

    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_GUEST_DEBUG, &debug);
}

/* A signal came after KVM took the interrupt from its controller and before the vCPU saw it: only KVM can go on. */
static bool look_for_unfinished_delivery(struct softcpu_vcpu *vcpu, bool *unfinished)
{
    struct kvm_vcpu_events events;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_VCPU_EVENTS, &events)) {
        return false;
    }
    *unfinished = events.interrupt.injected || events.nmi.injected || events.exception.injected;
    return true;
}

/* The caller has switched stepping on. */
static enum ran enter_kvm(struct softcpu_vcpu *vcpu, uint32_t ticks)
{
    struct kvm_run *run = vcpu->core->run;

    for (;;) {
        int result = bounded_kvm_run(vcpu, ticks);
        bool access;
        bool unfinished;

        if (result == 0 && run->exit_reason == KVM_EXIT_DEBUG) {
            return RAN_INSTRUCTION;
        }
        if (result == 0 && run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
            run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
            return RAN_REFUSED;
        }
        if (result != 0 && (errno == EINTR || errno == EAGAIN)) {
            __atomic_fetch_add(&vcpu->core->interrupted, errno == EINTR, __ATOMIC_RELAXED);
            if (!look_for_unfinished_delivery(vcpu, &unfinished)) {
                return RAN_END;
            }
            if (unfinished && !stop_requested(vcpu)) {
                continue;
            }
            return RAN_NOTHING;
        }
        access = result == 0 && (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO);
        if (!vcpu->softcpu->core->serve_exit(vcpu->core, result)) {
            if (vcpu->core->end.outcome != VCPU_STOPPED) {
                return RAN_END;
            }
            if (access) {
                return vcpu->softcpu->core->finish_access(vcpu->core) ? RAN_INSTRUCTION : RAN_END;
            }
            return RAN_NOTHING;
        }
    }
}

/* After KVM ran: what the vCPU does next. */
static bool take_back(struct softcpu_vcpu *vcpu)
{
    uint32_t state;

    if (!get_mp_state(vcpu, &state)) {
        return false;
    }
    vcpu->waiting = state == KVM_MP_STATE_UNINITIALIZED || state == KVM_MP_STATE_INIT_RECEIVED;
    if (vcpu->waiting) {
        vcpu->halted = false;
        return true;
    }
    CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
    if (!vcpu->softcpu->core->note_start(vcpu->core) || !state_load(vcpu)) {
        return false;
    }
    /* Still halted: nothing arrived (yet). */
    vcpu->halted = vcpu->halted && state == KVM_MP_STATE_HALTED;
    return state == KVM_MP_STATE_HALTED || set_mp_state(vcpu, KVM_MP_STATE_HALTED);
}

/*
 * Stepping sets RFLAGS.TF for the instruction at which it is switched on (KVM's
 * singlestep_rip), and an interrupt delivered there would save TF for its IRET
 * to restore. So it is switched on where no instruction is; KVM's interpreter,
 * which runs the handler's first instruction, heeds it all the same.
 */
static bool step_without_trap_flag(struct softcpu_vcpu *vcpu)
{
    struct kvm_regs nowhere = {.rip = (uint64_t)-2, .rflags = 2};

    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_REGS, &nowhere) &&
           set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
}

static bool wait_for_start(struct softcpu_vcpu *vcpu)
{
    return set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP) && enter_kvm(vcpu, 0) != RAN_END &&
           take_back(vcpu);
}

static bool halt(struct softcpu_vcpu *vcpu)
{
    if (!step_without_trap_flag(vcpu) || !state_store(vcpu)) {
        return false;
    }
    if (enter_kvm(vcpu, 0) == RAN_END || !take_back(vcpu)) {
        return false;
    }
    if (vcpu->halted) {
        return true;
    }
    count(&vcpu->interrupts);
    return interrupts_after_delivery(vcpu);
}

static bool deliver(struct softcpu_vcpu *vcpu)
{
    if (!step_without_trap_flag(vcpu) || !state_store(vcpu)) {
        return false;
    }
    if (vcpu->unfinished && !set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)) {
        return false;
    }
    vcpu->unfinished = false;
    switch (enter_kvm(vcpu, DELIVERY_TICKS)) {
    case RAN_END:
        return false;
    case RAN_NOTHING:
        break; /* it was not to be: masked by priority after all */
    default:
        count(&vcpu->interrupts);
        break;
    }
    return interrupts_after_delivery(vcpu) && take_back(vcpu);
}

/*
 * In ring 3 the step is done at ring 0: the pages and the instruction are the
 * same, and KVM interprets it instead of running it natively.
 */
static bool step(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;
    SegmentCache cs = env->segs[R_CS];
    SegmentCache ss = env->segs[R_SS];
    bool user = (env->cr[0] & CR0_PE_MASK) && !(env->eflags & VM_MASK) && (env->hflags & HF_CPL_MASK) != 0;
    enum ran ran;

    if (user) {
        env->segs[R_CS].flags &= ~(uint32_t)DESC_DPL_MASK;
        env->segs[R_CS].selector &= ~3u;
        env->segs[R_SS].flags &= ~(uint32_t)DESC_DPL_MASK;
        env->segs[R_SS].selector &= ~3u;
    }
    if (!state_store(vcpu) || !set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE) ||
        !set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)) {
        return false;
    }
    ran = enter_kvm(vcpu, STEP_TICKS);
    count(&vcpu->kvm_steps);
    if (ran == RAN_REFUSED) {
        vcpu->softcpu->core->serve_exit(vcpu->core, 0);
        return false;
    }
    if (ran == RAN_END || !take_back(vcpu)) {
        return false;
    }
    if (user && !vcpu->waiting) {
        env->segs[R_CS] = cs;
        env->segs[R_SS] = ss;
        x86_update_hflags(env);
    }
    if (vcpu->step_wrote_lapic) {
        vcpu->step_wrote_lapic = false;
        if (!interrupts_note_timer(vcpu)) {
            return false;
        }
        interrupts_wake_others(vcpu);
    }
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    return true;
}

/* What the engine owner does between two runs of translated code. False: give the engine up, `next` says for what. */
static bool look_before_running(struct softcpu_vcpu *vcpu, int *next)
{
    CPUX86State *env = &vcpu->cpu.env;

    *next = 0;
    if (stop_requested(vcpu)) {
        return false;
    }
    if (!__atomic_load_n(&vcpu->look_at_kvm, __ATOMIC_RELAXED)) {
        return true;
    }
    switch (interrupts_look(vcpu)) {
    case FOUND_INTERRUPT:
        if ((env->eflags & IF_MASK) && !(env->hflags & HF_INHIBIT_IRQ_MASK)) {
            *next = LEAVE_WINDOW;
            return false;
        }
        CPU(&vcpu->cpu)->interrupt_request |= CPU_INTERRUPT_HARD;
        return true;
    case FOUND_NMI:
        *next = LEAVE_WINDOW;
        return false;
    case FOUND_RESET:
        *next = LEAVE_AGAIN;
        return false;
    case FOUND_ERROR:
        *next = LEAVE_ENDED;
        return false;
    default:
        CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
        return true;
    }
}

/* Own the engine until something needs KVM; returns what. 0: stop. */
static int run_translated(struct softcpu_vcpu *vcpu)
{
    int next;

    lock_acquire(vcpu);
    while (look_before_running(vcpu, &next)) {
        next = engine_execute(vcpu);
        if (next == LEAVE_PAUSE) {
            if (__builtin_ia32_rdtsc() - vcpu->looked_tsc > PAUSE_LOOK_TSC) {
                __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
            }
            lock_yield(vcpu);
        } else if (next < LEAVE_STEP) {
            /* The ticker, or another thread that wants to be noticed. */
            __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
            lock_yield(vcpu);
        } else if (next != LEAVE_AGAIN) {
            break;
        }
    }
    lock_release(vcpu);
    return next;
}

static bool run_round(struct softcpu_vcpu *vcpu)
{
    if (stop_requested(vcpu)) {
        return false;
    }
    if (vcpu->waiting) {
        return wait_for_start(vcpu);
    }
    if (vcpu->unfinished) {
        return deliver(vcpu);
    }
    if (vcpu->halted) {
        return halt(vcpu);
    }
    switch (run_translated(vcpu)) {
    case 0:
        return false;
    case LEAVE_STEP:
        return step(vcpu);
    case LEAVE_HALT:
        vcpu->halted = true;
        count(&vcpu->halts);
        return true;
    case LEAVE_WINDOW:
        return deliver(vcpu);
    case LEAVE_AGAIN:
        return take_back(vcpu);
    case LEAVE_ENDED:
        return false;
    case LEAVE_SHUTDOWN:
        return vmm_vcpu_end(vcpu->core, VCPU_SHUTDOWN, 0);
    default:
        if (engine_gave_up(vcpu->softcpu)) {
            vcpu->core->end.why = vcpu->softcpu->why_gave_up;
            return vmm_vcpu_end(vcpu->core, VCPU_INTERNAL_ERROR, SOFTCPU_END_GAVE_UP);
        }
        return vmm_vcpu_end(vcpu->core, VCPU_INTERNAL_ERROR, SOFTCPU_END_UNREPRESENTABLE);
    }
}

static bool begin(struct softcpu_vcpu *vcpu)
{
    uint32_t state;
    bool loaded;

    /* First, for it makes KVM accept an INIT or a SIPI, which changes the registers. */
    if (!get_mp_state(vcpu, &state)) {
        return false;
    }
    lock_acquire(vcpu);
    loaded = state_load_all(vcpu);
    lock_release(vcpu);
    if (!loaded || !look_for_unfinished_delivery(vcpu, &vcpu->unfinished)) {
        return false;
    }
    vcpu->shutdown = false;
    vcpu->abort = false;
    vcpu->halted = state == KVM_MP_STATE_HALTED;
    vcpu->waiting = state == KVM_MP_STATE_UNINITIALIZED || state == KVM_MP_STATE_INIT_RECEIVED;
    if (!vcpu->waiting) {
        /* An AP, too: its SIPI may have come before this thread did. */
        if (!vcpu->softcpu->core->note_start(vcpu->core) || !set_mp_state(vcpu, KVM_MP_STATE_HALTED)) {
            return false;
        }
    }
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    return interrupts_note_timer(vcpu);
}

/* Leave the vCPU in KVM as if KVM had run it; what fails here ends the run if nothing else has. */
static void finish(struct softcpu_vcpu *vcpu)
{
    uint32_t state;

    if (!vcpu->waiting) {
        state_store_all(vcpu);
    }
    set_stepping(vcpu, 0);
    /* A step that failed has left the vCPU runnable already. */
    if (!vcpu->waiting && !vcpu->halted && get_mp_state(vcpu, &state) && state == KVM_MP_STATE_HALTED) {
        set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
    }
}

int softcpu_vcpu_run(struct vmm_vcpu *core)
{
    struct softcpu_vcpu *vcpu = core->engine;

    if (vcpu->softcpu->core->enter(core) && begin(vcpu)) {
        while (run_round(vcpu)) {
        }
        finish(vcpu);
    }
    vcpu->softcpu->core->leave(core);
    return (int)core->end.outcome;
}
