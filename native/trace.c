/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/trace.h"

#include <stdlib.h>

#include "vmm/clock.h"
#include "vmm/ring.h"

struct lane {
    struct ring *records;
    struct trace_record pending; /* a port read that may still grow; producer only */
    bool has_pending;
};

struct trace {
    uint32_t vcpus;
    trace_rip *rip;
    void *opaque;
    struct lane lanes[];
};

struct trace *trace_new(uint32_t vcpus, uint32_t capacity, trace_rip *rip, void *opaque)
{
    struct trace *trace = calloc(1, sizeof(*trace) + vcpus * sizeof(struct lane));

    if (trace == NULL) {
        return NULL;
    }
    *trace = (struct trace){.vcpus = vcpus, .rip = rip, .opaque = opaque};
    for (uint32_t i = 0; i < vcpus; i++) {
        trace->lanes[i].records = ring_new(capacity, sizeof(struct trace_record));
        if (trace->lanes[i].records == NULL) {
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
        ring_free(trace->lanes[i].records);
    }
    free(trace);
}

static void flush(struct lane *lane)
{
    if (lane->has_pending) {
        ring_add(lane->records, &lane->pending);
        lane->has_pending = false;
    }
}

static bool continues(const struct trace_record *pending, const struct trace_record *record)
{
    return record->operation == TRACE_PORT_READ && record->key == pending->key &&
           record->offset == pending->offset + pending->moved;
}

void trace_add(struct trace *trace, const struct trace_record *record)
{
    struct lane *lane;
    struct trace_record stamped = *record;

    if (record->vcpu >= trace->vcpus) {
        return;
    }
    lane = &trace->lanes[record->vcpu];
    if (lane->has_pending && continues(&lane->pending, record)) {
        lane->pending.length += record->length;
        lane->pending.moved += record->moved;
        return;
    }
    flush(lane);
    stamped.time_ns = monotonic_ns();
    stamped.rip = trace->rip != NULL ? trace->rip(trace->opaque, record->vcpu) : 0;
    if (record->operation == TRACE_PORT_READ) {
        lane->pending = stamped;
        lane->has_pending = true;
    } else {
        ring_add(lane->records, &stamped);
    }
}

void trace_flush(struct trace *trace)
{
    for (uint32_t i = 0; i < trace->vcpus; i++) {
        flush(&trace->lanes[i]);
    }
}

uint32_t trace_take(struct trace *trace, uint32_t vcpu, struct trace_record *records, uint32_t count)
{
    return vcpu < trace->vcpus ? ring_take(trace->lanes[vcpu].records, records, count) : 0;
}

uint64_t trace_dropped(const struct trace *trace)
{
    uint64_t dropped = 0;

    for (uint32_t i = 0; i < trace->vcpus; i++) {
        dropped += ring_dropped(trace->lanes[i].records);
    }
    return dropped;
}
