/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/trace.h"

#include <stdlib.h>

#include "vmm/clock.h"

struct ring {
    struct trace_record *records;
    struct trace_record pending; /* a port read that may still grow; producer only */
    bool has_pending;
    uint64_t produced; /* accessed atomically */
    uint64_t consumed; /* accessed atomically */
    uint64_t dropped;  /* accessed atomically */
};

struct trace {
    uint32_t vcpus;
    uint32_t capacity;
    trace_rip *rip;
    void *opaque;
    struct ring rings[];
};

struct trace *trace_new(uint32_t vcpus, uint32_t capacity, trace_rip *rip, void *opaque)
{
    struct trace *trace = calloc(1, sizeof(*trace) + vcpus * sizeof(struct ring));

    if (trace == NULL) {
        return NULL;
    }
    *trace = (struct trace){.vcpus = vcpus, .capacity = capacity, .rip = rip, .opaque = opaque};
    for (uint32_t i = 0; i < vcpus; i++) {
        trace->rings[i].records = calloc(capacity, sizeof(struct trace_record));
        if (trace->rings[i].records == NULL) {
            trace_free(trace);
            return NULL;
        }
    }
    return trace;
}

void trace_free(struct trace *trace)
{
    if (trace == NULL) {
        return;
    }
    for (uint32_t i = 0; i < trace->vcpus; i++) {
        free(trace->rings[i].records);
    }
    free(trace);
}

static void push(struct trace *trace, struct ring *ring, const struct trace_record *record)
{
    uint64_t produced = ring->produced;

    if (produced - __atomic_load_n(&ring->consumed, __ATOMIC_ACQUIRE) == trace->capacity) {
        __atomic_store_n(&ring->dropped, ring->dropped + 1, __ATOMIC_RELAXED);
        return;
    }
    ring->records[produced & (trace->capacity - 1)] = *record;
    __atomic_store_n(&ring->produced, produced + 1, __ATOMIC_RELEASE);
}

static void flush_ring(struct trace *trace, struct ring *ring)
{
    if (ring->has_pending) {
        push(trace, ring, &ring->pending);
        ring->has_pending = false;
    }
}

static bool continues(const struct trace_record *pending, const struct trace_record *record)
{
    return record->operation == TRACE_PORT_READ && record->key == pending->key &&
           record->offset == pending->offset + pending->moved;
}

void trace_add(struct trace *trace, const struct trace_record *record)
{
    struct ring *ring;
    struct trace_record stamped = *record;

    if (record->vcpu >= trace->vcpus) {
        return;
    }
    ring = &trace->rings[record->vcpu];
    if (ring->has_pending && continues(&ring->pending, record)) {
        ring->pending.length += record->length;
        ring->pending.moved += record->moved;
        return;
    }
    flush_ring(trace, ring);
    stamped.time_ns = monotonic_ns();
    stamped.rip = trace->rip != NULL ? trace->rip(trace->opaque, record->vcpu) : 0;
    if (record->operation == TRACE_PORT_READ) {
        ring->pending = stamped;
        ring->has_pending = true;
    } else {
        push(trace, ring, &stamped);
    }
}

void trace_flush(struct trace *trace)
{
    for (uint32_t i = 0; i < trace->vcpus; i++) {
        flush_ring(trace, &trace->rings[i]);
    }
}

uint32_t trace_take(struct trace *trace, uint32_t vcpu, struct trace_record *records, uint32_t count)
{
    struct ring *ring;
    uint64_t consumed;
    uint64_t available;
    uint32_t taken;

    if (vcpu >= trace->vcpus) {
        return 0;
    }
    ring = &trace->rings[vcpu];
    consumed = ring->consumed;
    available = __atomic_load_n(&ring->produced, __ATOMIC_ACQUIRE) - consumed;
    taken = available < count ? (uint32_t)available : count;
    for (uint32_t i = 0; i < taken; i++) {
        records[i] = ring->records[(consumed + i) & (trace->capacity - 1)];
    }
    __atomic_store_n(&ring->consumed, consumed + taken, __ATOMIC_RELEASE);
    return taken;
}

uint64_t trace_dropped(const struct trace *trace)
{
    uint64_t dropped = 0;

    for (uint32_t i = 0; i < trace->vcpus; i++) {
        dropped += __atomic_load_n(&trace->rings[i].dropped, __ATOMIC_RELAXED);
    }
    return dropped;
}
