/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "vmm/disk_image.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static int read_all(int fd, uint64_t offset, uint8_t *to, uint64_t length)
{
    while (length > 0) {
        ssize_t count = pread(fd, to, length, (off_t)offset);

        if (count < 0 && errno != EINTR) {
            return errno;
        }
        if (count == 0) {
            return EIO; /* somebody made the file shorter */
        }
        if (count > 0) {
            to += count;
            offset += (uint64_t)count;
            length -= (uint64_t)count;
        }
    }
    return 0;
}

static int write_all(int fd, uint64_t offset, const uint8_t *from, uint64_t length)
{
    while (length > 0) {
        ssize_t count = pwrite(fd, from, length, (off_t)offset);

        if (count < 0 && errno != EINTR) {
            return errno;
        }
        if (count == 0) {
            return ENOSPC;
        }
        if (count > 0) {
            from += count;
            offset += (uint64_t)count;
            length -= (uint64_t)count;
        }
    }
    return 0;
}

static int file_for(const struct disk_image *image, uint64_t offset, uint64_t length)
{
    bool direct = image->direct_fd >= 0 && (offset | length) % image->direct_alignment == 0;

    return direct ? image->direct_fd : image->fd;
}

static bool is_overlaid(const struct disk_image *image, uint64_t sector)
{
    return __atomic_load_n(&image->overlaid[sector / 8], __ATOMIC_ACQUIRE) >> sector % 8 & 1;
}

static void mark_overlaid(const struct disk_image *image, uint64_t offset, uint64_t length)
{
    for (uint64_t sector = offset / SECTOR_SIZE; sector < (offset + length) / SECTOR_SIZE; sector++) {
        __atomic_fetch_or(&image->overlaid[sector / 8], (uint8_t)(1u << sector % 8), __ATOMIC_RELEASE);
    }
}

/* Bytes from `offset` on, at the most `length`, that are all in the overlay or all not. */
static uint64_t run_length(const struct disk_image *image, uint64_t offset, uint64_t length, bool overlaid)
{
    uint64_t run = SECTOR_SIZE;

    while (run < length && is_overlaid(image, (offset + run) / SECTOR_SIZE) == overlaid) {
        run += SECTOR_SIZE;
    }
    return run;
}

int disk_image_read(const struct disk_image *image, uint64_t offset, uint8_t *to, uint64_t length)
{
    if (image->overlay_fd < 0) {
        return read_all(file_for(image, offset, length), offset, to, length);
    }
    while (length > 0) {
        bool overlaid = is_overlaid(image, offset / SECTOR_SIZE);
        uint64_t run = run_length(image, offset, length, overlaid);
        int error = read_all(overlaid ? image->overlay_fd : file_for(image, offset, run), offset, to, run);

        if (error != 0) {
            return error;
        }
        to += run;
        offset += run;
        length -= run;
    }
    return 0;
}

int disk_image_write(const struct disk_image *image, uint64_t offset, const uint8_t *from, uint64_t length)
{
    int error;

    if (image->overlay_fd < 0) {
        return write_all(file_for(image, offset, length), offset, from, length);
    }
    error = write_all(image->overlay_fd, offset, from, length);
    if (error == 0) {
        mark_overlaid(image, offset, length);
    }
    return error;
}

int disk_image_flush(const struct disk_image *image)
{
    if (image->never_sync || image->overlay_fd >= 0) {
        return 0;
    }
    return fdatasync(image->fd) == 0 ? 0 : errno;
}

static int allocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    while (fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) != 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

static int write_zeros(int fd, uint64_t offset, uint64_t length)
{
    static const uint8_t zeros[1 << 16];
    int error = 0;

    while (length > 0 && error == 0) {
        uint64_t part = length < sizeof(zeros) ? length : sizeof(zeros);

        error = write_all(fd, offset, zeros, part);
        offset += part;
        length -= part;
    }
    return error;
}

int disk_image_zero(const struct disk_image *image, uint64_t offset, uint64_t length, bool unmap)
{
    int fd = image->overlay_fd >= 0 ? image->overlay_fd : image->fd;
    int error = allocate(fd, (unmap && image->unmap) || image->overlay_fd >= 0 ? FALLOC_FL_PUNCH_HOLE
                                                                               : FALLOC_FL_ZERO_RANGE, offset, length);

    if (error == EOPNOTSUPP || error == ENODEV) {
        error = write_zeros(fd, offset, length);
    }
    if (error == 0 && image->overlay_fd >= 0) {
        mark_overlaid(image, offset, length);
    }
    return error;
}

int disk_image_discard(const struct disk_image *image, uint64_t offset, uint64_t length)
{
    int error;

    if (image->overlay_fd >= 0) {
        return disk_image_zero(image, offset, length, true);
    }
    if (!image->unmap) {
        return 0;
    }
    error = allocate(image->fd, FALLOC_FL_PUNCH_HOLE, offset, length);
    return error == EOPNOTSUPP || error == ENODEV ? 0 : error;
}
