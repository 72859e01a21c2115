/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Many vCPUs at one fw_cfg, for ThreadSanitizer: ports and DMA through
 * vmm_port_access while other threads read statistics and the access log, map
 * and unmap memory, replace an item, and ask for stops.
 *
 * Selector and offset are one shared state, so what a port read returns is
 * anybody's guess; a DMA that selects its key is one operation, and its bytes
 * must be exactly those of its item.
 *
 * usage: fw_cfg_stress ITERATIONS      exit status 0: all transfers were whole
 */
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/fw_cfg.h"
#include "vmm/vcpu_run.h"

#define VCPUS 6
#define PAGE 4096u
#define ITEMS (FW_CFG_FIRST_FILE_KEY + VCPUS)
#define ITEM_SIZE 777u
#define MOVING_GPA (64u * PAGE)

static struct vmm_vm *vm;
static struct fw_cfg *device;
static struct trace *trace;
static struct fw_cfg_item items[ITEMS];
static unsigned long iterations;
static bool finished;

struct guest {
    struct vmm_vcpu *vcpu;
    uint8_t *ram; /* two pages of its own at GPA 2 * PAGE * index */
    unsigned long torn;
    unsigned long errors;
};

static void out(struct guest *guest, uint16_t port, uint32_t size, uint32_t value)
{
    vmm_port_access(guest->vcpu, port, size, 1, (uint8_t *)&value, true);
}

static uint32_t transfer(struct guest *guest, uint32_t control, uint32_t length, uint64_t address)
{
    uint64_t gpa = (uint64_t)guest->vcpu->index * 2 * PAGE;
    uint32_t descriptor[4] = {htobe32(control), htobe32(length), htobe32((uint32_t)(address >> 32)),
                              htobe32((uint32_t)address)};
    uint32_t answer;

    memcpy(guest->ram, descriptor, sizeof(descriptor));
    /* The high half is left alone: another vCPU could trigger in between. All of them use 0. */
    out(guest, FW_CFG_PORT_DMA_LOW, 4, htobe32((uint32_t)gpa));
    memcpy(&answer, guest->ram, sizeof(answer));
    return be32toh(answer);
}

static void *run_guest(void *opaque)
{
    struct guest *guest = opaque;
    uint32_t index = guest->vcpu->index;
    uint32_t key = FW_CFG_FIRST_FILE_KEY + index;
    uint64_t buffer = (uint64_t)index * 2 * PAGE + PAGE;
    uint8_t expected[ITEM_SIZE];
    uint8_t data[64];

    memset(expected, (int)(1 + index), sizeof(expected));
    for (unsigned long i = 0; i < iterations; i++) {
        memset(guest->ram + PAGE, 0xff, ITEM_SIZE);
        if (transfer(guest, key << 16 | FW_CFG_DMA_SELECT | FW_CFG_DMA_READ, ITEM_SIZE, buffer) != 0) {
            guest->errors++;
        } else if (memcmp(guest->ram + PAGE, expected, ITEM_SIZE) != 0) {
            guest->torn++;
        }
        out(guest, FW_CFG_PORT_FIRST, 2, key);
        vmm_port_access(guest->vcpu, FW_CFG_PORT_DATA, 1, sizeof(data), data, false);
        vmm_port_access(guest->vcpu, (uint16_t)(0x50e + i % 16), 4, 1, data, false);
        /* Memory that comes and goes: any answer, but no other place. */
        transfer(guest, key << 16 | FW_CFG_DMA_SELECT | FW_CFG_DMA_READ, ITEM_SIZE, MOVING_GPA - 100);
        if (i % 4 == 0) {
            transfer(guest, (FW_CFG_FIRST_FILE_KEY << 16) | FW_CFG_DMA_SELECT | FW_CFG_DMA_WRITE, ITEM_SIZE, MOVING_GPA);
        }
    }
    return NULL;
}

static void *observe(void *opaque)
{
    struct trace_record records[64];
    unsigned long *seen = opaque;

    while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE)) {
        for (uint32_t vcpu = 0; vcpu < VCPUS; vcpu++) {
            *seen += trace_take(trace, vcpu, records, 64);
        }
        *seen += trace_dropped(trace) & 1;
        for (uint32_t key = 0; key < ITEMS; key++) {
            *seen += __atomic_load_n(&items[key].bytes_read, __ATOMIC_RELAXED) & 1;
        }
    }
    return NULL;
}

static void *disturb(void *opaque)
{
    uint8_t *moving = opaque;
    static uint8_t other[ITEM_SIZE];
    uint8_t *mine = items[1].data;

    for (unsigned long i = 0; !__atomic_load_n(&finished, __ATOMIC_ACQUIRE); i++) {
        vmm_io_lock(vm);
        if (guest_memory_remove(&vm->memory, MOVING_GPA) == -ENOENT) {
            guest_memory_add(&vm->memory, MOVING_GPA, PAGE, moving, 0);
        }
        fw_cfg_replace(device, 1, i & 1 ? mine : other, ITEM_SIZE);
        trace_flush(trace);
        vmm_io_unlock(vm);
        if (i % 64 == 0) {
            vmm_vm_stop(vm, NULL, 0);
            vmm_vm_resume(vm);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct guest guests[VCPUS];
    pthread_t threads[VCPUS + 2];
    unsigned long seen = 0;
    unsigned long torn = 0;
    unsigned long errors = 0;

    iterations = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    vm = vmm_vm_new(-1);
    device = fw_cfg_new(&vm->memory, &vm->stop, true);
    trace = trace_new(VCPUS, 256, NULL, NULL);
    device->trace = trace;
    for (uint32_t key = 0; key < ITEMS; key++) {
        items[key] = (struct fw_cfg_item){.data = malloc(ITEM_SIZE), .length = ITEM_SIZE};
        memset(items[key].data, key < FW_CFG_FIRST_FILE_KEY ? 0 : (int)(key - FW_CFG_FIRST_FILE_KEY + 1), ITEM_SIZE);
    }
    fw_cfg_publish(device, items, ITEMS, NULL, 0);
    io_table_add(&vm->ports, FW_CFG_PORT_FIRST, FW_CFG_PORT_LAST, fw_cfg_access, device);
    for (uint32_t i = 0; i < VCPUS; i++) {
        guests[i] = (struct guest){.vcpu = vmm_vcpu_new(vm, -1, calloc(1, sizeof(struct kvm_run)), i),
                                   .ram = calloc(2, PAGE)};
        guest_memory_add(&vm->memory, (uint64_t)i * 2 * PAGE, 2 * PAGE, guests[i].ram, 0);
    }
    pthread_create(&threads[VCPUS], NULL, observe, &seen);
    pthread_create(&threads[VCPUS + 1], NULL, disturb, calloc(1, PAGE));
    for (uint32_t i = 0; i < VCPUS; i++) {
        pthread_create(&threads[i], NULL, run_guest, &guests[i]);
    }
    for (uint32_t i = 0; i < VCPUS; i++) {
        pthread_join(threads[i], NULL);
        torn += guests[i].torn;
        errors += guests[i].errors;
    }
    __atomic_store_n(&finished, true, __ATOMIC_RELEASE);
    pthread_join(threads[VCPUS], NULL);
    pthread_join(threads[VCPUS + 1], NULL);
    printf("%lu transfers a vCPU, %lu torn, %lu refused, %lu log records seen\n", iterations, torn, errors, seen);
    return torn != 0 || errors != 0;
}
