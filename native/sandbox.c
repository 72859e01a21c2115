/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE /* O_PATH, REG_RAX */
#include "vmm/sandbox.h"

#include <fcntl.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox_filter.h"

/* <linux/landlock.h> of the oldest kernel that is built on lacks what newer ones offer, so its part is stated here. */
#define LANDLOCK_CREATE_VERSION 1u
#define LANDLOCK_PATH_BENEATH 1
#define LANDLOCK_READ_FILE (1ull << 2)
#define LANDLOCK_READ_DIR (1ull << 3)
#define LANDLOCK_NET 3ull   /* bind and connect TCP: version 4 */
#define LANDLOCK_SCOPED 3ull /* abstract sockets and signals to processes outside: version 6 */

#define SIGSYS_BY_SECCOMP 1 /* SYS_SECCOMP of <asm-generic/siginfo.h>, which excludes <signal.h> */

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

struct landlock_handled {
    uint64_t files;
    uint64_t net;
    uint64_t scoped;
};

struct landlock_beneath {
    uint64_t allowed;
    int32_t parent;
} __attribute__((packed));

static int refused = -1;
/* In static TLS: the first look at another kind allocates, and a signal handler must not. */
static __thread struct vmm_vcpu *filtered_vcpu __attribute__((tls_model("initial-exec")));

/*
 * glibc's malloc opens a file when it first gives back memory of a thread's heap (check_may_shrink_heap in its
 * sysdeps/unix/sysv/linux/malloc-sysdep.h), and does without where it cannot.
 */
static bool is_malloc_asking(const siginfo_t *info, const ucontext_t *context)
{
    return info->si_syscall == SYS_openat &&
           strcmp((const char *)context->uc_mcontext.gregs[REG_RSI], "/proc/sys/vm/overcommit_memory") == 0;
}

static void on_refused(int number, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    int none = -1;

    if (info->si_code != SIGSYS_BY_SECCOMP) {
        /* Somebody else's. */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    context->uc_mcontext.gregs[REG_RAX] = -EPERM;
    if (is_malloc_asking(info, context)) {
        return;
    }
    __atomic_compare_exchange_n(&refused, &none, info->si_syscall, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (filtered_vcpu != NULL) {
        vmm_vcpu_end(filtered_vcpu, VCPU_REFUSED, (uint64_t)info->si_syscall);
        __atomic_store_n(&filtered_vcpu->vm->stop, 1, __ATOMIC_SEQ_CST);
        __atomic_store_n(&filtered_vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
    }
}

static void install_handler(void)
{
    struct sigaction action = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO};

    sigemptyset(&action.sa_mask);
    sigaction(SIGSYS, &action, NULL);
}

int sandbox_refused(void)
{
    return __atomic_load_n(&refused, __ATOMIC_RELAXED);
}

bool sandbox_seccomp_offered(void)
{
    uint32_t action = SECCOMP_RET_TRAP;

    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

static int install(const struct filter *filter, unsigned flags)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const struct sock_fprog program = {
        .len = (unsigned short)filter->length,
        .filter = (struct sock_filter *)filter->code,
    };
    long result;

    if (filter->full) {
        return -E2BIG;
    }
    pthread_once(&once, install_handler);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return -errno;
    }
    /*
     * Kernels before 5.16 would else take the filter for a wish to have speculative store bypass mitigated, at the price
     * of every memory access. KVM guards the guest's side of that itself.
     */
    result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
    /* With TSYNC, a positive result is the thread that could not be made to follow. */
    return result == 0 ? 0 : result > 0 ? -EBUSY : -errno;
}

static int build_and_install(struct vmm_vm *vm, struct vmm_vcpu *vcpu, const int *files, uint32_t count)
{
    struct filter *filter = malloc(sizeof(*filter));
    int error;

    if (filter == NULL) {
        return -ENOMEM;
    }
    if (vm == NULL) {
        filter_process_rules(filter, files, count);
    } else {
        filter_thread_rules(filter, vm->fd, vcpu == NULL ? -1 : vcpu->fd, files, count);
    }
    error = install(filter, vm == NULL ? SECCOMP_FILTER_FLAG_TSYNC : 0);
    free(filter);
    return error;
}

int sandbox_filter_process(const int *channels, uint32_t count)
{
    return build_and_install(NULL, NULL, channels, count);
}

int sandbox_filter_thread(struct vmm_vm *vm, struct vmm_vcpu *vcpu, const int *files, uint32_t count)
{
    filtered_vcpu = vcpu;
    return build_and_install(vm, vcpu, files, count);
}

int sandbox_filter_disk(void *opaque)
{
    const struct sandbox_disk *disk = opaque;
    struct filter filter; /* on the stack: an arena of malloc's would be the thread's only use of it */

    filter_disk_rules(&filter, disk->vm, disk->files, disk->count);
    return install(&filter, 0);
}

int sandbox_landlock_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_VERSION);

    return abi < 0 ? 0 : (int)abi;
}

