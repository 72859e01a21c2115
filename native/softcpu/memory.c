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

static struct engine_region *find(struct softcpu *softcpu, uint64_t gpa, bool smm)
{
    for (uint32_t i = 0; i < softcpu->region_count; i++) {
        struct engine_region *region = &softcpu->regions[i];

        if (region->smm == smm && gpa >= region->gpa && gpa <= region->last) {
            return region;
        }
    }
    return NULL;
}

struct engine_region *memory_find(const struct softcpu_vcpu *vcpu, uint64_t gpa)
{
    struct softcpu *softcpu = vcpu->softcpu;
    struct engine_region *region = in_smm(vcpu) ? find(softcpu, gpa, true) : NULL;

    if (region != NULL) {
        return region;
    }
    region = softcpu->last_region;
    if (region == NULL || gpa < region->gpa || gpa > region->last) {
        region = find(softcpu, gpa, false);
        softcpu->last_region = region;
    }
    return region;
}

static void leave_work(struct softcpu *softcpu)
{
    __atomic_store_n(&softcpu->map_work, true, __ATOMIC_RELEASE);
    /* The owner that runs code looks at map_work at its next block; without one, before its first. */
    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->owner != NULL) {
        engine_ask_to_leave(softcpu->owner);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}

static void on_changed(void *opaque, uint64_t gpa, uint64_t size)
{
    struct softcpu *softcpu = opaque;
    const struct guest_memory *memory = &softcpu->vm->memory;

    (void)gpa;
    (void)size;
    pthread_mutex_lock(&softcpu->map_mutex);
    memcpy(softcpu->table, memory->regions, memory->count * sizeof(softcpu->table[0]));
    memcpy(softcpu->table + memory->count, memory->smm_regions, memory->smm_count * sizeof(softcpu->table[0]));
    softcpu->table_count = memory->count + memory->smm_count;
    softcpu->table_stale = true;
    pthread_mutex_unlock(&softcpu->map_mutex);
    leave_work(softcpu);
}

void memory_drop_all_code(struct softcpu *softcpu)
{
    pthread_mutex_lock(&softcpu->map_mutex);
    softcpu->pending_count = PENDING_WRITES + 1;
    pthread_mutex_unlock(&softcpu->map_mutex);
    leave_work(softcpu);
}

/* Note [gpa, gpa + length) for invalidation if code was translated from one of its pages. */
static bool note_write(struct softcpu *softcpu, const struct engine_region *region, uint64_t gpa, uint64_t length)
{
    uintptr_t hva = (uintptr_t)region->hva + (gpa - region->gpa);

    for (uintptr_t page = hva & ~(CODE_PAGE_BYTES - 1); page < hva + length; page += CODE_PAGE_BYTES) {
        if (code_pages_has(region->host, page)) {
            if (softcpu->pending_count < PENDING_WRITES) {
                softcpu->pending[softcpu->pending_count] = (struct pending_write){.hva = hva, .length = length};
            }
            if (softcpu->pending_count <= PENDING_WRITES) {
                softcpu->pending_count++;
            }
            return true;
        }
    }
    return false;
}

static void on_written(void *opaque, uint64_t gpa, uint64_t length)
{
    struct softcpu *softcpu = opaque;
    uint64_t last = gpa + (length - 1);
    bool noted = false;

    pthread_mutex_lock(&softcpu->map_mutex);
    for (uint32_t i = 0; i < softcpu->region_count; i++) {
        const struct engine_region *region = &softcpu->regions[i];
        uint64_t from = gpa > region->gpa ? gpa : region->gpa;
        uint64_t to = last < region->last ? last : region->last;

        /* No device sees the memory of system management mode. */
        if (from <= to && region->present && !region->smm) {
            noted |= note_write(softcpu, region, from, to - from + 1);
        }
    }
    pthread_mutex_unlock(&softcpu->map_mutex);
    if (noted) {
        leave_work(softcpu);
    }
}

static void flush_all_tlbs(struct softcpu *softcpu)
{
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        __atomic_store_n(&softcpu->vcpus[i]->flush_tlb, true, __ATOMIC_RELAXED);
    }
    for (uint32_t i = 0; i < softcpu->region_count; i++) {
        softcpu->regions[i].fetched = false;
    }
}

static bool same_place(const struct engine_region *ours, const struct guest_region *theirs)
{
    return ours->gpa == theirs->gpa && ours->last == theirs->gpa + (theirs->size - 1) && ours->hva == theirs->hva &&
           ours->read_only == ((theirs->flags & GUEST_REGION_READ_ONLY) != 0) &&
           ours->smm == ((theirs->flags & GUEST_REGION_SMM) != 0);
}

static bool in_table(const struct softcpu *softcpu, const struct engine_region *region)
{
    for (uint32_t i = 0; i < softcpu->table_count; i++) {
        if (same_place(region, &softcpu->table[i])) {
            return true;
        }
    }
    return false;
}

static bool overlaps_table(const struct softcpu *softcpu, const struct engine_region *region)
{
    for (uint32_t i = 0; i < softcpu->table_count; i++) {
        const struct guest_region *other = &softcpu->table[i];

        if (region->smm == ((other->flags & GUEST_REGION_SMM) != 0) && other->gpa <= region->last &&
            region->gpa <= other->gpa + (other->size - 1)) {
            return true;
        }
    }
    return false;
}

static void forget_region(struct softcpu *softcpu, uint32_t at)
{
    const struct engine_region *region = &softcpu->regions[at];
    uintptr_t hva = (uintptr_t)region->hva;

    tb_invalidate_phys_range(softcpu->uc, hva, hva + (region->last - region->gpa) + 1);
    softcpu->region_count--;
    softcpu->regions[at] = softcpu->regions[softcpu->region_count];
}

