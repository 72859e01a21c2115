/* SPDX-License-Identifier: BSD-2-Clause */
/* Chips of our own (native/chips) as what is around the CPU: no KVM at all. */
#include "engine.h"

#define LAPIC_TPR 0x80u

#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_TPR 0x808u
#define ECX_X2APIC (1u << 21)

static const struct chips_calls *calls(const struct softcpu_vcpu *vcpu)
{
    return vcpu->softcpu->core->chips;
}

static struct processor *processor(const struct softcpu_vcpu *vcpu)
{
    return vcpu->core->processor;
}

/* The chips' lock is held. */
static void wake(void *opaque)
{
    struct softcpu_vcpu *vcpu = opaque;

    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    engine_ask_to_leave(vcpu);
}

static void smi(void *opaque)
{
    struct softcpu_vcpu *vcpu = opaque;

    __atomic_store_n(&vcpu->smi_pending, true, __ATOMIC_RELEASE);
    wake(vcpu);
}

static void set_priority(struct softcpu_vcpu *vcpu)
{
    if (vcpu->priority != vcpu->cpu.env.v_tpr) {
        vcpu->priority = vcpu->cpu.env.v_tpr;
        calls(vcpu)->set_priority(processor(vcpu), vcpu->priority);
    }
}

static void get_priority(struct softcpu_vcpu *vcpu)
{
    vcpu->priority = calls(vcpu)->priority(processor(vcpu));
    vcpu->cpu.env.v_tpr = (uint8_t)vcpu->priority;
}

static bool set_mp_state(struct softcpu_vcpu *vcpu, uint32_t value)
{
    struct kvm_mp_state state = {.mp_state = value};

    return vmm_vcpu_ioctl(vcpu->core, KVM_SET_MP_STATE, &state);
}

/* Not only while it executes: an SMI waits for one that has not started, too. The core's vCPU may be gone at the end. */
static void tell(struct softcpu_vcpu *vcpu, bool wanted)
{
    if (wanted) {
        vcpu->tells = processor(vcpu);
    }
    calls(vcpu)->execute(vcpu->tells, wanted ? wake : NULL, wanted ? smi : NULL, vcpu);
}

static bool begin(struct softcpu_vcpu *vcpu)
{
    get_priority(vcpu);
    return set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
}

static bool end(struct softcpu_vcpu *vcpu, bool halted)
{
    set_priority(vcpu);
    virtual_time_end(vcpu);
    calls(vcpu)->read_msr(processor(vcpu), MSR_TSC_DEADLINE, &vcpu->tsc_deadline);
    return set_mp_state(vcpu, halted ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE);
}

/* One that waits takes effect now, but for system management mode. */
static bool find_reset(struct softcpu_vcpu *vcpu, bool *reset)
{
    *reset = calls(vcpu)->look(processor(vcpu), (struct chips_wanted){.reset = !in_smm(vcpu)}) == CHIPS_RESET;
    return true;
}

/*
 * An INIT waits for the end of system management mode (Intel SDM volume 3,
 * 32.3), an NMI for the instruction behind STI or MOV SS, as in KVM: else it
 * would come between STI and HLT.
 */
static struct chips_wanted wanted(struct softcpu_vcpu *vcpu, bool interrupts)
{
    bool unmasked = !(vcpu->cpu.env.hflags2 & HF2_NMI_MASK);
    bool shadow = (vcpu->cpu.env.hflags & HF_INHIBIT_IRQ_MASK) != 0;

    vcpu->nmi_masked = vcpu->nmi_masked && !unmasked;
    return (struct chips_wanted){.reset = !in_smm(vcpu), .nmi = unmasked && !shadow, .interrupt = interrupts};
}

static enum found look(struct softcpu_vcpu *vcpu)
{
    enum chips_event event;

    __atomic_store_n(&vcpu->look_at_kvm, false, __ATOMIC_RELAXED);
    /* Else one that is woken more often than it gets its turn would leave before its first instruction each time. */
    engine_forget_to_leave(vcpu);
    vcpu->looked_tsc = __builtin_ia32_rdtsc();
    set_priority(vcpu);
    if (virtual_time_is_on(vcpu)) {
        virtual_time_begin_look(vcpu->softcpu, false);
        event = calls(vcpu)->look(processor(vcpu), wanted(vcpu, true));
        virtual_time_end_look(vcpu);
    } else {
        event = calls(vcpu)->look(processor(vcpu), wanted(vcpu, true));
    }
    if (vcpu->cpu.env.hflags & HF_INHIBIT_IRQ_MASK) {
        /* For an NMI that waits for the next instruction. */
        __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    }
    switch (event) {
    case CHIPS_RESET:
        return FOUND_RESET;
    case CHIPS_NMI:
        return FOUND_NMI;
    case CHIPS_INTERRUPT:
        return FOUND_INTERRUPT;
    default:
        return FOUND_NOTHING;
    }
}

