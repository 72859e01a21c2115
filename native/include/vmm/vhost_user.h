/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A virtio device whose queues another process serves, in the machine's memory,
 * as the vhost-user protocol has it. Here are its registers and what goes from
 * the guest to that process at once, its notifications; what they say to each
 * other is vmm/devices/virtio/vhost_user.py's.
 *
 * That process signals a queue's interrupt by an eventfd. While nothing of the
 * guest's doing is in the way (a mask, a reset), KVM may have it and send the
 * message itself: vmm/devices/virtio/vhost_user.py connects it then, and
 * whatever changes that, here, takes it away before the guest goes on.
 *
 * All functions but for the first two are called with io_lock held.
 */
#ifndef VMM_VHOST_USER_H
#define VMM_VHOST_USER_H

#include "vmm/virtio_pci.h"

/* A queue's irqfd. */
struct vhost_user_wire {
    bool connected; /* KVM has the queue's call_fd: set from outside */
    uint32_t gsi;   /* that stands for the message */
    uint64_t address;
    uint32_t data;
};

struct vhost_user {
    struct virtio_pci pci;
    int wake_fd;                     /* the driver started the device, or reset it */
    int kick_fds[VIRTIO_MAX_QUEUES]; /* a queue has new chains; KVM may signal it, too */
    int call_fds[VIRTIO_MAX_QUEUES]; /* a queue has used chains; does not block */
    struct vhost_user_wire wires[VIRTIO_MAX_QUEUES];
    int vm_fd;
    uint64_t resets;                 /* how often there was one */
    bool served;                     /* the other process was told of the queues; set from outside */
};

/* With so many queues, up to VIRTIO_MAX_QUEUES. NULL: no memory, or no descriptors. */
struct vhost_user *vhost_user_new(const struct guest_memory *memory, struct pci_pirqs *pirqs, int vm, uint16_t queues);
void vhost_user_free(struct vhost_user *device);

/* Whether queues are to be served now: those that are enabled. */
bool vhost_user_wanted(const struct vhost_user *device);

/* What a queue's interrupt is now: KVM could send it. False: it is a pin, or masked, or not to be sent. */
bool vhost_user_message(const struct vhost_user *device, uint32_t queue, uint64_t *address, uint32_t *data);

/* The other process serves nothing from before this many resets any more. */
void vhost_user_stopped(struct vhost_user *device, uint64_t resets);

#endif
