/* SPDX-License-Identifier: BSD-2-Clause */
/* What a disk's requests ask for. The threads that serve them are in blk_threads.c. */
#include "blk.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

#include "vmm/stop.h"

#define QUEUE 0
#define STATUS_BYTES 1
#define ABANDONED 0xff /* no status: there was a reset, or a stop */

/* Of a discard or write-zeroes request. QEMU has the same limits. */
#define MAX_RANGES 1
#define MAX_RANGE_SECTORS ((1u << 22) - 1)
#define ZERO_STEP (1u << 26) /* bytes zeroed between two looks at whether to go on */

/* Bytes of the configuration: newer headers have more, for features that are not offered. */
#define CONFIG_SIZE (offsetof(struct virtio_blk_config, unused1) + sizeof(((struct virtio_blk_config *)NULL)->unused1))
_Static_assert(CONFIG_SIZE <= VIRTIO_CONFIG_SIZE, "the configuration has room");

static struct virtio_blk *blk_of(void *opaque)
{
    return opaque;
}

static bool writes_back(const struct virtio_blk *blk)
{
    if (virtio_pci_negotiated(&blk->pci, VIRTIO_BLK_F_CONFIG_WCE)) {
        return blk->pci.config[offsetof(struct virtio_blk_config, wce)] != 0;
    }
    /* A driver that cannot flush gets every write on the disk at once (5.2.6.2). */
    return blk->write_back && virtio_pci_negotiated(&blk->pci, VIRTIO_BLK_F_FLUSH);
}

static uint8_t status_of(struct virtio_blk *blk, int error)
{
    if (error == 0) {
        return VIRTIO_BLK_S_OK;
    }
    blk->counters.errors++;
    blk->counters.last_error = error;
    return VIRTIO_BLK_S_IOERR;
}

/* Bracket what takes long. False after it: the request is the guest's no more. */
static void begin_io(const struct virtio_blk *blk)
{
    pthread_mutex_unlock(blk->io_lock);
}

static bool is_stopped(const struct virtio_blk *blk)
{
    return blk->waiting != NULL && vmm_stop_is_set(blk->stop);
}

static bool end_io(const struct virtio_blk *blk, uint64_t resets)
{
    pthread_mutex_lock(blk->io_lock);
    return blk->resets == resets && !blk->closing && !is_stopped(blk);
}

static bool is_on_disk(const struct virtio_blk *blk, uint64_t sector, uint64_t length)
{
    return length % SECTOR_SIZE == 0 && sector <= blk->image.sectors &&
           length / SECTOR_SIZE <= blk->image.sectors - sector;
}

static uint8_t sync_written(struct virtio_blk *blk, uint64_t resets)
{
    int error;

    begin_io(blk);
    error = disk_image_flush(&blk->image);
    return end_io(blk, resets) ? status_of(blk, error) : ABANDONED;
}

static uint8_t transfer(struct virtio_blk_worker *worker, uint64_t sector, bool is_write)
{
    struct virtio_blk *blk = worker->blk;
    const struct virtq_chain *chain = &worker->chain;
    const struct guest_memory *memory = blk->pci.memory;
    uint64_t header = is_write ? sizeof(struct virtio_blk_outhdr) : 0;
    uint64_t length = is_write ? chain->readable_bytes - header : chain->writable_bytes - STATUS_BYTES;
    uint64_t resets = blk->resets;
    uint64_t part;

    if (!is_on_disk(blk, sector, length) || (is_write && blk->read_only)) {
        return VIRTIO_BLK_S_IOERR;
    }
    for (uint64_t done = 0; done < length; done += part) {
        uint64_t offset = sector * SECTOR_SIZE + done;
        int error;

        part = length - done < VIRTIO_BLK_PIECE ? length - done : VIRTIO_BLK_PIECE;
        if (is_write && !virtq_chain_read(chain, memory, header + done, worker->buffer, part)) {
            return VIRTIO_BLK_S_IOERR;
        }
        begin_io(blk);
        error = is_write ? disk_image_write(&blk->image, offset, worker->buffer, part)
                         : disk_image_read(&blk->image, offset, worker->buffer, part);
        if (!end_io(blk, resets)) {
            return ABANDONED;
        }
        if (error != 0) {
            return status_of(blk, error);
        }
        if (!is_write && !virtq_chain_write(chain, memory, done, worker->buffer, part)) {
            return VIRTIO_BLK_S_IOERR;
        }
    }
    *(is_write ? &blk->counters.bytes_written : &blk->counters.bytes_read) += length;
    return is_write && !writes_back(blk) ? sync_written(blk, resets) : VIRTIO_BLK_S_OK;
}

