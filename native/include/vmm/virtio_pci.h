/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A virtio device behind PCI, as virtio 1.2 has it ("modern"; 4.1): registers
 * in one BAR, laid out as QEMU's, and interrupts by MSI-X or INTx. What the
 * device is, a disk for one, is the owner's of struct virtio_class.
 *
 * All functions are called with io_lock held.
 */
#ifndef VMM_VIRTIO_PCI_H
#define VMM_VIRTIO_PCI_H

#include "vmm/msix.h"
#include "vmm/pci_config.h"
#include "vmm/virtqueue.h"

#define VIRTIO_MAX_QUEUES 8
#define VIRTIO_CONFIG_SIZE 64

/* The BAR of registers: one page for each of its parts. */
#define VIRTIO_REGISTERS_BAR 4
#define VIRTIO_MSIX_BAR 1
#define VIRTIO_BAR_SIZE 0x4000
#define VIRTIO_BAR_COMMON 0x0000
#define VIRTIO_BAR_ISR 0x1000
#define VIRTIO_BAR_DEVICE 0x2000
#define VIRTIO_BAR_NOTIFY 0x3000
#define VIRTIO_NOTIFY_MULTIPLIER 4

struct virtio_class {
    void (*notified)(void *opaque);                                           /* there may be chains in queues */
    void (*reset)(void *opaque);                                              /* forget what was not finished */
    void (*config_written)(void *opaque, uint32_t first, uint32_t length, const uint8_t *data);
    void (*rewired)(void *opaque); /* what the queues' interrupts are may have changed; NULL: it is asked each time */
};

struct virtio_pci {
    const struct guest_memory *memory;
    const struct virtio_class *class;
    void *opaque; /* for class */
    struct pci_pirqs *pirqs;
    uint32_t pirq;        /* that INTA is wired to */
    uint32_t slot;        /* PCI device number */
    bool bus_master;      /* Command register: without it, guest memory is out of reach */
    bool intx_disabled;   /* Command register */
    bool line;            /* INTA, as driven */
    uint64_t offered;     /* feature bits */
    uint64_t negotiated;
    uint32_t offered_select;
    uint32_t negotiated_select;
    uint8_t status;
    bool stopping;        /* what a reset ended is not at its end yet, and status does not read 0 (4.1.4.3.1) */
    uint8_t generation;   /* of config */
    uint8_t isr;
    uint16_t config_vector;
    uint16_t queue_select;
    uint16_t queue_count;
    struct virtqueue queues[VIRTIO_MAX_QUEUES];
    uint32_t config_size;
    uint8_t config[VIRTIO_CONFIG_SIZE];
    struct msix msix;
};

/* Every register as after power-on. */
void virtio_pci_reset(struct virtio_pci *device);

/* The io_handler of the registers' BAR; opaque is a struct virtio_pci. */
void virtio_pci_access(void *opaque, struct io_access *access);

/* The io_handler of MSI-X's BAR; opaque is a struct virtio_pci. */
void virtio_pci_msix_access(void *opaque, struct io_access *access);

/* The Command register and MSI-X's Message Control were written. */
void virtio_pci_set_command(struct virtio_pci *device, uint16_t command);
void virtio_pci_set_msix_control(struct virtio_pci *device, uint16_t control);

/* Registers were set from outside: drive the interrupt pin as they say, and serve what there is. */
void virtio_pci_update(struct virtio_pci *device);

/*
 * The registers once more, for firmware that has not mapped the BAR yet: a
 * capability names a place in the BAR, and what it has as data is read and
 * written there (VIRTIO_PCI_CAP_PCI_CFG, 4.1.4.9).
 */
struct virtio_pci_window {
    struct pci_view view;    /* of the capability's data */
    struct virtio_pci *device;
    uint8_t *config;         /* the function's configuration space */
    uint32_t capability;     /* where the capability begins */
};

void virtio_pci_window_init(struct virtio_pci_window *window);

/* The guest wrote the data: write it to its place. */
void virtio_pci_window_store(struct virtio_pci_window *window);

/* Whether the driver said that it is ready, and nothing keeps the device from serving this queue. */
bool virtio_pci_may_serve(const struct virtio_pci *device, uint32_t queue);

struct virtq_features virtio_pci_ring_features(const struct virtio_pci *device);
bool virtio_pci_negotiated(const struct virtio_pci *device, uint32_t feature);

/* A queue has used chains. */
void virtio_pci_interrupt(struct virtio_pci *device, uint32_t queue);

/* The driver did what makes no sense: DEVICE_NEEDS_RESET, and nothing is served until it resets the device. */
void virtio_pci_break(struct virtio_pci *device);

#endif
