/* SPDX-License-Identifier: BSD-2-Clause */
/* Exceptions of the guest on their way to its handler, and those that the engine would not raise. */
#include "engine.h"

#define DR7_GENERAL_DETECT (1u << 13)

/*
 * Those whose frame has RF set, so that the instruction, begun again, runs into
 * no breakpoint (Intel SDM volume 3, 19.3.1.1): faults, but not #DB.
 */
static bool sets_resume_flag(int vector)
{
    return vector != EXCP01_DB && vector != EXCP03_INT3 && vector != EXCP04_INTO && vector != EXCP08_DBLE &&
           vector != EXCP12_MCHK;
}

static void note(struct vmm_vcpu *core, const CPUX86State *env, int vector)
{
    core->exceptions[core->exception_count++ % VCPU_EXCEPTIONS] = (struct vcpu_exception){
        .rip = env->segs[R_CS].base + env->eip,
        .cr2 = env->cr[2],
        .error_code = (uint32_t)env->error_code,
        .vector = (uint32_t)vector,
    };
}

void exceptions_deliver(struct softcpu_vcpu *vcpu, int vector)
{
    CPUX86State *env = &vcpu->cpu.env;

    if (!env->exception_is_int) {
        note(vcpu->core, env, vector);
    }
    if (!env->exception_is_int && sets_resume_flag(vector)) {
        env->eflags |= RF_MASK;
    }
    if (vector == EXCP01_DB && !env->exception_is_int) {
        breakpoints_join(vcpu);
    }
    /* Nothing waits any more behind the instruction before. */
    env->hflags &= ~(uint32_t)HF_INHIBIT_IRQ_MASK;
    if (vector == EXCP01_DB) {
        env->dr[7] &= ~(target_ulong)DR7_GENERAL_DETECT;
    }
    /* What the instruction touched is of no interest if it did not end. */
    vcpu->data_breakpoints = 0;
    x86_cpu_do_interrupt(CPU(&vcpu->cpu));
}

/* CPUClass.do_unaligned_access: of the guest's accesses, only those of SSE say that they have to be aligned. */
void exceptions_unaligned(CPUState *cs, vaddr address, MMUAccessType access, int mmu_index, uintptr_t return_address)
{
    (void)address;
    (void)access;
    (void)mmu_index;
    raise_exception_err_ra(cs->env_ptr, EXCP0D_GPF, 0, return_address);
}
