/* SPDX-License-Identifier: BSD-2-Clause */
/* Between the requests of a disk and the threads that serve them; io_lock is held. */
#ifndef VMM_VIRTIO_BLK_INSIDE_H
#define VMM_VIRTIO_BLK_INSIDE_H

#include "vmm/virtio_blk.h"

extern const struct virtio_class virtio_blk_class;

/* Features and configuration, from the fields that were filled in. */
void virtio_blk_offer(struct virtio_blk *blk);

/* virtio_blk_notify, if one has nothing to do: those that have will look by themselves. */
void virtio_blk_wake(struct virtio_blk *blk);

/* Whether no request is being served, and none waits; or nobody is there who would. */
bool virtio_blk_is_settled(struct virtio_blk *blk);

#endif
