/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where a vCPU executes, looked at about a thousand times a second while it
 * does: one thread, the vCPU's, adds samples, and another takes them. A vCPU
 * that waits in HLT, or for its start, is not looked at.
 */
#ifndef VMM_PROFILE_H
#define VMM_PROFILE_H

#include <stdint.h>

#define PROFILE_INTERVAL_NS 1000000u

struct vmm_vcpu;

struct profile_sample {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t address; /* linear, of the next instruction */
};

struct profile;

/* `capacity` is a power of two. NULL: there is no memory. */
struct profile *profile_new(uint32_t capacity);
void profile_free(struct profile *profile);

/* On the vCPU's thread. A full ring loses the sample, and counts it. */
void profile_add(struct profile *profile, uint64_t address);

/* The oldest samples that were not taken yet, up to `count`; returns how many. */
uint32_t profile_take(struct profile *profile, struct profile_sample *samples, uint32_t count);
uint64_t profile_lost(const struct profile *profile);

/*
 * Have the calling thread, which is about to run this vCPU, interrupted all the time, until profile_disarm. Does nothing
 * where nobody asked for samples, or the software CPU executes it, whose ticker does. 0 or a negative errno.
 */
int profile_arm(struct vmm_vcpu *vcpu);

/* Any thread, once the vCPU's has ended. */
void profile_disarm(struct vmm_vcpu *vcpu);

/* KVM_RUN was interrupted: add a sample, unless the vCPU waits. */
void profile_look(struct vmm_vcpu *vcpu);

#endif
