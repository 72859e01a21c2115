/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A hostile driver at a virtio disk: registers of every width, MSI-X, the
 * window in configuration space, rings and descriptors of any content, and
 * whole requests, right ones and spoiled ones.
 *
 * AddressSanitizer watches the ends of each piece of guest memory, allocations
 * of their own. Checked besides: the image keeps its size, and all of its bytes
 * where it is read-only; a right request is answered; nothing goes on for ever.
 */
#define _GNU_SOURCE
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blk.h"
#include "records.h"

#define LOW_SIZE 0x4000
#define ROM_GPA LOW_SIZE
#define ROM_SIZE 0x100
#define HIGH_GPA 0x8000
#define HIGH_SIZE 0x2000
#define TOP_SIZE 0x40 /* the last bytes of the address space */

#define TABLE 0x0
#define INDIRECT_TABLE 0x800
#define AVAILABLE 0x1000
#define USED 0x1400
#define HEADER 0x2000
#define STATUS 0x2ff0
#define DATA HIGH_GPA

#define QUEUE_SIZE 16
#define SECTORS 24
#define IMAGE_SIZE (SECTORS * SECTOR_SIZE)
#define FILL 0x5a
#define NO_STATUS 0xa5
#define MOST_STEPS 70000 /* more than 2^16 chains can be in no ring */

static struct guest_memory memory;
static pthread_mutex_t io_lock = PTHREAD_MUTEX_INITIALIZER;
static struct virtio_blk *blk;
static struct virtio_blk_worker *worker;
static struct virtio_pci_window window = {.capability = 0x84};
static uint8_t config[PCI_CONFIG_SIZE];
static uint8_t *image; /* what is in the file, without a system call */
static bool was_writable;

static void on_line(void *opaque, uint32_t gsi, bool level)
{
    (void)opaque;
    (void)level;
    PROMISE(gsi < 24);
}

static void on_message(void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    (void)data;
    PROMISE(address % 4 == 0);
}

static const struct interrupt_sink sink = {.line = on_line, .message = on_message};
static struct pci_pirqs pirqs = {.sink = &sink};

static void add(uint64_t gpa, uint64_t size, uint32_t flags)
{
    uint8_t *bytes = malloc(size);

    memset(bytes, FILL, size);
    PROMISE(guest_memory_add(&memory, gpa, size, bytes, flags) == 0);
}

static void set_up(void)
{
    add(0, LOW_SIZE, 0);
    add(ROM_GPA, ROM_SIZE, GUEST_REGION_READ_ONLY);
    add(HIGH_GPA, HIGH_SIZE, 0);
    add(0 - (uint64_t)TOP_SIZE, TOP_SIZE, 0);
    blk = virtio_blk_new(&memory, &io_lock, &pirqs);
    blk->image.fd = memfd_create("image", MFD_CLOEXEC);
    blk->image.sectors = SECTORS;
    PROMISE(ftruncate(blk->image.fd, IMAGE_SIZE) == 0);
    image = mmap(NULL, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, blk->image.fd, 0);
    PROMISE(image != MAP_FAILED);
    memset(image, FILL, IMAGE_SIZE);
    worker = &blk->workers[0];
    worker->blk = blk;
    worker->buffer = malloc(VIRTIO_BLK_PIECE);
    window.device = &blk->pci;
    window.config = config;
    virtio_pci_window_init(&window);
}

static void access_bar(io_handler *handler, void *opaque, uint64_t offset, uint32_t size, const uint8_t *data)
{
    uint8_t buffer[8] = {0};
    struct io_access access = {.offset = offset, .data = buffer, .size = size, .count = 1, .is_write = data != NULL};

    if (data != NULL) {
        memcpy(buffer, data, size);
    }
    handler(opaque, &access);
}

static void store(uint64_t offset, uint32_t size, uint64_t value)
{
    access_bar(virtio_pci_access, &blk->pci, offset, size, (const uint8_t *)&value);
}

