/* SPDX-License-Identifier: BSD-2-Clause */
/* The loop that runs one vCPU on the calling thread until something ends it. */
#ifndef VMM_VCPU_RUN_H
#define VMM_VCPU_RUN_H

#include "vmm/device_access.h"

/*
 * Run on this thread until the guest or a stop ends it; returns end.outcome.
 * The machine's interrupt controllers are KVM's, so HLT is waited for in KVM.
 */
int vmm_vcpu_run(struct vmm_vcpu *vcpu);

/* Between runs: forget that the vCPU ever started, as after power-on. 0 or a negative errno. */
int vmm_vcpu_reset(struct vmm_vcpu *vcpu);

/* Pieces that the software CPU shares with the KVM loop. */

/* Bracket a run: the thread can be kicked in between. False: a stop is already asked for. */
bool vmm_vcpu_enter(struct vmm_vcpu *vcpu);
void vmm_vcpu_leave(struct vmm_vcpu *vcpu);

/* After KVM_RUN returned `result`: serve the exit. True: go on; false: vcpu->end says why not. */
bool vmm_vcpu_serve_exit(struct vmm_vcpu *vcpu, int result);

/*
 * A port or MMIO access is finished by the next KVM_RUN, so a run that is
 * stopped right behind one must enter KVM once more, or the vCPU's registers
 * are those of an instruction half done (Documentation/virt/kvm/api.rst,
 * KVM_EXIT_IO). False: it cannot be finished, and vcpu->end says why.
 */
bool vmm_vcpu_finish_access(struct vmm_vcpu *vcpu);

/* The vCPU is about to execute its first instruction, if it never did before. False: vcpu->end says why not. */
bool vmm_vcpu_note_start(struct vmm_vcpu *vcpu);

/* Raise it when a function of struct vmm_core, or a field of the structures that it shares, changes its meaning. */
#define VMM_CORE_VERSION 6u

/*
 * The above, for a module that is linked separately. It must have been built
 * for the same structures: it compares the first four fields with its own.
 */
struct vmm_core {
    uint32_t version;
    uint32_t core_size; /* bytes of this structure */
    uint32_t vm_size;   /* of struct vmm_vm */
    uint32_t vcpu_size; /* of struct vmm_vcpu */
    bool (*enter)(struct vmm_vcpu *vcpu);
    void (*leave)(struct vmm_vcpu *vcpu);
    void (*port_access)(struct vmm_vcpu *vcpu, uint16_t port, uint32_t size, uint32_t count, uint8_t *data, bool is_write);
    void (*mmio_access)(struct vmm_vcpu *vcpu, uint64_t gpa, uint32_t size, uint8_t *data, bool is_write);
    bool (*serve_exit)(struct vmm_vcpu *vcpu, int result);
    bool (*finish_access)(struct vmm_vcpu *vcpu);
    bool (*note_start)(struct vmm_vcpu *vcpu);
    void (*profile_add)(struct ring *profile, uint64_t address);
    const struct chips_calls *chips;
};

extern const struct vmm_core vmm_core;

#endif
