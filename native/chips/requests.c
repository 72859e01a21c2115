/* SPDX-License-Identifier: BSD-2-Clause */
/* The requests of KVM's API that vmm makes of /dev/kvm and of a machine (Documentation/virt/kvm/api.rst). */
#include "inside.h"

#include <errno.h>
#include <string.h>

#include "vmm/machine.h"

/* Machines have a slot each for at most their regions of memory; as many as KVM has on x86. */
#define MEMORY_SLOTS 32764

static int check_extension(unsigned long capability)
{
    switch (capability) {
    case KVM_CAP_USER_MEMORY:
    case KVM_CAP_DESTROY_MEMORY_REGION_WORKS:
    case KVM_CAP_JOIN_MEMORY_REGIONS_WORKS:
    case KVM_CAP_READONLY_MEM:
    case KVM_CAP_IRQCHIP:
    case KVM_CAP_IRQ_ROUTING:
    case KVM_CAP_SIGNAL_MSI:
    case KVM_CAP_PIT2:
    case KVM_CAP_PIT_STATE2:
    case KVM_CAP_SET_TSS_ADDR:
    case KVM_CAP_SET_IDENTITY_MAP_ADDR:
    case KVM_CAP_EXT_CPUID:
    case KVM_CAP_MP_STATE:
    case KVM_CAP_VCPU_EVENTS:
    case KVM_CAP_DEBUGREGS:
    case KVM_CAP_XSAVE:
    case KVM_CAP_XCRS:
    case KVM_CAP_SET_GUEST_DEBUG:
    case KVM_CAP_IMMEDIATE_EXIT:
    case KVM_CAP_ADJUST_CLOCK:
    case KVM_CAP_GET_TSC_KHZ:
    case KVM_CAP_VCPU_ATTRIBUTES:
    case KVM_CAP_TSC_DEADLINE_TIMER:
    case KVM_CAP_SET_BOOT_CPU_ID:
    case KVM_CAP_X2APIC_API:
    case KVM_CAP_ENABLE_CAP_VM:
        return 1;
    case KVM_CAP_NR_VCPUS:
    case KVM_CAP_MAX_VCPUS:
        return (int)CHIPS_MAX_CPUS;
    case KVM_CAP_MAX_VCPU_ID:
        return (int)CHIPS_MAX_ID;
    case KVM_CAP_NR_MEMSLOTS:
        return MEMORY_SLOTS;
    default:
        return 0;
    }
}

static int list_msrs(struct kvm_msr_list *list)
{
    uint32_t room = list->nmsrs;

    list->nmsrs = msrs_list(list->indices, room);
    return list->nmsrs > room ? -E2BIG : 0;
}

int chips_system_request(unsigned long request, void *argument)
{
    switch (request) {
    case KVM_GET_API_VERSION:
        return KVM_API_VERSION;
    case KVM_CHECK_EXTENSION:
        return check_extension((uintptr_t)argument);
    case KVM_GET_VCPU_MMAP_SIZE:
        return sizeof(struct kvm_run) > 4096 ? 8192 : 4096;
    case KVM_GET_MSR_INDEX_LIST:
        return list_msrs(argument);
    default:
        return -ENOTTY;
    }
}

static int get_irqchip(const struct chips *chips, struct kvm_irqchip *state)
{
    if (!chips->has_irqchip) {
        return -ENXIO;
    }
    switch (state->chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        state->chip.pic = chips->pic[state->chip_id == KVM_IRQCHIP_PIC_SLAVE];
        return 0;
    case KVM_IRQCHIP_IOAPIC:
        state->chip.ioapic = chips->ioapic;
        return 0;
    default:
        return -EINVAL;
    }
}

static int set_irqchip(struct chips *chips, const struct kvm_irqchip *state)
{
    if (!chips->has_irqchip) {
        return -ENXIO;
    }
    switch (state->chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        pic_load(chips, state->chip_id == KVM_IRQCHIP_PIC_SLAVE, &state->chip.pic);
        return 0;
    case KVM_IRQCHIP_IOAPIC:
        chips->ioapic = state->chip.ioapic;
        return 0;
    default:
        return -EINVAL;
    }
}

static int drive_line(struct chips *chips, const struct kvm_irq_level *line)
{
    uint32_t bit;

    if (!chips->has_irqchip) {
        return -ENXIO;
    }
    if (line->irq >= GSIS) {
        return -EINVAL;
    }
    bit = 1u << line->irq;
    chips->lines = line->level ? chips->lines | bit : chips->lines & ~bit;
    set_line(chips, line->irq, line->level != 0);
    return 0;
}

static int enable(struct chips *chips, const struct kvm_enable_cap *capability)
{
    if (capability->cap != KVM_CAP_X2APIC_API || chips->count > 0) {
        return -EINVAL;
    }
    chips->wide_messages = capability->args[0] & KVM_X2APIC_API_USE_32BIT_IDS;
    return 0;
}

