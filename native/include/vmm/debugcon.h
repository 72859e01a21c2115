/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The debug port (Bochs's 0xe9, QEMU's isa-debugcon at 0x402): collects what
 * firmware prints byte by byte. In C because each byte costs an exit and so
 * should cost little more. vmm/devices/debugcon.py stands behind this, says
 * when to collect, and fetches what there is; a full buffer is passed on.
 */
#ifndef VMM_DEBUGCON_H
#define VMM_DEBUGCON_H

#include "vmm/io_table.h"

#define DEBUGCON_BUFFER 65536

struct debugcon {
    struct io_behind device; /* first: the bus fills it in. Gets writes, of one-byte elements if they were collected */
    bool collecting;         /* false: writes are passed on at once */
    uint32_t used;           /* bytes of buffer */
    uint8_t buffer[DEBUGCON_BUFFER];
};

/* An io_handler over a struct debugcon; one port. */
void debugcon_access(void *opaque, struct io_access *access);

#endif
