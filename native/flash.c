/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/flash.h"

#include <string.h>

/* Two commands that mean the same (Intel StrataFlash data sheets). */
#define PROGRAM 0x10
#define PROGRAM_ALTERNATE 0x40

/* One cycle of the loop; false: it is no part of it, the chip's turn. */
static bool program(struct flash_loop *loop, uint64_t offset, const uint8_t *data, uint32_t size)
{
    if (!loop->active) {
        return false;
    }
    if (loop->data_next) {
        uint64_t room = offset < loop->size ? loop->size - offset : 0;

        memcpy(loop->contents + offset, data, size < room ? size : room);
        loop->programs++;
        loop->data_next = false;
        return true;
    }
    loop->data_next = loop->active = data[0] == PROGRAM || data[0] == PROGRAM_ALTERNATE;
    return loop->active;
}

void flash_loop_access(void *opaque, struct io_access *access)
{
    struct flash_loop *loop = opaque;

    if (access->is_write) {
        while (access->count > 0 && program(loop, access->offset, access->data, access->size)) {
            access->data += access->size;
            access->count--;
        }
        if (access->count == 0) {
            return;
        }
    }
    loop->chip.handler(loop->chip.opaque, access);
}