static int signal_msi(struct chips *chips, const struct kvm_msi *message)
{
    if (!chips->has_irqchip) {
        return -EINVAL;
    }
    return (int)deliver_msi(chips, (uint64_t)message->address_hi << 32 | message->address_lo, message->data);
}

static int create_irqchip(struct chips *chips)
{
    if (chips->has_irqchip || chips->count > 0) {
        return chips->has_irqchip ? -EEXIST : -EINVAL;
    }
    chips->has_irqchip = true;
    return 0;
}

static int create_pit(struct chips *chips)
{
    if (!chips->has_irqchip || chips->has_pit) {
        return chips->has_pit ? -EEXIST : -ENOENT;
    }
    chips->has_pit = true;
    return 0;
}

static int set_boot_cpu(struct chips *chips, unsigned long id)
{
    if (chips->count > 0) {
        return -EBUSY;
    }
    chips->bsp = (uint32_t)id;
    return 0;
}

static int get_pit(struct chips *chips, struct kvm_pit_state2 *state)
{
    if (!chips->has_pit) {
        return -ENXIO;
    }
    pit_run(chips, now_ns(chips));
    *state = chips->pit;
    state->reserved[PIT_INTERRUPTED] = chips->ticks.done > 0;
    state->reserved[PIT_MISSED] = chips->ticks.missed;
    return 0;
}

static int serve_vm(struct chips *chips, unsigned long request, void *argument)
{
    switch (request) {
    case KVM_CHECK_EXTENSION:
        return check_extension((uintptr_t)argument);
    case KVM_IRQ_LINE:
        return drive_line(chips, argument);
    case KVM_SIGNAL_MSI:
        return signal_msi(chips, argument);
    case KVM_SET_USER_MEMORY_REGION: /* the core's own table is what the software CPU looks at */
    case KVM_SET_IDENTITY_MAP_ADDR:
    case KVM_SET_TSS_ADDR:
    case KVM_SET_GSI_ROUTING: /* set_line has the one that there is */
        return 0;
    case KVM_ENABLE_CAP:
        return enable(chips, argument);
    case KVM_CREATE_IRQCHIP:
        return create_irqchip(chips);
    case KVM_GET_IRQCHIP:
        return get_irqchip(chips, argument);
    case KVM_SET_IRQCHIP:
        return set_irqchip(chips, argument);
    case KVM_CREATE_PIT2:
        return create_pit(chips);
    case KVM_GET_PIT2:
        return get_pit(chips, argument);
    case KVM_SET_PIT2:
        if (!chips->has_pit) {
            return -ENXIO;
        }
        chips->pit = *(const struct kvm_pit_state2 *)argument;
        pit_loaded(chips);
        return 0;
    case KVM_GET_CLOCK:
        *(struct kvm_clock_data *)argument = (struct kvm_clock_data){.clock = now_ns(chips) + chips->clock_offset};
        return 0;
    case KVM_SET_CLOCK:
        chips->clock_offset = ((const struct kvm_clock_data *)argument)->clock - now_ns(chips);
        return 0;
    case KVM_SET_BOOT_CPU_ID:
        return set_boot_cpu(chips, (uintptr_t)argument);
    default:
        return -ENOTTY;
    }
}

int chips_vm_request(struct chips *chips, unsigned long request, void *argument)
{
    int result;

    pthread_mutex_lock(&chips->lock);
    result = serve_vm(chips, request, argument);
    pthread_mutex_unlock(&chips->lock);
    return result;
}

/* Once they are freed, the answer is a closed descriptor's: what is left of a closed machine may still interrupt. */
static int vm_request(struct vmm_vm *vm, unsigned long request, void *argument)
{
    return vm->chips == NULL ? -EBADF : chips_vm_request(vm->chips, request, argument);
}

static int vcpu_request(struct vmm_vcpu *vcpu, unsigned long request, void *argument)
{
    return vcpu->vm->chips == NULL ? -EBADF : chips_vcpu_request(vcpu->processor, request, argument);
}

static void nudge(struct vmm_vcpu *vcpu)
{
    chips_calls.nudge(vcpu->processor);
}

void chips_attach(struct chips *chips, struct vmm_vm *vm)
{
    vm->fd = -1;
    vm->chips = chips;
    vm->request = vm_request;
}

void chips_detach(struct vmm_vm *vm)
{
    vm->chips = NULL;
}

void chips_attach_vcpu(struct processor *processor, struct vmm_vcpu *vcpu)
{
    vcpu->fd = -1;
    vcpu->processor = processor;
    vcpu->request = vcpu_request;
    vcpu->nudge = nudge;
}
