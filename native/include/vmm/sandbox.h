/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel is asked to refuse to a process that runs a guest, once it
 * has opened all that it needs.
 *
 * System calls are filtered by seccomp: one filter for the whole process, and a
 * tighter one for each thread that serves the guest (a thread under both needs
 * the consent of both). Files are a matter of Landlock. All of it is for good,
 * and what the thread starts later inherits it.
 *
 * A refused call fails with EPERM, is remembered, and ends the run of the vCPU
 * whose thread it was with VCPU_REFUSED.
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/machine.h"

/* What this kernel offers here: some containers forbid it. */
bool sandbox_seccomp_offered(void);
int sandbox_landlock_abi(void); /* 0: no Landlock */

#define SANDBOX_DISK_FILES 4

/* What a disk's threads use. */
struct sandbox_disk {
    int vm;
    uint32_t count;
    int files[SANDBOX_DISK_FILES];
};

/*
 * Each returns 0 or a negative errno, after which nothing was restricted.
 *
 * sandbox_filter_process: all threads of this process, those that exist too;
 *   descriptors are given away by `channels` alone.
 * sandbox_filter_thread: the calling thread, which may use the machine's
 *   descriptor, the vCPU's (NULL: a thread that serves devices only), and
 *   write to `files`.
 * sandbox_filter_disk: the calling thread, which serves a disk's requests. It
 *   reads and writes `files` and sends interrupts, and does nothing else.
 * sandbox_restrict_files: the calling thread reads beneath `paths`, and
 *   writes nowhere.
 * sandbox_lower_limits: this process opens no descriptor from number `files`
 *   on, maps `memory` bytes at the most, and leaves no core; lower limits stay.
 */
int sandbox_filter_process(const int *channels, uint32_t count);
int sandbox_filter_thread(struct vmm_vm *vm, struct vmm_vcpu *vcpu, const int *files, uint32_t count);
int sandbox_filter_disk(void *disk);
int sandbox_restrict_files(const char *const *paths, uint32_t count);
int sandbox_lower_limits(uint64_t files, uint64_t memory);

/* The first call that was refused in this process, by any thread, or -1; and what a call is called, or NULL. */
int sandbox_refused(void);
const char *sandbox_call_name(int number);

#endif
