/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where a vCPU executes, looked at about a thousand times a second while it
 * does: one thread, the vCPU's, adds samples, and another takes them. A vCPU
 * that waits in HLT, or for its start, is not looked at.
 */
#ifndef VMM_PROFILE_H
#define VMM_PROFILE_H

#include <stdint.h>

#include "vmm/ring.h"

#define PROFILE_INTERVAL_NS 1000000u

struct vmm_vcpu;

struct profile_sample {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t address; /* linear, of the next instruction */
};

/* On the vCPU's thread: to its ring of struct profile_sample. */
void profile_add(struct ring *profile, uint64_t address);

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
