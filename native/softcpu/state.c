/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The guest's registers between KVM and the engine's CPU structure, at the
 * beginning and the end of a run: in between they are the engine's alone.
 *
 * KVM takes what it can represent of them (not paging outside long mode, for
 * one, without hardware virtualization). The engine keeps its own, and goes on
 * from there unless somebody has changed KVM's meanwhile.
 */
#include "engine.h"

#include "fxsave.h"

static void load_segment(SegmentCache *to, const struct kvm_segment *from)
{
    to->selector = from->selector;
    to->base = from->base;
    to->limit = from->limit;
    /* The layout of a descriptor's high half; of a null selector only the privilege level counts. */
    to->flags = (uint32_t)from->dpl << DESC_DPL_SHIFT;
    if (!from->unusable) {
        to->flags |= ((uint32_t)from->type << DESC_TYPE_SHIFT) | ((uint32_t)from->s << DESC_S_SHIFT) |
                     (from->present ? DESC_P_MASK : 0) | (from->avl ? DESC_AVL_MASK : 0) |
                     ((uint32_t)from->l << DESC_L_SHIFT) | ((uint32_t)from->db << DESC_B_SHIFT) |
                     (from->g ? DESC_G_MASK : 0);
    }
}

static void store_segment(struct kvm_segment *to, const SegmentCache *from)
{
    *to = (struct kvm_segment){
        .selector = (uint16_t)from->selector,
        .base = from->base,
        .limit = from->limit,
        .type = (from->flags >> DESC_TYPE_SHIFT) & 15,
        .s = (from->flags >> DESC_S_SHIFT) & 1,
        .dpl = (from->flags >> DESC_DPL_SHIFT) & 3,
        .present = (from->flags & DESC_P_MASK) != 0,
        .avl = (from->flags & DESC_AVL_MASK) != 0,
        .l = (from->flags >> DESC_L_SHIFT) & 1,
        .db = (from->flags >> DESC_B_SHIFT) & 1,
        .g = (from->flags & DESC_G_MASK) != 0,
        .unusable = (from->flags & DESC_P_MASK) == 0,
    };
}

/* KVM's order, with the engine's index of each. */
static const uint8_t engine_register[] = {
    R_EAX, R_EBX, R_ECX, R_EDX, R_ESI, R_EDI, R_ESP, R_EBP, 8, 9, 10, 11, 12, 13, 14, 15,
};

static const uint8_t engine_segment[] = {R_CS, R_DS, R_ES, R_FS, R_GS, R_SS};

static void load_regs(CPUX86State *env, const struct kvm_regs *regs)
{
    const __u64 *from = &regs->rax;

    for (size_t i = 0; i < ARRAY_SIZE(engine_register); i++) {
        env->regs[engine_register[i]] = from[i];
    }
    env->eip = regs->rip;
    env->eflags = regs->rflags;
}

static void store_regs(struct softcpu_vcpu *vcpu, struct kvm_regs *regs)
{
    const CPUX86State *env = &vcpu->cpu.env;
    __u64 *to = &regs->rax;

    for (size_t i = 0; i < ARRAY_SIZE(engine_register); i++) {
        to[i] = env->regs[engine_register[i]];
    }
    regs->rip = env->eip;
    regs->rflags = env->eflags;
}

static void load_sregs(CPUX86State *env, const struct kvm_sregs *sregs)
{
    const struct kvm_segment *from = &sregs->cs;

    for (size_t i = 0; i < ARRAY_SIZE(engine_segment); i++) {
        load_segment(&env->segs[engine_segment[i]], &from[i]);
    }
    load_segment(&env->tr, &sregs->tr);
    load_segment(&env->ldt, &sregs->ldt);
    env->gdt.base = sregs->gdt.base;
    env->gdt.limit = sregs->gdt.limit;
    env->idt.base = sregs->idt.base;
    env->idt.limit = sregs->idt.limit;
    env->cr[0] = sregs->cr0;
    env->cr[2] = sregs->cr2;
    env->cr[3] = sregs->cr3;
    env->cr[4] = sregs->cr4;
    env->v_tpr = (uint8_t)sregs->cr8;
    env->efer = sregs->efer;
}

