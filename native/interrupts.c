/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/interrupts.h"

#include "vmm/machine.h"

/* ICH9 (316972) 13.1.8: 3 to 7, 9 to 12, 14 and 15; the others are reserved. */
#define ROUTABLE_ISA_IRQS 0xdef8u

void kvm_interrupt_line(void *opaque, uint32_t gsi, bool level)
{
    struct vmm_vm *vm = opaque;
    struct kvm_irq_level line = {.irq = gsi, .level = level};

    (void)vm->request(vm, KVM_IRQ_LINE, &line);
}

void kvm_interrupt_message(void *opaque, uint64_t address, uint32_t data)
{
    struct vmm_vm *vm = opaque;
    struct kvm_msi message = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};

    (void)vm->request(vm, KVM_SIGNAL_MSI, &message);
}

static bool isa_level(const struct pci_pirqs *pirqs, uint32_t isa_irq)
{
    for (uint32_t pirq = 0; pirq < PCI_PIRQS; pirq++) {
        if (pirqs->isa_irq[pirq] == isa_irq && pirqs->asserting[pirq] != 0) {
            return true;
        }
    }
    return false;
}

void pci_pirq_set(struct pci_pirqs *pirqs, uint32_t pirq, uint32_t device, bool level)
{
    uint32_t before = pirqs->asserting[pirq];
    uint32_t after = level ? before | 1u << device : before & ~(1u << device);
    uint32_t isa_irq = pirqs->isa_irq[pirq];

    pirqs->asserting[pirq] = after;
    if ((before != 0) == (after != 0)) {
        return;
    }
    pirqs->sink->line(pirqs->sink->opaque, PCI_PIRQ_GSI + pirq, after != 0);
    if (isa_irq != 0) {
        pirqs->sink->line(pirqs->sink->opaque, isa_irq, isa_level(pirqs, isa_irq));
    }
}

void pci_pirq_route(struct pci_pirqs *pirqs, uint32_t pirq, uint32_t isa_irq)
{
    uint32_t old = pirqs->isa_irq[pirq];

    if (isa_irq > 15 || !(ROUTABLE_ISA_IRQS >> isa_irq & 1)) {
        isa_irq = 0;
    }
    pirqs->isa_irq[pirq] = (uint8_t)isa_irq;
    if (old == isa_irq || pirqs->asserting[pirq] == 0) {
        return;
    }
    if (old != 0) {
        pirqs->sink->line(pirqs->sink->opaque, old, isa_level(pirqs, old));
    }
    if (isa_irq != 0) {
        pirqs->sink->line(pirqs->sink->opaque, isa_irq, true);
    }
}
