/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Configuration space of PCI bus 0, as ports 0xcf8-0xcff (configuration
 * mechanism #1; PCI 3.0, 3.2.2.3.2) and as memory (ECAM; PCI Express 2.0,
 * 7.2.2).
 *
 * In C because firmware asks for the same identity tens of thousands of times:
 * everything that changes no function. What a write to a function does is its
 * owner's to say, and so are the bytes, which are read in place.
 *
 * Other buses and empty slots read as all-ones, and swallow writes.
 */
#ifndef VMM_PCI_CONFIG_H
#define VMM_PCI_CONFIG_H

#include "vmm/io_table.h"

#define PCI_FUNCTIONS 256   /* of one bus: 32 devices of 8 */
#define PCI_CONFIG_SIZE 256 /* bytes of a conventional function; what ECAM shows beyond reads as all-ones */

/* Registers of a function that show something else: they are filled in right before they are read. */
struct pci_view {
    uint32_t first;
    uint32_t last; /* inclusive */
    void (*fill)(void *opaque);
    void *opaque;
};

struct pci_bus {
    const uint8_t *config[PCI_FUNCTIONS]; /* by device << 3 | function: PCI_CONFIG_SIZE bytes; NULL: not there */
    const struct pci_view *views[PCI_FUNCTIONS]; /* NULL: none */
};

struct pci_ports {
    struct io_behind device; /* first: the bus fills it in. Gets writes to functions, and port 0xcf9 */
    const struct pci_bus *pci;
    uint32_t address; /* CONFIG_ADDRESS */
};

struct pci_ecam {
    struct io_behind device; /* first: the bus fills it in. Gets writes to functions */
    const struct pci_bus *pci;
};

/* The io_handler of ports 0xcf8-0xcff; opaque is a struct pci_ports. CONFIG_ADDRESS takes 32-bit accesses only. */
void pci_ports_access(void *opaque, struct io_access *access);

/* Where ECAM has what port 0xcf8 + offset, one of CONFIG_DATA's, shows. */
uint64_t pci_ports_selected(const struct pci_ports *ports, uint64_t offset);

/* The io_handler of ECAM, bus << 20 | device << 15 | function << 12 | register; opaque is a struct pci_ecam. */
void pci_ecam_access(void *opaque, struct io_access *access);

#endif
