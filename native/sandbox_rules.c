/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which system calls a process that runs a guest may make, and which its
 * threads that serve the guest. What CPython and glibc use was found out with
 * strace; tests/kvm/sandbox has a test for each rule.
 */
#define _GNU_SOURCE /* F_OFD_SETLK */
#include "sandbox_filter.h"

#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/machine.h"

#define IOCTL_TYPE_MASK (_IOC_TYPEMASK << _IOC_TYPESHIFT)

/* glibc names allocations since 2.40 (PR_SET_VMA, from <linux/prctl.h> of Linux 5.17). */
#define NAME_VMA 0x53564d41u

/* For a rule about one call, or one value. */
#define ONLY(value) (const uint32_t[]){(uint32_t)(value)}, 1
#define LISTED(array) (array), sizeof(array) / sizeof((array)[0])

/* Of a whole process and of a single thread: what is without an effect outside of it. */
static void allow_computing(struct filter *filter)
{
    static const uint32_t calls[] = {
        SYS_futex,           SYS_clock_gettime, SYS_clock_nanosleep,    SYS_nanosleep, SYS_gettimeofday,
        SYS_rt_sigprocmask,  SYS_rt_sigreturn,  SYS_restart_syscall,    SYS_brk,       SYS_munmap,
        SYS_mremap,          SYS_madvise,       SYS_sched_yield,        SYS_getpid,    SYS_gettid,
        SYS_sched_getaffinity, SYS_getrandom,   SYS_exit,               SYS_close,     SYS_sigaltstack,
        SYS_clock_getres,    SYS_sysinfo,
    };
    static const uint32_t names[] = {PR_SET_NAME, NAME_VMA};

    filter_rule(filter, LISTED(calls));
    filter_allow(filter);
    filter_rule(filter, ONLY(SYS_prctl));
    filter_one_of(filter, 0, LISTED(names));
    filter_allow(filter);
    /* No code is made: translated code has its memory already. */
    filter_rule(filter, ONLY(SYS_mprotect));
    filter_bits(filter, 2, PROT_EXEC, 0);
    filter_allow(filter);
    /* A file that is mapped could be written to, whatever rules there are about write. */
    filter_rule(filter, ONLY(SYS_mmap));
    filter_bits(filter, 2, PROT_EXEC, 0);
    filter_bits(filter, 3, MAP_ANONYMOUS, MAP_ANONYMOUS);
    filter_allow(filter);
}

static void allow_signals_to_itself(struct filter *filter, const uint32_t *signals, size_t count)
{
    filter_rule(filter, ONLY(SYS_tgkill));
    filter_one_of(filter, 0, ONLY(getpid()));
    if (count > 0) {
        filter_one_of(filter, 2, signals, count);
    }
    filter_allow(filter);
}

void filter_thread_rules(struct filter *filter, int vm, int vcpu, const int *files, uint32_t count)
{
    /* What devices ask of KVM while the guest runs: interrupts, moving RAM and ROM about, eventfds of disks, whether
     * stores to flash wait in KVM. */
    static const uint32_t vm_requests[] = {
        KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_SET_USER_MEMORY_REGION, KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_CLOCK,
        KVM_IOEVENTFD, KVM_IRQFD, KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO,
    };
    const uint32_t signals[] = {(uint32_t)VMM_KICK_SIGNAL, SIGABRT};

    filter_begin(filter);
    if (vcpu >= 0) {
        /* First, for the loop comes here with every exit. */
        filter_rule(filter, ONLY(SYS_ioctl));
        filter_one_of(filter, 0, ONLY(vcpu));
        filter_bits(filter, 1, IOCTL_TYPE_MASK, KVMIO << _IOC_TYPESHIFT);
        filter_allow(filter);
    }
    if (vm >= 0) {
        filter_rule(filter, ONLY(SYS_ioctl));
        filter_one_of(filter, 0, ONLY(vm));
        filter_one_of(filter, 1, LISTED(vm_requests));
        filter_allow(filter);
    }
    allow_computing(filter);
    allow_signals_to_itself(filter, LISTED(signals));
    if (count > 0) {
        /* Consoles' files are appended to; a variable store is also read, to see that nobody else changed it. The last
         * two are for the images of disks that have no threads. */
        static const uint32_t uses[] = {
            SYS_write, SYS_pwrite64, SYS_pread64, SYS_fstat, SYS_read, SYS_fdatasync, SYS_fallocate,
        };

        filter_rule(filter, LISTED(uses));
        filter_one_of(filter, 0, (const uint32_t *)files, count);
        filter_allow(filter);
        /* glibc's fstat; the path beside the flag is for the kernel to look at, and out of reach here. */
        filter_rule(filter, ONLY(SYS_newfstatat));
        filter_one_of(filter, 0, (const uint32_t *)files, count);
        filter_one_of(filter, 3, ONLY(AT_EMPTY_PATH));
        filter_allow(filter);
    }
    filter_end(filter);
}