static int acknowledge(struct softcpu_vcpu *vcpu)
{
    int vector;

    set_priority(vcpu);
    vector = calls(vcpu)->acknowledge(processor(vcpu), (struct chips_wanted){.interrupt = true});
    if (vector >= 0) {
        count(&vcpu->interrupts);
        virtual_time_trace(vcpu, TRACED_INTERRUPT, (uint64_t)vector, 0);
    }
    return vector;
}

static bool wait_for_event(struct softcpu_vcpu *vcpu, bool interrupts, uint32_t ticks, bool *reset)
{
    struct chips_wanted wants = wanted(vcpu, interrupts);
    enum chips_event event;

    set_priority(vcpu);
    if (ticks != 0) {
        event = calls(vcpu)->look(processor(vcpu), wants);
    } else {
        event = calls(vcpu)->wait(processor(vcpu), wants);
    }
    *reset = event == CHIPS_RESET;
    if (event == CHIPS_NMI || event == CHIPS_INTERRUPT) {
        /* Nothing else that came meanwhile: an NMI is more than its vector. */
        wants.nmi = event == CHIPS_NMI;
        wants.interrupt = event == CHIPS_INTERRUPT;
        vcpu->acknowledged = calls(vcpu)->acknowledge(processor(vcpu), wants);
        virtual_time_trace(vcpu, TRACED_INTERRUPT, (uint64_t)vcpu->acknowledged, 0);
    }
    if (event == CHIPS_NMI) {
        vcpu->nmi_masked = true;
        vcpu->cpu.env.hflags2 |= HF2_NMI_MASK;
    }
    return true;
}

static bool wait_for_start(struct softcpu_vcpu *vcpu)
{
    calls(vcpu)->wait(processor(vcpu), (struct chips_wanted){.reset = true});
    return true;
}

static bool send_init(struct softcpu_vcpu *vcpu)
{
    calls(vcpu)->send_init(processor(vcpu));
    return true;
}

static bool port_access(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write)
{
    struct chips *chips = vcpu->softcpu->vm->chips;

    if (is_write) {
        calls(vcpu)->out(chips, port, size, *value);
        virtual_time_chips_written(vcpu);
    } else {
        *value = calls(vcpu)->in(chips, port, size);
    }
    count(&vcpu->kvm_steps);
    return true;
}

static bool has_address(const struct softcpu_vcpu *vcpu, uint64_t gpa)
{
    return calls(vcpu)->has_address(processor(vcpu), gpa);
}

static bool memory_access(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint32_t *value, bool is_write)
{
    set_priority(vcpu);
    if (is_write) {
        calls(vcpu)->store(processor(vcpu), gpa, size, *value);
        if ((gpa & 0xfff) == LAPIC_TPR) {
            get_priority(vcpu);
        }
        virtual_time_chips_written(vcpu);
    } else {
        *value = calls(vcpu)->load(processor(vcpu), gpa, size);
    }
    count(&vcpu->kvm_steps);
    return true;
}

static bool read_msr(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    set_priority(vcpu);
    virtual_time_spend(vcpu);
    return calls(vcpu)->read_msr(processor(vcpu), index, value);
}

static bool offers_x2apic(const struct softcpu_vcpu *vcpu)
{
    const struct softcpu_cpuid_leaf *leaf = engine_cpuid(vcpu, 1, 0);

    return leaf != NULL && (leaf->ecx & ECX_X2APIC);
}

static bool takes_base(const struct softcpu_vcpu *vcpu, uint64_t value)
{
    return value >> vcpu->physical_bits == 0 && (!(value & MSR_IA32_APICBASE_EXTD) || offers_x2apic(vcpu));
}

static bool write_msr(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    virtual_time_spend(vcpu);
    virtual_time_chips_written(vcpu);
    if ((index == MSR_IA32_APICBASE && !takes_base(vcpu, value)) ||
        !calls(vcpu)->write_msr(processor(vcpu), index, value)) {
        return false;
    }
    switch (index) {
    case MSR_IA32_APICBASE:
        vcpu->apic_base = value;
        tlb_flush(CPU(&vcpu->cpu));
        return true;
    case MSR_X2APIC_TPR:
        get_priority(vcpu);
        return true;
    default:
        return true;
    }
}

static uint64_t tsc(const struct softcpu_vcpu *vcpu)
{
    return calls(vcpu)->tsc(processor(vcpu));
}

const struct boundary own_boundary = {
    .tell = tell,
    .begin = begin,
    .end = end,
    .find_reset = find_reset,
    .look = look,
    .acknowledge = acknowledge,
    .wait = wait_for_event,
    .wait_for_start = wait_for_start,
    .send_init = send_init,
    .port = port_access,
    .has_address = has_address,
    .memory = memory_access,
    .read_msr = read_msr,
    .write_msr = write_msr,
    .tsc = tsc,
};
