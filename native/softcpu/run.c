/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One vCPU: translated code as long as nothing else is needed, and, on a thread
 * of its own, waiting for an interrupt, or to be started, at the boundary. With
 * virtual time one thread has all vCPUs (turns.c).
 */
#include "engine.h"

#define WINDOW_TICKS 2
#define LATE_TICK_TICKS 200

static bool stop_requested(const struct softcpu_vcpu *vcpu)
{
    return vmm_stop_requested(vcpu->softcpu->vm);
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

static bool is_parked(uint32_t mp_state)
{
    return mp_state == KVM_MP_STATE_UNINITIALIZED || mp_state == KVM_MP_STATE_INIT_RECEIVED;
}

/* What an INIT ends. */
static void forget_events(struct softcpu_vcpu *vcpu)
{
    vcpu->halted = false;
    vcpu->acknowledged = NOTHING_ACKNOWLEDGED;
    vcpu->debug_trap = 0;
    CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
    vcpu->tsc_deadline = 0;
}

/* After an INIT or SIPI: it waits, or begins where its registers say. */
static bool take_reset(struct softcpu_vcpu *vcpu)
{
    uint32_t state;

    if (in_smm(vcpu)) {
        /* Intel SDM volume 3, 10.4.7 and 32.3: an INIT waits, a SIPI is lost. The LAPIC is reset already. */
        vcpu->init_latched = true;
        return boundary_of(vcpu)->begin(vcpu);
    }
    if (!get_mp_state(vcpu, &state)) {
        return false;
    }
    vcpu->parked = is_parked(state);
    forget_events(vcpu);
    if (vcpu->parked) {
        return true;
    }
    return vcpu->softcpu->core->note_start(vcpu->core) && state_load_reset(vcpu) && boundary_of(vcpu)->begin(vcpu);
}

static bool wait_for_interrupt(struct softcpu_vcpu *vcpu, uint32_t ticks)
{
    bool reset;

    if (!boundary_of(vcpu)->wait(vcpu, engine_takes_interrupts(vcpu), ticks, &reset)) {
        return false;
    }
    if (reset) {
        return take_reset(vcpu);
    }
    if (vcpu->acknowledged != NOTHING_ACKNOWLEDGED) {
        vcpu->halted = false;
        count(&vcpu->interrupts);
    }
    return true;
}

static bool look_for_events(struct softcpu_vcpu *vcpu, int *next)
{
    if (vcpu->init_latched && !in_smm(vcpu)) {
        *next = LEAVE_INIT;
        return false;
    }
    if (smm_has_smi(vcpu)) {
        CPU(&vcpu->cpu)->interrupt_request |= CPU_INTERRUPT_SMI;
        return true;
    }
    if (breakpoints_trap_is_next(vcpu)) {
        /* Interrupts come behind it: at its handler, they are looked for again. */
        __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
        engine_ask_to_leave(vcpu);
    }
    if (vcpu->debug_trap != 0 || vcpu->acknowledged != NOTHING_ACKNOWLEDGED) {
        CPU(&vcpu->cpu)->interrupt_request |= CPU_INTERRUPT_HARD;
        return true;
    }
    if (!__atomic_load_n(&vcpu->look_at_kvm, __ATOMIC_RELAXED)) {
        return true;
    }
    switch (boundary_of(vcpu)->look(vcpu)) {
    case FOUND_INTERRUPT:
        if (boundary_of(vcpu)->acknowledge == NULL && engine_takes_interrupts(vcpu)) {
            *next = LEAVE_WINDOW;
            return false;
        }
        CPU(&vcpu->cpu)->interrupt_request |= CPU_INTERRUPT_HARD;
        return true;
    case FOUND_NMI:
        *next = LEAVE_WINDOW;
        return false;
    case FOUND_RESET:
        *next = LEAVE_RESET;
        return false;
    case FOUND_ERROR:
        *next = LEAVE_ENDED;
        return false;
    default:
        CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
        return true;
    }
}

/* What the engine owner does between two runs of translated code. False: give the engine up, `next` says for what. */
static bool look_before_running(struct softcpu_vcpu *vcpu, int *next)
{
    *next = 0;
    /* Also behind it: what a look at the chips calls may ask for a stop, before the next instruction. */
    return !stop_requested(vcpu) && look_for_events(vcpu, next) && !stop_requested(vcpu);
}

static void add_sample(struct softcpu_vcpu *vcpu)
{
    const CPUX86State *env = &vcpu->cpu.env;

    vcpu->softcpu->core->profile_add(vcpu->core->profile, env->segs[R_CS].base + env->eip);
}

/* Own the engine until something outside of it is needed; returns what. 0: stop. */
static int run_translated(struct softcpu_vcpu *vcpu)
{
    int next;

    lock_acquire(vcpu);
    if (debug_is_stepping(vcpu)) {
        next = debug_step(vcpu);
        lock_release(vcpu);
        return next;
    }
    while (look_before_running(vcpu, &next)) {
        next = engine_execute(vcpu);
        if (next == LEAVE_BREAKPOINT) {
            next = breakpoints_execute_one(vcpu);
            next = next == EXCP_DEBUG ? LEAVE_AGAIN : next;
        }
        if (next == EXCP_DEBUG) {
            vcpu->point = debug_breakpoint_here(vcpu);
        } else if (next == LEAVE_WATCHPOINT) {
            next = debug_step(vcpu);
        }
        if (vcpu->point != NO_POINT && next < LEAVE_ENDED) {
            vcpu->halted = vcpu->halted || next == LEAVE_HALT;
            next = LEAVE_DEBUG;
            break;
        }
        if (next == 0) {
            break;
        }
        if (next == LEAVE_PAUSE) {
            if (virtual_time_is_on(vcpu)) {
                virtual_time_pause(vcpu);
            } else if (__builtin_ia32_rdtsc() - vcpu->looked_tsc > PAUSE_LOOK_TSC) {
                __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
            }
            lock_yield(vcpu);
        } else if (next < LEAVE_HALT) {
            /* The ticker, or another thread that wants to be noticed. */
            __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
            if (vcpu->core->profile != NULL) {
                add_sample(vcpu);
            }
            lock_yield(vcpu);
        } else if (next != LEAVE_AGAIN) {
            break;
        }
        if (turns_is_over(vcpu)) {
            next = LEAVE_AGAIN;
            break;
        }
    }
    lock_release(vcpu);
    return next;
}

bool run_execute(struct softcpu_vcpu *vcpu)
{
    vcpu->halted = false;
    switch (run_translated(vcpu)) {
    case 0:
        return false;
    case LEAVE_AGAIN:
        return true;
    case LEAVE_HALT:
        vcpu->halted = true;
        count(&vcpu->halts);
        return true;
    case LEAVE_WINDOW:
        return wait_for_interrupt(vcpu, WINDOW_TICKS);
    case LEAVE_LATE_TICK:
        return wait_for_interrupt(vcpu, LATE_TICK_TICKS);
    case LEAVE_RESET:
        return take_reset(vcpu);
    case LEAVE_INIT:
        vcpu->init_latched = false;
        return boundary_of(vcpu)->send_init(vcpu);
    case LEAVE_DEBUG:
        vcpu->core->end.point = vcpu->point;
        return vmm_vcpu_end(vcpu->core, VCPU_DEBUG, 0);
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

bool run_is_awake(const struct softcpu_vcpu *vcpu)
{
    return !vcpu->parked && (!vcpu->halted || smm_has_smi(vcpu));
}

bool run_look_asleep(struct softcpu_vcpu *vcpu)
{
    bool reset;

    if (!vcpu->parked) {
        return wait_for_interrupt(vcpu, WINDOW_TICKS);
    }
    return boundary_of(vcpu)->find_reset(vcpu, &reset) && (!reset || take_reset(vcpu));
}

static bool run_round(struct softcpu_vcpu *vcpu)
{
    if (stop_requested(vcpu)) {
        return false;
    }
    if (vcpu->parked) {
        return boundary_of(vcpu)->wait_for_start(vcpu) && take_reset(vcpu);
    }
    if (!run_is_awake(vcpu)) {
        return wait_for_interrupt(vcpu, 0);
    }
    return run_execute(vcpu);
}

bool run_begin(struct softcpu_vcpu *vcpu)
{
    uint32_t state;
    bool loaded;

    /* First, for an INIT or a SIPI that waits takes effect by it, which changes the registers. */
    if (!get_mp_state(vcpu, &state)) {
        return false;
    }
    lock_acquire(vcpu);
    loaded = !stop_requested(vcpu) && state_load(vcpu) && debug_begin(vcpu);
    lock_release(vcpu);
    if (!loaded) {
        return false;
    }
    vcpu->shutdown = false;
    vcpu->abort = false;
    vcpu->halted = state == KVM_MP_STATE_HALTED;
    vcpu->parked = is_parked(state);
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    /* An AP, too, may be past its SIPI: that may have come before this thread did. */
    return vcpu->parked || (vcpu->softcpu->core->note_start(vcpu->core) && boundary_of(vcpu)->begin(vcpu));
}

void run_finish(struct softcpu_vcpu *vcpu)
{
    bool reset = false;

    if (vcpu->parked || !boundary_of(vcpu)->find_reset(vcpu, &reset)) {
        return;
    }
    if (reset) {
        forget_events(vcpu);
    } else {
        state_store(vcpu);
        boundary_of(vcpu)->end(vcpu, vcpu->halted);
    }
}

int softcpu_vcpu_run(struct vmm_vcpu *core)
{
    struct softcpu_vcpu *vcpu = core->engine;

    if (vcpu->softcpu->core->enter(core) && run_begin(vcpu)) {
        while (run_round(vcpu)) {
        }
        run_finish(vcpu);
    }
    vcpu->softcpu->core->leave(core);
    return (int)core->end.outcome;
}
