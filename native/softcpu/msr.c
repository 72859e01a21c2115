/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * RDMSR and WRMSR. What translated code itself depends on lives in the engine
 * (engine_msr.c); everything else is KVM's, which also says which MSRs exist:
 * one that it refuses is #GP in the guest.
 */
#include "engine.h"

#define MSR_MC_LAST 0x47fu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_TSC 0x10u

struct one_msr {
    struct kvm_msrs header;
    struct kvm_msr_entry entry;
};

bool msr_read_kept(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    struct one_msr msr = {.header.nmsrs = 1, .entry.index = index};

    if (vcpu->core->request(vcpu->core, KVM_GET_MSRS, &msr) != 1) {
        return false;
    }
    *value = msr.entry.data;
    return true;
}

bool msr_write_kept(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    struct one_msr msr = {.header.nmsrs = 1, .entry = {.index = index, .data = value}};

    return vcpu->core->request(vcpu->core, KVM_SET_MSRS, &msr) == 1;
}

static bool canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/* Intel SDM, volume 3, table 12-10: 2, 3 and all above 7 are reserved. Not every KVM looks. */
static bool memory_types(uint64_t value)
{
    for (uint32_t shift = 0; shift < 64; shift += 8) {
        uint32_t type = value >> shift & 0xff;

        if (type > 7 || type == 2 || type == 3) {
            return false;
        }
    }
    return true;
}

uint64_t msr_efer_allowed(const struct softcpu_vcpu *vcpu)
{
    uint32_t features = (uint32_t)vcpu->cpu.env.features[FEAT_8000_0001_EDX];
    uint64_t allowed = 0;

    allowed |= (features & CPUID_EXT2_SYSCALL) ? MSR_EFER_SCE : 0;
    allowed |= (features & CPUID_EXT2_LM) ? MSR_EFER_LME | MSR_EFER_LMA : 0;
    allowed |= (features & CPUID_EXT2_NX) ? MSR_EFER_NXE : 0;
    allowed |= (features & CPUID_EXT2_FFXSR) ? MSR_EFER_FFXSR : 0;
    return allowed;
}

static bool write_efer(struct softcpu_vcpu *vcpu, uint64_t value)
{
    CPUX86State *env = &vcpu->cpu.env;

    if ((value & ~msr_efer_allowed(vcpu)) != 0 || ((env->cr[0] & CR0_PG_MASK) && ((env->efer ^ value) & MSR_EFER_LME))) {
        return false;
    }
    value = (value & ~(uint64_t)MSR_EFER_LMA) | (env->efer & MSR_EFER_LMA);
    if ((env->efer ^ value) & MSR_EFER_NXE) {
        tlb_flush(CPU(&vcpu->cpu));
    }
    cpu_load_efer(env, value);
    return true;
}

uint64_t msr_deadline_kept(const struct softcpu_vcpu *vcpu, uint64_t value)
{
    if (value == 0) {
        return 0;
    }
    return value != vcpu->tsc_ahead ? value - vcpu->tsc_ahead : 1;
}

bool msr_set_deadline(struct softcpu_vcpu *vcpu, uint64_t value)
{
    vcpu->tsc_deadline = value;
    return value == 0 || msr_write_kept(vcpu, MSR_TSC_DEADLINE, msr_deadline_kept(vcpu, value));
}

/* A write to either moves the TSC, and TSC_ADJUST says by how much it was in all (Intel SDM volume 3, 18.17.3). */
static bool move_tsc(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    const struct boundary *boundary = boundary_of(vcpu);
    uint64_t adjust;
    uint64_t by;

    if (!boundary->read_msr(vcpu, MSR_TSC_ADJUST, &adjust)) {
        return false;
    }
    by = value - (index == MSR_TSC ? boundary->tsc(vcpu) : adjust);
    /* KVM keeps what it is told of TSC_ADJUST from outside; if one moves its TSC by it, that is found out behind it. */
    return boundary->write_msr(vcpu, MSR_TSC_ADJUST, adjust + by) &&
           softcpu_set_tsc_offset(vcpu->core, vcpu->tsc_offset + by) == 0;
}

/* A guest can clear the status of a bank of machine checks, and nothing else (Intel SDM volume 3, 17.3.2.2). */
static bool sets_machine_check_status(uint32_t index, uint64_t value)
{
    return index >= MSR_MC0_CTL && index <= MSR_MC_LAST && (index & 3) == 1 && value != 0;
}

bool msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    const struct engine_msr *msr = engine_msr_find(index);

    if (index == MSR_TSC || index == MSR_TSC_ADJUST) {
        return move_tsc(vcpu, index, value);
    }
    if (msr == NULL) {
        return !sets_machine_check_status(index, value) && boundary_of(vcpu)->write_msr(vcpu, index, value);
    }
    switch (msr->takes) {
    case MSR_TAKES_FEATURES:
        return write_efer(vcpu, value);
    case MSR_TAKES_ADDRESSES:
        if (!canonical(value)) {
            return false;
        }
        break;
    case MSR_TAKES_MEMORY_TYPES:
        if (!memory_types(value)) {
            return false;
        }
        break;
    case MSR_TAKES_ANYTHING:
        break;
    }
    engine_msr_write(vcpu, msr, value);
    return true;
}

bool msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    const struct engine_msr *msr = engine_msr_find(index);

    if (index == MSR_IA32_APICBASE) {
        *value = vcpu->apic_base;
        return true;
    }
    if (msr == NULL) {
        return boundary_of(vcpu)->read_msr(vcpu, index, value);
    }
    *value = engine_msr_read(vcpu, msr);
    return true;
}
