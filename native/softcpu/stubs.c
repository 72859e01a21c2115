/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What KVM executes: no instruction of the guest, only ours, in a page that
 * the guest does not see, and in a state that every KVM can represent (ring 0,
 * 32-bit protected mode, flat, unpaged). There are two kinds:
 *
 *   access   one MOV, IN or OUT that reaches a chip inside KVM
 *   wait     a NOP at which the vCPU halts until KVM has something for it. KVM
 *            acknowledges it at its interrupt controllers and delivers it by
 *            way of the page's IDT; the handler that it got to is the vector
 *
 * KVM is always single-stepped, so one instruction runs each time. Nothing
 * that the stubs push is ever looked at: all vCPUs have the page in common.
 *
 * After an INIT, KVM's vCPU has registers of its own making, outside the page.
 */
#include "kvm_around.h"

/* The page, one after the other; a handler is a NOP, one byte. */
#define IDT 0x000u
#define HANDLERS 0x800u
#define WAIT 0xa00u
#define ACCESSES 0xa40u
#define GDT 0xb00u
#define STACK_TOP STUB_PAGE_BYTES

#define NOP 0x90
#define ACCESS_BYTES 4u
#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define INTERRUPT_GATE 0x8e00u
#define EFLAGS_FIXED 2u
#define DR7_FIXED 0x400u

#define ACCESS_TICKS 50

/* By kind and size (1, 2, 4 bytes): the operand is AL, AX or EAX, the address [EBX] or DX. */
static const uint8_t accesses[][3][ACCESS_BYTES] = {
    [STUB_LOAD] = {{0x8a, 0x03}, {0x66, 0x8b, 0x03}, {0x8b, 0x03}},
    [STUB_STORE] = {{0x88, 0x03}, {0x66, 0x89, 0x03}, {0x89, 0x03}},
    [STUB_IN] = {{0xec}, {0x66, 0xed}, {0xed}},
    [STUB_OUT] = {{0xee}, {0x66, 0xef}, {0xef}},
};

_Static_assert(ACCESSES + sizeof(accesses) <= GDT, "the stubs overlap");

static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};

void stubs_write(uint8_t *page, uint32_t gpa)
{
    memset(page, NOP, STUB_PAGE_BYTES);
    for (uint32_t vector = 0; vector < 256; vector++) {
        uint32_t handler = gpa + HANDLERS + vector;
        uint32_t gate[] = {CODE_SELECTOR << 16 | (handler & 0xffff), (handler & 0xffff0000) | INTERRUPT_GATE};

        memcpy(page + IDT + vector * sizeof(gate), gate, sizeof(gate));
    }
    memcpy(page + ACCESSES, accesses, sizeof(accesses));
    memcpy(page + GDT, gdt, sizeof(gdt));
}

static bool in_page(const struct softcpu_vcpu *vcpu, uint64_t rip)
{
    return rip - vcpu->softcpu->stubs_gpa < STUB_PAGE_BYTES;
}

static bool set_mp_state(struct softcpu_vcpu *vcpu, uint32_t value)
{
    struct kvm_mp_state state = {.mp_state = value};

    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_MP_STATE, &state);
}

static bool set_debugging(struct softcpu_vcpu *vcpu, uint32_t control)
{
    struct kvm_guest_debug debug = {.control = control};

    if (vcpu->debugging == control) {
        return true;
    }
    vcpu->debugging = control;
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_GUEST_DEBUG, &debug);
}

