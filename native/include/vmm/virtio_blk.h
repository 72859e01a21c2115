/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A disk as virtio 1.2, 5.2 has it: one queue, requests served by threads of
 * the device's own on a raw image; or, where that has to happen at a moment of
 * the guest's time, by whoever is told that there are some.
 *
 * Guest memory is only touched with io_lock held: requests are taken and given
 * back under it, and data goes through a buffer of each thread's own, in
 * pieces, so that a request has no limit but the disk's end, buffers are
 * aligned as direct I/O wants them, and a reset has its effect at once: what is
 * still being done then reaches the guest no more. It is waited for before the
 * first request after the reset, so that no old write overtakes a new one.
 */
#ifndef VMM_VIRTIO_BLK_H
#define VMM_VIRTIO_BLK_H

#include <pthread.h>

#include "vmm/disk_image.h"
#include "vmm/virtio_pci.h"

#define VIRTIO_BLK_THREADS 4
#define VIRTIO_BLK_PIECE (1u << 20) /* bytes of a thread's buffer */
#define VIRTIO_BLK_SERIAL 20        /* bytes; no NUL at the end if all are used (5.2.6) */

struct virtio_blk_counters {
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t discards; /* and write-zeroes */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t errors;   /* requests that the image failed */
    int32_t last_error; /* errno of the last of these */
};

struct virtio_blk;

/* What serves requests, one at a time: a thread's. */
struct virtio_blk_worker {
    struct virtio_blk *blk;
    uint8_t *buffer; /* VIRTIO_BLK_PIECE bytes, of whole pages */
    pthread_t thread;
    bool busy; /* with chain, since the last reset */
    bool restricted;
    struct virtq_chain chain;
};

struct virtio_blk {
    struct virtio_pci pci;
    struct disk_image image;
    bool read_only;
    bool write_back;          /* as the image's cache mode begins: writes need a flush to be on the disk */
    uint8_t serial[VIRTIO_BLK_SERIAL];
    pthread_mutex_t *io_lock;
    pthread_cond_t settled;   /* a request was served, or none will be; a thread was restricted */
    int event_fd;             /* a thread has something to do; KVM may signal it, too */
    uint32_t running;         /* threads */
    uint32_t idle;            /* threads that wait for event_fd */
    uint32_t in_flight;
    uint32_t stale;           /* of these, from before the last reset */
    uint64_t resets;          /* how often there was one */
    uint32_t again_count;
    uint16_t again[VIRTIO_BLK_THREADS]; /* heads of chains that are to be served once more: see virtio_blk_begun */
    bool closing;
    uint64_t *disks_read;     /* how many of the machine's disks were read from; NULL: nobody asks */
    uint64_t first_read;      /* which of these it was, from 1; 0: it was not yet */
    void (*waiting)(void *opaque);    /* the guest has made requests, with io_lock held; NULL: threads serve them */
    void *waiting_opaque;
    const uint32_t *stop;             /* of the machine: what virtio_blk_serve_waiting does is cut short by one */
    int (*restriction)(void *opaque); /* see virtio_blk_restrict */
    void *restriction_opaque;
    uint32_t restricted; /* threads that have called it */
    struct virtio_blk_counters counters;
    uint8_t *buffers;         /* those of all workers */
    struct virtio_blk_worker workers[VIRTIO_BLK_THREADS];
};

/* NULL: no memory, or no descriptor. The caller fills image and the rest in, then calls virtio_blk_start. */
struct virtio_blk *virtio_blk_new(const struct guest_memory *memory, pthread_mutex_t *io_lock, struct pci_pirqs *pirqs);

/* Offer what the fields say, and start the threads, if it is to have any: 0 or an errno. io_lock is not held. */
int virtio_blk_start(struct virtio_blk *blk);

/*
 * From now on each thread calls this before it serves another request; if it returns anything but 0, the thread serves
 * none. io_lock is not held.
 */
void virtio_blk_restrict(struct virtio_blk *blk, int (*restriction)(void *opaque), void *opaque);

/* Stop the threads, after what they do at this moment; io_lock is not held. May be called twice. */
void virtio_blk_stop(struct virtio_blk *blk);

/* The same, and free all. */
void virtio_blk_free(struct virtio_blk *blk);

/*
 * The heads of the chains that were taken and not given back yet; returns how
 * many. A device that goes on from another's state has them in `again`: to read,
 * write or flush twice is the same as once. io_lock is held.
 */
uint32_t virtio_blk_begun(const struct virtio_blk *blk, uint16_t heads[VIRTIO_BLK_THREADS]);

/* Make a thread look for requests. */
void virtio_blk_notify(struct virtio_blk *blk);

/*
 * Wait until every request that the guest has made is served; for when no vCPU
 * runs, so that none is made any more. io_lock is not held.
 */
void virtio_blk_settle(struct virtio_blk *blk);

/* Serve the next request, if there is one: what a thread does. io_lock is held, and let go of meanwhile. */
bool virtio_blk_serve(struct virtio_blk_worker *worker);

/*
 * Of a disk without threads: serve all requests, in their order; io_lock is held, and let go of meanwhile. False: a stop
 * of the machine came first. What was begun then begins again the next time.
 */
bool virtio_blk_serve_waiting(struct virtio_blk *blk);

#endif
