/* SPDX-License-Identifier: BSD-2-Clause */
/* Copies memory into a file that is as sparse as the memory is. */
#ifndef VMM_PAGES_H
#define VMM_PAGES_H

#include <stdint.h>

#define PAGES_SIZE 4096u

/*
 * Write the pages of memory (size is a multiple of PAGES_SIZE) that are not all zeros to fd, the first at offset, and
 * leave holes for the others. pagemap, NULL or an entry a page as in /proc/self/pagemap, says which pages need not even
 * be looked at, for nobody has touched them. Returns the bytes written, or a negative errno.
 */
int64_t pages_store(int fd, uint64_t offset, const uint8_t *memory, uint64_t size, const uint64_t *pagemap);

#endif
