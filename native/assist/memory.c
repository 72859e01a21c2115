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

#define HOST_PAGE_BITS 12
#define HOST_PAGE_BYTES (1ul << HOST_PAGE_BITS)
#define WORD_BITS (8 * sizeof(unsigned long))

static struct host_range *host_range_of(struct assist *assist, uintptr_t hva)
{
    for (uint32_t i = 0; i < assist->host_count; i++) {
        struct host_range *range = &assist->hosts[i];

        if (hva - range->start < range->size) {
            return range;
        }
    }
    return NULL;
}

/* A range that no region uses any more makes room; its code was dropped with the region. */
static struct host_range *free_range(struct assist *assist)
{
    if (assist->host_count < HOST_RANGES) {
        return &assist->hosts[assist->host_count++];
    }
    for (uint32_t i = 0; i < HOST_RANGES; i++) {
        struct host_range *range = &assist->hosts[i];
        bool used = false;

        for (uint32_t r = 0; r < assist->region_count; r++) {
            used |= assist->regions[r].host == range;
        }
        if (!used) {
            free(range->code_pages);
            *range = (struct host_range){0};
            return range;
        }
    }
    return NULL;
}

static struct host_range *host_range_add(struct assist *assist, uintptr_t hva, uintptr_t size)
{
    struct host_range *range = host_range_of(assist, hva);
    uintptr_t words = ((size >> HOST_PAGE_BITS) + WORD_BITS) / WORD_BITS;

    if (range != NULL && hva - range->start + size <= range->size) {
        return range;
    }
    range = free_range(assist);
    if (range == NULL) {
        return NULL;
    }
    range->code_pages = calloc(words, sizeof(unsigned long));
    if (range->code_pages == NULL) {
        return NULL;
    }
    range->start = hva & ~(HOST_PAGE_BYTES - 1);
    range->size = size + (hva - range->start);
    return range;
}

static bool page_has_code(const struct host_range *range, uintptr_t hva)
{
    uintptr_t page = (hva - range->start) >> HOST_PAGE_BITS;

    return (__atomic_load_n(&range->code_pages[page / WORD_BITS], __ATOMIC_RELAXED) >> (page % WORD_BITS)) & 1;
}

static void mark_page(struct host_range *range, uintptr_t hva, bool code)
{
    uintptr_t page = (hva - range->start) >> HOST_PAGE_BITS;
    unsigned long bit = 1ul << (page % WORD_BITS);

    if (code) {
        __atomic_fetch_or(&range->code_pages[page / WORD_BITS], bit, __ATOMIC_RELAXED);
    } else {
        __atomic_fetch_and(&range->code_pages[page / WORD_BITS], ~bit, __ATOMIC_RELAXED);
    }
}

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

    for (uintptr_t page = hva & ~(HOST_PAGE_BYTES - 1); page < hva + length; page += HOST_PAGE_BYTES) {
        if (page_has_code(region->host, page)) {
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
        host = host_range_add(assist, (uintptr_t)theirs->hva, theirs->size);
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
    for (uint32_t i = 0; i < assist->host_count; i++) {
        free(assist->hosts[i].code_pages);
    }
}

/*
 * Self-modifying code. The engine names a page of RAM by its host address
 * (qemu_ram_addr_from_host below), so two guest addresses of one host page are
 * one page. The first block translated from a page makes every TLB entry that
 * can store to it take the slow path (TLB_NOTDIRTY), which drops the blocks
 * that the store touches; when the last block of a page is gone, stores are
 * fast again. Other vCPUs notice by code_generation when they get the engine.
 */

void WRAP(tlb_protect_code)(struct uc_struct *uc, ram_addr_t page)
{
    struct assist *assist = ((struct assist_vcpu *)uc->cpu)->assist;
    struct host_range *range = host_range_of(assist, page);

    if (range == NULL || page_has_code(range, page)) {
        return;
    }
    mark_page(range, page, true);
    assist->code_generation++;
    tlb_reset_dirty(uc->cpu, page & ~(HOST_PAGE_BYTES - 1), HOST_PAGE_BYTES);
}

static void make_dirty(CPUTLBEntry *entry, uintptr_t page)
{
    target_ulong flags = entry->addr_write & (HOST_PAGE_BYTES - 1);

    if (entry->addr_write != (target_ulong)-1 && flags == TLB_NOTDIRTY &&
        (entry->addr_write & ~(HOST_PAGE_BYTES - 1)) + entry->addend == page) {
        entry->addr_write &= ~(target_ulong)TLB_NOTDIRTY;
    }
}

void WRAP(tlb_unprotect_code)(struct uc_struct *uc, ram_addr_t address)
{
    struct assist_vcpu *vcpu = (struct assist_vcpu *)uc->cpu;
    struct host_range *range = host_range_of(vcpu->assist, address);
    uintptr_t page = address & ~(HOST_PAGE_BYTES - 1);

    if (range == NULL) {
        return;
    }
    mark_page(range, page, false);
    for (int mmu = 0; mmu < NB_MMU_MODES; mmu++) {
        CPUTLBDescFast *fast = &vcpu->cpu.neg.tlb.f[mmu];
        CPUTLBDesc *desc = &vcpu->cpu.neg.tlb.d[mmu];
        size_t count = (fast->mask >> CPU_TLB_ENTRY_BITS) + 1;

        for (size_t i = 0; i < count; i++) {
            make_dirty(&fast->table[i], page);
        }
        for (size_t i = 0; i < CPU_VTLB_SIZE; i++) {
            make_dirty(&desc->vtable[i], page);
        }
    }
}

ram_addr_t WRAP(qemu_ram_addr_from_host)(struct uc_struct *uc, void *host)
{
    (void)uc;
    return (uintptr_t)host;
}

bool memory_page_has_code(const struct engine_region *region, uintptr_t hva)
{
    return page_has_code(region->host, hva);
}
