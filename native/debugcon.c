/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/debugcon.h"

#include <stddef.h>
#include <string.h>

/* What a read gives, by which firmware finds out that the port is there (QEMU, hw/char/debugcon.c). */
#define SIGNATURE 0xe9

static void pass_on(struct debugcon *debugcon)
{
    struct io_access all = {.data = debugcon->buffer, .size = 1, .count = debugcon->used, .is_write = true};

    debugcon->used = 0;
    debugcon->device.handler(debugcon->device.opaque, &all);
}

void debugcon_access(void *opaque, struct io_access *access)
{
    struct debugcon *debugcon = opaque;

    if (!access->is_write) {
        memset(access->data, SIGNATURE, (size_t)access->size * access->count);
        return;
    }
    if (!debugcon->collecting) {
        debugcon->device.handler(debugcon->device.opaque, access);
        return;
    }
    for (uint32_t element = 0; element < access->count; element++) {
        if (debugcon->used == sizeof(debugcon->buffer)) {
            pass_on(debugcon);
        }
        debugcon->buffer[debugcon->used++] = access->data[(size_t)element * access->size];
    }
}
