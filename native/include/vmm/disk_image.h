/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A raw disk image: a file of sectors, read and written at byte offsets that
 * its callers have checked against `sectors`. With an overlay, the file itself
 * is only ever read: what is written goes into another file, sector by sector
 * at the same place, and a bitmap says which sectors are there.
 *
 * Any thread may call; each function returns 0 or an errno.
 */
#ifndef VMM_DISK_IMAGE_H
#define VMM_DISK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR_SIZE 512u

struct disk_image {
    int fd;                    /* owned by Python, as all of these */
    int direct_fd;             /* the same file with O_DIRECT, for what is aligned; -1: not asked for */
    uint32_t direct_alignment; /* of offsets and lengths, and of buffers a page at the most */
    int overlay_fd;            /* -1: none */
    uint8_t *overlaid;         /* bit by sector: it is in the overlay */
    uint64_t sectors;
    bool unmap;                /* what is discarded is given back to the file system */
    bool never_sync;           /* a flush does nothing */
};

int disk_image_read(const struct disk_image *image, uint64_t offset, uint8_t *to, uint64_t length);
int disk_image_write(const struct disk_image *image, uint64_t offset, const uint8_t *from, uint64_t length);
int disk_image_flush(const struct disk_image *image);

/* Make sectors read as zeros; with `unmap`, without room on the disk if that can be. */
int disk_image_zero(const struct disk_image *image, uint64_t offset, uint64_t length, bool unmap);

/* Give sectors back; what they hold then is anything. */
int disk_image_discard(const struct disk_image *image, uint64_t offset, uint64_t length);

#endif
