/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/guest_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Index of the first region that ends above gpa; memory->count if there is none. */
static uint32_t first_ending_above(const struct guest_memory *memory, uint64_t gpa)
{
    uint32_t low = 0;
    uint32_t high = memory->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct guest_region *region = &memory->regions[middle];

        if (region->gpa + (region->size - 1) < gpa) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int guest_memory_add(struct guest_memory *memory, uint64_t gpa, uint64_t size, uint8_t *hva, uint32_t flags)
{
    uint64_t last = gpa + (size - 1);
    uint32_t at;

    if (size == 0 || last < gpa || hva == NULL) {
        return -EINVAL;
    }
    at = first_ending_above(memory, gpa);
    if (at < memory->count && memory->regions[at].gpa <= last) {
        return -EEXIST;
    }
    if (memory->count == GUEST_MEMORY_MAX_REGIONS) {
        return -ENOSPC;
    }
    memmove(&memory->regions[at + 1], &memory->regions[at], (memory->count - at) * sizeof(memory->regions[0]));
    memory->regions[at] = (struct guest_region){.gpa = gpa, .size = size, .hva = hva, .flags = flags};
    memory->count++;
    if (memory->changed != NULL) {
        memory->changed(memory->opaque, gpa, size);
    }
    return 0;
}

int guest_memory_remove(struct guest_memory *memory, uint64_t gpa)
{
    uint32_t at = first_ending_above(memory, gpa);
    uint64_t size;

    if (at == memory->count || memory->regions[at].gpa != gpa) {
        return -ENOENT;
    }
    size = memory->regions[at].size;
    memory->count--;
    memmove(&memory->regions[at], &memory->regions[at + 1], (memory->count - at) * sizeof(memory->regions[0]));
    if (memory->changed != NULL) {
        memory->changed(memory->opaque, gpa, size);
    }
    return 0;
}

int guest_memory_add_smm(struct guest_memory *memory, uint64_t gpa, uint64_t size, uint8_t *hva)
{
    uint64_t last = gpa + (size - 1);

    if (size == 0 || last < gpa || hva == NULL) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < memory->smm_count; i++) {
        const struct guest_region *other = &memory->smm_regions[i];

        if (other->gpa <= last && gpa <= other->gpa + (other->size - 1)) {
            return -EEXIST;
        }
    }
    if (memory->smm_count == GUEST_MEMORY_SMM_REGIONS) {
        return -ENOSPC;
    }
    memory->smm_regions[memory->smm_count++] =
        (struct guest_region){.gpa = gpa, .size = size, .hva = hva, .flags = GUEST_REGION_SMM};
    if (memory->changed != NULL) {
        memory->changed(memory->opaque, gpa, size);
    }
    return 0;
}

int guest_memory_remove_smm(struct guest_memory *memory, uint64_t gpa)
{
    for (uint32_t i = 0; i < memory->smm_count; i++) {
        uint64_t size = memory->smm_regions[i].size;

        if (memory->smm_regions[i].gpa != gpa) {
            continue;
        }
        memory->smm_regions[i] = memory->smm_regions[--memory->smm_count];
        if (memory->changed != NULL) {
            memory->changed(memory->opaque, gpa, size);
        }
        return 0;
    }
    return -ENOENT;
}

const struct guest_region *guest_memory_find(const struct guest_memory *memory, uint64_t gpa)
{
    uint32_t at = first_ending_above(memory, gpa);

    if (at == memory->count || memory->regions[at].gpa > gpa) {
        return NULL;
    }
    return &memory->regions[at];
}

uint8_t *guest_memory_span(const struct guest_memory *memory, uint64_t gpa, uint64_t *length, bool writable)
{
    const struct guest_region *region = guest_memory_find(memory, gpa);
    uint64_t offset;

    if (region == NULL || (writable && (region->flags & GUEST_REGION_READ_ONLY))) {
        return NULL;
    }
    offset = gpa - region->gpa;
    if (*length > region->size - offset) {
        *length = region->size - offset;
    }
    return region->hva + offset;
}

uint64_t guest_memory_read(const struct guest_memory *memory, uint64_t gpa, void *to, uint64_t length)
{
    uint64_t done = 0;

    while (done < length) {
        uint64_t span = length - done;
        const uint8_t *from = guest_memory_span(memory, gpa + done, &span, false);

        /* An address that wraps past 2^64 names nothing. */
        if (from == NULL || gpa + done < gpa) {
            break;
        }
        memcpy((uint8_t *)to + done, from, span);
        done += span;
    }
    return done;
}

uint64_t guest_memory_write(const struct guest_memory *memory, uint64_t gpa, const void *from, uint64_t length)
{
    uint64_t done = 0;

    while (done < length) {
        uint64_t span = length - done;
        uint8_t *to = guest_memory_span(memory, gpa + done, &span, true);

        if (to == NULL || gpa + done < gpa) {
            break;
        }
        memcpy(to, (const uint8_t *)from + done, span);
        done += span;
    }
    if (done > 0 && memory->written != NULL) {
        memory->written(memory->opaque, gpa, done);
    }
    return done;
}

