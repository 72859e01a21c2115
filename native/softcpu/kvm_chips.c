/* SPDX-License-Identifier: BSD-2-Clause */
/* The chips inside KVM: where the guest finds them, and what an access to one may have changed. */
#include "kvm_around.h"

#include "vmm/clock.h"

#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_SIZE 0x1000u
#define LAPIC_SIZE 0x1000u

/* Register offsets: Intel SDM volume 3, table 11-1. */
#define LAPIC_TPR 0x80u
#define LAPIC_LDR 0xd0u
#define LAPIC_DFR 0xe0u
#define LAPIC_ICR 0x300u
#define LAPIC_ICR_HIGH 0x310u
#define LAPIC_LVT_TIMER 0x320u
#define LAPIC_TIMER_INITIAL 0x380u
#define LAPIC_TIMER_DIVIDE 0x3e0u

#define ICR_DELIVERY(icr) (((icr) >> 8) & 7)
#define DELIVERY_SMI 2
#define DELIVERY_INIT 5
#define ICR_LOGICAL (1u << 11)
#define ICR_ASSERT (1u << 14)
#define ICR_SHORTHAND(icr) (((icr) >> 18) & 3)
#define SHORTHAND_SELF 1
#define SHORTHAND_ALL 2
#define SHORTHAND_OTHERS 3
#define XAPIC_BROADCAST 0xffu
#define X2APIC_BROADCAST UINT32_MAX
#define DFR_CLUSTER(dfr) (((dfr) >> 28) == 0)
#define MSR_X2APIC_ICR 0x830u

static bool lapic_has(const struct softcpu_vcpu *vcpu, uint64_t gpa)
{
    uint64_t mode = vcpu->apic_base & (MSR_IA32_APICBASE_ENABLE | MSR_IA32_APICBASE_EXTD);

    return mode == MSR_IA32_APICBASE_ENABLE && gpa - (vcpu->apic_base & APIC_BASE_ADDRESS) < LAPIC_SIZE;
}

bool kvm_chips_have_address(const struct softcpu_vcpu *vcpu, uint64_t gpa)
{
    return lapic_has(vcpu, gpa) || gpa - IOAPIC_BASE < IOAPIC_SIZE;
}

/* A write may have raised an interrupt, or let one through. */
static void look_soon(struct softcpu_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    engine_ask_to_leave(vcpu);
}

/* Which byte of the count comes, and whether it repeats: modes 2 and 3, also as 6 and 7 (Intel 231164-005). */
#define PIT_PORT 0x40u
#define PIT_CONTROL 0x43u
#define PIT_CHANNEL(control) ((control) >> 6)
#define PIT_RW(control) ((control) >> 4 & 3)
#define PIT_IS_PERIODIC(control) (((control) >> 2 & 1) != 0)
enum { RW_LATCH, RW_LOW, RW_HIGH, RW_BOTH };
#define PIT_HZ 1193182ull
#define PIT_IOAPIC_PIN 2
/* In one go; Linux counts up to 5. */
#define LATE_TICKS 8

static void note_pit_count(struct softcpu_vcpu *vcpu, uint32_t count)
{
    struct pit_writes *pit = &vcpu->softcpu->pit;

    pit->period_ns = PIT_IS_PERIODIC(pit->control) ? (count == 0 ? 65536 : count) * 1000000000ull / PIT_HZ : 0;
    vcpu->interrupted_ns = monotonic_ns();
    vcpu->late_ticks = 0;
    vcpu->no_tick_came = false;
}

static void note_pit_write(struct softcpu_vcpu *vcpu, uint32_t port, uint8_t value)
{
    struct pit_writes *pit = &vcpu->softcpu->pit;

    if (port == PIT_CONTROL && PIT_CHANNEL(value) == 0 && PIT_RW(value) != RW_LATCH) {
        *pit = (struct pit_writes){.control = value};
    } else if (port == PIT_PORT && PIT_RW(pit->control) == RW_LOW) {
        note_pit_count(vcpu, value);
    } else if (port == PIT_PORT && PIT_RW(pit->control) == RW_HIGH) {
        note_pit_count(vcpu, (uint32_t)value << 8);
    } else if (port == PIT_PORT) {
        if (pit->low_came) {
            note_pit_count(vcpu, pit->low | (uint32_t)value << 8);
        }
        pit->low = value;
        pit->low_came = !pit->low_came;
    }
}

void kvm_chips_note_interrupt(struct softcpu_vcpu *vcpu)
{
    if (vcpu->softcpu->pit.period_ns != 0) {
        vcpu->interrupted_ns = monotonic_ns();
        vcpu->no_tick_came = false;
    }
}

/* Is there one who has not masked it? */
static bool pit_is_heard(const struct softcpu_vcpu *vcpu)
{
    struct kvm_irqchip pic = {.chip_id = KVM_IRQCHIP_PIC_MASTER};
    struct kvm_irqchip ioapic = {.chip_id = KVM_IRQCHIP_IOAPIC};
    int fd = vcpu->softcpu->vm->fd;

    return ioctl(fd, KVM_GET_IRQCHIP, &pic) == 0 && ioctl(fd, KVM_GET_IRQCHIP, &ioapic) == 0 &&
           (!(pic.chip.pic.imr & 1) || !ioapic.chip.ioapic.redirtbl[PIT_IOAPIC_PIN].fields.mask);
}

/*
 * KVM makes up for its PIT's ticks, but a thread of the kernel's raises each,
 * which on a busy host waits for a processor as everybody does: a guest that
 * counts ticks until so much of its TSC is over would find too few. So it sees
 * no time go on before they have come, some at a time.
 */
