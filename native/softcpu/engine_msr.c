/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * MSRs whose truth is in the engine while it runs the vCPU: where each lives in
 * its CPU structure, and what a guest may write to it.
 */
#include "engine.h"

#include <errno.h>

#define IN_ENV(msr, field, bytes, ...) \
    {.index = msr, .offset = offsetof(CPUX86State, field), .width = bytes, .takes = __VA_ARGS__}

static const struct engine_msr engine_msrs[] = {
    IN_ENV(MSR_EFER, efer, 8, MSR_TAKES_FEATURES, .in_sregs = true),
    IN_ENV(MSR_STAR, star, 8, MSR_TAKES_ANYTHING),
    IN_ENV(MSR_LSTAR, lstar, 8, MSR_TAKES_ADDRESSES),
    IN_ENV(MSR_CSTAR, cstar, 8, MSR_TAKES_ADDRESSES),
    IN_ENV(MSR_FMASK, fmask, 8, MSR_TAKES_ANYTHING),
    IN_ENV(MSR_FSBASE, segs[R_FS].base, 8, MSR_TAKES_ADDRESSES, .in_sregs = true),
    IN_ENV(MSR_GSBASE, segs[R_GS].base, 8, MSR_TAKES_ADDRESSES, .in_sregs = true),
    IN_ENV(MSR_KERNELGSBASE, kernelgsbase, 8, MSR_TAKES_ADDRESSES),
    IN_ENV(MSR_TSC_AUX, tsc_aux, 4, MSR_TAKES_ANYTHING),
    IN_ENV(MSR_IA32_SYSENTER_CS, sysenter_cs, 4, MSR_TAKES_ANYTHING),
    IN_ENV(MSR_IA32_SYSENTER_ESP, sysenter_esp, 8, MSR_TAKES_ADDRESSES),
    IN_ENV(MSR_IA32_SYSENTER_EIP, sysenter_eip, 8, MSR_TAKES_ADDRESSES),
    IN_ENV(MSR_PAT, pat, 8, MSR_TAKES_MEMORY_TYPES),
};

_Static_assert(ARRAY_SIZE(engine_msrs) <= 32, "a bit each in msrs_of_kvm");

const struct engine_msr *engine_msr_find(uint32_t index)
{
    for (size_t i = 0; i < ARRAY_SIZE(engine_msrs); i++) {
        if (engine_msrs[i].index == index) {
            return &engine_msrs[i];
        }
    }
    return NULL;
}

uint64_t engine_msr_read(const struct softcpu_vcpu *vcpu, const struct engine_msr *msr)
{
    uint64_t value = 0;

    memcpy(&value, (const char *)&vcpu->cpu.env + msr->offset, msr->width);
    return value;
}

void engine_msr_write(struct softcpu_vcpu *vcpu, const struct engine_msr *msr, uint64_t value)
{
    memcpy((char *)&vcpu->cpu.env + msr->offset, &value, msr->width);
}

void engine_msrs_load(struct softcpu_vcpu *vcpu)
{
    vcpu->msrs_of_kvm = 0;
    for (uint32_t i = 0; i < ARRAY_SIZE(engine_msrs); i++) {
        uint64_t value;

        /* A host without one of them (TSC_AUX) leaves it to the engine. */
        if (!engine_msrs[i].in_sregs && msr_read_kept(vcpu, engine_msrs[i].index, &value)) {
            engine_msr_write(vcpu, &engine_msrs[i], value);
            vcpu->msrs_of_kvm |= 1u << i;
        }
    }
}

_Static_assert(ARRAY_SIZE(engine_msrs) <= ARRAY_SIZE(((struct softcpu_vcpu_state *)0)->msrs), "they have room there");

uint32_t engine_msrs_save(const struct softcpu_vcpu *vcpu, uint64_t *values)
{
    for (size_t i = 0; i < ARRAY_SIZE(engine_msrs); i++) {
        values[i] = engine_msr_read(vcpu, &engine_msrs[i]);
    }
    return ARRAY_SIZE(engine_msrs);
}

void engine_msrs_restore(struct softcpu_vcpu *vcpu, const uint64_t *values)
{
    for (size_t i = 0; i < ARRAY_SIZE(engine_msrs); i++) {
        engine_msr_write(vcpu, &engine_msrs[i], values[i]);
    }
}

bool engine_msrs_store(struct softcpu_vcpu *vcpu)
{
    for (uint32_t i = 0; i < ARRAY_SIZE(engine_msrs); i++) {
        if ((vcpu->msrs_of_kvm >> i & 1) &&
            !msr_write_kept(vcpu, engine_msrs[i].index, engine_msr_read(vcpu, &engine_msrs[i]))) {
            return vmm_vcpu_fail(vcpu->core, KVM_SET_MSRS, EINVAL);
        }
    }
    return true;
}