/* Bytes from gpa, where nothing can be stored, to the next writable region, or to 2^64; 0 for all of 2^64. */
static uint64_t hole_length(const struct guest_memory *memory, uint64_t gpa)
{
    for (uint32_t at = first_ending_above(memory, gpa); at < memory->count; at++) {
        const struct guest_region *region = &memory->regions[at];

        if (!(region->flags & GUEST_REGION_READ_ONLY)) {
            return region->gpa - gpa;
        }
    }
    return 0 - gpa;
}

uint64_t guest_memory_scatter(const struct guest_memory *memory, uint64_t gpa, const void *from, uint64_t length,
                              uint64_t limit, uint64_t *stored)
{
    uint64_t done = 0;
    uint64_t left = limit;

    while (done < length && left > 0) {
        uint64_t span = length - done;
        uint8_t *to = guest_memory_span(memory, gpa + done, &span, true);

        if (to == NULL) {
            uint64_t hole = hole_length(memory, gpa + done);

            done += hole != 0 && hole < span ? hole : span;
            continue;
        }
        span = span < left ? span : left;
        if (from != NULL) {
            memcpy(to, (const uint8_t *)from + done, span);
        } else {
            memset(to, 0, span);
        }
        if (memory->written != NULL) {
            memory->written(memory->opaque, gpa + done, span);
        }
        done += span;
        left -= span;
    }
    *stored += limit - left;
    return done;
}

static bool is_memory(const struct guest_memory *memory, uint64_t gpa, uint64_t length, bool writable)
{
    uint64_t done = 0;

    while (done < length) {
        uint64_t span = length - done;

        if (gpa + done < gpa || guest_memory_span(memory, gpa + done, &span, writable) == NULL) {
            return false;
        }
        done += span;
    }
    return true;
}

bool guest_memory_readable(const struct guest_memory *memory, uint64_t gpa, uint64_t length)
{
    return is_memory(memory, gpa, length, false);
}

bool guest_memory_writable(const struct guest_memory *memory, uint64_t gpa, uint64_t length)
{
    return is_memory(memory, gpa, length, true);
}

bool guest_memory_load16(const struct guest_memory *memory, uint64_t gpa, uint16_t *value)
{
    uint64_t span = sizeof(*value);
    const uint8_t *from = guest_memory_span(memory, gpa, &span, false);

    if (from != NULL && span == sizeof(*value) && (uintptr_t)from % sizeof(*value) == 0) {
        *value = __atomic_load_n((const uint16_t *)(const void *)from, __ATOMIC_ACQUIRE);
        return true;
    }
    return guest_memory_read(memory, gpa, value, sizeof(*value)) == sizeof(*value);
}

bool guest_memory_store16(const struct guest_memory *memory, uint64_t gpa, uint16_t value)
{
    uint64_t span = sizeof(value);
    uint8_t *to = guest_memory_span(memory, gpa, &span, true);

    if (to == NULL || span < sizeof(value) || (uintptr_t)to % sizeof(value) != 0) {
        return guest_memory_write(memory, gpa, &value, sizeof(value)) == sizeof(value);
    }
    __atomic_store_n((uint16_t *)(void *)to, value, __ATOMIC_RELEASE);
    if (memory->written != NULL) {
        memory->written(memory->opaque, gpa, sizeof(value));
    }
    return true;
}

bool guest_memory_touched(const struct guest_memory *memory, uint64_t gpa, uint64_t length, uint8_t *pages)
{
    uint64_t span = length;
    uint8_t *from = guest_memory_span(memory, gpa, &span, false);

    return from != NULL && span == length && mincore(from, length, pages) == 0;
}

void guest_memory_store32(const struct guest_memory *memory, uint64_t gpa, uint32_t value)
{
    uint64_t span = sizeof(value);
    uint8_t *to = guest_memory_span(memory, gpa, &span, true);
    uint64_t stored = 0;

    if (to == NULL || span < sizeof(value)) {
        guest_memory_scatter(memory, gpa, &value, sizeof(value), sizeof(value), &stored);
        return;
    }
    if ((uintptr_t)to % sizeof(value) == 0) {
        __atomic_store_n((uint32_t *)(void *)to, value, __ATOMIC_RELEASE);
    } else {
        /* Release order for an address that the compiler's atomics don't take; x86 stores it in one piece. */
        __atomic_thread_fence(__ATOMIC_RELEASE);
        memcpy(to, &value, sizeof(value));
    }
    if (memory->written != NULL) {
        memory->written(memory->opaque, gpa, sizeof(value));
    }
}
