/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The threads of a disk against all that may come in between, for
 * ThreadSanitizer: resets by the driver and by the machine, settings that
 * change, memory that comes and goes, looks at the state, and the end.
 *
 * The driver's threads take io_lock for what they do to guest memory, which a
 * guest would not: what is looked for is a race of ours. A request is answered,
 * or its device was reset meanwhile; one that is answered has the data of its
 * sector, and nothing reaches memory after a reset.
 *
 * usage: virtio_blk_stress ITERATIONS      exit status 0: all that was read was right
 */
#define _GNU_SOURCE
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/vcpu_run.h"
#include "vmm/virtio_blk.h"

#define RAM_SIZE 0x20000u
#define MOVING_GPA 0x40000u
#define AVAILABLE 0x1000
#define USED 0x2000
#define HEADERS 0x3000
#define DATA 0x8000
#define REQUESTS 16u
#define CHAIN 3
#define QUEUE_SIZE 64
#define SECTORS 256u
#define MARK 0xa5
#define WAIT_US 50

static struct vmm_vm *vm;
static struct virtio_blk *blk;
static struct pci_pirqs pirqs;
static unsigned long interrupts;
static bool finished;
static uint8_t ram[RAM_SIZE] __attribute__((aligned(4096)));
static uint8_t moving[4096];

static void on_line(void *opaque, uint32_t gsi, bool level)
{
    (void)opaque;
    (void)gsi;
    interrupts += level;
}

static void on_message(void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    (void)address;
    (void)data;
    interrupts++;
}

static void store(uint64_t offset, uint32_t size, uint64_t value)
{
    struct io_access access = {.offset = offset, .data = (uint8_t *)&value, .size = size, .count = 1, .is_write = true};

    virtio_pci_access(&blk->pci, &access);
}

