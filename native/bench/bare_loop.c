/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The floor of `vmm bench`: the least that a VMM can do between two KVM_RUN
 * and still run the latency guest. One thread a vCPU, one switch; no locks (a
 * second vCPU only gets interrupts), no tables of devices, no checks of what the
 * guest asks for, no way to stop it. Not a VMM: never give it a guest that you
 * don't trust.
 *
 * usage: bare_loop ROM RAM_MIB CPUS OPTIONS [BULK]
 *   OPTIONS  contents of the fw_cfg item opt/vmm/latency
 *   BULK     file for the item opt/vmm/bulk
 *
 * What the guest prints on the debug port goes to stdout. Exit status: 0 the
 * guest powered off, 1 it did not, 2 wrong usage, 4 no KVM.
 */
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/fw_cfg.h"

#define FAILED 1
#define NO_KVM 4

/* The same places as in vmm/layout.py. */
#define IDENTITY_MAP 0xfeffc000u
#define TSS 0xfeffd000u
#define BELOW_4G ((uint64_t)1 << 32)
#define LEGACY_BIOS_SIZE 0x20000u

#define MAX_CPUID_ENTRIES 128

#define KEYS (FW_CFG_FIRST_FILE_KEY + 3)
#define CPUS_KEY 0x05
#define DEBUG_PORT 0x402

/* What firmware/lib/platform.c looks for: an i440FX whose PIIX4 has its power management at 0x600. */
#define HOST_BRIDGE 0x12378086u
#define PM1_CONTROL 0x604
#define PM_TIMER 0x608

struct item {
    const uint8_t *data;
    size_t length;
};

struct directory_entry {
    uint32_t size;
    uint16_t key;
    uint16_t reserved;
    char name[56];
};

struct e820_entry {
    uint64_t base;
    uint64_t length;
    uint32_t type;
} __attribute__((packed));

static struct item items[KEYS];
static const struct item *selected;
static size_t offset;
static uint8_t *ram;

static uint8_t directory[4 + 3 * sizeof(struct directory_entry)];
static uint32_t files;
static struct e820_entry e820;

static struct item read_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    void *data;

    if (fd < 0 || fstat(fd, &status) != 0) {
        err(2, "%s", path);
    }
    data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED) {
        err(2, "%s", path);
    }
    close(fd);
    return (struct item){data, (size_t)status.st_size};
}

static void add_file(const char *name, struct item item)
{
    struct directory_entry entry = {
        .size = htobe32((uint32_t)item.length),
        .key = htobe16((uint16_t)(FW_CFG_FIRST_FILE_KEY + files)),
    };
    uint32_t count = htobe32(files + 1);

    strncpy(entry.name, name, sizeof(entry.name) - 1);
    memcpy(directory + 4 + files * sizeof(entry), &entry, sizeof(entry));
    memcpy(directory, &count, sizeof(count));
    items[FW_CFG_FIRST_FILE_KEY + files++] = item;
    items[FW_CFG_DIRECTORY_KEY] = (struct item){directory, 4 + files * sizeof(entry)};
}

static void select_key(uint32_t key)
{
    static const struct item nothing = {NULL, 0};

    selected = key < KEYS ? &items[key] : &nothing;
    offset = 0;
}

static void read_data(uint8_t *to, size_t length)
{
    size_t left = selected->length - offset;
    size_t moved = length < left ? length : left;

    memcpy(to, selected->data + offset, moved);
    memset(to + moved, 0, length - moved);
    offset += moved;
}

static void transfer(uint32_t address)
{
    uint32_t *descriptor = (uint32_t *)(ram + be32toh(address));
    uint32_t control = be32toh(descriptor[0]);

    if (control & FW_CFG_DMA_SELECT) {
        select_key(control >> 16);
    }
    if (control & FW_CFG_DMA_READ) {
        read_data(ram + be32toh(descriptor[3]), be32toh(descriptor[1]));
    }
    descriptor[0] = 0;
}

static uint32_t pm_timer(void)
{
    /* Only there so that the guest does not wait for it: about 1 GHz of TSC. */
    return (uint32_t)(__builtin_ia32_rdtsc() >> 8) & 0xffffff;
}

static void serve_read(uint16_t port, uint8_t *data, size_t size)
{
    uint32_t value = UINT32_MAX;

    switch (port) {
    case FW_CFG_PORT_DATA:
        read_data(data, size);
        return;
    case 0x71:
        value = 0;
        break;
    case DEBUG_PORT:
        value = 0xe9;
        break;
    case 0xcfc:
        value = HOST_BRIDGE;
        break;
    case PM_TIMER:
        value = pm_timer();
        break;
    default:
        break;
    }
    for (size_t i = 0; i < size; i++) {
        data[i] = (uint8_t)(value >> 8 * (i % 4));
    }
}

/* False: the guest powered the machine off. */
static bool serve_write(uint16_t port, const uint8_t *data, size_t size)
{
    uint32_t word = 0;

    switch (port) {
    case FW_CFG_PORT_FIRST:
        select_key((uint32_t)data[0] | (uint32_t)data[1] << 8);
        break;
    case FW_CFG_PORT_DMA_LOW:
        memcpy(&word, data, sizeof(word));
        transfer(word);
        break;
    case DEBUG_PORT:
        fwrite(data, 1, size, stdout);
        break;
    case PM1_CONTROL:
        return false;
    case 0xf4:
    case 0xcf9:
        exit(FAILED);
    default:
        break;
    }
    return true;
}