bool stubs_enter(struct softcpu_vcpu *vcpu)
{
    uint32_t page = vcpu->softcpu->stubs_gpa;
    const struct kvm_segment data = {
        .selector = DATA_SELECTOR, .limit = 0xffffffff, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
    };
    struct kvm_segment code = data;
    struct kvm_debugregs no_breakpoints = {.dr7 = DR7_FIXED};

    code.selector = CODE_SELECTOR;
    code.type = 11;
    vcpu->kvm_sregs = (struct kvm_sregs){
        .cs = code,
        .ds = data,
        .es = data,
        .fs = data,
        .gs = data,
        .ss = data,
        .tr = {.limit = 0x67, .type = 11, .present = 1},
        .ldt = {.unusable = 1},
        .gdt = {.base = page + GDT, .limit = sizeof(gdt) - 1},
        .idt = {.base = page + IDT, .limit = HANDLERS - IDT - 1},
        .cr0 = CR0_PE_MASK | CR0_ET_MASK,
        .cr8 = vcpu->cpu.env.v_tpr,
        .apic_base = (vcpu->apic_base & ~APIC_BASE_ADDRESS) | APIC_DEFAULT_ADDRESS,
    };
    vcpu->core->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    vcpu->core->run->s.regs.regs = (struct kvm_regs){.rip = page + WAIT, .rflags = EFLAGS_FIXED};
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_DEBUGREGS, &no_breakpoints) &&
           vmm_vcpu_ioctl(vcpu->core, KVM_SET_SREGS, &vcpu->kvm_sregs) &&
           vmm_vcpu_ioctl(vcpu->core, KVM_SET_REGS, &vcpu->core->run->s.regs.regs) &&
           set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
}

bool stubs_leave(struct softcpu_vcpu *vcpu, bool halted)
{
    vcpu->core->run->kvm_valid_regs = 0;
    return set_debugging(vcpu, 0) && set_mp_state(vcpu, halted ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE);
}

bool stubs_find_reset(struct softcpu_vcpu *vcpu, bool *reset)
{
    struct kvm_mp_state state;
    struct kvm_regs regs;

    /* KVM accepts an INIT or SIPI when it is asked for the state. */
    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_MP_STATE, &state) || !vmm_vcpu_ioctl(vcpu->core, KVM_GET_REGS, &regs)) {
        return false;
    }
    *reset = !in_page(vcpu, regs.rip);
    return true;
}

bool stubs_set_priority(struct softcpu_vcpu *vcpu)
{
    if (vcpu->kvm_sregs.cr8 == vcpu->cpu.env.v_tpr) {
        return true;
    }
    vcpu->kvm_sregs.cr8 = vcpu->cpu.env.v_tpr;
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_SREGS, &vcpu->kvm_sregs);
}

/* KVM_RUN that returns with EINTR after about that many ticks; 0: unbounded. */
static int bounded_run(struct softcpu_vcpu *vcpu, uint32_t ticks)
{
    struct softcpu *softcpu = vcpu->softcpu;
    int result;

    if (ticks == 0) {
        return ioctl(vcpu->core->fd, KVM_RUN, 0);
    }
    vcpu->thread = pthread_self();
    __atomic_store_n(&vcpu->kick_after_ticks, ticks, __ATOMIC_RELEASE);
    if (__atomic_fetch_add(&softcpu->bounded_stays, 1, __ATOMIC_ACQ_REL) == 0) {
        pthread_mutex_lock(&softcpu->lock_mutex);
        pthread_cond_signal(&softcpu->ticker_wake);
        pthread_mutex_unlock(&softcpu->lock_mutex);
    }
    result = ioctl(vcpu->core->fd, KVM_RUN, 0);
    /* With the lock that the ticker kicks under: it must not send a signal to a thread that has ended meanwhile. */
    pthread_mutex_lock(&softcpu->lock_mutex);
    __atomic_store_n(&vcpu->kick_after_ticks, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&softcpu->lock_mutex);
    __atomic_fetch_sub(&softcpu->bounded_stays, 1, __ATOMIC_ACQ_REL);
    return result;
}