bool kvm_chips_pit_is_late(struct softcpu_vcpu *vcpu)
{
    uint64_t period = vcpu->softcpu->pit.period_ns;

    if (period == 0 || vcpu->core->index != 0 || vcpu->no_tick_came) {
        return false;
    }
    if (vcpu->late_ticks > 0) {
        vcpu->late_ticks--;
        return true;
    }
    if (monotonic_ns() - vcpu->interrupted_ns < 2 * period) {
        return false;
    }
    vcpu->no_tick_came = !pit_is_heard(vcpu);
    vcpu->late_ticks = vcpu->no_tick_came ? 0 : LATE_TICKS;
    return !vcpu->no_tick_came;
}

bool kvm_chips_port(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write)
{
    if (!stubs_access(vcpu, is_write ? STUB_OUT : STUB_IN, port, size, value)) {
        return false;
    }
    if (is_write) {
        note_pit_write(vcpu, port, (uint8_t)*value);
        look_soon(vcpu);
    }
    return true;
}

struct command {
    const struct softcpu_vcpu *sender;
    uint32_t icr;
    uint32_t destination;
};

/* Intel SDM volume 3, 11.6.2: does an interrupt command name this vCPU? */
static bool is_named(const struct softcpu_vcpu *vcpu, void *opaque)
{
    const struct command *command = opaque;
    uint32_t destination = command->destination;
    uint32_t id = vcpu->core->apic_id;
    uint32_t logical = vcpu->logical_destination >> 24;
    bool x2apic = (command->sender->apic_base & MSR_IA32_APICBASE_EXTD) != 0;

    switch (ICR_SHORTHAND(command->icr)) {
    case SHORTHAND_SELF:
        return vcpu == command->sender;
    case SHORTHAND_ALL:
        return true;
    case SHORTHAND_OTHERS:
        return vcpu != command->sender;
    default:
        break;
    }
    if (destination == (x2apic ? X2APIC_BROADCAST : XAPIC_BROADCAST)) {
        return true;
    }
    if (!(command->icr & ICR_LOGICAL)) {
        return destination == id;
    }
    if (x2apic) {
        return destination >> 16 == id >> 4 && (destination & 0xffff & 1u << (id & 15)) != 0;
    }
    if (DFR_CLUSTER(vcpu->destination_format)) {
        return destination >> 4 == logical >> 4 && (destination & logical & 15) != 0;
    }
    return (destination & logical) != 0;
}

bool kvm_chips_take_command(struct softcpu_vcpu *vcpu, uint32_t icr, uint32_t destination)
{
    struct command command = {.sender = vcpu, .icr = icr, .destination = destination};

    if (ICR_DELIVERY(icr) != DELIVERY_SMI) {
        return false;
    }
    smm_send(vcpu->softcpu, is_named, &command);
    return true;
}

bool kvm_chips_send_init(struct softcpu_vcpu *vcpu)
{
    uint32_t command = DELIVERY_INIT << 8 | ICR_ASSERT;
    uint32_t high = vcpu->core->apic_id << 24;

    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    if (vcpu->apic_base & MSR_IA32_APICBASE_EXTD) {
        return msr_write_kept(vcpu, MSR_X2APIC_ICR, (uint64_t)vcpu->core->apic_id << 32 | command) ||
               vmm_vcpu_fail(vcpu->core, KVM_SET_MSRS, EINVAL);
    }
    return stubs_access(vcpu, STUB_STORE, APIC_DEFAULT_ADDRESS + LAPIC_ICR_HIGH, 4, &high) &&
           stubs_access(vcpu, STUB_STORE, APIC_DEFAULT_ADDRESS + LAPIC_ICR, 4, &command);
}

static bool after_lapic_write(struct softcpu_vcpu *vcpu, uint32_t offset, uint32_t value)
{
    switch (offset) {
    case LAPIC_TPR:
        vcpu->cpu.env.v_tpr = (value >> 4) & 15;
        vcpu->kvm_sregs.cr8 = vcpu->cpu.env.v_tpr;
        return true;
    case LAPIC_LDR:
    case LAPIC_DFR:
    case LAPIC_LVT_TIMER:
    case LAPIC_TIMER_INITIAL:
    case LAPIC_TIMER_DIVIDE:
        return interrupts_note_lapic(vcpu, offset == LAPIC_TIMER_INITIAL);
    case LAPIC_ICR:
        if (ICR_DELIVERY(value) == DELIVERY_INIT) {
            interrupts_fetch_others(vcpu);
        }
        return true;
    default:
        return true;
    }
}

bool kvm_chips_memory(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint32_t *value, bool is_write)
{
    bool lapic = lapic_has(vcpu, gpa);
    uint32_t offset = gpa & (LAPIC_SIZE - 1);
    uint32_t address = (lapic ? APIC_DEFAULT_ADDRESS : IOAPIC_BASE) + offset;

    if (lapic && is_write && size == 4 && offset == LAPIC_ICR && ICR_DELIVERY(*value) == DELIVERY_SMI) {
        uint32_t high = 0;

        if (!stubs_access(vcpu, STUB_LOAD, APIC_DEFAULT_ADDRESS + LAPIC_ICR_HIGH, 4, &high)) {
            return false;
        }
        kvm_chips_take_command(vcpu, *value, high >> 24);
        return true;
    }
    if (!stubs_access(vcpu, is_write ? STUB_STORE : STUB_LOAD, address, size, value)) {
        return false;
    }
    if (!is_write) {
        return true;
    }
    look_soon(vcpu);
    interrupts_wake_others(vcpu);
    /* Others are lost on KVM's LAPIC (apic_mmio_write in arch/x86/kvm/lapic.c). */
    return !lapic || size != 4 || after_lapic_write(vcpu, offset, *value);
}