static uint8_t give_range_back(struct virtio_blk_worker *worker, bool zero)
{
    struct virtio_blk *blk = worker->blk;
    struct virtio_blk_discard_write_zeroes range;
    uint64_t resets = blk->resets;
    uint64_t length;
    uint64_t part;
    bool unmap;

    if (worker->chain.readable_bytes != sizeof(struct virtio_blk_outhdr) + MAX_RANGES * sizeof(range) ||
        !virtq_chain_read(&worker->chain, blk->pci.memory, sizeof(struct virtio_blk_outhdr), &range, sizeof(range))) {
        return VIRTIO_BLK_S_IOERR;
    }
    unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if (range.flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP || (unmap && !zero)) {
        return VIRTIO_BLK_S_UNSUPP;
    }
    length = (uint64_t)range.num_sectors * SECTOR_SIZE;
    if (blk->read_only || range.num_sectors > MAX_RANGE_SECTORS || !is_on_disk(blk, range.sector, length)) {
        return VIRTIO_BLK_S_IOERR;
    }
    for (uint64_t done = 0; done < length; done += part) {
        uint64_t offset = range.sector * SECTOR_SIZE + done;
        int error;

        part = length - done < ZERO_STEP ? length - done : ZERO_STEP;
        begin_io(blk);
        error = zero ? disk_image_zero(&blk->image, offset, part, unmap) : disk_image_discard(&blk->image, offset, part);
        if (!end_io(blk, resets)) {
            return ABANDONED;
        }
        if (error != 0) {
            return status_of(blk, error);
        }
    }
    return zero && !writes_back(blk) ? sync_written(blk, resets) : VIRTIO_BLK_S_OK;
}

static uint8_t identify(struct virtio_blk_worker *worker)
{
    const struct virtio_blk *blk = worker->blk;
    uint64_t room = worker->chain.writable_bytes - STATUS_BYTES;
    uint64_t length = room < VIRTIO_BLK_SERIAL ? room : VIRTIO_BLK_SERIAL;

    return virtq_chain_write(&worker->chain, blk->pci.memory, 0, blk->serial, length) ? VIRTIO_BLK_S_OK
                                                                                     : VIRTIO_BLK_S_IOERR;
}

static uint8_t execute(struct virtio_blk_worker *worker, const struct virtio_blk_outhdr *request)
{
    struct virtio_blk *blk = worker->blk;

    switch (request->type) {
    case VIRTIO_BLK_T_IN:
        blk->counters.reads++;
        if (blk->first_read == 0 && blk->disks_read != NULL) {
            blk->first_read = ++*blk->disks_read;
        }
        return transfer(worker, request->sector, false);
    case VIRTIO_BLK_T_OUT:
        blk->counters.writes++;
        return transfer(worker, request->sector, true);
    case VIRTIO_BLK_T_FLUSH:
        blk->counters.flushes++;
        return sync_written(blk, blk->resets);
    case VIRTIO_BLK_T_GET_ID:
        return identify(worker);
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        if (!virtio_pci_negotiated(&blk->pci, request->type == VIRTIO_BLK_T_DISCARD ? VIRTIO_BLK_F_DISCARD
                                                                                   : VIRTIO_BLK_F_WRITE_ZEROES)) {
            return VIRTIO_BLK_S_UNSUPP;
        }
        blk->counters.discards++;
        return give_range_back(worker, request->type == VIRTIO_BLK_T_WRITE_ZEROES);
    default:
        return VIRTIO_BLK_S_UNSUPP;
    }
}

