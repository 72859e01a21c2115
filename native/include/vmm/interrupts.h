/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How devices in C interrupt: lines (GSIs) and messages, and the wires of PCI
 * between INTx pins and those lines.
 *
 * Whoever raises an interrupt holds io_lock, on any thread.
 */
#ifndef VMM_INTERRUPTS_H
#define VMM_INTERRUPTS_H

#include <stdbool.h>
#include <stdint.h>

/* Where interrupts go. */
struct interrupt_sink {
    void (*line)(void *opaque, uint32_t gsi, bool level);
    void (*message)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
};

/* The machine's interrupt controllers; opaque is a struct vmm_vm. A refusal is the guest's own doing, and is ignored. */
void kvm_interrupt_line(void *opaque, uint32_t gsi, bool level);
void kvm_interrupt_message(void *opaque, uint64_t address, uint32_t data);

#define PCI_PIRQS 8
#define PCI_PIRQ_GSI 16 /* I/O APIC input of PIRQ A; the others follow (ICH9 316972 5.10) */

/*
 * PIRQ A to H: wired ORs of the INTx pins of PCI devices, level-triggered. Each
 * drives its own input of the I/O APIC, and the ISA interrupt that a register
 * of the ISA bridge chooses, which several may share.
 */
struct pci_pirqs {
    const struct interrupt_sink *sink;
    uint32_t asserting[PCI_PIRQS]; /* bit by PCI device, 0 to 31 */
    uint8_t isa_irq[PCI_PIRQS];    /* 0: none */
};

void pci_pirq_set(struct pci_pirqs *pirqs, uint32_t pirq, uint32_t device, bool level);

/* The bridge's register was written; an interrupt that cannot be one of PCI's counts as none. */
void pci_pirq_route(struct pci_pirqs *pirqs, uint32_t pirq, uint32_t isa_irq);

#endif