static int run(int vcpu, struct kvm_run *run)
{
    for (;;) {
        uint8_t *data;

        if (ioctl(vcpu, KVM_RUN, 0) != 0) {
            if (errno == EAGAIN) {
                continue; /* INIT woke it */
            }
            err(FAILED, "KVM_RUN");
        }
        if (run->exit_reason == KVM_EXIT_MMIO) {
            if (!run->mmio.is_write) {
                memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
            }
            continue;
        }
        if (run->exit_reason != KVM_EXIT_IO) {
            errx(FAILED, "KVM exit reason %u", run->exit_reason);
        }
        data = (uint8_t *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_IN) {
            serve_read(run->io.port, data, (size_t)run->io.size * run->io.count);
        } else if (!serve_write(run->io.port, data, (size_t)run->io.size * run->io.count)) {
            return fflush(stdout) == 0 ? 0 : FAILED;
        }
    }
}

static int check(int result, const char *what)
{
    if (result < 0) {
        err(NO_KVM, "%s", what);
    }
    return result;
}

static void set_memory(int vm, uint32_t slot, uint64_t gpa, uint64_t size, const void *hva)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)hva,
    };

    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

static void reset_vcpu(int kvm, int vcpu, uint32_t index)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[MAX_CPUID_ENTRIES];
    } cpuid = {.head = {.nent = MAX_CPUID_ENTRIES}};
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0xfff0, .rflags = 2};

    check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    for (uint32_t i = 0; i < cpuid.head.nent; i++) {
        if (cpuid.entries[i].function == 1) {
            cpuid.entries[i].ebx = (cpuid.entries[i].ebx & 0xffffff) | index << 24;
        }
    }
    check(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    if (index != 0) {
        return; /* as KVM made it, it waits for INIT and SIPI */
    }
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.selector = 0xf000;
    sregs.cs.base = 0xffff0000;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

struct vcpu {
    int fd;
    struct kvm_run *run;
};

static struct vcpu create_vcpu(int kvm, int vm, uint32_t index)
{
    int run_size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct vcpu vcpu = {.fd = check(ioctl(vm, KVM_CREATE_VCPU, index), "KVM_CREATE_VCPU")};

    vcpu.run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
    if (vcpu.run == MAP_FAILED) {
        err(FAILED, "mmap of struct kvm_run");
    }
    reset_vcpu(kvm, vcpu.fd, index);
    return vcpu;
}

static void *run_second(void *opaque)
{
    const struct vcpu *vcpu = opaque;

    run(vcpu->fd, vcpu->run);
    return NULL;
}

static int boot(struct item rom, uint64_t ram_size, uint32_t cpus)
{
    static struct vcpu second;
    pthread_t thread;
    struct vcpu first;
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    uint64_t identity_map = IDENTITY_MAP;
    struct kvm_pit_config pit = {0};
    uint8_t *flash;

    check(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map), "KVM_SET_IDENTITY_MAP_ADDR");
    check(ioctl(vm, KVM_SET_TSS_ADDR, (unsigned long)TSS), "KVM_SET_TSS_ADDR");
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    check(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    flash = mmap(NULL, rom.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED || flash == MAP_FAILED) {
        err(FAILED, "mmap");
    }
    memcpy(flash, rom.data, rom.length);
    memcpy(ram + 0x100000 - (rom.length < LEGACY_BIOS_SIZE ? rom.length : LEGACY_BIOS_SIZE), rom.data,
           rom.length < LEGACY_BIOS_SIZE ? rom.length : LEGACY_BIOS_SIZE);
    set_memory(vm, 0, 0, ram_size, ram);
    set_memory(vm, 1, BELOW_4G - rom.length, rom.length, flash);
    first = create_vcpu(kvm, vm, 0);
    if (cpus > 1) {
        second = create_vcpu(kvm, vm, 1);
        errno = pthread_create(&thread, NULL, run_second, &second);
        if (errno != 0) {
            err(FAILED, "pthread_create");
        }
    }
    return run(first.fd, first.run);
}

int main(int argc, char **argv)
{
    static const uint8_t signature[4] = {'Q', 'E', 'M', 'U'};
    static const uint8_t id[4] = {3};
    uint64_t ram_size;
    uint16_t cpus;

    if (argc != 5 && argc != 6) {
        errx(2, "usage: bare_loop ROM RAM_MIB CPUS OPTIONS [BULK]");
    }
    ram_size = strtoull(argv[2], NULL, 10) << 20;
    if (ram_size < (uint64_t)16 << 20 || ram_size > (uint64_t)2 << 30) {
        errx(2, "RAM_MIB %s: from 16 to 2048", argv[2]);
    }
    cpus = argv[3][0] == '2' ? htole16(2) : htole16(1);
    e820 = (struct e820_entry){0, htole64(ram_size), htole32(1)};
    items[FW_CFG_SIGNATURE_KEY] = (struct item){signature, sizeof(signature)};
    items[FW_CFG_ID_KEY] = (struct item){id, sizeof(id)};
    items[CPUS_KEY] = (struct item){(const uint8_t *)&cpus, sizeof(cpus)};
    add_file("etc/e820", (struct item){(const uint8_t *)&e820, sizeof(e820)});
    add_file("opt/vmm/latency", (struct item){(const uint8_t *)argv[4], strlen(argv[4])});
    if (argc == 6) {
        add_file("opt/vmm/bulk", read_file(argv[5]));
    }
    select_key(FW_CFG_SIGNATURE_KEY);
    return boot(read_file(argv[1]), ram_size, le16toh(cpus));
}