static void start(void)
{
    store(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    memset(ram, 0, DATA);
    for (uint32_t select = 0; select < 2; select++) {
        store(VIRTIO_PCI_COMMON_GFSELECT, 4, select);
        store(VIRTIO_PCI_COMMON_GF, 4, blk->pci.offered >> 32 * select & ~(select == 0 ? 1u << VIRTIO_RING_F_EVENT_IDX : 0));
    }
    store(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_FEATURES_OK);
    store(VIRTIO_PCI_COMMON_Q_SIZE, 2, QUEUE_SIZE);
    store(VIRTIO_PCI_COMMON_Q_AVAILLO, 8, AVAILABLE);
    store(VIRTIO_PCI_COMMON_Q_USEDLO, 8, USED);
    store(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    store(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_DRIVER_OK);
}

/* Reads of random sectors, and now and then one into memory that may be gone. */
static void offer_all(uint32_t *sectors, uint32_t seed)
{
    struct vring_desc *table = (void *)ram;
    uint16_t *available = (void *)(ram + AVAILABLE);

    for (uint16_t i = 0; i < REQUESTS; i++) {
        uint64_t header = HEADERS + 64u * i;
        struct virtio_blk_outhdr request = {.type = VIRTIO_BLK_T_IN, .sector = (seed * 7 + i * 13) % SECTORS};
        uint64_t to = seed % 16 == 0 && i == REQUESTS - 1 ? MOVING_GPA : DATA + SECTOR_SIZE * (uint64_t)i;

        sectors[i] = (uint32_t)request.sector;
        memcpy(ram + header, &request, sizeof(request));
        memset(ram + DATA + SECTOR_SIZE * (size_t)i, MARK, SECTOR_SIZE);
        table[CHAIN * i] = (struct vring_desc){header, sizeof(request), VRING_DESC_F_NEXT, (uint16_t)(CHAIN * i + 1)};
        table[CHAIN * i + 1] = (struct vring_desc){to, SECTOR_SIZE, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE,
                                                   (uint16_t)(CHAIN * i + 2)};
        table[CHAIN * i + 2] = (struct vring_desc){header + 32, 1, VRING_DESC_F_WRITE, 0};
        available[2 + i] = (uint16_t)(CHAIN * i);
    }
    available[1] = REQUESTS;
    store(VIRTIO_BAR_NOTIFY, 2, 0);
}

/* Of the chains given back, how many had other data than their sector. */
static uint32_t wrong_answers(const uint32_t *sectors, uint32_t *answered)
{
    const uint16_t *used = (void *)(ram + USED);
    const struct vring_used_elem *elements = (void *)(ram + USED + 4);
    uint32_t wrong = 0;

    *answered = used[1];
    for (uint32_t i = 0; i < used[1]; i++) {
        uint32_t request = elements[i].id / CHAIN;
        const uint8_t *data = ram + DATA + SECTOR_SIZE * (size_t)request;

        if (request >= REQUESTS || ram[HEADERS + 64u * request + 32] != VIRTIO_BLK_S_OK) {
            wrong++;
        } else if (((const struct vring_desc *)(void *)ram)[CHAIN * request + 1].addr != MOVING_GPA) {
            wrong += data[0] != (uint8_t)sectors[request] || memcmp(data, data + 1, SECTOR_SIZE - 1) != 0;
        }
    }
    return wrong;
}

static void *disturb(void *opaque)
{
    unsigned long *seen = opaque;
    uint16_t heads[VIRTIO_BLK_THREADS];

    for (unsigned i = 0; !__atomic_load_n(&finished, __ATOMIC_ACQUIRE); i++) {
        vmm_io_lock(vm);
        *seen += virtio_blk_begun(blk, heads) + blk->counters.reads % 2;
        virtio_pci_set_msix_control(&blk->pci, i % 2 ? 0x8000 : 0);
        virtio_pci_set_command(&blk->pci, i % 5 ? 0x4 : 0x404);
        pci_pirq_route(&pirqs, 0, i % 3 ? 10 : 11);
        if (i % 2 == 0) {
            guest_memory_remove(&vm->memory, MOVING_GPA);
            guest_memory_add(&vm->memory, MOVING_GPA, sizeof(moving), moving, 0);
        }
        vmm_io_unlock(vm);
        virtio_blk_notify(blk);
        if (i % 8 == 0) {
            usleep(WAIT_US);
        }
    }
    return NULL;
}

/* What each of the disk's threads does once, before it serves anything: with io_lock, as it is counted here. */
static int on_restricted(void *opaque)
{
    *(uint32_t *)opaque += 1;
    return 0;
}

static void set_up(void)
{
    static struct interrupt_sink sink = {.line = on_line, .message = on_message};
    uint8_t sector[SECTOR_SIZE];
    int fd = memfd_create("image", MFD_CLOEXEC);

    for (uint32_t i = 0; i < SECTORS; i++) {
        memset(sector, (int)i, sizeof(sector));
        if (pwrite(fd, sector, sizeof(sector), i * (off_t)sizeof(sector)) != sizeof(sector)) {
            abort();
        }
    }
    vm = vmm_vm_new(-1);
    guest_memory_add(&vm->memory, 0, sizeof(ram), ram, 0);
    guest_memory_add(&vm->memory, MOVING_GPA, sizeof(moving), moving, 0);
    pirqs.sink = &sink;
    blk = virtio_blk_new(&vm->memory, vmm_io_mutex(vm), &pirqs);
    blk->image.fd = fd;
    blk->image.sectors = SECTORS;
    if (virtio_blk_start(blk) != 0) {
        abort();
    }
    vmm_io_lock(vm);
    virtio_pci_set_command(&blk->pci, 0x4);
    vmm_io_unlock(vm);
}

int main(int argc, char **argv)
{
    unsigned long iterations = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    unsigned long answered = 0;
    unsigned long wrong = 0;
    unsigned long late = 0;
    unsigned long seen = 0;
    pthread_t disturber;
    uint32_t restricted = 0;

    set_up();
    virtio_blk_restrict(blk, on_restricted, &restricted);
    pthread_create(&disturber, NULL, disturb, &seen);
    for (uint32_t i = 0; i < iterations; i++) {
        uint32_t sectors[REQUESTS];
        uint32_t count;

        vmm_io_lock(vm);
        start();
        offer_all(sectors, i);
        vmm_io_unlock(vm);
        if (i % 3 == 0) {
            virtio_blk_settle(blk);
        } else if (i % 3 == 1) {
            usleep(WAIT_US);
        }
        vmm_io_lock(vm);
        wrong += wrong_answers(sectors, &count);
        answered += count;
        if (i % 3 == 0 && count != REQUESTS) {
            wrong++;
        }
        if (i % 2 == 0) {
            store(VIRTIO_PCI_COMMON_STATUS, 1, 0);
        } else {
            virtio_pci_reset(&blk->pci);
        }
        memset(ram + DATA, MARK, RAM_SIZE - DATA);
        vmm_io_unlock(vm);
        usleep(i % 4 * WAIT_US);
        vmm_io_lock(vm);
        late += ram[DATA] != MARK || memcmp(ram + DATA, ram + DATA + 1, RAM_SIZE - DATA - 1) != 0;
        vmm_io_unlock(vm);
    }
    __atomic_store_n(&finished, true, __ATOMIC_RELEASE);
    pthread_join(disturber, NULL);
    vmm_io_lock(vm);
    start();
    offer_all((uint32_t[REQUESTS]){0}, 1);
    vmm_io_unlock(vm);
    virtio_blk_free(blk);
    vmm_vm_free(vm);
    wrong += restricted != VIRTIO_BLK_THREADS;
    printf("%lu rounds, %s answered, %lu wrong, %lu after a reset; %lu interrupts, %lu looks\n", iterations,
           answered != 0 ? "some" : "none", wrong, late, interrupts, seen);
    return wrong != 0 || late != 0 || answered == 0;
}