/* All rights to files that a version knows: they are numbered as they came. */
static uint64_t landlock_files(int abi)
{
    static const unsigned bits[] = {0, 13, 14, 15, 15, 16};

    return (1ull << bits[abi < 5 ? abi : 5]) - 1;
}

static int allow_reading(int ruleset, const char *path)
{
    struct landlock_beneath rule = {.parent = open(path, O_PATH | O_CLOEXEC)};
    struct stat there;
    int error = 0;

    if (rule.parent < 0) {
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? 0 : -errno; /* what is not there is not needed */
    }
    if (fstat(rule.parent, &there) != 0) {
        error = -errno;
    } else {
        rule.allowed = S_ISDIR(there.st_mode) ? LANDLOCK_READ_FILE | LANDLOCK_READ_DIR : LANDLOCK_READ_FILE;
        if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_PATH_BENEATH, &rule, 0) != 0) {
            error = -errno;
        }
    }
    close(rule.parent);
    return error;
}

int sandbox_restrict_files(const char *const *paths, uint32_t count)
{
    int abi = sandbox_landlock_abi();
    const struct landlock_handled handled = {.files = landlock_files(abi), .net = LANDLOCK_NET, .scoped = LANDLOCK_SCOPED};
    size_t size = abi >= 6   ? sizeof(handled)
                  : abi >= 4 ? offsetof(struct landlock_handled, scoped)
                             : offsetof(struct landlock_handled, net);
    int ruleset;
    int error = 0;

    if (abi == 0) {
        return -EOPNOTSUPP;
    }
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &handled, size, 0);
    if (ruleset < 0) {
        return -errno;
    }
    for (uint32_t i = 0; i < count && error == 0; i++) {
        error = allow_reading(ruleset, paths[i]);
    }
    if (error == 0 && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_landlock_restrict_self, ruleset, 0) != 0)) {
        error = -errno;
    }
    close(ruleset);
    return error;
}

static int lower_limit(int which, rlim_t value)
{
    struct rlimit limit;

    if (getrlimit(which, &limit) != 0) {
        return -errno;
    }
    /* RLIM_INFINITY is the greatest number. */
    limit.rlim_max = value < limit.rlim_max ? value : limit.rlim_max;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(which, &limit) == 0 ? 0 : -errno;
}

int sandbox_lower_limits(uint64_t files, uint64_t memory)
{
    int error = lower_limit(RLIMIT_CORE, 0);

    if (error == 0) {
        error = lower_limit(RLIMIT_NOFILE, files);
    }
    return error != 0 ? error : lower_limit(RLIMIT_AS, memory);
}

/* Those that somebody who has taken over a thread would try, and those that a forgotten lazy import would. */
const char *sandbox_call_name(int number)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {
#define NAME(call) {SYS_##call, #call}
        NAME(open),       NAME(openat),     NAME(openat2),   NAME(creat),     NAME(read),        NAME(write),
        NAME(stat),       NAME(newfstatat), NAME(statx),     NAME(lseek),     NAME(getdents64),  NAME(readlink),
        NAME(unlink),     NAME(unlinkat),   NAME(rename),    NAME(renameat2), NAME(mkdir),       NAME(rmdir),
        NAME(chmod),      NAME(chown),      NAME(link),      NAME(symlink),   NAME(mount),       NAME(chroot),
        NAME(execve),     NAME(execveat),   NAME(fork),      NAME(vfork),     NAME(clone),       NAME(clone3),
        NAME(kill),       NAME(tkill),      NAME(tgkill),    NAME(ptrace),    NAME(process_vm_readv),
        NAME(process_vm_writev),            NAME(pidfd_open), NAME(pidfd_getfd), NAME(socket),   NAME(socketpair),
        NAME(connect),    NAME(bind),       NAME(listen),    NAME(sendto),    NAME(sendmsg),     NAME(recvfrom),
        NAME(ioctl),      NAME(fcntl),      NAME(mmap),      NAME(mprotect),  NAME(memfd_create), NAME(shmat),
        NAME(setuid),     NAME(setgid),     NAME(setns),     NAME(unshare),   NAME(prctl),       NAME(seccomp),
        NAME(bpf),        NAME(perf_event_open),             NAME(io_uring_setup), NAME(userfaultfd), NAME(keyctl),
        NAME(prlimit64),  NAME(exit_group), NAME(pipe2),     NAME(dup2),      NAME(dup3),        NAME(wait4),
        NAME(mincore),    NAME(fdatasync),  NAME(fallocate),
#undef NAME
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (names[i].number == number) {
            return names[i].name;
        }
    }
    return NULL;
}
