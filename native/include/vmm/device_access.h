/* SPDX-License-Identifier: BSD-2-Clause */
/* How a vCPU's accesses, and others, come to devices: one after the other, under io_lock. */
#ifndef VMM_DEVICE_ACCESS_H
#define VMM_DEVICE_ACCESS_H

#include "vmm/machine.h"

/*
 * Be the one who uses devices, which have been told by then what the guest has written: coalesced writes are served
 * first, unless this thread is in a device already. trylock: false if another thread is, maybe for long.
 */
bool vmm_io_trylock(struct vmm_vm *vm);
void vmm_io_lock(struct vmm_vm *vm);
void vmm_io_unlock(struct vmm_vm *vm);

/*
 * Coalesce writes from now on, into the ring of this machine's vCPUs, until it is set to NULL, which must be before
 * the page is unmapped. No vCPU runs.
 */
void vmm_vm_coalesce(struct vmm_vm *vm, struct kvm_coalesced_mmio_ring *ring);

/*
 * To be called every few milliseconds while vCPUs run, by one thread. True: a coalesced write waits, and none was served
 * since the last call, so somebody should take io_lock; a guest that writes a lot fills the ring and so does it itself.
 */
bool vmm_vm_poll(struct vmm_vm *vm);

/* Whether a coalesced write waits that came since io_lock was taken; the caller holds it. */
bool vmm_vm_keeps_writes(struct vmm_vm *vm);

/* For devices with threads of their own, which don't look at what the guest writes to others. */
pthread_mutex_t *vmm_io_mutex(struct vmm_vm *vm);

/* Serve an access of the vCPU that this thread runs; size, count (MMIO: 1) and data are those of struct io_access. */
void vmm_port_access(struct vmm_vcpu *vcpu, uint16_t port, uint32_t size, uint32_t count, uint8_t *data, bool is_write);
void vmm_mmio_access(struct vmm_vcpu *vcpu, uint64_t gpa, uint32_t size, uint8_t *data, bool is_write);

#endif
