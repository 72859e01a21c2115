/* SPDX-License-Identifier: BSD-2-Clause */
/* The threads of a disk, if it has any: when they run, wait, and end. */
#include "blk.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK_BYTES (1u << 18)

/* Pages of 2 MiB hold the buffers: of ones of 4 KiB, a read past the page cache is more pieces than a disk takes. */
#define HUGE_PAGE (UINT64_C(1) << 21)
#define BUFFERS_SIZE ((uint64_t)VIRTIO_BLK_THREADS * VIRTIO_BLK_PIECE)

void virtio_blk_notify(struct virtio_blk *blk)
{
    const uint64_t one = 1;

    /* It cannot fail but for a counter at its end, and then there is a wake-up on its way already. */
    (void)!write(blk->event_fd, &one, sizeof(one));
}

void virtio_blk_wake(struct virtio_blk *blk)
{
    if (blk->idle != 0) {
        virtio_blk_notify(blk);
    }
}

static void wait_for_event(struct virtio_blk *blk)
{
    uint64_t events;

    blk->idle++;
    pthread_mutex_unlock(blk->io_lock);
    (void)!read(blk->event_fd, &events, sizeof(events));
    pthread_mutex_lock(blk->io_lock);
    blk->idle--;
}

/* False: it must not serve the guest. */
static bool restrict_thread(struct virtio_blk_worker *worker)
{
    struct virtio_blk *blk = worker->blk;

    int error;

    if (blk->restriction == NULL || worker->restricted) {
        return true;
    }
    error = blk->restriction(blk->restriction_opaque);
    worker->restricted = true;
    blk->restricted++;
    pthread_cond_broadcast(&blk->settled);
    /* An event wakes one thread: leave it to those that have this to do still. */
    while (blk->restricted < blk->running && !blk->closing) {
        virtio_blk_notify(blk);
        pthread_cond_wait(&blk->settled, blk->io_lock);
    }
    return error == 0;
}

static void *work(void *opaque)
{
    struct virtio_blk_worker *worker = opaque;
    struct virtio_blk *blk = worker->blk;

    pthread_mutex_lock(blk->io_lock);
    while (!blk->closing) {
        if (!restrict_thread(worker)) {
            virtio_pci_break(&blk->pci);
            break;
        }
        if (!virtio_blk_serve(worker)) {
            wait_for_event(blk);
        } else {
            /* However many requests there are, vCPUs get at their devices in between. */
            pthread_mutex_unlock(blk->io_lock);
            pthread_mutex_lock(blk->io_lock);
        }
    }
    pthread_mutex_unlock(blk->io_lock);
    /* One event wakes one thread: pass it on to the next. */
    virtio_blk_notify(blk);
    return NULL;
}

struct virtio_blk *virtio_blk_new(const struct guest_memory *memory, pthread_mutex_t *io_lock, struct pci_pirqs *pirqs)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));

    if (blk == NULL) {
        return NULL;
    }
    blk->event_fd = eventfd(0, EFD_CLOEXEC);
    if (blk->event_fd < 0) {
        free(blk);
        return NULL;
    }
    pthread_cond_init(&blk->settled, NULL);
    blk->io_lock = io_lock;
    blk->image = (struct disk_image){.fd = -1, .direct_fd = -1, .direct_alignment = SECTOR_SIZE, .overlay_fd = -1};
    blk->pci.memory = memory;
    blk->pci.class = &virtio_blk_class;
    blk->pci.opaque = blk;
    blk->pci.pirqs = pirqs;
    blk->pci.queue_count = 1;
    blk->pci.msix.sink = pirqs->sink;
    blk->pci.msix.vectors = 2; /* configuration changes, and the queue */
    return blk;
}

int virtio_blk_start(struct virtio_blk *blk)
{
    pthread_attr_t attributes;
    sigset_t all;
    sigset_t before;
    uint8_t *first;
    int error = 0;

    blk->buffers = mmap(NULL, BUFFERS_SIZE + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blk->buffers == MAP_FAILED) {
        blk->buffers = NULL;
        return errno;
    }
    first = blk->buffers + (HUGE_PAGE - (uintptr_t)blk->buffers % HUGE_PAGE) % HUGE_PAGE;
    (void)madvise(first, BUFFERS_SIZE, MADV_HUGEPAGE); /* a kernel without them does without */
    for (uint32_t i = 0; i < VIRTIO_BLK_THREADS; i++) {
        blk->workers[i].blk = blk;
        blk->workers[i].buffer = first + i * (size_t)VIRTIO_BLK_PIECE;
    }
    virtio_blk_offer(blk);
    virtio_pci_reset(&blk->pci);
    if (blk->waiting != NULL) {
        return 0;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    /* Signals are the interpreter's and the vCPUs' business, but for those that say that this thread has a fault. */
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGABRT);
    sigdelset(&all, SIGSYS); /* the kernel ends a process that it cannot tell of a refused call */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (error == 0 && blk->running < VIRTIO_BLK_THREADS) {
        struct virtio_blk_worker *worker = &blk->workers[blk->running];

        error = pthread_create(&worker->thread, &attributes, work, worker);
        blk->running += error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

void virtio_blk_restrict(struct virtio_blk *blk, int (*restriction)(void *opaque), void *opaque)
{
    pthread_mutex_lock(blk->io_lock);
    blk->restriction = restriction;
    blk->restriction_opaque = opaque;
    virtio_blk_notify(blk);
    pthread_mutex_unlock(blk->io_lock);
}

void virtio_blk_stop(struct virtio_blk *blk)
{
    if (blk->buffers == NULL) {
        /* It never started, or has stopped: the machine, and with it io_lock, may be gone. */
        return;
    }
    pthread_mutex_lock(blk->io_lock);
    blk->closing = true;
    virtio_blk_notify(blk);
    pthread_cond_broadcast(&blk->settled);
    pthread_mutex_unlock(blk->io_lock);
    for (uint32_t i = 0; i < blk->running; i++) {
        pthread_join(blk->workers[i].thread, NULL);
    }
    blk->running = 0;
    munmap(blk->buffers, BUFFERS_SIZE + HUGE_PAGE);
    blk->buffers = NULL;
}

void virtio_blk_free(struct virtio_blk *blk)
{
    virtio_blk_stop(blk);
    close(blk->event_fd);
    pthread_cond_destroy(&blk->settled);
    free(blk);
}

void virtio_blk_settle(struct virtio_blk *blk)
{
    pthread_mutex_lock(blk->io_lock);
    while (!virtio_blk_is_settled(blk)) {
        virtio_blk_wake(blk);
        pthread_cond_wait(&blk->settled, blk->io_lock);
    }
    pthread_mutex_unlock(blk->io_lock);
}