static void store_sregs(const struct softcpu_vcpu *vcpu, struct kvm_sregs *sregs)
{
    const CPUX86State *env = &vcpu->cpu.env;
    struct kvm_segment *to = &sregs->cs;

    *sregs = (struct kvm_sregs){.apic_base = vcpu->apic_base};
    for (size_t i = 0; i < ARRAY_SIZE(engine_segment); i++) {
        store_segment(&to[i], &env->segs[engine_segment[i]]);
    }
    store_segment(&sregs->tr, &env->tr);
    sregs->tr.type |= 2; /* LTR marks a TSS busy; hardware keeps it so in the cached descriptor */
    store_segment(&sregs->ldt, &env->ldt);
    sregs->gdt.base = env->gdt.base;
    sregs->gdt.limit = (uint16_t)env->gdt.limit;
    sregs->idt.base = env->idt.base;
    sregs->idt.limit = (uint16_t)env->idt.limit;
    sregs->cr0 = env->cr[0];
    sregs->cr2 = env->cr[2];
    sregs->cr3 = env->cr[3];
    sregs->cr4 = env->cr[4];
    sregs->cr8 = env->v_tpr;
    sregs->efer = env->efer;
}

/* Into the engine, where they are not what it has itself. */
static void load_registers(struct softcpu_vcpu *vcpu, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
    CPUX86State *env = &vcpu->cpu.env;

    if (!vcpu->stored || memcmp(regs, &vcpu->stored_regs, sizeof(*regs)) != 0) {
        load_regs(env, regs);
        env->hflags &= ~(uint32_t)HF_INHIBIT_IRQ_MASK;
    }
    if (!vcpu->stored || memcmp(sregs, &vcpu->stored_sregs, sizeof(*sregs)) != 0) {
        load_sregs(env, sregs);
        vcpu->apic_base = sregs->apic_base;
        __atomic_store_n(&vcpu->flush_tlb, true, __ATOMIC_RELAXED);
    }
    vcpu->stored = false;
    x86_update_hflags(env);
    env->hflags2 |= HF2_GIF_MASK;
    env->old_exception = -1;
    env->a20_mask = -1;
}

static bool get_registers(struct softcpu_vcpu *vcpu, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
    return vmm_vcpu_ioctl(vcpu->core, KVM_GET_REGS, regs) && vmm_vcpu_ioctl(vcpu->core, KVM_GET_SREGS, sregs);
}

/* Intel SDM, volume 3, table 10-1: INIT leaves caching as it is. */
#define CR0_CACHING (1u << 30 | 1u << 29)

bool state_load_reset(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;
    target_ulong caching = env->cr[0] & CR0_CACHING;
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    if (!get_registers(vcpu, &regs, &sregs)) {
        return false;
    }
    sregs.apic_base = vcpu->apic_base;
    load_registers(vcpu, &regs, &sregs);
    env->cr[0] = (env->cr[0] & ~(target_ulong)CR0_CACHING) | caching;
    env->hflags2 &= ~(uint32_t)HF2_NMI_MASK;
    vcpu->nmi_masked = false;
    return true;
}

/*
 * KVM that is virtualized in software takes paging outside long mode without a
 * word and drops it; interrupts in the stubs of the next run are triple faults.
 */
static bool kvm_may_have(const struct kvm_sregs *sregs)
{
    return (sregs->cr0 & CR0_PG_MASK) == 0 || (sregs->efer & MSR_EFER_LMA) != 0;
}

static bool store_registers(struct softcpu_vcpu *vcpu)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs;

    store_regs(vcpu, &regs);
    store_sregs(vcpu, &sregs);
    if (kvm_may_have(&sregs)) {
        /* It may refuse special registers that the engine runs with, and keeps the stubs' then. */
        vcpu->core->request(vcpu->core, KVM_SET_SREGS, &sregs);
    }
    if (!vmm_vcpu_ioctl(vcpu->core, KVM_SET_REGS, &regs) ||
        !get_registers(vcpu, &vcpu->stored_regs, &vcpu->stored_sregs)) {
        return false;
    }
    vcpu->stored = true;
    return true;
}

