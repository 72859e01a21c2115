/*
 * For LD_PRELOAD with QEMU 7.2 (Debian 12), whose emulation of SVM forgets a lock in two places.
 *
 * One: a guest's write to CR8 while a virtual interrupt is pending (V_IRQ in the VMCB: kvm-amd waits for the guest to
 * open its interrupt window) goes through helper_write_crN in target/i386/tcg/sysemu/misc_helper.c, which calls
 * cpu_interrupt() without the "big QEMU lock". tcg_handle_interrupt, behind it, asserts that it is held, and QEMU
 * aborts. edk2's interrupt handlers write CR8 at their end, so that its firmware gets there whenever the next tick of
 * its timer came in the meantime. Here the lock is taken.
 *
 * Two: a CPU was found halted for ever, interrupts enabled, with interrupts pending in its local APIC (IRR) that it was
 * not told of. helper_vmrun in svm_helper.c changes CPUState.interrupt_request without the lock, so that a bit which
 * another thread sets at the same time can get lost; others may do so too. Here each CPU is told, many times a second,
 * to look at its APIC: an interrupt then comes late instead of never.
 *
 * Debian's QEMU has tcg_handle_interrupt in a module that looks it up by name, so that this one is found first.
 * Where QEMU is built in another way, nothing here is called.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE "/accel-tcg-x86_64.so"
#define CPU_INTERRUPT_POLL 0x0010 /* CPU_INTERRUPT_TGT_EXT_1 in include/exec/cpu-all.h */
#define POLL_INTERVAL_US 50000
#define MAX_CPUS 16

typedef void interrupt_handler(void *cpu, int mask);

bool qemu_mutex_iothread_locked(void);
void qemu_mutex_lock_iothread_impl(const char *file, int line);
void qemu_mutex_unlock_iothread(void);
interrupt_handler tcg_handle_interrupt;

static interrupt_handler *original;
static void *cpus[MAX_CPUS]; /* all that were ever interrupted; under QEMU's lock */

static int find_module(struct dl_phdr_info *info, size_t size, void *found)
{
    size_t length = strlen(info->dlpi_name), suffix = strlen(MODULE);

    (void)size;
    if (length < suffix || strcmp(info->dlpi_name + length - suffix, MODULE) != 0)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

static void *poll_apics(void *unused)
{
    for (;;) {
        usleep(POLL_INTERVAL_US);
        qemu_mutex_lock_iothread_impl(__FILE__, __LINE__);
        for (size_t i = 0; i < MAX_CPUS && cpus[i] != NULL; i++)
            original(cpus[i], CPU_INTERRUPT_POLL);
        qemu_mutex_unlock_iothread();
    }
    return unused;
}

static void start(void)
{
    pthread_t thread;
    void *module = NULL;

    dl_iterate_phdr(find_module, &module);
    if (module == NULL)
        abort();
    original = (interrupt_handler *)dlsym(module, "tcg_handle_interrupt");
    if (original == NULL || pthread_create(&thread, NULL, poll_apics, NULL) != 0)
        abort();
}

void tcg_handle_interrupt(void *cpu, int mask)
{
    bool held = qemu_mutex_iothread_locked();
    size_t i = 0;

    if (!held)
        qemu_mutex_lock_iothread_impl(__FILE__, __LINE__);
    if (original == NULL)
        start();
    while (i < MAX_CPUS && cpus[i] != NULL && cpus[i] != cpu)
        i++;
    if (i < MAX_CPUS)
        cpus[i] = cpu;
    original(cpu, mask);
    if (!held)
        qemu_mutex_unlock_iothread();
}
