/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A virtio device whose queues another process serves, in the machine's memory,
 * as the vhost-user protocol has it. Here are its registers and what goes from
 * the guest to that process at once, its notifications; what they say to each
 * other is vmm/devices/virtio/vhost_user.py's.
 *
 * All functions but for the first two are called with io_lock held.
 */
#ifndef VMM_VHOST_USER_H
#define VMM_VHOST_USER_H

#include "vmm/virtio_pci.h"

struct vhost_user {
    struct virtio_pci pci;
    int wake_fd;                     /* the driver started the device, or reset it */
    int kick_fds[VIRTIO_MAX_QUEUES]; /* a queue has new chains; KVM may signal it, too */
    uint64_t resets;                 /* how often there was one */
    bool served;                     /* the other process was told of the queues; set from outside */
};

/* With so many queues, up to VIRTIO_MAX_QUEUES. NULL: no memory, or no descriptors. */
struct vhost_user *vhost_user_new(const struct guest_memory *memory, struct pci_pirqs *pirqs, uint16_t queues);
void vhost_user_free(struct vhost_user *device);

/* Whether queues are to be served now: those that are enabled. */
bool vhost_user_wanted(const struct vhost_user *device);

/* The other process serves nothing from before this many resets any more. */
void vhost_user_stopped(struct vhost_user *device, uint64_t resets);

#endif
