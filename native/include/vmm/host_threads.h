/* SPDX-License-Identifier: BSD-2-Clause */
/* Threads of the host, which gives only so many. */
#ifndef VMM_HOST_THREADS_H
#define VMM_HOST_THREADS_H

/*
 * Whether the address space has room for one more thread: its stack, and what Python and libc take in it before it can
 * tell that it has begun. Returns 0 or an errno.
 */
int host_threads_room(void);

#endif
