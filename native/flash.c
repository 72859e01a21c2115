/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/flash.h"

#include <string.h>

/* Two commands that mean the same (Intel StrataFlash data sheets). */
#define PROGRAM 0x10
#define PROGRAM_ALTERNATE 0x40

void flash_changed(struct flash_loop *loop, uint64_t first, uint64_t length)
{
    if (length == 0) {
        return;
    }
    if (loop->changed_end == 0 || first < loop->changed_first) {
        loop->changed_first = first;
    }
    if (first + length > loop->changed_end) {
        loop->changed_end = first + length;
    }
}

/* One cycle of the loop; false: it does not belong to the loop, and the chip handles it. */
static bool program(struct flash_loop *loop, uint64_t offset, const uint8_t *data, uint32_t size)
{
    if (!loop->active) {
        return false;
    }
    if (loop->data_next) {
        uint64_t room = offset < loop->size ? loop->size - offset : 0;
        uint64_t length = size < room ? size : room;

        memcpy(loop->contents + offset, data, length);
        flash_changed(loop, offset, length);
        loop->programs++;
        loop->data_next = false;
        return true;
    }
    loop->data_next = loop->active = data[0] == PROGRAM || data[0] == PROGRAM_ALTERNATE;
    return loop->active;
}

static void read_contents(const struct flash_loop *loop, const struct io_access *access)
{
    for (uint32_t i = 0; i < access->size; i++) {
        uint64_t at = access->offset + i;

        access->data[i] = at < loop->size ? loop->contents[at] : 0xff;
    }
}

void flash_loop_access(void *opaque, struct io_access *access)
{
    struct flash_loop *loop = opaque;

    if (loop->secure && !access->smm) {
        if (!access->is_write) {
            read_contents(loop, access);
        }
        return;
    }
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
