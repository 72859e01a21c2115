/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/virtqueue.h"

#include <linux/virtio_ring.h>

/* Both rings begin with flags and an index, of 16 bits each. */
#define RING_FLAGS 0
#define RING_INDEX 2
#define RING_ENTRIES 4

static uint64_t available_entry(const struct virtqueue *queue, uint16_t count)
{
    return queue->available + RING_ENTRIES + sizeof(uint16_t) * (uint64_t)(count % queue->size);
}

/* Behind the available ring: up to where the driver has seen used chains. */
static uint64_t used_event(const struct virtqueue *queue)
{
    return queue->available + RING_ENTRIES + sizeof(uint16_t) * (uint64_t)queue->size;
}

static uint64_t used_entry(const struct virtqueue *queue, uint16_t count)
{
    return queue->used + RING_ENTRIES + sizeof(struct vring_used_elem) * (uint64_t)(count % queue->size);
}

/* Behind the used ring: from which available chain on we want to be notified. */
static uint64_t available_event(const struct virtqueue *queue)
{
    return queue->used + RING_ENTRIES + sizeof(struct vring_used_elem) * (uint64_t)queue->size;
}

bool virtqueue_is_sane(const struct virtqueue *queue, const struct guest_memory *memory)
{
    uint64_t size = queue->size;

    return size != 0 && size <= VIRTQ_SIZE && (size & (size - 1)) == 0 &&
           queue->descriptors % VRING_DESC_ALIGN_SIZE == 0 && queue->available % VRING_AVAIL_ALIGN_SIZE == 0 &&
           queue->used % VRING_USED_ALIGN_SIZE == 0 &&
           guest_memory_readable(memory, queue->descriptors, size * sizeof(struct vring_desc)) &&
           guest_memory_readable(memory, queue->available, used_event(queue) - queue->available) &&
           guest_memory_writable(memory, queue->used, available_event(queue) - queue->used);
}

static bool add_segment(struct virtq_chain *chain, const struct guest_memory *memory, const struct vring_desc *descriptor)
{
    bool writable = descriptor->flags & VRING_DESC_F_WRITE;
    uint32_t count = chain->readable + chain->writable;

    if (count == VIRTQ_SEGMENTS || (!writable && chain->writable != 0)) {
        return false;
    }
    if (writable) {
        if (!guest_memory_writable(memory, descriptor->addr, descriptor->len)) {
            return false;
        }
        chain->writable++;
        chain->writable_bytes += descriptor->len;
    } else {
        if (!guest_memory_readable(memory, descriptor->addr, descriptor->len)) {
            return false;
        }
        chain->readable++;
        chain->readable_bytes += descriptor->len;
    }
    chain->segments[count] = (struct virtq_segment){.gpa = descriptor->addr, .length = descriptor->len};
    return true;
}

/* Collect the buffers of a chain; each descriptor adds one, so that their limit ends every loop. */
static bool walk(const struct virtqueue *queue, const struct guest_memory *memory, bool indirect, struct virtq_chain *chain)
{
    uint64_t table = queue->descriptors;
    uint32_t entries = queue->size;
    uint32_t index = chain->head;
    bool inside = false;

    for (;;) {
        struct vring_desc descriptor;

        if (index >= entries || guest_memory_read(memory, table + index * sizeof(descriptor), &descriptor,
                                                  sizeof(descriptor)) != sizeof(descriptor)) {
            return false;
        }
        if (descriptor.flags & VRING_DESC_F_INDIRECT) {
            if (!indirect || inside || descriptor.flags & VRING_DESC_F_NEXT || descriptor.len == 0 ||
                descriptor.len % sizeof(descriptor) != 0) {
                return false;
            }
            inside = true;
            table = descriptor.addr;
            entries = descriptor.len / sizeof(descriptor);
            index = 0;
            continue;
        }
        if (!add_segment(chain, memory, &descriptor)) {
            return false;
        }
        if (!(descriptor.flags & VRING_DESC_F_NEXT)) {
            return true;
        }
        index = descriptor.next;
    }
}

