/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions that come and go, and copies across them, compared with a plain map
 * of one entry per address. Each region is an allocation of its own, so that
 * AddressSanitizer sees a copy that leaves it.
 */
#include <stdlib.h>

#include "records.h"
#include "vmm/guest_memory.h"

#define SPACE 0x80 /* addresses that regions may have: the first and the last half of these, around 0 and 2^64 */
#define HALF (SPACE / 2)

struct cell {
    const uint8_t *host; /* NULL: nothing is there */
    bool writable;
};

static struct guest_memory memory;
static struct cell map[SPACE];

/* Address of a cell: the second half of the map lies at the end of the address space. */
static uint64_t gpa_of(uint32_t cell)
{
    return cell < HALF ? cell : 0 - (uint64_t)(SPACE - cell);
}

static const struct cell *cell_at(uint64_t gpa)
{
    static const struct cell nothing;

    if (gpa < HALF) {
        return &map[gpa];
    }
    return gpa >= 0 - (uint64_t)HALF ? &map[SPACE - (0 - gpa)] : &nothing;
}

static void add(uint32_t cell, uint32_t size, bool read_only)
{
    bool is_free = size > 0 && (cell < HALF ? cell + size <= HALF : cell + size <= SPACE);
    uint8_t *host;

    for (uint32_t i = 0; is_free && i < size; i++) {
        is_free = map[cell + i].host == NULL;
    }
    if (!is_free && (size == 0 || (cell < HALF && cell + size > HALF))) {
        return;
    }
    host = calloc(1, size);
    if (guest_memory_add(&memory, gpa_of(cell), size, host, read_only ? GUEST_REGION_READ_ONLY : 0) != 0) {
        PROMISE(!is_free || memory.count == GUEST_MEMORY_MAX_REGIONS);
        free(host);
        return;
    }
    PROMISE(is_free);
    for (uint32_t i = 0; i < size; i++) {
        map[cell + i] = (struct cell){.host = host + i, .writable = !read_only};
    }
}

static void remove_at(uint32_t cell)
{
    const struct guest_region *region = guest_memory_find(&memory, gpa_of(cell));
    struct guest_region old;

    if (region == NULL || region->gpa != gpa_of(cell)) {
        PROMISE(guest_memory_remove(&memory, gpa_of(cell)) != 0);
        return;
    }
    old = *region;
    PROMISE(guest_memory_remove(&memory, old.gpa) == 0);
    for (uint32_t i = 0; i < old.size; i++) {
        map[cell + i] = (struct cell){0};
    }
    free(old.hva);
}

/* In steps of at most `limit` stored bytes; from may be NULL for zeros. */
static void scatter(uint64_t gpa, const uint8_t *from, uint64_t length, uint64_t reachable, uint8_t limit)
{
    uint64_t stored = 0;
    uint64_t step = limit != 0 ? limit : UINT64_MAX;

    for (uint64_t done = 0; done < length;) {
        uint64_t before = stored;
        const uint8_t *rest = from != NULL ? from + done : NULL;
        uint64_t came = guest_memory_scatter(&memory, gpa + done, rest, length - done, step, &stored);

        PROMISE(came > 0 && came <= length - done && stored - before <= step);
        done += came;
    }
    PROMISE(stored == reachable);
    for (uint64_t i = 0; i < length; i++) {
        const struct cell *cell = cell_at(gpa + i);

        PROMISE(cell->host == NULL || !cell->writable || *cell->host == (from != NULL ? from[i] : 0));
    }
}

/* Words lie anywhere here, also across regions; none is half stored that fits, and none is loaded that is not there. */
static void word(uint64_t gpa, uint16_t value)
{
    const struct cell *first = cell_at(gpa);
    const struct cell *second = cell_at(gpa + 1);
    bool fits = first->host != NULL && second->host != NULL && gpa + 1 > gpa;
    bool stores = fits && first->writable && second->writable;
    uint16_t loaded;

    PROMISE(guest_memory_store16(&memory, gpa, value) == stores);
    PROMISE(guest_memory_load16(&memory, gpa, &loaded) == fits);
    if (fits) {
        PROMISE(loaded == (uint16_t)(*first->host | *second->host << 8));
    }
    if (stores) {
        PROMISE(loaded == value);
    }
}

static void copy(uint32_t operation, uint32_t cell, uint64_t length, const uint8_t *pattern)
{
    uint8_t buffer[SPACE];
    uint64_t gpa = gpa_of(cell);
    uint64_t readable = 0;
    uint64_t writable = 0;
    uint64_t reachable = 0;

    for (uint32_t i = 0; i < sizeof(buffer); i++) {
        buffer[i] = pattern[i % 8];
    }
    while (readable < length && gpa + readable >= gpa && cell_at(gpa + readable)->host != NULL) {
        readable++;
    }
    while (writable < length && gpa + writable >= gpa && cell_at(gpa + writable)->host != NULL &&
           cell_at(gpa + writable)->writable) {
        writable++;
    }
    for (uint64_t i = 0; i < length; i++) {
        reachable += cell_at(gpa + i)->host != NULL && cell_at(gpa + i)->writable;
    }
    switch (operation) {
    case 0:
        PROMISE(guest_memory_read(&memory, gpa, buffer, length) == readable);
        for (uint64_t i = 0; i < readable; i++) {
            PROMISE(buffer[i] == *cell_at(gpa + i)->host);
        }
        break;
    case 1:
        PROMISE(guest_memory_write(&memory, gpa, buffer, length) == writable);
        for (uint64_t i = 0; i < writable; i++) {
            PROMISE(*cell_at(gpa + i)->host == buffer[i]);
        }
        break;
    case 2:
    case 3:
        scatter(gpa, operation == 2 ? buffer : NULL, length, reachable, pattern[0]);
        break;
    case 4:
        PROMISE(guest_memory_readable(&memory, gpa, length) == (readable == length));
        PROMISE(guest_memory_writable(&memory, gpa, length) == (writable == length));
        break;
    case 5:
        word(gpa, (uint16_t)(pattern[0] | pattern[1] << 8));
        break;
    default:
        guest_memory_store32(&memory, gpa, (uint32_t)pattern[0] * 0x01010101u);
        for (uint64_t i = 0; i < 4; i++) {
            PROMISE(cell_at(gpa + i)->host == NULL || !cell_at(gpa + i)->writable || *cell_at(gpa + i)->host == pattern[0]);
        }
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct record record;

    for (size_t at = 0; at + sizeof(record) <= size && at < MAX_RECORDS * sizeof(record); at += sizeof(record)) {
        uint32_t cell;

        memcpy(&record, data + at, sizeof(record));
        cell = (uint32_t)(record.address % SPACE);
        switch (record.operation % 4) {
        case 0:
            add(cell, record.length % 0x30, record.place & 1);
            break;
        case 1:
            remove_at(cell);
            break;
        default:
            copy(record.number % 7, cell, record.length % SPACE, record.bytes);
            break;
        }
    }
    while (memory.count > 0) {
        free(memory.regions[0].hva);
        PROMISE(guest_memory_remove(&memory, memory.regions[0].gpa) == 0);
    }
    memset(map, 0, sizeof(map));
    return 0;
}
