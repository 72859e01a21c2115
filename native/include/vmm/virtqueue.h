/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The device's side of a split virtqueue (virtio 1.2, 2.7), in guest memory.
 *
 * Nothing that the guest puts there is trusted: every address is checked
 * against guest memory, a chain is walked once, into memory of ours, and a
 * ring or a chain that makes no sense is reported as VIRTQ_BROKEN, after which
 * the device needs a reset. All functions are called with io_lock held.
 */
#ifndef VMM_VIRTQUEUE_H
#define VMM_VIRTQUEUE_H

#include "vmm/guest_memory.h"

#define VIRTQ_SIZE 256     /* entries that a queue has at the most, and has until the driver chooses fewer */
#define VIRTQ_SEGMENTS 256 /* buffers of a chain; more of them break the queue */

struct virtqueue {
    uint64_t descriptors; /* GPA of the descriptor table */
    uint64_t available;   /* GPA of the ring that the driver fills */
    uint64_t used;        /* GPA of the ring that we fill */
    uint16_t size;        /* entries, a power of two */
    uint16_t vector;      /* of MSI-X */
    bool enabled;
    uint16_t next_available; /* counts chains taken, modulo 2^16 */
    uint16_t next_used;      /* counts chains given back, modulo 2^16 */
};

/* What a queue may use, of what was negotiated. */
struct virtq_features {
    bool indirect;    /* VIRTIO_F_INDIRECT_DESC */
    bool event_index; /* VIRTIO_F_EVENT_IDX */
};

struct virtq_segment {
    uint64_t gpa;
    uint32_t length;
};

/* One request: buffers that we read, followed by buffers that we write. */
struct virtq_chain {
    uint16_t head; /* names it in the used ring */
    uint32_t readable;
    uint32_t writable;
    uint64_t readable_bytes;
    uint64_t writable_bytes;
    struct virtq_segment segments[VIRTQ_SEGMENTS];
};

enum virtq_result {
    VIRTQ_NOTHING, /* no chain; no need to interrupt */
    VIRTQ_DONE,    /* a chain; the driver wants an interrupt */
    VIRTQ_BROKEN,
};

/* Whether size and addresses are what a driver may choose: a power of two, aligned, in memory. */
bool virtqueue_is_sane(const struct virtqueue *queue, const struct guest_memory *memory);

/* Take the next chain, and say up to where chains were taken. */
enum virtq_result virtqueue_pop(struct virtqueue *queue, const struct guest_memory *memory,
                                struct virtq_features features, struct virtq_chain *chain);

/* Look again at a chain that was taken before, by its head: DONE or BROKEN. */
enum virtq_result virtqueue_look(const struct virtqueue *queue, const struct guest_memory *memory,
                                 struct virtq_features features, uint16_t head, struct virtq_chain *chain);

/* Ask to be notified of the next chain. True: there is one already, or the ring is broken. */
bool virtqueue_has_more(struct virtqueue *queue, const struct guest_memory *memory, struct virtq_features features);

/* Give a chain back; `written` bytes of its writable buffers were. */
enum virtq_result virtqueue_push(struct virtqueue *queue, const struct guest_memory *memory,
                                 struct virtq_features features, uint16_t head, uint32_t written);

/* Copy from the readable, or to the writable buffers, from byte `offset` of these on. False: not all of it is there. */
bool virtq_chain_read(const struct virtq_chain *chain, const struct guest_memory *memory, uint64_t offset, void *to,
                      uint64_t length);
bool virtq_chain_write(const struct virtq_chain *chain, const struct guest_memory *memory, uint64_t offset,
                       const void *from, uint64_t length);

#endif
