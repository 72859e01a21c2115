/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What our path from a KVM exit to fw_cfg's answer costs beyond the bare
 * loop's, without KVM: both serve the same made-up struct kvm_run.
 *
 * usage: fw_cfg_cost [time]           nanoseconds of each case, ours and bare taking turns, best of many rounds
 *        fw_cfg_cost count CASE       serve CASE often and end: for callgrind, which counts serve_ours and serve_bare
 *
 * Output of `time`, one line a case: name, ours, bare, unit.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "vmm/fw_cfg.h"
#include "vmm/vcpu_run.h"

#define ROUNDS 60
#define SERVED 20000u
#define COUNTED 1000u
#define STRING 1024u
#define ITEM_SIZE (1u << 20)
#define BULK ((size_t)64 << 20)
#define BULK_ROUNDS 15
#define DATA_OFFSET 4096

static uint8_t pages[8192] __attribute__((aligned(4096)));
static struct kvm_run *run = (struct kvm_run *)(void *)pages;
static struct vmm_vm *vm;
static struct vmm_vcpu *vcpu;
static struct fw_cfg *device;
static struct fw_cfg_item items[FW_CFG_FIRST_FILE_KEY + 2];

/* The bare loop's fw_cfg: a switch, two variables. */
static const struct fw_cfg_item *bare_selected;
static uint32_t bare_offset;

static void bare_read(uint8_t *to, size_t length)
{
    size_t left = bare_selected->length - bare_offset;
    size_t moved = length < left ? length : left;

    memcpy(to, bare_selected->data + bare_offset, moved);
    memset(to + moved, 0, length - moved);
    bare_offset += (uint32_t)moved;
}

__attribute__((noinline)) static void serve_bare(void)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        switch (run->io.port) {
        case FW_CFG_PORT_FIRST:
            bare_selected = &items[(data[0] | (uint32_t)data[1] << 8) % (FW_CFG_FIRST_FILE_KEY + 2)];
            bare_offset = 0;
            break;
        case FW_CFG_PORT_DATA:
            bare_read(data, (size_t)run->io.size * run->io.count);
            break;
        default:
            memset(data, 0xff, (size_t)run->io.size * run->io.count);
            break;
        }
        break;
    default:
        abort();
    }
}

__attribute__((noinline)) static void serve_ours(void)
{
    vmm_vcpu_serve_exit(vcpu, 0);
}

static void exit_for(uint16_t port, uint8_t size, uint32_t count, bool is_write)
{
    run->exit_reason = KVM_EXIT_IO;
    run->io.port = port;
    run->io.size = size;
    run->io.count = count;
    run->io.direction = is_write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    run->io.data_offset = DATA_OFFSET;
    pages[DATA_OFFSET] = FW_CFG_FIRST_FILE_KEY;
    pages[DATA_OFFSET + 1] = 0;
}

struct port_case {
    const char *name;
    uint16_t port;
    uint8_t size;
    uint32_t count;
    bool is_write;
};

static const struct port_case cases[] = {
    {"port-read", FW_CFG_PORT_DATA, 1, 1, false},
    {"select", FW_CFG_PORT_FIRST, 2, 1, true},
    {"rep-insb", FW_CFG_PORT_DATA, 1, STRING, false},
};

static void rewind_items(void)
{
    fw_cfg_reset(device);
    device->selected = &items[FW_CFG_FIRST_FILE_KEY];
    device->key = FW_CFG_FIRST_FILE_KEY;
    bare_selected = &items[FW_CFG_FIRST_FILE_KEY];
    bare_offset = 0;
}

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double time_of(void (*serve)(void), uint32_t served)
{
    double began;

    rewind_items();
    began = now_ns();
    for (uint32_t i = 0; i < served; i++) {
        serve();
    }
    return (now_ns() - began) / served;
}

