/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Writes that KVM keeps in a ring instead of leaving the kernel (KVM_CAP_COALESCED_PIO for ports, since Linux 4.20;
 * Documentation/virt/kvm/api.rst, KVM_REGISTER_COALESCED_MMIO). One ring for a machine, in the order of its writes;
 * a write that finds it full is an exit as ever.
 *
 * Nobody can tell such a write from one that was served at once, as whoever takes io_lock serves first what is in the
 * ring: another access to a device, a timer, a look at a device from outside. What is left is time, which
 * vmm_vm_poll limits.
 */
#ifndef VMM_COALESCED_H
#define VMM_COALESCED_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/recent.h"

#define COALESCED_PAGE 4096u
#define COALESCED_ENTRIES \
    ((COALESCED_PAGE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

/* Whether there is anything; without a lock. ring may be NULL: there never is. */
static inline bool coalesced_pending(const struct kvm_coalesced_mmio_ring *ring)
{
    return ring != NULL &&
           __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE) != __atomic_load_n(&ring->first, __ATOMIC_RELAXED);
}

/* Serve what is in the ring now, but not what is added meanwhile; the caller holds io_lock. */
void coalesced_drain(struct kvm_coalesced_mmio_ring *ring, struct io_table *ports, struct io_table *mmio,
                     struct recent *recent);

#endif
