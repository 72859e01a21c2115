/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * MSI-X of one PCI function (PCI 3.0, 6.8.2): the table and the pending bits,
 * in one BAR as QEMU has them. The capability in configuration space is its
 * owner's, who reports its control word here.
 */
#ifndef VMM_MSIX_H
#define VMM_MSIX_H

#include "vmm/interrupts.h"
#include "vmm/io_table.h"

#define MSIX_MAX_VECTORS 16
#define MSIX_BAR_SIZE 0x1000
#define MSIX_PBA_OFFSET 0x800
#define MSIX_ENTRY_SIZE 16

struct msix {
    const struct interrupt_sink *sink;
    uint32_t vectors; /* 1 to MSIX_MAX_VECTORS */
    bool enabled;
    bool masked; /* the function as a whole */
    uint8_t table[MSIX_MAX_VECTORS * MSIX_ENTRY_SIZE];
    uint64_t pending; /* bit by vector */
};

/* Not enabled; every vector masked. */
void msix_reset(struct msix *msix);

/* Message Control was written: enable is bit 15, function mask bit 14. */
void msix_set_control(struct msix *msix, uint16_t control);

/* Send a vector's message, or keep it pending while it is masked. What is no vector is ignored. */
void msix_raise(struct msix *msix, uint32_t vector);

/* What raising a vector would send at once. False: nothing, for it is masked or no vector. */
bool msix_message(const struct msix *msix, uint32_t vector, uint64_t *address, uint32_t *data);

/* The io_handler of the BAR; opaque is a struct msix. */
void msix_access(void *opaque, struct io_access *access);

#endif
