/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/host_threads.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>

/* Of Python's, a stack of frames (16 KiB) and an arena of objects (1 MiB since 3.10, Include/internal/pycore_obmalloc.h). */
#define BEGINNING ((size_t)2 << 20)

int host_threads_room(void)
{
    pthread_attr_t defaults;
    size_t stack = 0;
    void *room;

    pthread_attr_init(&defaults);
    pthread_attr_getstacksize(&defaults, &stack);
    pthread_attr_destroy(&defaults);
    room = mmap(NULL, stack + BEGINNING, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return errno;
    }
    munmap(room, stack + BEGINNING);
    return 0;
}
