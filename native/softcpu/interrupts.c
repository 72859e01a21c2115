/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Does KVM hold something for this vCPU that the engine must stop for? KVM's
 * interrupt controllers are only looked at here; they acknowledge in KVM_RUN
 * (stubs.c).
 */
#include "kvm_around.h"

#include "vmm/clock.h"

/* Register offsets: Intel SDM volume 3, table 11-1. */
#define APIC_TPR 0x80
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_ISR 0x100
#define APIC_IRR 0x200
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0

#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE(lvt) (((lvt) >> 17) & 3)
#define LVT_DELIVERY(lvt) (((lvt) >> 8) & 7)
#define TIMER_ONE_SHOT 0
/* Made up for at the most: a guest whose handler takes longer than a period gets no more. */
#define MISSED_TICKS 200u
#define TIMER_PERIODIC 1
#define DELIVERY_EXTINT 7

static uint32_t lapic_register(const struct kvm_lapic_state *lapic, uint32_t offset)
{
    uint32_t value;

    memcpy(&value, lapic->regs + offset, sizeof(value));
    return value;
}

/* Highest vector set in the 256 bits at offset (eight registers, 16 bytes apart), or -1. */
static int highest_vector(const struct kvm_lapic_state *lapic, uint32_t offset)
{
    for (int word = 7; word >= 0; word--) {
        uint32_t bits = lapic_register(lapic, offset + 16 * (uint32_t)word);

        if (bits != 0) {
            return word * 32 + 31 - __builtin_clz(bits);
        }
    }
    return -1;
}

static bool lapic_has_interrupt(const struct kvm_lapic_state *lapic)
{
    int requested = highest_vector(lapic, APIC_IRR);
    int in_service = highest_vector(lapic, APIC_ISR);
    int priority = (int)(lapic_register(lapic, APIC_TPR) & 0xf0);

    if (in_service > priority) {
        priority = in_service & 0xf0;
    }
    return requested >= 0 && (requested & 0xf0) > priority;
}

/* Would the 8259 pair raise its line? The slave's request shows as the master's IR2. */
static enum found look_at_pic(struct softcpu_vcpu *vcpu)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_PIC_MASTER};
    uint8_t requests;
    uint8_t in_service;

    if (ioctl(vcpu->softcpu->vm->fd, KVM_GET_IRQCHIP, &chip) != 0) {
        vmm_vcpu_fail(vcpu->core, KVM_GET_IRQCHIP, errno);
        return FOUND_ERROR;
    }
    requests = chip.chip.pic.irr & (uint8_t)~chip.chip.pic.imr;
    in_service = chip.chip.pic.isr;
    if (chip.chip.pic.special_fully_nested_mode) {
        in_service &= (uint8_t)~(1u << 2);
    }
    /* Fixed priorities, IR0 first; with rotated ones an entry too many does no harm: KVM decides. */
    if (requests != 0 && (in_service == 0 || (requests & -requests) < (in_service & -in_service) ||
                          chip.chip.pic.priority_add != 0)) {
        return FOUND_INTERRUPT;
    }
    return FOUND_NOTHING;
}

static bool takes_pic(const struct softcpu_vcpu *vcpu, const struct kvm_lapic_state *lapic)
{
    uint32_t lint0 = lapic_register(lapic, APIC_LVT_LINT0);
    bool enabled = (vcpu->apic_base & MSR_IA32_APICBASE_ENABLE) != 0;

    return !enabled || (!(lint0 & LVT_MASKED) && LVT_DELIVERY(lint0) == DELIVERY_EXTINT);
}

/* KVM raises a timer's interrupt only in KVM_RUN; before, only the time of day shows it. */
static bool timer_is_due(struct softcpu_vcpu *vcpu)
{
    if (vcpu->tsc_deadline != 0 && guest_tsc(vcpu) >= vcpu->tsc_deadline) {
        return true;
    }
    return vcpu->timer_due_ns != 0 && monotonic_ns() >= vcpu->timer_due_ns;
}

/*
 * KVM masks further NMIs until it sees an IRET. The engine executes it, and
 * clears HF2_NMI_MASK there: pass that on.
 */
static enum found look_for_nmi(struct softcpu_vcpu *vcpu)
{
    struct kvm_vcpu_events events;
    bool unmasked = !(vcpu->cpu.env.hflags2 & HF2_NMI_MASK);

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_VCPU_EVENTS, &events)) {
        return FOUND_ERROR;
    }
    if (vcpu->nmi_masked && unmasked) {
        vcpu->nmi_masked = false;
        events.flags = 0;
        events.nmi.masked = 0;
        if (!vmm_vcpu_ioctl(vcpu->core, KVM_SET_VCPU_EVENTS, &events)) {
            return FOUND_ERROR;
        }
    }
    if (events.nmi.pending && (vcpu->cpu.env.hflags & HF_INHIBIT_IRQ_MASK)) {
        /* It waits for the instruction behind STI or MOV SS: else it would come between STI and HLT. */
        __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
        return FOUND_NOTHING;
    }
    return events.nmi.pending && unmasked ? FOUND_NMI : FOUND_NOTHING;
}

/*
 * A periodic timer's ticks that passed while the host gave this thread no time,
 * one by one: KVM holds one at the most. Those that passed while the guest took
 * no interrupts are lost, as on a CPU.
 */
