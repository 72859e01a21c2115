/* SPDX-License-Identifier: BSD-2-Clause */
/* Leaving translated code. */
#include "engine.h"

void engine_ask_to_leave(struct softcpu_vcpu *vcpu)
{
    __atomic_store_n(&CPU(&vcpu->cpu)->exit_request, true, __ATOMIC_RELAXED);
    /* A block looks at this word first; cpu_exec then finds exit_request. */
    __atomic_store_n(&vcpu->cpu.neg.icount_decr.u16.high, (uint16_t)-1, __ATOMIC_RELEASE);
}

void engine_forget_to_leave(struct softcpu_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->cpu.neg.icount_decr.u16.high, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&CPU(&vcpu->cpu)->exit_request, false, __ATOMIC_RELEASE);
}

void QEMU_NORETURN engine_leave(struct softcpu_vcpu *vcpu, int reason)
{
    CPUState *cs = CPU(&vcpu->cpu);

    cs->exception_index = reason;
    cpu_loop_exit(cs);
}

void QEMU_NORETURN engine_leave_before(struct softcpu_vcpu *vcpu, int reason, uintptr_t return_address)
{
    cpu_restore_state(CPU(&vcpu->cpu), return_address, true);
    engine_leave(vcpu, reason);
}
