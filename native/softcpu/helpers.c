/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Instructions whose effect lies outside the engine: they replace Unicorn's
 * helpers of the same names by way of the linker.
 *
 * A helper called from translated code finds all registers in env but not RIP;
 * GETPC() tells where in the code it was called, from which RIP is recovered.
 */
#include "engine.h"

static void set_edx_eax(CPUX86State *env, uint64_t value)
{
    env->regs[R_EAX] = (uint32_t)value;
    env->regs[R_EDX] = value >> 32;
}

void WRAP(helper_rdmsr)(CPUX86State *env)
{
    uint64_t value;

    if (!msr_read(owner_of(env), (uint32_t)env->regs[R_ECX], &value)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    set_edx_eax(env, value);
}

void WRAP(helper_wrmsr)(CPUX86State *env)
{
    uint64_t value = (uint32_t)env->regs[R_EAX] | (uint64_t)(uint32_t)env->regs[R_EDX] << 32;

    if (!msr_write(owner_of(env), (uint32_t)env->regs[R_ECX], value)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}

/*
 * On a CPU, what was due earlier comes before a RDTSC that shows a later time.
 * Where the host gave this thread no time for a while, the guest is interrupted
 * first; Linux counts a timer's ticks until so much of the TSC is over.
 */
static void look_before_late_time(CPUX86State *env, uintptr_t return_address)
{
    struct softcpu_vcpu *vcpu = owner_of(env);
    uint64_t now = __builtin_ia32_rdtsc();

    if (vcpu->executes_one || virtual_time_is_on(vcpu) || !engine_takes_interrupts(vcpu)) {
        return;
    }
    if (boundary_of(vcpu)->tick_is_late != NULL && boundary_of(vcpu)->tick_is_late(vcpu)) {
        engine_leave_before(vcpu, LEAVE_LATE_TICK, return_address);
    }
    if (now - vcpu->looked_tsc > LATE_TSC) {
        vcpu->looked_tsc = now;
        __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
        engine_leave_before(vcpu, LEAVE_AGAIN, return_address);
    }
}

void WRAP(helper_rdtsc)(CPUX86State *env)
{
    if ((env->cr[4] & CR4_TSD_MASK) && (env->hflags & HF_CPL_MASK) != 0) {
        raise_exception_ra(env, EXCP0D_GPF, GETPC());
    }
    look_before_late_time(env, GETPC());
    virtual_time_spend(owner_of(env));
    set_edx_eax(env, guest_tsc(owner_of(env)));
}

void WRAP(helper_rdtscp)(CPUX86State *env)
{
    if ((env->cr[4] & CR4_TSD_MASK) && (env->hflags & HF_CPL_MASK) != 0) {
        raise_exception_ra(env, EXCP0D_GPF, GETPC());
    }
    look_before_late_time(env, GETPC());
    virtual_time_spend(owner_of(env));
    set_edx_eax(env, guest_tsc(owner_of(env)));
    env->regs[R_ECX] = (uint32_t)env->tsc_aux;
}

void WRAP(helper_cpuid)(CPUX86State *env)
{
    const struct softcpu_vcpu *vcpu = owner_of(env);
    uint32_t function = (uint32_t)env->regs[R_EAX];
    const struct softcpu_cpuid_leaf *leaf = engine_cpuid(vcpu, function, (uint32_t)env->regs[R_ECX]);

    env->regs[R_EAX] = leaf == NULL ? 0 : leaf->eax;
    env->regs[R_EBX] = leaf == NULL ? 0 : leaf->ebx;
    env->regs[R_ECX] = leaf == NULL ? 0 : leaf->ecx;
    env->regs[R_EDX] = leaf == NULL ? 0 : leaf->edx;
    if (function == 1 && !(vcpu->apic_base & MSR_IA32_APICBASE_ENABLE)) {
        env->regs[R_EDX] &= ~(target_ulong)CPUID_APIC;
    }
}

/* An NMI that came meanwhile is next. */
static void after_iret(CPUX86State *env)
{
    struct softcpu_vcpu *vcpu = owner_of(env);

    if (vcpu->nmi_masked && !(env->hflags2 & HF2_NMI_MASK)) {
        __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
        engine_ask_to_leave(vcpu);
    }
}

/*
 * A return to an outer ring empties selectors of segments that are above it
 * (Intel SDM volume 2, IRET), and leaves the bases, by which 64-bit code goes
 * with FS and GS. Unicorn's empties all. What it loads in virtual 8086 mode stays.
 */
static void keep_bases(CPUX86State *env, target_ulong fs, target_ulong gs)
{
    if (!(env->eflags & VM_MASK)) {
        env->segs[R_FS].base = fs;
        env->segs[R_GS].base = gs;
    }
}

/* It may fault, and its caller is not translated code: RIP and the flags' state are restored first. */
void WRAP(helper_iret_real)(CPUX86State *env, int shift)
{
    cpu_restore_state(env_cpu(env), GETPC(), false);
    REAL(helper_iret_real)(env, shift);
    after_iret(env);
}

void WRAP(helper_iret_protected)(CPUX86State *env, int shift, int next_eip)
{
    target_ulong fs = env->segs[R_FS].base;
    target_ulong gs = env->segs[R_GS].base;

    cpu_restore_state(env_cpu(env), GETPC(), false);
    REAL(helper_iret_protected)(env, shift, next_eip);
    keep_bases(env, fs, gs);
    after_iret(env);
}

void WRAP(helper_lret_protected)(CPUX86State *env, int shift, int addend)
{
    target_ulong fs = env->segs[R_FS].base;
    target_ulong gs = env->segs[R_GS].base;

    cpu_restore_state(env_cpu(env), GETPC(), false);
    REAL(helper_lret_protected)(env, shift, addend);
    keep_bases(env, fs, gs);
}

void WRAP(helper_hlt)(CPUX86State *env, int length)
{
    env->eip += (target_ulong)length;
    env->hflags &= ~(uint32_t)HF_INHIBIT_IRQ_MASK;
    if (env->eflags & TF_MASK) {
        breakpoints_single_step(owner_of(env));
    }
    if (breakpoints_trap_is_next(owner_of(env))) {
        /* It is what ends it. */
        engine_leave(owner_of(env), LEAVE_AGAIN);
    }
    owner_of(env)->port61.there = false; /* time that passes now is the guest's own doing */
    engine_leave(owner_of(env), LEAVE_HALT);
}

void WRAP(helper_pause)(CPUX86State *env, int length)
{
    env->eip += (target_ulong)length;
    engine_leave(owner_of(env), LEAVE_PAUSE);
}

target_ulong WRAP(helper_read_crN)(CPUX86State *env, int reg)
{
    return reg == 8 ? env->v_tpr : env->cr[reg];
}

/* Control register 4's bits that go with a CPUID feature. */
target_ulong engine_cr4_allowed(const CPUX86State *env)
{
    target_ulong allowed = CR4_VME_MASK | CR4_PVI_MASK | CR4_TSD_MASK | CR4_DE_MASK | CR4_PSE_MASK | CR4_PAE_MASK |
                           CR4_MCE_MASK | CR4_PGE_MASK | CR4_PCE_MASK | CR4_OSFXSR_MASK | CR4_OSXMMEXCPT_MASK;

    allowed |= (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_FSGSBASE) ? CR4_FSGSBASE_MASK : 0;
    allowed |= (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_SMEP) ? CR4_SMEP_MASK : 0;
    allowed |= (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_SMAP) ? CR4_SMAP_MASK : 0;
    return allowed;
}

/* Intel SDM volume 3, 2.5; QEMU's headers do not name them. */
#define CR0_NW_MASK (1u << 29)
#define CR0_CD_MASK (1u << 30)

static bool cr_value_is_valid(const CPUX86State *env, int reg, target_ulong value)
{
    bool long_mode = (env->hflags & HF_LMA_MASK) != 0;

    switch (reg) {
    case 0:
        if ((value & CR0_PG_MASK) && !(value & CR0_PE_MASK)) {
            return false;
        }
        if ((value & CR0_NW_MASK) && !(value & CR0_CD_MASK)) {
            return false;
        }
        if ((value & CR0_PG_MASK) && !(env->cr[0] & CR0_PG_MASK)) {
            return !(env->efer & MSR_EFER_LME) || (env->cr[4] & CR4_PAE_MASK);
        }
        return (value & CR0_PG_MASK) || !(env->hflags & HF_CS64_MASK);
    case 3:
        return !long_mode || (value >> owner_of((CPUX86State *)env)->physical_bits) == 0;
    case 4:
        return (value & ~engine_cr4_allowed(env)) == 0 && (!long_mode || (value & CR4_PAE_MASK));
    case 8:
        return value <= 15;
    default:
        return true;
    }
}

/* Values that the architecture answers with #GP and KVM with EINVAL when it is given the vCPU's state. */
void WRAP(helper_write_crN)(CPUX86State *env, int reg, target_ulong value)
{
    if (!cr_value_is_valid(env, reg, value)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    if (reg == 8) {
        env->v_tpr = (uint8_t)value;
        /* A lower priority may let a waiting interrupt through: look once this block ends. */
        engine_ask_to_leave(owner_of(env));
        return;
    }
    REAL(helper_write_crN)(env, reg, value);
}

static void flat_segment(CPUX86State *env, int segment, uint32_t selector, uint32_t flags)
{
    cpu_x86_load_seg_cache(env, segment, selector, 0, 0xffffffff,
                           DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK | flags);
}

/* AMD64 Architecture Programmer's Manual, volume 3, SYSCALL. Unicorn's does nothing. */
void WRAP(helper_syscall)(CPUX86State *env, int length)
{
    uint32_t selector = (env->star >> 32) & 0xfffc;
    target_ulong flags = cpu_compute_eflags(env);
    bool from_64_bit = (env->hflags & HF_CS64_MASK) != 0;

    if (!(env->efer & MSR_EFER_SCE)) {
        raise_exception_err_ra(env, EXCP06_ILLOP, 0, GETPC());
    }
    if (!(env->hflags & HF_LMA_MASK)) {
        env->regs[R_ECX] = (uint32_t)env->eip + (uint32_t)length;
        cpu_load_eflags(env, (int)(flags & ~(target_ulong)(IF_MASK | RF_MASK | VM_MASK)), IF_MASK | RF_MASK | VM_MASK);
        flat_segment(env, R_CS, selector, DESC_B_MASK | DESC_CS_MASK | DESC_R_MASK);
        flat_segment(env, R_SS, selector + 8, DESC_B_MASK | DESC_W_MASK);
        env->eip = (uint32_t)env->star;
        return;
    }
    env->regs[R_ECX] = env->eip + (target_ulong)length;
    env->regs[11] = flags & ~(target_ulong)RF_MASK;
    flags &= ~(env->fmask | RF_MASK);
    cpu_load_eflags(env, (int)flags,
                    TF_MASK | IF_MASK | IOPL_MASK | NT_MASK | RF_MASK | VM_MASK | AC_MASK | VIF_MASK | VIP_MASK |
                        ID_MASK);
    flat_segment(env, R_CS, selector, DESC_CS_MASK | DESC_R_MASK | DESC_L_MASK);
    flat_segment(env, R_SS, selector + 8, DESC_B_MASK | DESC_W_MASK);
    env->eip = from_64_bit ? env->lstar : env->cstar;
}

/* Intel SDM, volume 2, SYSENTER. Unicorn's does nothing. */
void WRAP(helper_sysenter)(CPUX86State *env, int length)
{
    bool long_mode = (env->hflags & HF_LMA_MASK) != 0;
    uint32_t selector = env->sysenter_cs & 0xfffc;

    (void)length;
    if (selector == 0) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    env->eflags &= ~(target_ulong)(VM_MASK | IF_MASK | RF_MASK);
    flat_segment(env, R_CS, selector, DESC_CS_MASK | DESC_R_MASK | (long_mode ? DESC_L_MASK : DESC_B_MASK));
    flat_segment(env, R_SS, selector + 8, DESC_B_MASK | DESC_W_MASK);
    env->regs[R_ESP] = long_mode ? env->sysenter_esp : (uint32_t)env->sysenter_esp;
    env->eip = long_mode ? env->sysenter_eip : (uint32_t)env->sysenter_eip;
}

/*
 * A fault on the way through a 64-bit IDT: Unicorn makes the error code from
 * the gate's offset, 16 * vector, where the architecture has 8 * vector and the
 * IDT bit (Intel SDM volume 3, 6.13). No other error code has its low bits 010.
 */
void WRAP(raise_exception_err)(CPUX86State *env, int vector, int error_code)
{
    if ((env->hflags & HF_LMA_MASK) && (error_code & 7) == 2 && (vector == EXCP0D_GPF || vector == EXCP0B_NOSEG)) {
        error_code = (error_code >> 1 & ~7) | 2;
    }
    REAL(raise_exception_err)(env, vector, error_code);
}

/* A fault while a double fault is delivered. */
void WRAP(qemu_system_reset_request)(struct uc_struct *uc)
{
    ((struct softcpu_vcpu *)uc->cpu)->shutdown = true;
}

/* Unicorn gives up on the process (a TSS that was never loaded, say); only the guest is to blame. */
void QEMU_NORETURN WRAP(cpu_abort)(CPUState *cs, const char *format, ...)
{
    (void)format;
    ((struct softcpu_vcpu *)cs)->abort = true;
    engine_leave((struct softcpu_vcpu *)cs, LEAVE_ABORT);
}