void filter_disk_rules(struct filter *filter, int vm, const int *files, uint32_t count)
{
    /* Waiting for a lock, and what glibc does as a thread ends, or where it finds a fault of ours. */
    static const uint32_t calls[] = {
        SYS_futex,  SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_restart_syscall, SYS_madvise,
        SYS_munmap, SYS_getpid,         SYS_gettid,       SYS_exit,
    };
    static const uint32_t vm_requests[] = {KVM_IRQ_LINE, KVM_SIGNAL_MSI};
    static const uint32_t uses[] = {
        SYS_read, SYS_write, SYS_pread64, SYS_pwrite64, SYS_fdatasync, SYS_fallocate,
    };

    filter_begin(filter);
    filter_rule(filter, LISTED(uses));
    filter_one_of(filter, 0, (const uint32_t *)files, count);
    filter_allow(filter);
    filter_rule(filter, LISTED(calls));
    filter_allow(filter);
    if (vm >= 0) {
        filter_rule(filter, ONLY(SYS_ioctl));
        filter_one_of(filter, 0, ONLY(vm));
        filter_one_of(filter, 1, LISTED(vm_requests));
        filter_allow(filter);
    }
    allow_signals_to_itself(filter, ONLY(SIGABRT));
    filter_end(filter);
}

/* Reading modules, writing to what is open, waiting for a person or a debugger, and ending. */
static void allow_using_files(struct filter *filter)
{
    static const uint32_t calls[] = {
        SYS_read,       SYS_readv,        SYS_pread64,      SYS_write,       SYS_writev,     SYS_pwrite64, SYS_lseek,
        SYS_fstat,      SYS_stat,         SYS_lstat,        SYS_newfstatat,  SYS_statx,      SYS_access,   SYS_faccessat,
        SYS_faccessat2, SYS_readlink,     SYS_readlinkat,   SYS_getcwd,      SYS_getdents64, SYS_poll,     SYS_ppoll,
        SYS_select,     SYS_pselect6,     SYS_epoll_create1, SYS_epoll_ctl,  SYS_epoll_wait, SYS_epoll_pwait,
        SYS_eventfd2,   SYS_pipe2,        SYS_dup,          SYS_ftruncate,   SYS_fallocate,   SYS_fsync,      SYS_fdatasync,
        /* Of a socket that was opened before. */
        SYS_accept4,    SYS_recvfrom,     SYS_shutdown,     SYS_getsockopt,  SYS_setsockopt, SYS_getsockname,
    };
    static const uint32_t controls[] = {
        F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_OFD_SETLK, F_OFD_GETLK,
    };
    /* Not TIOCSTI, which types into the terminal behind this process. */
    static const uint32_t terminal[] = {
        TCGETS, TCSETS, TCSETSW, TCSETSF, TCGETS2, TCSETS2, TCSETSW2, TCSETSF2, TIOCGWINSZ, TIOCGPGRP, FIONREAD, FIONBIO,
        FIOCLEX,
    };

    filter_rule(filter, LISTED(calls));
    filter_allow(filter);
    /* To whoever is connected. With an address it connects: MSG_FASTOPEN on a socket that has stopped listening. */
    filter_rule(filter, ONLY(SYS_sendto));
    filter_null(filter, 4);
    filter_allow(filter);
    filter_rule(filter, ONLY(SYS_openat));
    filter_bits(filter, 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY);
    filter_allow(filter);
    filter_rule(filter, ONLY(SYS_fcntl));
    filter_one_of(filter, 1, LISTED(controls));
    filter_allow(filter);
    filter_rule(filter, ONLY(SYS_ioctl));
    filter_one_of(filter, 1, LISTED(terminal));
    filter_allow(filter);
    /* Files may be mapped as data, too. */
    filter_rule(filter, ONLY(SYS_mmap));
    filter_bits(filter, 2, PROT_EXEC, 0);
    filter_allow(filter);
    /* Python's modules in C: code that is in a file, and not written to. */
    filter_rule(filter, ONLY(SYS_mmap));
    filter_bits(filter, 2, PROT_EXEC | PROT_WRITE, PROT_EXEC);
    filter_bits(filter, 3, MAP_ANONYMOUS | MAP_SHARED, 0);
    filter_allow(filter);
}

