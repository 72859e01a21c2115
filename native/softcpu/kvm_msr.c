/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * MSRs that are KVM's: it says which there are. One that it refuses is #GP in
 * the guest.
 */
#include "kvm_around.h"

#define MSR_TSC 0x10u
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

/* What counts in TSC ticks, as KVM counts them. */
static uint64_t in_kvm(const struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (index == MSR_TSC_DEADLINE) {
        return msr_deadline_kept(vcpu, value);
    }
    return index == MSR_TSC ? value - vcpu->tsc_ahead : value;
}

static uint64_t in_guest(const struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    return index == MSR_TSC || (index == MSR_TSC_DEADLINE && value != 0) ? value + vcpu->tsc_ahead : value;
}

bool kvm_guest_msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    if (hidden(index) || !msr_read_kept(vcpu, index, value)) {
        return false;
    }
    *value = in_guest(vcpu, index, *value);
    return true;
}

bool kvm_guest_msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (index == MSR_X2APIC_ICR && (vcpu->apic_base & MSR_IA32_APICBASE_EXTD) &&
        kvm_chips_take_command(vcpu, (uint32_t)value, (uint32_t)(value >> 32))) {
        return true;
    }
    if (hidden(index) || !msr_write_kept(vcpu, index, in_kvm(vcpu, index, value))) {
        return false;
    }
    switch (index) {
    case MSR_TSC_DEADLINE:
        vcpu->tsc_deadline = value;
        if (value != 0 && guest_tsc(vcpu) >= value) {
            __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
            engine_ask_to_leave(vcpu);
        }
        break;
    case MSR_IA32_APICBASE:
        /* KVM has judged the value; its LAPIC goes back to where the stubs find it. */
        vcpu->apic_base = value;
        vcpu->kvm_sregs.apic_base = (value & ~APIC_BASE_ADDRESS) | APIC_DEFAULT_ADDRESS;
        tlb_flush(CPU(&vcpu->cpu));
        return msr_write_kept(vcpu, index, vcpu->kvm_sregs.apic_base);
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
