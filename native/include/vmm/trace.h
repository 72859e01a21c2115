/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The access log: one ring of fixed records per vCPU. A device that has no
 * trace (a NULL pointer) pays one predicted branch.
 *
 * The vCPU's own thread produces, with io_lock held; one reader consumes
 * without it. A full ring drops the new record and counts it.
 */
#ifndef VMM_TRACE_H
#define VMM_TRACE_H

#include <stdbool.h>
#include <stdint.h>

enum trace_operation {
    TRACE_SELECT,     /* selector written */
    TRACE_PORT_READ,  /* bytes from the data port; neighbours are merged */
    TRACE_DMA_READ,
    TRACE_DMA_WRITE,
    TRACE_DMA_SKIP,
    TRACE_DMA_SELECT, /* a descriptor that moves nothing */
    TRACE_DMA_LOST,   /* a descriptor that could not be read; gpa is its own */
};

struct trace_record {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t rip;     /* of the guest, at or right behind the instruction; 0 if unknown */
    uint64_t gpa;     /* of a DMA buffer */
    uint64_t length;  /* bytes asked for */
    uint32_t offset;  /* in the item, before the operation */
    uint32_t moved;   /* bytes of the item that were read, written or skipped */
    uint32_t key;
    uint32_t vcpu;
    uint16_t operation; /* enum trace_operation */
    uint16_t control;   /* DMA: the low half of the control word written back */
};

struct trace;

/* Where vCPU `vcpu` is; called on its thread, outside KVM_RUN. */
typedef uint64_t trace_rip(void *opaque, uint32_t vcpu);

/* rings for vCPU indices below vcpus, each of `capacity` (a power of two) records. NULL without memory. */
struct trace *trace_new(uint32_t vcpus, uint32_t capacity, trace_rip *rip, void *opaque);
void trace_free(struct trace *trace);

/* Producer: note one operation; time and RIP are filled in. */
void trace_add(struct trace *trace, const struct trace_record *record);

/* Producer's side too: publish the port read that still waits for its neighbours. io_lock is held. */
void trace_flush(struct trace *trace);

/* Consumer: move up to `count` records of one vCPU out, oldest first; returns how many. */
uint32_t trace_take(struct trace *trace, uint32_t vcpu, struct trace_record *records, uint32_t count);

/* Records lost to full rings so far, all vCPUs. */
uint64_t trace_dropped(const struct trace *trace);

#endif
