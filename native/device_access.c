/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/device_access.h"

#include "vmm/clock.h"

/* io_lock was just taken. */
static void io_locked(struct vmm_vm *vm)
{
    if (vm->io_depth++ == 0 && coalesced_pending(vm->ring)) {
        coalesced_drain(vm->ring, &vm->ports, &vm->mmio, &vm->recent);
    }
}

bool vmm_io_trylock(struct vmm_vm *vm)
{
    if (pthread_mutex_trylock(&vm->io_lock) != 0) {
        return false;
    }
    io_locked(vm);
    return true;
}

void vmm_io_lock(struct vmm_vm *vm)
{
    pthread_mutex_lock(&vm->io_lock);
    io_locked(vm);
}

void vmm_io_unlock(struct vmm_vm *vm)
{
    vm->io_depth--;
    pthread_mutex_unlock(&vm->io_lock);
}

void vmm_vm_coalesce(struct vmm_vm *vm, struct kvm_coalesced_mmio_ring *ring)
{
    vmm_io_lock(vm);
    __atomic_store_n(&vm->ring, ring, __ATOMIC_RELAXED);
    vmm_io_unlock(vm);
}

bool vmm_vm_keeps_writes(struct vmm_vm *vm)
{
    return coalesced_pending(__atomic_load_n(&vm->ring, __ATOMIC_RELAXED));
}

bool vmm_vm_poll(struct vmm_vm *vm)
{
    const struct kvm_coalesced_mmio_ring *ring = __atomic_load_n(&vm->ring, __ATOMIC_RELAXED);
    uint32_t before = vm->polled;

    if (ring == NULL) {
        return false;
    }
    vm->polled = __atomic_load_n(&ring->first, __ATOMIC_RELAXED);
    return vm->polled == before && coalesced_pending(ring);
}

pthread_mutex_t *vmm_io_mutex(struct vmm_vm *vm)
{
    return &vm->io_lock;
}

static bool in_smm(const struct vmm_vcpu *vcpu)
{
    return vcpu->smm || (vcpu->run->flags & KVM_RUN_X86_SMM) != 0;
}

static void serve_access(struct vmm_vcpu *vcpu, struct io_table *table, struct io_access *access)
{
    struct vmm_vm *vm = vcpu->vm;
    struct recent_access *entry;

    vmm_io_lock(vm);
    vm->accessing = vcpu->index;
    entry = recent_begin(&vm->recent, access, (uint16_t)vcpu->index, table == &vm->mmio);
    io_table_access(table, access);
    recent_end(entry, access);
    vmm_io_unlock(vm);
}

static __attribute__((noinline)) void serve_timed(struct vmm_vcpu *vcpu, struct io_table *table,
                                                  struct io_access *access, enum exit_times_kind kind, uint64_t address)
{
    uint64_t began = monotonic_ns();

    serve_access(vcpu, table, access);
    exit_times_add(vcpu->times, kind, address, access->is_write, monotonic_ns() - began);
}

void vmm_port_access(struct vmm_vcpu *vcpu, uint16_t port, uint32_t size, uint32_t count, uint8_t *data, bool is_write)
{
    struct io_access access = {
        .address = port, .data = data, .size = size, .count = count, .vcpu = vcpu->index, .is_write = is_write,
        .smm = in_smm(vcpu),
    };

    if (__builtin_expect(vcpu->times == NULL, 1)) {
        serve_access(vcpu, &vcpu->vm->ports, &access);
    } else {
        serve_timed(vcpu, &vcpu->vm->ports, &access, EXIT_TIMES_PORT, port);
    }
}

void vmm_mmio_access(struct vmm_vcpu *vcpu, uint64_t gpa, uint32_t size, uint8_t *data, bool is_write)
{
    struct io_access access = {
        .address = gpa, .data = data, .size = size, .count = 1, .vcpu = vcpu->index, .is_write = is_write,
        .smm = in_smm(vcpu),
    };

    if (__builtin_expect(vcpu->times == NULL, 1)) {
        serve_access(vcpu, &vcpu->vm->mmio, &access);
    } else {
        serve_timed(vcpu, &vcpu->vm->mmio, &access, EXIT_TIMES_MMIO, gpa & ~(uint64_t)0xfff);
    }
}
