/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * RDMSR and WRMSR. What translated code itself depends on lives in the engine
 * (engine_msr.c); everything else is KVM's, which also says which MSRs exist:
 * one that it refuses is #GP in the guest.
 */
#include "engine.h"

#define MSR_TSC 0x10u
#define MSR_MC_LAST 0x47fu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_FIRST 0x800u
#define MSR_X2APIC_LAST 0x8ffu
#define MSR_X2APIC_ICR 0x830u
#define MSR_X2APIC_TIMER_INITIAL 0x838u

/*
 * KVM takes the host's word for MSRs that a guest must not reach: its
 * paravirtual ones, and those against speculation (SPEC_CTRL, PRED_CMD,
 * FLUSH_CMD). CPUID offers neither.
 */
static bool hidden(uint32_t index)
{
    return index == 0x11 || index == 0x12 || index == 0x48 || index == 0x49 || index == 0x10b ||
           (index >= 0x4b564d00 && index <= 0x4b564dff) || (index >= 0x40000000 && index <= 0x400001ff);
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

/* What counts in TSC ticks, as KVM counts them. */
static uint64_t in_kvm(const struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (index == MSR_TSC_DEADLINE && value != 0) {
        return value != vcpu->tsc_ahead ? value - vcpu->tsc_ahead : 1;
    }
    return index == MSR_TSC ? value - vcpu->tsc_ahead : value;
}

static uint64_t in_guest(const struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    return index == MSR_TSC || (index == MSR_TSC_DEADLINE && value != 0) ? value + vcpu->tsc_ahead : value;
}

bool msr_set_deadline(struct softcpu_vcpu *vcpu, uint64_t value)
{
    vcpu->tsc_deadline = value;
    return value == 0 || kvm_msr_write(vcpu, MSR_TSC_DEADLINE, in_kvm(vcpu, MSR_TSC_DEADLINE, value));
}

/* A guest can clear the status of a bank of machine checks, and nothing else (Intel SDM volume 3, 17.3.2.2). */
static bool sets_machine_check_status(uint32_t index, uint64_t value)
{
    return index >= MSR_MC0_CTL && index <= MSR_MC_LAST && (index & 3) == 1 && value != 0;
}

static bool write_kvm_msr(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (index == MSR_X2APIC_ICR && (vcpu->apic_base & MSR_IA32_APICBASE_EXTD) &&
        chips_take_command(vcpu, (uint32_t)value, (uint32_t)(value >> 32))) {
        return true;
    }
    if (hidden(index) || sets_machine_check_status(index, value) ||
        !kvm_msr_write(vcpu, index, in_kvm(vcpu, index, value))) {
        return false;
    }
    switch (index) {
    case MSR_TSC_DEADLINE:
        vcpu->tsc_deadline = value;
        break;
    case MSR_IA32_APICBASE:
        /* KVM has judged the value; its LAPIC goes back to where the stubs find it. */
        vcpu->apic_base = value;
        vcpu->kvm_sregs.apic_base = (value & ~APIC_BASE_ADDRESS) | APIC_DEFAULT_ADDRESS;
        tlb_flush(CPU(&vcpu->cpu));
        return kvm_msr_write(vcpu, index, vcpu->kvm_sregs.apic_base);
    case MSR_TSC:
    case MSR_TSC_ADJUST:
        /* KVM, whose deadline timer goes by its own TSC, may round what it is told or keep to the host's TSC. */
        if (kvm_msr_read(vcpu, MSR_TSC, &value)) {
            vcpu->tsc_offset = value + vcpu->tsc_ahead - __builtin_ia32_rdtsc();
        }
        break;
    default:
        if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) {
            if (!interrupts_note_lapic(vcpu, index == MSR_X2APIC_TIMER_INITIAL)) {
                engine_leave(vcpu, LEAVE_ENDED);
            }
            interrupts_wake_others(vcpu);
        }
        break;
    }
    return true;
}

bool msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    const struct engine_msr *msr = engine_msr_find(index);

    if (msr == NULL) {
        return write_kvm_msr(vcpu, index, value);
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
        if (hidden(index) || !kvm_msr_read(vcpu, index, value)) {
            return false;
        }
        *value = in_guest(vcpu, index, *value);
        return true;
    }
    *value = engine_msr_read(vcpu, msr);
    return true;
}
