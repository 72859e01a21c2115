/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The inner loop of programming NOR flash: a "program" command, the data, and
 * again, some 15,000 times when firmware writes its first variables. In C
 * because each of those costs an exit and so should cost little more. The
 * chip itself is vmm/devices/flash.py, which stands behind this and gets
 * every other access; it says when the loop may begin.
 */
#ifndef VMM_FLASH_H
#define VMM_FLASH_H

#include "vmm/io_table.h"

struct flash_loop {
    struct io_behind chip; /* first: the bus fills it in */
    uint8_t *contents;
    uint64_t size;
    uint64_t programs; /* data cycles served here */
    uint64_t changed_first; /* what changed and was not written back yet: from this byte */
    uint64_t changed_end;   /* to before this one; 0: nothing */
    bool active;       /* the chip is ready, gives its status, and takes a command next, as after a program operation */
    bool data_next;    /* if active: the command was "program" */
    bool secure; /* only system management mode reaches the chip; others read its contents, and their stores are lost */
};

/* Note that bytes of the contents changed; the caller holds io_lock. */
void flash_changed(struct flash_loop *loop, uint64_t first, uint64_t length);

/* An io_handler over a struct flash_loop. */
void flash_loop_access(void *opaque, struct io_access *access);

#endif