static void complete(struct virtio_blk_worker *worker, uint8_t status)
{
    struct virtio_blk *blk = worker->blk;
    const struct virtq_chain *chain = &worker->chain;
    uint64_t written = chain->writable_bytes < UINT32_MAX ? chain->writable_bytes : UINT32_MAX;
    enum virtq_result result = VIRTQ_BROKEN;

    if (virtq_chain_write(chain, blk->pci.memory, chain->writable_bytes - STATUS_BYTES, &status, STATUS_BYTES)) {
        result = virtqueue_push(&blk->pci.queues[QUEUE], blk->pci.memory, virtio_pci_ring_features(&blk->pci),
                                chain->head, (uint32_t)written);
    }
    if (result == VIRTQ_DONE) {
        virtio_pci_interrupt(&blk->pci, QUEUE);
    } else if (result == VIRTQ_BROKEN) {
        virtio_pci_break(&blk->pci);
    }
}

static bool may_begin(const struct virtio_blk *blk)
{
    return blk->stale == 0 && virtio_pci_may_serve(&blk->pci, QUEUE);
}

static enum virtq_result take(struct virtio_blk *blk, struct virtq_features features, struct virtq_chain *chain)
{
    struct virtqueue *queue = &blk->pci.queues[QUEUE];

    if (blk->again_count == 0) {
        return virtqueue_pop(queue, blk->pci.memory, features, chain);
    }
    blk->again_count--;
    return virtqueue_look(queue, blk->pci.memory, features, blk->again[blk->again_count], chain);
}

static bool has_more(struct virtio_blk *blk, struct virtq_features features)
{
    return blk->again_count != 0 || virtqueue_has_more(&blk->pci.queues[QUEUE], blk->pci.memory, features);
}

bool virtio_blk_is_settled(struct virtio_blk *blk)
{
    return blk->running == 0 ||
           (blk->in_flight == 0 && !(may_begin(blk) && has_more(blk, virtio_pci_ring_features(&blk->pci))));
}

uint32_t virtio_blk_begun(const struct virtio_blk *blk, uint16_t heads[VIRTIO_BLK_THREADS])
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < blk->running; i++) {
        if (blk->workers[i].busy) {
            heads[count++] = blk->workers[i].chain.head;
        }
    }
    for (uint32_t i = 0; i < blk->again_count && count < VIRTIO_BLK_THREADS; i++) {
        heads[count++] = blk->again[i];
    }
    return count;
}

bool virtio_blk_serve(struct virtio_blk_worker *worker)
{
    struct virtio_blk *blk = worker->blk;
    struct virtq_features features = virtio_pci_ring_features(&blk->pci);
    struct virtio_blk_outhdr request;
    enum virtq_result result;
    uint64_t resets = blk->resets;
    uint8_t status;

    if (!may_begin(blk)) {
        return false;
    }
    result = take(blk, features, &worker->chain);
    if (result == VIRTQ_NOTHING) {
        return has_more(blk, features);
    }
    if (result == VIRTQ_BROKEN || worker->chain.writable_bytes < STATUS_BYTES ||
        !virtq_chain_read(&worker->chain, blk->pci.memory, 0, &request, sizeof(request))) {
        virtio_pci_break(&blk->pci);
        pthread_cond_broadcast(&blk->settled);
        return false;
    }
    blk->in_flight++;
    worker->busy = true;
    /* Also asks for the notification that another thread waits for while this one reads or writes. */
    if (has_more(blk, features)) {
        virtio_blk_wake(blk);
    }
    status = execute(worker, &request);
    blk->in_flight--;
    worker->busy = false;
    if (blk->resets != resets) {
        blk->stale--;
        virtio_blk_wake(blk);
    } else if (status == ABANDONED && is_stopped(blk)) {
        blk->again[blk->again_count++] = worker->chain.head;
    } else if (status != ABANDONED && virtio_pci_may_serve(&blk->pci, QUEUE)) {
        complete(worker, status);
    }
    pthread_cond_broadcast(&blk->settled);
    return true;
}

