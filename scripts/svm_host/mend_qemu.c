/*
 * For LD_PRELOAD with QEMU 7.2 and 10.0 (Debian 12 and 13), whose emulation of SVM forgets a lock in two places, and
 * with 10.0, which confuses two intercepts.
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
 * Three: decode_op in target/i386/tcg/decode-new.c.inc adds a control register's number to the number of the intercept
 * only where the latter is not 0, which that of a read of CR0 is: a guest's read of CR3 is checked as one of CR0, and
 * with shadow paging it gets the host's CR3 as soon as KVM leaves reads of CR0 alone. edk2 then walks whatever lies there.
 * Linux 6.12 keeps the host's CR4.MCE set in a guest, also with nested paging, and has to show it the guest's own CR4.
 * Here what is checked as a read of CR0 is checked as one of CR3 and CR4 too; KVM then looks at the instruction itself.
 *
 * tcg_handle_interrupt is called through a table, the class "tcg-accel-ops", and helper_svm_check_intercept through its
 * description (TCGHelperInfo, which begins with the function). Before the first CPU's thread starts, the entries there
 * are replaced. The names of the lock changed in QEMU 9. Other programs that get this library, like a shell that starts
 * QEMU, have none of the names, and nothing happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE "/accel-tcg-x86_64.so" /* where 7.2 has tcg_handle_interrupt; 10.0 has it in the program */
#define CLASS "tcg-accel-ops"
#define CLASS_WORDS 32            /* no larger than AccelOpsClass, and the entry is among them */
#define CPU_INTERRUPT_POLL 0x0010 /* CPU_INTERRUPT_TGT_EXT_1 in include/exec/cpu-all.h */
#define READ_CR0 0x000 /* SVM_EXIT_READ_CR0 in target/i386/svm.h */
#define READ_CR3 0x003
#define READ_CR4 0x004
#define POLL_INTERVAL_US 50000
#define MAX_CPUS 16

typedef void interrupt_handler(void *cpu, int mask);
typedef void intercept_check(void *env, uint32_t type, uint64_t parameter, uintptr_t called_from);
typedef int create_thread(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

static bool (*locked)(void);
static void (*lock)(const char *file, int line);
static void (*unlock)(void);
static interrupt_handler *original;
static intercept_check *check_intercept;
static void *cpus[MAX_CPUS]; /* all that were ever interrupted; under QEMU's lock */

static void *either(const char *name, const char *older)
{
    void *found = dlsym(RTLD_DEFAULT, name);

    return found != NULL ? found : dlsym(RTLD_DEFAULT, older);
}

static int find_module(struct dl_phdr_info *info, size_t size, void *found)
{
    size_t length = strlen(info->dlpi_name), suffix = strlen(MODULE);

    (void)size;
    if (length < suffix || strcmp(info->dlpi_name + length - suffix, MODULE) != 0)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

static void handle_interrupt(void *cpu, int mask)
{
    bool held = locked();
    size_t i = 0;

    if (!held)
        lock(__FILE__, __LINE__);
    while (i < MAX_CPUS && cpus[i] != NULL && cpus[i] != cpu)
        i++;
    if (i < MAX_CPUS)
        cpus[i] = cpu;
    original(cpu, mask);
    if (!held)
        unlock();
}

/* The check does not return where the guest is to be left. */
static void check_control_register(void *env, uint32_t type)
{
    uintptr_t called_from = (uintptr_t)__builtin_return_address(0);

    check_intercept(env, type, 0, called_from);
    if (type == READ_CR0) {
        check_intercept(env, READ_CR3, 0, called_from);
        check_intercept(env, READ_CR4, 0, called_from);
    }
}

static void mend_intercepts(void)
{
    void **info = dlsym(RTLD_DEFAULT, "helper_info_svm_check_intercept");

    check_intercept = (intercept_check *)dlsym(RTLD_DEFAULT, "cpu_svm_check_intercept_param");
    if (info != NULL && check_intercept != NULL && *info == dlsym(RTLD_DEFAULT, "helper_svm_check_intercept"))
        *info = (void *)check_control_register;
}

static void *poll_apics(void *unused)
{
    for (;;) {
        usleep(POLL_INTERVAL_US);
        lock(__FILE__, __LINE__);
        for (size_t i = 0; i < MAX_CPUS && cpus[i] != NULL; i++)
            original(cpus[i], CPU_INTERRUPT_POLL);
        unlock();
    }
    return unused;
}

/* Under QEMU's lock, by the thread that builds the machine. Does nothing as long as the class is not filled in. */
static void mend(create_thread *create)
{
    void *(*class_of)(const char *) = dlsym(RTLD_DEFAULT, "object_class_by_name");
    void *module = RTLD_DEFAULT, **class;
    interrupt_handler *handler;
    pthread_t thread;

    dl_iterate_phdr(find_module, &module);
    handler = dlsym(module, "tcg_handle_interrupt");
    class = class_of != NULL && handler != NULL ? class_of(CLASS) : NULL;
    for (size_t i = 0; class != NULL && i < CLASS_WORDS; i++) {
        if (class[i] == handler) {
            original = handler;
            class[i] = handle_interrupt;
            mend_intercepts();
            if (create(&thread, NULL, poll_apics, NULL) != 0)
                abort();
            return;
        }
    }
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    create_thread *create = dlsym(RTLD_NEXT, "pthread_create");

    locked = either("bql_locked", "qemu_mutex_iothread_locked");
    lock = either("bql_lock_impl", "qemu_mutex_lock_iothread_impl");
    unlock = either("bql_unlock", "qemu_mutex_unlock_iothread");
    if (original == NULL && locked != NULL && lock != NULL && unlock != NULL && locked())
        mend(create);
    return create(thread, attributes, run, argument);
}