/*
 * A read-only region that leaves the table with nothing in its place is a
 * flash chip that began to answer commands: firmware does that for every byte
 * it programs, so the region is kept, and once it has happened data reads of
 * it ask each time. Then a flip needs no flush.
 */
static bool drop_missing(struct softcpu *softcpu)
{
    bool flush = false;

    for (uint32_t i = 0; i < softcpu->region_count;) {
        struct engine_region *region = &softcpu->regions[i];

        if (region->present && !in_table(softcpu, region)) {
            if (region->read_only && !overlaps_table(softcpu, region)) {
                flush |= !region->flips || region->fetched;
                region->present = false;
                region->flips = true;
                i++;
                continue;
            }
            flush = true;
            forget_region(softcpu, i);
        } else if (!region->present && overlaps_table(softcpu, region) && !in_table(softcpu, region)) {
            flush = true;
            forget_region(softcpu, i);
        } else {
            i++;
        }
    }
    return flush;
}

static struct engine_region *known_region(struct softcpu *softcpu, const struct guest_region *theirs)
{
    for (uint32_t i = 0; i < softcpu->region_count; i++) {
        if (same_place(&softcpu->regions[i], theirs)) {
            return &softcpu->regions[i];
        }
    }
    return NULL;
}

static bool add_new(struct softcpu *softcpu)
{
    bool flush = false;

    for (uint32_t i = 0; i < softcpu->table_count; i++) {
        const struct guest_region *theirs = &softcpu->table[i];
        struct engine_region *ours = known_region(softcpu, theirs);
        struct host_range *host;

        if (ours != NULL) {
            ours->present = true;
            continue;
        }
        host = code_pages_range(softcpu, (uintptr_t)theirs->hva, theirs->size);
        if (host == NULL || softcpu->region_count == ARRAY_SIZE(softcpu->regions)) {
            continue;
        }
        softcpu->regions[softcpu->region_count++] = (struct engine_region){
            .gpa = theirs->gpa,
            .last = theirs->gpa + (theirs->size - 1),
            .hva = theirs->hva,
            .host = host,
            .read_only = (theirs->flags & GUEST_REGION_READ_ONLY) != 0,
            .smm = (theirs->flags & GUEST_REGION_SMM) != 0,
            .present = true,
        };
        flush = true;
    }
    return flush;
}

/* Not by whole ranges: for each page, with or without code, the engine would look through all of the TLB. */
static void drop_code_of(struct softcpu *softcpu, const struct host_range *host)
{
    for (uintptr_t page = host->start; page - host->start < host->size; page += CODE_PAGE_BYTES) {
        if (code_pages_has(host, page)) {
            tb_invalidate_phys_range(softcpu->uc, page, page + CODE_PAGE_BYTES);
        }
    }
}

static void drop_written_code(struct softcpu *softcpu)
{
    if (softcpu->pending_count > PENDING_WRITES) {
        for (uint32_t i = 0; i < softcpu->host_count; i++) {
            drop_code_of(softcpu, &softcpu->hosts[i]);
        }
    } else {
        for (uint32_t i = 0; i < softcpu->pending_count; i++) {
            const struct pending_write *write = &softcpu->pending[i];

            tb_invalidate_phys_range(softcpu->uc, write->hva, write->hva + write->length);
        }
    }
    softcpu->pending_count = 0;
}

static void apply_work(void *opaque)
{
    struct softcpu *softcpu = opaque;

    __atomic_store_n(&softcpu->map_work, false, __ATOMIC_RELAXED);
    if (softcpu->pending_count > 0) {
        drop_written_code(softcpu);
        count(&softcpu->invalidations);
    }
    if (softcpu->table_stale) {
        bool flush;

        softcpu->table_stale = false;
        softcpu->last_region = NULL;
        flush = drop_missing(softcpu);
        flush |= add_new(softcpu);
        if (flush) {
            flush_all_tlbs(softcpu);
            count(&softcpu->invalidations);
        }
    }
}

bool memory_apply_work(struct softcpu *softcpu)
{
    bool done;

    pthread_mutex_lock(&softcpu->map_mutex);
    done = rescue_run(softcpu, apply_work, softcpu);
    pthread_mutex_unlock(&softcpu->map_mutex);
    return done;
}

void memory_after_device(struct softcpu_vcpu *vcpu)
{
    lock_assert_owner(vcpu);
    if (!memory_has_work(vcpu->softcpu)) {
        return;
    }
    if (!memory_apply_work(vcpu->softcpu)) {
        engine_leave(vcpu, LEAVE_ABORT);
    }
    if (__atomic_exchange_n(&vcpu->flush_tlb, false, __ATOMIC_RELAXED)) {
        tlb_flush(CPU(&vcpu->cpu));
    }
    /* Blocks chained to one another may have gone stale: end the chain. */
    engine_ask_to_leave(vcpu);
}

bool memory_attach(struct softcpu *softcpu)
{
    struct guest_memory *memory = &softcpu->vm->memory;

    memory->opaque = softcpu;
    memory->written = on_written;
    memory->changed = on_changed;
    on_changed(softcpu, 0, 0);
    return memory_apply_work(softcpu);
}

void memory_detach(struct softcpu *softcpu)
{
    struct guest_memory *memory = &softcpu->vm->memory;

    memory->written = NULL;
    memory->changed = NULL;
    memory->opaque = NULL;
    code_pages_free(softcpu);
}
