/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/coalesced.h"

#include <string.h>

/* What KVM cannot have written is passed over. */
static void serve(struct io_table *ports, struct io_table *mmio, struct recent *recent,
                  const struct kvm_coalesced_mmio *entry)
{
    bool is_port = entry->pio == 1 && entry->phys_addr <= UINT16_MAX && entry->len <= 4;
    uint8_t data[sizeof(entry->data)];
    /* KVM does not say which vCPU it was; of devices only the access log asks, and nothing is coalesced beside it. */
    struct io_access access = {
        .address = entry->phys_addr, .data = data, .size = entry->len, .count = 1, .is_write = true,
    };

    if ((!is_port && entry->pio != 0) || (entry->len != 1 && entry->len != 2 && entry->len != 4 && entry->len != 8)) {
        return;
    }
    memcpy(data, entry->data, sizeof(data));
    recent_begin(recent, &access, RECENT_UNKNOWN_VCPU, !is_port);
    io_table_access(is_port ? ports : mmio, &access);
}

void coalesced_drain(struct kvm_coalesced_mmio_ring *ring, struct io_table *ports, struct io_table *mmio,
                     struct recent *recent)
{
    uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE) % COALESCED_ENTRIES;
    uint32_t next = ring->first % COALESCED_ENTRIES;

    while (next != last) {
        struct kvm_coalesced_mmio entry = ring->coalesced_mmio[next];

        next = (next + 1) % COALESCED_ENTRIES;
        __atomic_store_n(&ring->first, next, __ATOMIC_RELEASE);
        serve(ports, mmio, recent, &entry);
    }
}