enum virtq_result virtqueue_look(const struct virtqueue *queue, const struct guest_memory *memory,
                                 struct virtq_features features, uint16_t head, struct virtq_chain *chain)
{
    chain->head = head;
    chain->readable = chain->writable = 0;
    chain->readable_bytes = chain->writable_bytes = 0;
    return walk(queue, memory, features.indirect, chain) ? VIRTQ_DONE : VIRTQ_BROKEN;
}

enum virtq_result virtqueue_pop(struct virtqueue *queue, const struct guest_memory *memory,
                                struct virtq_features features, struct virtq_chain *chain)
{
    enum virtq_result result;
    uint16_t offered;
    uint16_t head;

    if (!guest_memory_load16(memory, queue->available + RING_INDEX, &offered)) {
        return VIRTQ_BROKEN;
    }
    if (offered == queue->next_available) {
        return VIRTQ_NOTHING;
    }
    if ((uint16_t)(offered - queue->next_available) > queue->size ||
        !guest_memory_load16(memory, available_entry(queue, queue->next_available), &head)) {
        return VIRTQ_BROKEN;
    }
    result = virtqueue_look(queue, memory, features, head, chain);
    if (result == VIRTQ_DONE) {
        queue->next_available++;
    }
    return result;
}

bool virtqueue_has_more(struct virtqueue *queue, const struct guest_memory *memory, struct virtq_features features)
{
    uint16_t offered;

    if (features.event_index) {
        guest_memory_store16(memory, available_event(queue), queue->next_available);
        /* The driver adds a chain, then reads this; we wrote this, then look for a chain (2.7.10). */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    return !guest_memory_load16(memory, queue->available + RING_INDEX, &offered) || offered != queue->next_available;
}

enum virtq_result virtqueue_push(struct virtqueue *queue, const struct guest_memory *memory,
                                 struct virtq_features features, uint16_t head, uint32_t written)
{
    struct vring_used_elem element = {.id = head, .len = written};
    uint16_t used = (uint16_t)(queue->next_used + 1);
    uint16_t word;

    if (guest_memory_write(memory, used_entry(queue, queue->next_used), &element, sizeof(element)) != sizeof(element) ||
        !guest_memory_store16(memory, queue->used + RING_INDEX, used)) {
        return VIRTQ_BROKEN;
    }
    queue->next_used = used;
    /* The driver says that it wants an interrupt, then looks at the ring; we wrote the ring, then look (2.7.7). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!guest_memory_load16(memory, features.event_index ? used_event(queue) : queue->available + RING_FLAGS, &word)) {
        return VIRTQ_BROKEN;
    }
    if (features.event_index) {
        return word == (uint16_t)(used - 1) ? VIRTQ_DONE : VIRTQ_NOTHING;
    }
    return word & VRING_AVAIL_F_NO_INTERRUPT ? VIRTQ_NOTHING : VIRTQ_DONE;
}

/* The part of one buffer that an access from byte `offset` on reaches; advances past the buffers before. */
static uint64_t part_of(const struct virtq_segment *segment, uint64_t *offset, uint64_t length)
{
    uint64_t part;

    if (*offset >= segment->length) {
        *offset -= segment->length;
        return 0;
    }
    part = segment->length - *offset;
    return part < length ? part : length;
}

bool virtq_chain_read(const struct virtq_chain *chain, const struct guest_memory *memory, uint64_t offset, void *to,
                      uint64_t length)
{
    uint8_t *at = to;

    for (uint32_t i = 0; length > 0 && i < chain->readable; i++) {
        uint64_t part = part_of(&chain->segments[i], &offset, length);

        if (part != 0) {
            if (guest_memory_read(memory, chain->segments[i].gpa + offset, at, part) != part) {
                return false;
            }
            at += part;
            length -= part;
            offset = 0;
        }
    }
    return length == 0;
}

bool virtq_chain_write(const struct virtq_chain *chain, const struct guest_memory *memory, uint64_t offset,
                       const void *from, uint64_t length)
{
    const uint8_t *at = from;

    for (uint32_t i = 0; length > 0 && i < chain->writable; i++) {
        const struct virtq_segment *segment = &chain->segments[chain->readable + i];
        uint64_t part = part_of(segment, &offset, length);

        if (part != 0) {
            if (guest_memory_write(memory, segment->gpa + offset, at, part) != part) {
                return false;
            }
            at += part;
            length -= part;
            offset = 0;
        }
    }
    return length == 0;
}
