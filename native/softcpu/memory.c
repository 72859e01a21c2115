/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The engine's view of the core's region table: which translations and code
 * become stale when the table or, behind the CPUs' backs, RAM changes.
 *
 * Hooks run on any thread, below io_lock; they only note what happened. The
 * owner of the lock applies it before the next block, or right after the
 * device access that caused it.
 */
#include "engine.h"

struct engine_region *memory_find(struct assist *assist, uint64_t gpa)
{
    struct engine_region *region = assist->last_region;

    if (region != NULL && gpa >= region->gpa && gpa <= region->last) {
        return region;
    }
    for (uint32_t i = 0; i < assist->region_count; i++) {
        region = &assist->regions[i];
        if (gpa >= region->gpa && gpa <= region->last) {
            assist->last_region = region;
            return region;
        }
    }
    return NULL;
}

static void leave_work(struct assist *assist)
{
    __atomic_store_n(&assist->map_work, true, __ATOMIC_RELEASE);
    /* The owner that runs code looks at map_work at its next block; without one, before its first. */
    pthread_mutex_lock(&assist->lock_mutex);
    if (assist->owner != NULL) {
        engine_ask_to_leave(assist->owner);
    }
    pthread_mutex_unlock(&assist->lock_mutex);
}

static void on_changed(void *opaque, uint64_t gpa, uint64_t size)
{
    struct assist *assist = opaque;
    const struct guest_memory *memory = &assist->vm->memory;

    (void)gpa;
    (void)size;
    pthread_mutex_lock(&assist->map_mutex);
    memcpy(assist->table, memory->regions, memory->count * sizeof(assist->table[0]));
    assist->table_count = memory->count;
    assist->table_stale = true;
    pthread_mutex_unlock(&assist->map_mutex);
    leave_work(assist);
}

void memory_drop_all_code(struct assist *assist)
{
    pthread_mutex_lock(&assist->map_mutex);
    assist->pending_count = PENDING_WRITES + 1;
    pthread_mutex_unlock(&assist->map_mutex);
    leave_work(assist);
}

/* Note [gpa, gpa + length) for invalidation if code was translated from one of its pages. */
static bool note_write(struct assist *assist, const struct engine_region *region, uint64_t gpa, uint64_t length)
{
    uintptr_t hva = (uintptr_t)region->hva + (gpa - region->gpa);

    for (uintptr_t page = hva & ~(CODE_PAGE_BYTES - 1); page < hva + length; page += CODE_PAGE_BYTES) {
        if (code_pages_has(region->host, page)) {
            if (assist->pending_count < PENDING_WRITES) {
                assist->pending[assist->pending_count] = (struct pending_write){.hva = hva, .length = length};
            }
            if (assist->pending_count <= PENDING_WRITES) {
                assist->pending_count++;
            }
            return true;
        }
    }
    return false;
}

static void on_written(void *opaque, uint64_t gpa, uint64_t length)
{
    struct assist *assist = opaque;
    uint64_t last = gpa + (length - 1);
    bool noted = false;

    pthread_mutex_lock(&assist->map_mutex);
    for (uint32_t i = 0; i < assist->region_count; i++) {
        const struct engine_region *region = &assist->regions[i];
        uint64_t from = gpa > region->gpa ? gpa : region->gpa;
        uint64_t to = last < region->last ? last : region->last;

        if (from <= to && region->present) {
            noted |= note_write(assist, region, from, to - from + 1);
        }
    }
    pthread_mutex_unlock(&assist->map_mutex);
    if (noted) {
        leave_work(assist);
    }
}

static void flush_all_tlbs(struct assist *assist)
{
    for (uint32_t i = 0; i < assist->vcpu_count; i++) {
        assist->vcpus[i]->flush_tlb = true;
    }
    for (uint32_t i = 0; i < assist->region_count; i++) {
        assist->regions[i].fetched = false;
    }
}

static bool same_place(const struct engine_region *ours, const struct guest_region *theirs)
{
    return ours->gpa == theirs->gpa && ours->last == theirs->gpa + (theirs->size - 1) && ours->hva == theirs->hva &&
           ours->read_only == ((theirs->flags & GUEST_REGION_READ_ONLY) != 0);
}

static bool in_table(const struct assist *assist, const struct engine_region *region)
{
    for (uint32_t i = 0; i < assist->table_count; i++) {
        if (same_place(region, &assist->table[i])) {
            return true;
        }
    }
    return false;
}

static bool overlaps_table(const struct assist *assist, const struct engine_region *region)
{
    for (uint32_t i = 0; i < assist->table_count; i++) {
        const struct guest_region *other = &assist->table[i];

        if (other->gpa <= region->last && region->gpa <= other->gpa + (other->size - 1)) {
            return true;
        }
    }
    return false;
}