static void start(const struct record *record)
{
    uint64_t features = record->address | UINT64_C(1) << VIRTIO_F_VERSION_1;

    blk->read_only = record->bytes[0] & 1;
    blk->image.unmap = record->bytes[0] & 2;
    blk->write_back = record->bytes[0] & 4;
    virtio_blk_offer(blk);
    virtio_pci_set_command(&blk->pci, 0x4);
    store(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    store(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    for (uint32_t select = 0; select < 2; select++) {
        store(VIRTIO_PCI_COMMON_GFSELECT, 4, select);
        store(VIRTIO_PCI_COMMON_GF, 4, (features & blk->pci.offered) >> 32 * select);
    }
    store(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_FEATURES_OK);
    memset(memory.regions[0].hva, 0, USED + 0x200);
    store(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    store(VIRTIO_PCI_COMMON_Q_SIZE, 2, QUEUE_SIZE);
    store(VIRTIO_PCI_COMMON_Q_DESCLO, 8, TABLE);
    store(VIRTIO_PCI_COMMON_Q_AVAILLO, 8, AVAILABLE);
    store(VIRTIO_PCI_COMMON_Q_USEDLO, 8, USED);
    store(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    store(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_DRIVER_OK);
    PROMISE(virtio_pci_may_serve(&blk->pci, 0));
}

static uint16_t word_at(uint64_t gpa)
{
    uint16_t word = 0;

    PROMISE(guest_memory_load16(&memory, gpa, &word));
    return word;
}

static void descriptor(uint64_t table, uint32_t index, uint64_t address, uint32_t length, uint16_t flags, uint16_t next)
{
    struct vring_desc entry = {.addr = address, .len = length, .flags = flags, .next = next};

    guest_memory_write(&memory, table + index * sizeof(entry), &entry, sizeof(entry));
}

static void offer(uint16_t head, uint16_t chains)
{
    uint16_t index = word_at(AVAILABLE + 2);

    for (uint16_t i = 0; i < chains; i++) {
        guest_memory_store16(&memory, AVAILABLE + 4 + 2 * (uint64_t)((index + i) % QUEUE_SIZE), head);
    }
    guest_memory_store16(&memory, AVAILABLE + 2, (uint16_t)(index + chains));
    store(VIRTIO_BAR_NOTIFY, 2, 0);
}

static void serve_all(void)
{
    uint32_t steps = 0;

    was_writable |= !blk->read_only;
    pthread_mutex_lock(&io_lock);
    while (virtio_blk_serve(worker)) {
        PROMISE(steps++ < MOST_STEPS);
    }
    PROMISE(blk->in_flight == 0 && blk->stale == 0 && !worker->busy);
    pthread_mutex_unlock(&io_lock);
}

/* Addresses near everything that has an end. */
static uint64_t address_of(const struct record *record)
{
    static const uint64_t places[] = {0, LOW_SIZE, ROM_GPA + ROM_SIZE, HIGH_GPA, HIGH_GPA + HIGH_SIZE, 0 - (uint64_t)TOP_SIZE};
    uint32_t place = record->place % 8;

    return place < 6 ? places[place] + (uint64_t)(int64_t)(int8_t)record->address
                     : place == 6 ? record->address % HIGH_GPA : record->address;
}

/* One that a driver would make, of header, data in one or two buffers, and status; bytes[1] may spoil a part of it. */
static void request(const struct record *record)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
                                     VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
    struct virtio_blk_outhdr header = {.type = types[record->number % 8], .sector = record->address};
    uint32_t length = record->length % (HIGH_SIZE + 1);
    uint32_t cut = record->bytes[2] % (length + 1);
    uint8_t spoiled = record->bytes[1];
    bool indirect = record->bytes[3] & 1 && virtio_pci_negotiated(&blk->pci, VIRTIO_RING_F_INDIRECT_DESC);
    uint64_t table = indirect ? INDIRECT_TABLE : TABLE;
    bool reads = header.type == VIRTIO_BLK_T_IN || header.type == VIRTIO_BLK_T_GET_ID;
    uint16_t direction = reads ? VRING_DESC_F_WRITE : 0;
    struct virtio_blk_discard_write_zeroes range = {
        .sector = record->address, .num_sectors = record->bytes[4], .flags = record->bytes[5] % 4};
    uint8_t status = NO_STATUS;
    uint16_t before = word_at(USED + 2);
    bool ready = virtio_pci_may_serve(&blk->pci, 0) && blk->pci.queues[0].used == USED &&
                 blk->pci.queues[0].size == QUEUE_SIZE && blk->pci.queues[0].available == AVAILABLE &&
                 blk->pci.queues[0].descriptors == TABLE && blk->pci.queues[0].next_used == before &&
                 blk->pci.queues[0].next_available == word_at(AVAILABLE + 2);

    if (spoiled == 1) {
        header.type = record->number;
    }
    if (header.type == VIRTIO_BLK_T_DISCARD || header.type == VIRTIO_BLK_T_WRITE_ZEROES) {
        length = sizeof(range);
        cut = cut % (length + 1);
        guest_memory_write(&memory, DATA, &range, sizeof(range));
    }
    guest_memory_write(&memory, HEADER, &header, sizeof(header));
    guest_memory_write(&memory, STATUS, &status, sizeof(status));
    descriptor(table, 0, HEADER, spoiled == 2 ? 15 : sizeof(header), VRING_DESC_F_NEXT, 1);
    descriptor(table, 1, spoiled == 3 ? address_of(record) : DATA, cut, (uint16_t)(VRING_DESC_F_NEXT | direction), 2);
    descriptor(table, 2, DATA + cut, length - cut, (uint16_t)(VRING_DESC_F_NEXT | direction), spoiled == 4 ? 0 : 3);
    descriptor(table, 3, STATUS, spoiled == 5 ? 0 : 1, spoiled == 6 ? 0 : VRING_DESC_F_WRITE, 0);
    if (indirect) {
        descriptor(TABLE, 0, INDIRECT_TABLE, spoiled == 7 ? 63 : 4 * sizeof(struct vring_desc), VRING_DESC_F_INDIRECT, 0);
    }
    offer(0, 1);
    serve_all();
    if (ready && (spoiled == 0 || spoiled > 7)) {
        guest_memory_read(&memory, STATUS, &status, sizeof(status));
        PROMISE(status <= VIRTIO_BLK_S_UNSUPP && word_at(USED + 2) == (uint16_t)(before + 1));
    }
}

static void perform(const struct record *record)
{
    uint32_t size = 1u << record->length % 4;
    const uint8_t *data = record->number & 1 ? record->bytes : NULL;

    switch (record->operation % 10) {
    case 0:
        start(record);
        break;
    case 1:
        descriptor(record->number & 0x100 ? INDIRECT_TABLE : TABLE, record->number % QUEUE_SIZE, address_of(record),
                   record->length, record->bytes[0] % 8, record->bytes[1] % (QUEUE_SIZE + 2));
        break;
    case 2:
        offer(record->number % (QUEUE_SIZE + 2), record->place % (QUEUE_SIZE + 4));
        break;
    case 3:
        access_bar(virtio_pci_access, &blk->pci, record->address % VIRTIO_BAR_SIZE, size, data);
        break;
    case 4: /* the registers that are there, more often */
        access_bar(virtio_pci_access, &blk->pci, record->address % 0x40 + (record->place & 1) * VIRTIO_BAR_DEVICE, size, data);
        break;
    case 5:
        access_bar(msix_access, &blk->pci.msix, record->address % (MSIX_BAR_SIZE - 7), size, data);
        virtio_pci_set_msix_control(&blk->pci, record->number);
        break;
    case 6:
        guest_memory_write(&memory, address_of(record), record->bytes, sizeof(record->bytes));
        break;
    case 7:
        memcpy(config + window.capability + 4, &record->place, 1);
        memcpy(config + window.capability + 8, &record->address, 8);
        if (record->number & 1) {
            virtio_pci_window_store(&window);
        } else {
            window.view.fill(window.view.opaque);
        }
        virtio_pci_set_command(&blk->pci, record->number);
        break;
    default:
        request(record);
        return;
    }
    serve_all();
}

static void check(void)
{
    struct stat status;

    PROMISE(fstat(blk->image.fd, &status) == 0 && status.st_size == IMAGE_SIZE);
    if (!was_writable) {
        PROMISE(image[0] == FILL && memcmp(image, image + 1, IMAGE_SIZE - 1) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct record record;

    if (blk == NULL) {
        set_up();
    }
    if (was_writable) {
        memset(image, FILL, IMAGE_SIZE);
    }
    was_writable = false;
    blk->read_only = true;
    memset(config, 0, sizeof(config));
    virtio_blk_offer(blk);
    virtio_pci_set_command(&blk->pci, 0);
    virtio_pci_reset(&blk->pci);
    for (size_t at = 0; at + sizeof(record) <= size && at < MAX_RECORDS * sizeof(record); at += sizeof(record)) {
        memcpy(&record, data + at, sizeof(record));
        perform(&record);
    }
    check();
    return 0;
}