static void time_ports(const struct port_case *which)
{
    /* As many as the item has bytes for. */
    uint32_t served = which->count > 1 ? ITEM_SIZE / which->count : SERVED;
    double ours = 1e18;
    double bare = 1e18;

    exit_for(which->port, which->size, which->count, which->is_write);
    for (int round = 0; round < ROUNDS; round++) {
        double took = time_of(serve_ours, served);

        ours = took < ours ? took : ours;
        took = time_of(serve_bare, served);
        bare = took < bare ? took : bare;
    }
    printf("%s %.2f %.2f ns\n", which->name, ours, bare);
}

static double gigabytes_per_second(double best_ns)
{
    return (double)BULK / best_ns;
}

static void time_dma(void)
{
    uint8_t *ram = vm->memory.regions[0].hva;
    uint8_t *item = items[FW_CFG_FIRST_FILE_KEY + 1].data;
    const uint32_t descriptor[4] = {htobe32((FW_CFG_FIRST_FILE_KEY + 1) << 16 | FW_CFG_DMA_SELECT | FW_CFG_DMA_READ),
                                    htobe32(BULK), 0, htobe32(4096)};
    double ours = 1e18;
    double bare = 1e18;

    exit_for(FW_CFG_PORT_DMA_LOW, 4, 1, true);
    for (int round = 0; round < BULK_ROUNDS; round++) {
        double began = now_ns();
        double took;

        memcpy(ram + 4096, item, BULK);
        took = now_ns() - began;
        bare = took < bare ? took : bare;
        memcpy(ram, descriptor, sizeof(descriptor));
        memset(pages + DATA_OFFSET, 0, 4);
        began = now_ns();
        serve_ours();
        took = now_ns() - began;
        ours = took < ours ? took : ours;
        if (memcmp(ram, "\0\0\0\0", 4) != 0 || ram[4096 + BULK - 1] != item[BULK - 1]) {
            abort();
        }
    }
    printf("dma-64MiB %.3f %.3f GB/s\n", gigabytes_per_second(ours), gigabytes_per_second(bare));
}

static uint8_t *touched(size_t size)
{
    uint8_t *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (bytes == MAP_FAILED) {
        abort();
    }
    memset(bytes, 0x5a, size);
    return bytes;
}

static void set_up(bool with_bulk)
{
    vm = vmm_vm_new(-1);
    vcpu = vmm_vcpu_new(vm, -1, run, 0);
    device = fw_cfg_new(&vm->memory, &vm->stop, true);
    items[FW_CFG_FIRST_FILE_KEY] = (struct fw_cfg_item){.data = touched(ITEM_SIZE), .length = ITEM_SIZE};
    if (with_bulk) {
        items[FW_CFG_FIRST_FILE_KEY + 1] = (struct fw_cfg_item){.data = touched(BULK), .length = BULK};
        guest_memory_add(&vm->memory, 0, BULK + 8192, touched(BULK + 8192), 0);
    }
    fw_cfg_publish(device, items, sizeof(items) / sizeof(items[0]), NULL, 0);
    /* As many neighbours as a Q35 has, so that the look-up has something to do. */
    for (uint32_t port = 0; port < 20; port++) {
        uint32_t first = (port < 10 ? 0x20 : 0x600) + port * 0x10;

        io_table_add(&vm->ports, first, first + 1, fw_cfg_access, device);
    }
    io_table_add(&vm->ports, FW_CFG_PORT_FIRST, FW_CFG_PORT_LAST, fw_cfg_access, device);
    vmm_vcpu_enter(vcpu);
}

int main(int argc, char **argv)
{
    bool counting = argc == 3 && strcmp(argv[1], "count") == 0;

    set_up(!counting);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (!counting) {
            time_ports(&cases[i]);
        } else if (strcmp(argv[2], cases[i].name) == 0) {
            exit_for(cases[i].port, cases[i].size, cases[i].count, cases[i].is_write);
            time_of(serve_ours, COUNTED);
            time_of(serve_bare, COUNTED);
        }
    }
    if (!counting) {
        time_dma();
    }
    return 0;
}