void filter_process_rules(struct filter *filter, const int *channels, uint32_t count)
{
    static const uint32_t calls[] = {
        SYS_set_robust_list, SYS_rseq,    SYS_set_tid_address, SYS_rt_sigaction, SYS_rt_sigtimedwait, SYS_rt_sigpending,
        SYS_getuid,          SYS_geteuid, SYS_getgid,          SYS_getegid,      SYS_getppid,         SYS_getpgrp,
        SYS_getpgid,         SYS_getrusage, SYS_times,         SYS_uname,        SYS_wait4,           SYS_exit_group,
        SYS_membarrier,      SYS_getcpu,  SYS_time,          SYS_mincore,
        /* Of --profile, for threads that are not restricted yet. */
        SYS_timer_create,    SYS_timer_settime, SYS_timer_delete,
    };

    filter_begin(filter);
    filter_rule(filter, ONLY(SYS_ioctl));
    filter_bits(filter, 1, IOCTL_TYPE_MASK, KVMIO << _IOC_TYPESHIFT);
    filter_allow(filter);
    allow_computing(filter);
    allow_using_files(filter);
    filter_rule(filter, LISTED(calls));
    filter_allow(filter);
    allow_signals_to_itself(filter, NULL, 0);
    /* Threads, and no processes. */
    filter_rule(filter, ONLY(SYS_clone));
    filter_bits(filter, 0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM);
    filter_allow(filter);
    /* Its flags are in memory, where no filter looks; glibc takes clone then. */
    filter_rule(filter, ONLY(SYS_clone3));
    filter_fail(filter, ENOSYS);
    if (count > 0) {
        /* What gives descriptors away, to backends of devices alone. */
        filter_rule(filter, ONLY(SYS_sendmsg));
        filter_one_of(filter, 0, (const uint32_t *)channels, count);
        filter_allow(filter);
    }
    /* Limits are read, not set. */
    filter_rule(filter, ONLY(SYS_prlimit64));
    filter_null(filter, 2);
    filter_allow(filter);
    /* The tighter filters of threads. */
    filter_rule(filter, ONLY(SYS_seccomp));
    filter_one_of(filter, 0, ONLY(SECCOMP_SET_MODE_FILTER));
    filter_allow(filter);
    filter_rule(filter, ONLY(SYS_prctl));
    filter_one_of(filter, 0, ONLY(PR_SET_NO_NEW_PRIVS));
    filter_allow(filter);
    filter_end(filter);
}