static void forget_region(struct assist *assist, uint32_t at)
{
    const struct engine_region *region = &assist->regions[at];
    uintptr_t hva = (uintptr_t)region->hva;

    tb_invalidate_phys_range(assist->uc, hva, hva + (region->last - region->gpa) + 1);
    assist->region_count--;
    assist->regions[at] = assist->regions[assist->region_count];
}

/*
 * A read-only region that leaves the table with nothing in its place is a
 * flash chip that began to answer commands: firmware does that for every byte
 * it programs, so the region is kept, and once it has happened data reads of
 * it ask each time. Then a flip needs no flush.
 */
static bool drop_missing(struct assist *assist)
{
    bool flush = false;

    for (uint32_t i = 0; i < assist->region_count;) {
        struct engine_region *region = &assist->regions[i];

        if (region->present && !in_table(assist, region)) {
            if (region->read_only && !overlaps_table(assist, region)) {
                flush |= !region->flips || region->fetched;
                region->present = false;
                region->flips = true;
                i++;
                continue;
            }
            flush = true;
            forget_region(assist, i);
        } else if (!region->present && overlaps_table(assist, region) && !in_table(assist, region)) {
            flush = true;
            forget_region(assist, i);
        } else {
            i++;
        }
    }
    return flush;
}

static struct engine_region *known_region(struct assist *assist, const struct guest_region *theirs)
{
    for (uint32_t i = 0; i < assist->region_count; i++) {
        if (same_place(&assist->regions[i], theirs)) {
            return &assist->regions[i];
        }
    }
    return NULL;
}

static bool add_new(struct assist *assist)
{
    bool flush = false;

    for (uint32_t i = 0; i < assist->table_count; i++) {
        const struct guest_region *theirs = &assist->table[i];
        struct engine_region *ours = known_region(assist, theirs);
        struct host_range *host;

        if (ours != NULL) {
            ours->present = true;
            continue;
        }
        host = code_pages_range(assist, (uintptr_t)theirs->hva, theirs->size);
        if (host == NULL || assist->region_count == ARRAY_SIZE(assist->regions)) {
            continue;
        }
        assist->regions[assist->region_count++] = (struct engine_region){
            .gpa = theirs->gpa,
            .last = theirs->gpa + (theirs->size - 1),
            .hva = theirs->hva,
            .host = host,
            .read_only = (theirs->flags & GUEST_REGION_READ_ONLY) != 0,
            .present = true,
        };
        flush = true;
    }
    return flush;
}

static void drop_written_code(struct assist *assist)
{
    if (assist->pending_count > PENDING_WRITES) {
        for (uint32_t i = 0; i < assist->host_count; i++) {
            const struct host_range *host = &assist->hosts[i];

            tb_invalidate_phys_range(assist->uc, host->start, host->start + host->size);
        }
    } else {
        for (uint32_t i = 0; i < assist->pending_count; i++) {
            const struct pending_write *write = &assist->pending[i];

            tb_invalidate_phys_range(assist->uc, write->hva, write->hva + write->length);
        }
    }
    assist->pending_count = 0;
}

/* The caller owns the lock. */
void memory_apply_work(struct assist *assist)
{
    pthread_mutex_lock(&assist->map_mutex);
    __atomic_store_n(&assist->map_work, false, __ATOMIC_RELAXED);
    if (assist->pending_count > 0) {
        drop_written_code(assist);
        assist->invalidations++;
    }
    if (assist->table_stale) {
        bool flush;

        assist->table_stale = false;
        assist->last_region = NULL;
        flush = drop_missing(assist);
        flush |= add_new(assist);
        if (flush) {
            flush_all_tlbs(assist);
            assist->invalidations++;
        }
    }
    pthread_mutex_unlock(&assist->map_mutex);
}

void memory_after_device(struct assist_vcpu *vcpu)
{
    if (!memory_has_work(vcpu->assist)) {
        return;
    }
    memory_apply_work(vcpu->assist);
    if (vcpu->flush_tlb) {
        vcpu->flush_tlb = false;
        tlb_flush(CPU(&vcpu->cpu));
    }
    /* Blocks chained to one another may have gone stale: end the chain. */
    engine_ask_to_leave(vcpu);
}

void memory_attach(struct assist *assist)
{
    struct guest_memory *memory = &assist->vm->memory;

    memory->opaque = assist;
    memory->written = on_written;
    memory->changed = on_changed;
    on_changed(assist, 0, 0);
    memory_apply_work(assist);
}

void memory_detach(struct assist *assist)
{
    struct guest_memory *memory = &assist->vm->memory;

    memory->written = NULL;
    memory->changed = NULL;
    memory->opaque = NULL;
    code_pages_free(assist);
}