bool virtio_blk_serve_waiting(struct virtio_blk *blk)
{
    while (!is_stopped(blk)) {
        if (!virtio_blk_serve(&blk->workers[0])) {
            return true;
        }
    }
    return false;
}

static void on_notified(void *opaque)
{
    struct virtio_blk *blk = blk_of(opaque);

    if (blk->waiting != NULL) {
        blk->waiting(blk->waiting_opaque);
    } else {
        virtio_blk_notify(blk);
    }
}

static void on_reset(void *opaque)
{
    struct virtio_blk *blk = blk_of(opaque);

    blk->resets++;
    blk->stale = blk->in_flight;
    blk->again_count = 0;
    for (uint32_t i = 0; i < VIRTIO_BLK_THREADS; i++) {
        blk->workers[i].busy = false;
    }
    blk->pci.config[offsetof(struct virtio_blk_config, wce)] = blk->write_back;
}

static void on_config_written(void *opaque, uint32_t first, uint32_t length, const uint8_t *data)
{
    const uint32_t at = offsetof(struct virtio_blk_config, wce);
    struct virtio_blk *blk = blk_of(opaque);

    if (first <= at && at - first < length && virtio_pci_negotiated(&blk->pci, VIRTIO_BLK_F_CONFIG_WCE)) {
        blk->pci.config[at] = data[at - first] & 1;
    }
}

const struct virtio_class virtio_blk_class = {
    .notified = on_notified,
    .reset = on_reset,
    .config_written = on_config_written,
};

void virtio_blk_offer(struct virtio_blk *blk)
{
    const uint64_t one = 1;
    uint64_t cylinders = blk->image.sectors / (16 * 63);
    struct virtio_blk_config config = {
        .capacity = blk->image.sectors,
        .seg_max = VIRTQ_SIZE - 2, /* the header and the status have a descriptor each */
        .geometry = {.cylinders = cylinders < 16383 ? (uint16_t)cylinders : 16383, .heads = 16, .sectors = 63},
        .blk_size = SECTOR_SIZE,
        .wce = blk->write_back,
        .num_queues = 1,
        .max_discard_sectors = MAX_RANGE_SECTORS,
        .max_discard_seg = MAX_RANGES,
        .discard_sector_alignment = 1,
        .max_write_zeroes_sectors = MAX_RANGE_SECTORS,
        .max_write_zeroes_seg = MAX_RANGES,
        .write_zeroes_may_unmap = blk->image.unmap,
    };

    blk->pci.offered = one << VIRTIO_F_VERSION_1 | one << VIRTIO_RING_F_INDIRECT_DESC | one << VIRTIO_RING_F_EVENT_IDX |
                       one << VIRTIO_BLK_F_SEG_MAX | one << VIRTIO_BLK_F_GEOMETRY | one << VIRTIO_BLK_F_BLK_SIZE |
                       one << VIRTIO_BLK_F_FLUSH | one << VIRTIO_BLK_F_TOPOLOGY | one << VIRTIO_BLK_F_CONFIG_WCE;
    if (blk->read_only) {
        blk->pci.offered |= one << VIRTIO_BLK_F_RO;
    } else {
        blk->pci.offered |= one << VIRTIO_BLK_F_WRITE_ZEROES;
        blk->pci.offered |= blk->image.unmap ? one << VIRTIO_BLK_F_DISCARD : 0;
    }
    blk->pci.config_size = CONFIG_SIZE;
    memcpy(blk->pci.config, &config, CONFIG_SIZE);
}