void softcpu_amend_sregs(const struct vmm_vcpu *core, struct kvm_sregs *sregs)
{
    const struct softcpu_vcpu *vcpu = core->engine;

    if (vcpu->stored && memcmp(sregs, &vcpu->stored_sregs, sizeof(*sregs)) == 0) {
        store_sregs(vcpu, sregs);
    }
}

/* Of the status word: which physical register is the top of the stack. */
#define FSW_TOP 0x3800u
#define FSW_TOP_SHIFT 11

/* Intel SDM volume 1, 13.4.2: the components that an XSAVE area has; the others are as after a reset. */
#define XSTATE_X87_AND_SSE 3u

/*
 * By KVM's XSAVE area, where all is: KVM_SET_FPU leaves XSTATE_BV, and so XMM
 * registers are lost where the processor found them all zero before.
 */
union fpu_area {
    struct kvm_xsave kvm;
    struct {
        struct fxsave_area legacy;
        uint64_t xstate_bv;
    };
};

static bool load_fpu(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;
    union fpu_area area;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_XSAVE, &area.kvm)) {
        return false;
    }
    env->fpstt = (area.legacy.status & FSW_TOP) >> FSW_TOP_SHIFT;
    env->fpus = (uint16_t)(area.legacy.status & ~FSW_TOP);
    for (uint32_t i = 0; i < 8; i++) {
        env->fptags[i] = !((area.legacy.valid >> i) & 1);
        memcpy(&env->fpregs[(env->fpstt + i) & 7].d, area.legacy.st[i], 10);
    }
    for (int i = 0; i < 16; i++) {
        memcpy(&env->xmm_regs[i], area.legacy.xmm[i], 16);
    }
    cpu_set_fpuc(env, area.legacy.control);
    cpu_set_mxcsr(env, area.legacy.mxcsr);
    return true;
}

static bool store_fpu(struct softcpu_vcpu *vcpu)
{
    const CPUX86State *env = &vcpu->cpu.env;
    union fpu_area area;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_XSAVE, &area.kvm)) {
        return false;
    }
    area.legacy.status = (uint16_t)((env->fpus & ~FSW_TOP) | (env->fpstt << FSW_TOP_SHIFT & FSW_TOP));
    area.legacy.control = env->fpuc;
    area.legacy.mxcsr = env->mxcsr;
    area.legacy.valid = 0;
    for (uint32_t i = 0; i < 8; i++) {
        area.legacy.valid |= (uint8_t)((!env->fptags[i]) << i);
        memcpy(area.legacy.st[i], &env->fpregs[(env->fpstt + i) & 7].d, 10);
    }
    for (int i = 0; i < 16; i++) {
        memcpy(area.legacy.xmm[i], &env->xmm_regs[i], 16);
    }
    area.xstate_bv |= XSTATE_X87_AND_SSE;
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_XSAVE, &area.kvm);
}

struct debug_registers {
    struct softcpu_vcpu *vcpu;
    struct kvm_debugregs kvm;
};

/* Breakpoints that come or go drop all translations. */
static void set_debug_registers(void *opaque)
{
    const struct debug_registers *registers = opaque;
    CPUX86State *env = &registers->vcpu->cpu.env;

    /* Disarmed first: breakpoints are listed by their addresses. */
    cpu_x86_update_dr7(env, 0);
    for (int i = 0; i < 4; i++) {
        env->dr[i] = registers->kvm.db[i];
    }
    env->dr[6] = registers->kvm.dr6;
    cpu_x86_update_dr7(env, (uint32_t)registers->kvm.dr7);
    __atomic_store_n(&registers->vcpu->flush_tlb, true, __ATOMIC_RELAXED);
    if ((registers->kvm.dr7 & 0xff) != 0) {
        memory_drop_all_code(registers->vcpu->softcpu);
    }
}

static bool load_debug_registers(struct softcpu_vcpu *vcpu)
{
    struct debug_registers registers = {.vcpu = vcpu};

    lock_assert_owner(vcpu);
    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_DEBUGREGS, &registers.kvm)) {
        return false;
    }
    /* Where the engine has given up, there is nothing left that they would matter to. */
    rescue_run(vcpu->softcpu, set_debug_registers, &registers);
    return true;
}

