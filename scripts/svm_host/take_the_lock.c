/*
 * For LD_PRELOAD with QEMU 7.2 (Debian 12): take the lock that its CR8 emulation forgets.
 *
 * A guest's write to CR8 while a virtual interrupt is pending (V_IRQ in the VMCB: kvm-amd waits for the guest to open
 * its interrupt window) goes through helper_write_crN in target/i386/tcg/sysemu/misc_helper.c, which calls
 * cpu_interrupt() without the "big QEMU lock". tcg_handle_interrupt, behind it, asserts that it is held, and QEMU
 * aborts. edk2's interrupt handlers write CR8 at their end, so that its firmware gets there whenever the next tick of
 * its timer came in the meantime.
 *
 * Debian's QEMU has tcg_handle_interrupt in a module that looks it up by name, so that this one is found first.
 * Where QEMU is built in another way, or the names are others, nothing here is called.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define MODULE "/accel-tcg-x86_64.so"

typedef void interrupt_handler(void *cpu, int mask);

bool qemu_mutex_iothread_locked(void);
void qemu_mutex_lock_iothread_impl(const char *file, int line);
void qemu_mutex_unlock_iothread(void);
interrupt_handler tcg_handle_interrupt;

static int find_module(struct dl_phdr_info *info, size_t size, void *found)
{
    size_t length = strlen(info->dlpi_name), suffix = strlen(MODULE);

    (void)size;
    if (length < suffix || strcmp(info->dlpi_name + length - suffix, MODULE) != 0)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

void tcg_handle_interrupt(void *cpu, int mask)
{
    static _Atomic(interrupt_handler *) original;
    interrupt_handler *handler = original;
    bool held = qemu_mutex_iothread_locked();

    if (handler == NULL) {
        void *module = NULL;

        dl_iterate_phdr(find_module, &module);
        if (module == NULL)
            abort();
        handler = (interrupt_handler *)dlsym(module, "tcg_handle_interrupt");
        original = handler;
    }
    if (!held)
        qemu_mutex_lock_iothread_impl(__FILE__, __LINE__);
    handler(cpu, mask);
    if (!held)
        qemu_mutex_unlock_iothread();
}