static bool make_up_tick(struct softcpu_vcpu *vcpu, const struct kvm_lapic_state *lapic)
{
    uint32_t vector = lapic_register(lapic, APIC_LVT_TIMER) & 0xff;
    uint32_t id = vcpu->core->apic_id;
    struct kvm_msi message = {
        .address_lo = APIC_DEFAULT_ADDRESS | (id & 0xff) << 12,
        .address_hi = id & ~0xffu, /* as KVM_X2APIC_API_USE_32BIT_IDS wants it; 0 without */
        .data = vector,
    };

    if (vcpu->timer_missed == 0 || !engine_takes_interrupts(vcpu) ||
        (lapic_register(lapic, APIC_ISR + 16 * (vector / 32)) & 1u << vector % 32)) {
        return false;
    }
    vcpu->timer_missed--;
    return ioctl(vcpu->softcpu->vm->fd, KVM_SIGNAL_MSI, &message) > 0;
}

enum found interrupts_look(struct softcpu_vcpu *vcpu)
{
    struct kvm_lapic_state lapic;
    enum found found;
    bool reset;

    __atomic_store_n(&vcpu->look_at_kvm, false, __ATOMIC_RELAXED);
    vcpu->looked_tsc = __builtin_ia32_rdtsc();
    if (!stubs_find_reset(vcpu, &reset)) {
        return FOUND_ERROR;
    }
    if (reset) {
        return FOUND_RESET;
    }
    if (!stubs_set_priority(vcpu)) {
        return FOUND_ERROR;
    }
    found = look_for_nmi(vcpu);
    if (found != FOUND_NOTHING) {
        return found;
    }
    if (timer_is_due(vcpu)) {
        vcpu->timer_held = vcpu->timer_held || !engine_takes_interrupts(vcpu);
        return FOUND_INTERRUPT;
    }
    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_LAPIC, &lapic)) {
        return FOUND_ERROR;
    }
    if (lapic_has_interrupt(&lapic) || make_up_tick(vcpu, &lapic)) {
        return FOUND_INTERRUPT;
    }
    return takes_pic(vcpu, &lapic) ? look_at_pic(vcpu) : FOUND_NOTHING;
}

bool interrupts_note_lapic(struct softcpu_vcpu *vcpu, bool armed)
{
    struct kvm_lapic_state lapic;
    uint32_t lvt;
    uint32_t divide;
    uint32_t shift;
    bool seen = !armed && vcpu->timer_due_ns == 0;

    vcpu->timer_due_ns = 0;
    vcpu->timer_held = false;
    vcpu->timer_missed = 0;
    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_LAPIC, &lapic)) {
        return false;
    }
    vcpu->logical_destination = lapic_register(&lapic, APIC_LDR);
    vcpu->destination_format = lapic_register(&lapic, APIC_DFR);
    lvt = lapic_register(&lapic, APIC_LVT_TIMER);
    if ((lvt & LVT_MASKED) || LVT_TIMER_MODE(lvt) > TIMER_PERIODIC ||
        lapic_register(&lapic, APIC_TIMER_INITIAL) == 0) {
        return true;
    }
    /* KVM's LAPIC counts nanoseconds. Divide configuration 0 is 2, 1 is 4, ... 7 is 1. */
    divide = lapic_register(&lapic, APIC_TIMER_DIVIDE);
    shift = ((divide & 3) | ((divide & 8) >> 1)) + 1;
    vcpu->timer_period_ns = LVT_TIMER_MODE(lvt) == TIMER_PERIODIC
                                ? (uint64_t)lapic_register(&lapic, APIC_TIMER_INITIAL) << (shift & 7)
                                : 0;
    if (vcpu->timer_period_ns == 0 && lapic_register(&lapic, APIC_TIMER_CURRENT) == 0 && seen) {
        return true; /* a one-shot that is over */
    }
    vcpu->timer_due_ns = monotonic_ns() + ((uint64_t)lapic_register(&lapic, APIC_TIMER_CURRENT) << (shift & 7));
    return true;
}

void interrupts_after_wait(struct softcpu_vcpu *vcpu)
{
    uint64_t now = monotonic_ns();

    if (vcpu->tsc_deadline != 0 && guest_tsc(vcpu) >= vcpu->tsc_deadline) {
        vcpu->tsc_deadline = 0;
    }
    if (vcpu->timer_due_ns != 0 && now >= vcpu->timer_due_ns) {
        if (vcpu->timer_period_ns == 0) {
            vcpu->timer_due_ns = 0;
        } else {
            uint64_t missed = (now - vcpu->timer_due_ns) / vcpu->timer_period_ns;

            vcpu->timer_due_ns += (missed + 1) * vcpu->timer_period_ns;
            if (!vcpu->timer_held) {
                vcpu->timer_missed = (uint32_t)MIN(vcpu->timer_missed + missed, MISSED_TICKS);
            }
            vcpu->timer_held = false;
        }
    }
}

void interrupts_wake_others(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        __atomic_store_n(&softcpu->vcpus[i]->look_at_kvm, true, __ATOMIC_RELAXED);
    }
    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->owner != NULL && softcpu->owner != vcpu) {
        engine_ask_to_leave(softcpu->owner);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}

void interrupts_fetch_others(struct softcpu_vcpu *vcpu)
{
    for (uint32_t i = 0; i < vcpu->softcpu->vcpu_count; i++) {
        struct vmm_vcpu *other = vcpu->softcpu->vcpus[i]->core;

        if (other == vcpu->core) {
            continue;
        }
        pthread_mutex_lock(&other->thread_lock);
        if (other->running) {
            pthread_kill(other->thread, VMM_KICK_SIGNAL);
        }
        pthread_mutex_unlock(&other->thread_lock);
    }
}