bool stubs_run_kvm(struct softcpu_vcpu *vcpu, uint32_t ticks)
{
    struct vmm_vcpu *core = vcpu->core;
    int result = bounded_run(vcpu, ticks);

    if (result == 0 && core->run->exit_reason == KVM_EXIT_DEBUG) {
        return true;
    }
    if (result != 0 && (errno == EINTR || errno == EAGAIN)) {
        __atomic_fetch_add(&core->interrupted, errno == EINTR, __ATOMIC_RELAXED);
    } else {
        /* A port or an address at which KVM has no chip after all: the machine may have one. */
        vcpu->softcpu->core->serve_exit(core, result);
        if (core->end.outcome != VCPU_STOPPED || !vcpu->softcpu->core->finish_access(core)) {
            return false;
        }
    }
    /* Whoever set it has asked for a stop before, which is looked for before the next wait. */
    __atomic_store_n(&core->run->immediate_exit, 0, __ATOMIC_RELAXED);
    return true;
}

static void set_regs(struct softcpu_vcpu *vcpu, const struct kvm_regs *regs)
{
    struct kvm_run *run = vcpu->core->run;

    run->s.regs.regs = *regs;
    run->s.regs.regs.rsp = vcpu->softcpu->stubs_gpa + STACK_TOP;
    run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
}

bool stubs_access(struct softcpu_vcpu *vcpu, enum stub_access kind, uint32_t address, uint32_t size, uint32_t *value)
{
    const struct kvm_regs *regs = &vcpu->core->run->s.regs.regs;
    size_t offset = ACCESSES + (uint32_t)(&accesses[kind][size / 2][0] - &accesses[0][0][0]);
    uint64_t rip = vcpu->softcpu->stubs_gpa + offset;

    if (!stubs_set_priority(vcpu) ||
        !set_debugging(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)) {
        return false;
    }
    set_regs(vcpu, &(struct kvm_regs){
                       .rax = *value, .rbx = address, .rdx = address, .rip = rip, .rflags = EFLAGS_FIXED});
    do {
        if (!stubs_run_kvm(vcpu, ACCESS_TICKS)) {
            return false;
        }
    } while (regs->rip == rip); /* a signal came first */
    *value = in_page(vcpu, regs->rip) ? (uint32_t)regs->rax : UINT32_MAX;
    count(&vcpu->kvm_steps);
    return true;
}

/* Which vector KVM has acknowledged, if it has. */
static bool take_vector(struct softcpu_vcpu *vcpu)
{
    uint64_t handler = vcpu->core->run->s.regs.regs.rip - 1 - (vcpu->softcpu->stubs_gpa + HANDLERS);
    struct kvm_vcpu_events events;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_VCPU_EVENTS, &events)) {
        return false;
    }
    vcpu->acknowledged = handler < 256 ? (int)handler : NOTHING_ACKNOWLEDGED;
    if (events.nmi.masked && !vcpu->nmi_masked) {
        vcpu->nmi_masked = true;
        vcpu->cpu.env.hflags2 |= HF2_NMI_MASK;
    }
    if (!events.interrupt.injected && !events.nmi.injected) {
        return true;
    }
    /* A signal came between KVM's acknowledging and its delivery. */
    vcpu->acknowledged = events.nmi.injected ? EXCP02_NMI : events.interrupt.nr;
    events.flags = 0;
    events.nmi.injected = 0;
    events.interrupt.injected = 0;
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_VCPU_EVENTS, &events);
}

bool stubs_wait(struct softcpu_vcpu *vcpu, bool interrupts, uint32_t ticks, bool *reset)
{
    set_regs(vcpu, &(struct kvm_regs){
                       .rip = vcpu->softcpu->stubs_gpa + WAIT, .rflags = EFLAGS_FIXED | (interrupts ? IF_MASK : 0)});
    if (!stubs_set_priority(vcpu) || !set_debugging(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP) ||
        !set_mp_state(vcpu, KVM_MP_STATE_HALTED) || !stubs_run_kvm(vcpu, ticks)) {
        return false;
    }
    *reset = !in_page(vcpu, vcpu->core->run->s.regs.regs.rip);
    return *reset || (take_vector(vcpu) && set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE));
}