static bool store_debug_registers(struct softcpu_vcpu *vcpu)
{
    const CPUX86State *env = &vcpu->cpu.env;
    struct kvm_debugregs registers = {.dr6 = env->dr[6], .dr7 = env->dr[7]};

    for (int i = 0; i < 4; i++) {
        registers.db[i] = env->dr[i];
    }
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_DEBUGREGS, &registers);
}

bool state_load(struct softcpu_vcpu *vcpu)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    if (!get_registers(vcpu, &regs, &sregs) || !load_fpu(vcpu)) {
        return false;
    }
    load_registers(vcpu, &regs, &sregs);
    engine_msrs_load(vcpu);
    return load_debug_registers(vcpu);
}

bool state_store(struct softcpu_vcpu *vcpu)
{
    return store_registers(vcpu) && store_fpu(vcpu) && engine_msrs_store(vcpu) && store_debug_registers(vcpu);
}

#define SEGMENTS 8

/* Their order in softcpu_vcpu_state. */
static SegmentCache *segment(CPUX86State *env, size_t at)
{
    return at < ARRAY_SIZE(engine_segment) ? &env->segs[engine_segment[at]] : at == SEGMENTS - 1 ? &env->ldt : &env->tr;
}

bool softcpu_save_vcpu(struct vmm_vcpu *core, struct softcpu_vcpu_state *state)
{
    struct softcpu_vcpu *vcpu = core->engine;
    CPUX86State *env = &vcpu->cpu.env;
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    memset(state, 0, sizeof(*state)); /* padding too, for it goes into a file */
    state->acknowledged = vcpu->acknowledged;
    state->debug_trap = vcpu->debug_trap;
    state->tsc_deadline = vcpu->tsc_deadline;
    state->nmi_masked = vcpu->nmi_masked;
    state->smbase = env->smbase;
    state->smi_pending = vcpu->smi_pending;
    state->init_latched = vcpu->init_latched;
    state->timer_runs = vcpu->timer_due_ns != 0;
    state->msr_count = engine_msrs_save(vcpu, state->msrs);
    if (!vcpu->stored) {
        return true;
    }
    /* Somebody may have changed KVM's since. */
    if (!get_registers(vcpu, &regs, &sregs)) {
        return false;
    }
    load_registers(vcpu, &regs, &sregs);
    if (!store_registers(vcpu)) {
        return false;
    }
    state->has_registers = true;
    store_regs(vcpu, &state->regs);
    store_sregs(vcpu, &state->sregs);
    for (size_t i = 0; i < SEGMENTS; i++) {
        state->segment_flags[i] = segment(env, i)->flags;
    }
    state->hflags = env->hflags;
    state->hflags2 = env->hflags2;
    return true;
}

bool softcpu_restore_vcpu(struct vmm_vcpu *core, const struct softcpu_vcpu_state *state)
{
    struct softcpu_vcpu *vcpu = core->engine;
    CPUX86State *env = &vcpu->cpu.env;

    vcpu->acknowledged = state->acknowledged;
    vcpu->debug_trap = state->debug_trap;
    vcpu->nmi_masked = state->nmi_masked;
    env->smbase = state->smbase;
    vcpu->smi_pending = state->smi_pending;
    vcpu->init_latched = state->init_latched;
    /* If it is over by then, it is due at once. */
    vcpu->timer_due_ns = state->timer_runs;
    engine_msrs_restore(vcpu, state->msrs);
    if (!msr_set_deadline(vcpu, state->tsc_deadline)) {
        return vmm_vcpu_fail(core, KVM_SET_MSRS, EINVAL);
    }
    if (!state->has_registers) {
        return true;
    }
    load_regs(env, &state->regs);
    load_sregs(env, &state->sregs);
    for (size_t i = 0; i < SEGMENTS; i++) {
        segment(env, i)->flags = state->segment_flags[i];
    }
    vcpu->apic_base = state->sregs.apic_base;
    env->hflags = state->hflags;
    env->hflags2 = state->hflags2;
    core->smm = in_smm(vcpu);
    __atomic_store_n(&vcpu->flush_tlb, true, __ATOMIC_RELAXED);
    return store_registers(vcpu);
}
