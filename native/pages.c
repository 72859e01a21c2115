/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/pages.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/* Documentation/admin-guide/mm/pagemap.rst: the page is present, or swapped. */
#define PAGEMAP_THERE (3ull << 62)

static bool is_zero(const uint8_t *page)
{
    static const uint8_t zeros[PAGES_SIZE];

    return memcmp(page, zeros, sizeof(zeros)) == 0;
}

static int64_t write_all(int fd, uint64_t offset, const uint8_t *from, uint64_t length)
{
    for (uint64_t done = 0; done < length;) {
        ssize_t written = pwrite(fd, from + done, length - done, (off_t)(offset + done));

        if (written < 0 && errno != EINTR) {
            return -errno;
        }
        done += written > 0 ? (uint64_t)written : 0;
    }
    return (int64_t)length;
}

int64_t pages_store(int fd, uint64_t offset, const uint8_t *memory, uint64_t size, const uint64_t *pagemap)
{
    uint64_t run = 0; /* where pages that are to be written begin */
    int64_t total = 0;

    for (uint64_t at = 0; at <= size; at += PAGES_SIZE) {
        bool there = at < size && (pagemap == NULL || (pagemap[at / PAGES_SIZE] & PAGEMAP_THERE) != 0);

        if (there && !is_zero(memory + at)) {
            continue;
        }
        if (at > run) {
            int64_t written = write_all(fd, offset + run, memory + run, at - run);

            if (written < 0) {
                return written;
            }
            total += written;
        }
        run = at + PAGES_SIZE;
    }
    return total;
}
