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
    return __atomic_load_n(&vcpu->softcpu->vm->stop, __ATOMIC_SEQ_CST) != 0;
}

static bool end_run(struct softcpu_vcpu *vcpu, enum vcpu_outcome outcome, uint64_t detail)
{
    vcpu->core->end.outcome = outcome;
    vcpu->core->end.detail = detail;
    if (outcome == VCPU_SHUTDOWN) {
        vcpu->core->end.kvm_exit_reason = KVM_EXIT_SHUTDOWN;
    }
    return false;
}

static bool end_with_errno(struct softcpu_vcpu *vcpu, int error)
{
    vcpu->core->end.error = error < 0 ? -error : error;
    return end_run(vcpu, VCPU_ERROR, 0);
}

static bool set_mp_state(struct softcpu_vcpu *vcpu, uint32_t value)
{
    struct kvm_mp_state state = {.mp_state = value};

    return ioctl(vcpu->core->fd, KVM_SET_MP_STATE, &state) == 0;
}

static uint32_t mp_state(struct softcpu_vcpu *vcpu)
{
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};

    ioctl(vcpu->core->fd, KVM_GET_MP_STATE, &state);
    return state.mp_state;
}

static bool set_stepping(struct softcpu_vcpu *vcpu, uint32_t control)
{
    struct kvm_guest_debug debug = {.control = control};

    return ioctl(vcpu->core->fd, KVM_SET_GUEST_DEBUG, &debug) == 0;
}

/* A signal came after KVM took the interrupt from its controller and before the vCPU saw it: only KVM can go on. */
static bool delivery_unfinished(const struct softcpu_vcpu *vcpu)
{
    struct kvm_vcpu_events events;

    return ioctl(vcpu->core->fd, KVM_GET_VCPU_EVENTS, &events) == 0 &&
           (events.interrupt.injected || events.nmi.injected || events.exception.injected);
}

/* The caller has switched stepping on. */
static enum ran enter_kvm(struct softcpu_vcpu *vcpu, uint32_t ticks)
{
    struct kvm_run *run = vcpu->core->run;

    for (;;) {
        int result = bounded_kvm_run(vcpu, ticks);
        bool access;

        if (result == 0 && run->exit_reason == KVM_EXIT_DEBUG) {
            return RAN_INSTRUCTION;
        }
        if (result == 0 && run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
            run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
            return RAN_REFUSED;
        }
        if (result != 0 && (errno == EINTR || errno == EAGAIN)) {
            __atomic_fetch_add(&vcpu->core->interrupted, errno == EINTR, __ATOMIC_RELAXED);
            if (delivery_unfinished(vcpu) && !stop_requested(vcpu)) {
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
                vcpu->softcpu->core->finish_access(vcpu->core);
                return RAN_INSTRUCTION;
            }
            return RAN_NOTHING;
        }
    }
}

/* After KVM ran: what the vCPU does next. */
static bool take_back(struct softcpu_vcpu *vcpu)
{
    uint32_t state = mp_state(vcpu);
    int error;

    vcpu->waiting = state == KVM_MP_STATE_UNINITIALIZED || state == KVM_MP_STATE_INIT_RECEIVED;
    if (vcpu->waiting) {
        vcpu->halted = false;
        return true;
    }
    vcpu->softcpu->core->note_start(vcpu->core);
    CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
    error = state_load(vcpu);
    if (error != 0) {
        return end_with_errno(vcpu, error);
    }
    /* Still halted: nothing arrived (yet). */
    vcpu->halted = vcpu->halted && state == KVM_MP_STATE_HALTED;
    if (state != KVM_MP_STATE_HALTED && !set_mp_state(vcpu, KVM_MP_STATE_HALTED)) {
        return end_with_errno(vcpu, errno);
    }
    return true;
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

    return (ioctl(vcpu->core->fd, KVM_SET_REGS, &nowhere) == 0 &&
            set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)) ||
           end_with_errno(vcpu, errno);
}

