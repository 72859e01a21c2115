/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * System management mode. The engine enters and leaves it, and keeps the state
 * save area (AMD64 Architecture Programmer's Manual, volume 2, table 10-1); here
 * is who gets an SMI and when it is taken, what else changes with the mode, and
 * what an RSM refuses.
 */
#include "engine.h"

#include <errno.h>

/* Offsets from SMBASE, and which bit of the revision says that SMBASE can be moved (table 10-1, 10.3.2). */
#define SAVED_EFER 0xfed0u
#define SAVED_CR4 0xff48u
#define SAVED_CR0 0xff58u

#define CR0_NW_MASK (1u << 29)
#define CR0_CD_MASK (1u << 30)

bool smm_has_smi(const struct softcpu_vcpu *vcpu)
{
    return __atomic_load_n(&vcpu->smi_pending, __ATOMIC_ACQUIRE) && !in_smm(vcpu);
}

/* KVM has no such mode here: it must not deliver an NMI that it lets no NMI through in. */
static bool mask_nmis(struct softcpu_vcpu *vcpu)
{
    struct kvm_vcpu_events events;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_VCPU_EVENTS, &events)) {
        return false;
    }
    vcpu->nmi_masked = true;
    events.flags = 0;
    events.nmi.masked = 1;
    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_VCPU_EVENTS, &events);
}

void smm_enter(struct softcpu_vcpu *vcpu)
{
    CPUState *cs = CPU(&vcpu->cpu);

    __atomic_store_n(&vcpu->smi_pending, false, __ATOMIC_RELAXED);
    cs->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_SMI;
    do_smm_enter(&vcpu->cpu);
    vcpu->core->smm = true;
    /* Other memory is there now. */
    tlb_flush(cs);
    if (!mask_nmis(vcpu)) {
        engine_leave(vcpu, LEAVE_ENDED);
    }
}

/* Intel SDM volume 3, 32.14.2 and AMD64 APM volume 2, 10.3.3: what no processor can return to is a shutdown. */
static bool can_return(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;
    CPUState *cs = CPU(&vcpu->cpu);
    uint64_t efer = WRAP(x86_ldq_phys)(cs, env->smbase + SAVED_EFER);
    uint32_t cr4 = WRAP(x86_ldl_phys)(cs, env->smbase + SAVED_CR4);
    uint32_t cr0 = WRAP(x86_ldl_phys)(cs, env->smbase + SAVED_CR0);
    bool paging = (cr0 & CR0_PG_MASK) != 0;

    if ((paging && !(cr0 & CR0_PE_MASK)) || ((cr0 & CR0_NW_MASK) && !(cr0 & CR0_CD_MASK))) {
        return false;
    }
    if ((cr4 & ~engine_cr4_allowed(env)) != 0 || (efer & ~msr_efer_allowed(vcpu)) != 0) {
        return false;
    }
    if (((efer & MSR_EFER_LMA) != 0) != (paging && (efer & MSR_EFER_LME))) {
        return false;
    }
    return !(efer & MSR_EFER_LMA) || (cr4 & CR4_PAE_MASK);
}

void WRAP(helper_rsm)(CPUX86State *env)
{
    struct softcpu_vcpu *vcpu = owner_of(env);

    if (!can_return(vcpu)) {
        vcpu->shutdown = true;
        engine_leave(vcpu, LEAVE_SHUTDOWN);
    }
    REAL(helper_rsm)(env);
    vcpu->core->smm = false;
    tlb_flush(env_cpu(env));
    /* What had to wait: another SMI, an INIT, an NMI. */
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    engine_ask_to_leave(vcpu);
}

/* Out of KVM_RUN, or whatever it waits in; a signal that comes before would be lost. */
static void fetch(struct vmm_vcpu *core)
{
    pthread_mutex_lock(&core->thread_lock);
    if (core->running) {
        __atomic_store_n(&core->run->immediate_exit, 1, __ATOMIC_RELAXED);
        pthread_kill(core->thread, VMM_KICK_SIGNAL);
        if (core->nudge != NULL) {
            core->nudge(core);
        }
    }
    pthread_mutex_unlock(&core->thread_lock);
}

void smm_send(struct softcpu *softcpu, bool (*names)(const struct softcpu_vcpu *vcpu, void *opaque), void *opaque)
{
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        struct softcpu_vcpu *vcpu = softcpu->vcpus[i];

        if (names(vcpu, opaque)) {
            __atomic_store_n(&vcpu->smi_pending, true, __ATOMIC_RELEASE);
            fetch(vcpu->core);
        }
    }
    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->owner != NULL) {
        engine_ask_to_leave(softcpu->owner);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}

static bool has_index(const struct softcpu_vcpu *vcpu, void *opaque)
{
    uint32_t index = *(const uint32_t *)opaque;

    return index == SOFTCPU_ALL_VCPUS || vcpu->core->index == index;
}

void softcpu_smi(struct softcpu *softcpu, uint32_t index)
{
    smm_send(softcpu, has_index, &index);
}