static bool wait_for_start(struct softcpu_vcpu *vcpu)
{
    if (!set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)) {
        return end_with_errno(vcpu, errno);
    }
    return enter_kvm(vcpu, 0) != RAN_END && take_back(vcpu);
}

static bool give_to_kvm(struct softcpu_vcpu *vcpu)
{
    int error = state_store(vcpu);

    if (error != 0) {
        vcpu->core->end.error = -error;
        return end_run(vcpu, VCPU_INTERNAL_ERROR, SOFTCPU_END_REFUSED_STATE);
    }
    return true;
}

static bool halt(struct softcpu_vcpu *vcpu)
{
    if (!step_without_trap_flag(vcpu) || !give_to_kvm(vcpu)) {
        return false;
    }
    if (enter_kvm(vcpu, 0) == RAN_END || !take_back(vcpu)) {
        return false;
    }
    if (!vcpu->halted) {
        vcpu->interrupts++;
        interrupts_after_delivery(vcpu);
    }
    return true;
}

static bool deliver(struct softcpu_vcpu *vcpu)
{
    if (!step_without_trap_flag(vcpu) || !give_to_kvm(vcpu)) {
        return false;
    }
    if (vcpu->unfinished && !set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)) {
        return end_with_errno(vcpu, errno);
    }
    vcpu->unfinished = false;
    switch (enter_kvm(vcpu, DELIVERY_TICKS)) {
    case RAN_END:
        return false;
    case RAN_NOTHING:
        break; /* it was not to be: masked by priority after all */
    default:
        vcpu->interrupts++;
        break;
    }
    interrupts_after_delivery(vcpu);
    return take_back(vcpu);
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
    if (!give_to_kvm(vcpu)) {
        return false;
    }
    if (!set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE) ||
        !set_stepping(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)) {
        return end_with_errno(vcpu, errno);
    }
    ran = enter_kvm(vcpu, STEP_TICKS);
    vcpu->kvm_steps++;
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
        interrupts_note_timer(vcpu);
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
        *next = LEAVE_ABORT;
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
        vcpu->halts++;
        return true;
    case LEAVE_WINDOW:
        return deliver(vcpu);
    case LEAVE_AGAIN:
        return take_back(vcpu);
    case LEAVE_SHUTDOWN:
        return end_run(vcpu, VCPU_SHUTDOWN, 0);
    default:
        return end_run(vcpu, VCPU_INTERNAL_ERROR, SOFTCPU_END_UNREPRESENTABLE);
    }
}

static bool begin(struct softcpu_vcpu *vcpu)
{
    uint32_t state = mp_state(vcpu);
    int error = state_load_all(vcpu);

    if (error != 0) {
        return end_with_errno(vcpu, error);
    }
    vcpu->shutdown = false;
    vcpu->abort = false;
    vcpu->unfinished = delivery_unfinished(vcpu);
    vcpu->halted = state == KVM_MP_STATE_HALTED;
    vcpu->waiting = state == KVM_MP_STATE_UNINITIALIZED || state == KVM_MP_STATE_INIT_RECEIVED;
    if (!vcpu->waiting) {
        /* An AP, too: its SIPI may have come before this thread did. */
        vcpu->softcpu->core->note_start(vcpu->core);
        if (!set_mp_state(vcpu, KVM_MP_STATE_HALTED)) {
            return end_with_errno(vcpu, errno);
        }
    }
    interrupts_note_timer(vcpu);
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    return true;
}

static void finish(struct softcpu_vcpu *vcpu)
{
    int error = vcpu->waiting ? 0 : state_store_all(vcpu);

    set_stepping(vcpu, 0);
    /* A step that failed has left the vCPU runnable already. */
    if (!vcpu->waiting && !vcpu->halted && mp_state(vcpu) == KVM_MP_STATE_HALTED) {
        set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
    }
    if (error != 0 && vcpu->core->end.outcome == VCPU_STOPPED) {
        end_with_errno(vcpu, error);
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
