/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Self-modifying code: which pages of host memory have translated blocks.
 *
 * The engine names a page of RAM by its host address (qemu_ram_addr_from_host
 * below), so two guest addresses of one host page are one page. The first
 * block translated from a page makes every TLB entry that can store to it take
 * the slow path (TLB_NOTDIRTY), which drops the blocks that the store touches;
 * when the last block of a page is gone, stores are fast again. Other vCPUs
 * notice by code_generation when they get the engine.
 */
#include "engine.h"

#define WORD_BITS (8 * sizeof(unsigned long))

static struct host_range *host_range_of(struct softcpu *softcpu, uintptr_t hva)
{
    for (uint32_t i = 0; i < softcpu->host_count; i++) {
        struct host_range *range = &softcpu->hosts[i];

        if (hva - range->start < range->size) {
            return range;
        }
    }
    return NULL;
}

static void forget_range(struct host_range *range)
{
    free(range->code_pages);
    *range = (struct host_range){0};
}

/* A range that no region uses any more makes room; its code was dropped with the region. */
static struct host_range *free_range(struct softcpu *softcpu)
{
    for (uint32_t i = 0; i < softcpu->host_count; i++) {
        struct host_range *range = &softcpu->hosts[i];
        bool used = false;

        for (uint32_t r = 0; r < softcpu->region_count; r++) {
            used |= softcpu->regions[r].host == range;
        }
        if (!used) {
            forget_range(range);
            return range;
        }
    }
    return softcpu->host_count < HOST_RANGES ? &softcpu->hosts[softcpu->host_count++] : NULL;
}

bool code_pages_has(const struct host_range *range, uintptr_t hva)
{
    uintptr_t page = (hva - range->start) >> CODE_PAGE_BITS;

    return (__atomic_load_n(&range->code_pages[page / WORD_BITS], __ATOMIC_RELAXED) >> (page % WORD_BITS)) & 1;
}

static void mark_page(struct host_range *range, uintptr_t hva, bool code)
{
    uintptr_t page = (hva - range->start) >> CODE_PAGE_BITS;
    unsigned long bit = 1ul << (page % WORD_BITS);

    if (code) {
        __atomic_fetch_or(&range->code_pages[page / WORD_BITS], bit, __ATOMIC_RELAXED);
    } else {
        __atomic_fetch_and(&range->code_pages[page / WORD_BITS], ~bit, __ATOMIC_RELAXED);
    }
}

static void absorb(struct softcpu *softcpu, struct host_range *into, struct host_range *from)
{
    for (uintptr_t page = from->start; page < from->start + from->size; page += CODE_PAGE_BYTES) {
        if (code_pages_has(from, page)) {
            mark_page(into, page, true);
        }
    }
    for (uint32_t i = 0; i < softcpu->region_count; i++) {
        if (softcpu->regions[i].host == from) {
            softcpu->regions[i].host = into;
        }
    }
    forget_range(from);
}

/*
 * The range that holds [hva, hva + size). A page must have one bit, whatever
 * regions show it: ranges that overlap the new one (a chipset that shows more
 * and more of the same RAM) become part of it.
 */
struct host_range *code_pages_range(struct softcpu *softcpu, uintptr_t hva, uintptr_t size)
{
    struct host_range *range = host_range_of(softcpu, hva);
    uintptr_t start = hva & ~(CODE_PAGE_BYTES - 1);
    uintptr_t end = hva + size;
    unsigned long *code_pages;

    if (range != NULL && hva - range->start + size <= range->size) {
        return range;
    }
    range = free_range(softcpu);
    if (range == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < softcpu->host_count; i++) {
        const struct host_range *other = &softcpu->hosts[i];

        if (other->start < hva + size && hva < other->start + other->size) {
            start = other->start < start ? other->start : start;
            end = other->start + other->size > end ? other->start + other->size : end;
        }
    }
    code_pages = calloc(((end - start) >> CODE_PAGE_BITS) / WORD_BITS + 1, sizeof(*code_pages));
    if (code_pages == NULL) {
        return NULL;
    }
    *range = (struct host_range){.start = start, .size = end - start, .code_pages = code_pages};
    for (uint32_t i = 0; i < softcpu->host_count; i++) {
        struct host_range *other = &softcpu->hosts[i];

        if (other != range && other->start < end && start < other->start + other->size) {
            absorb(softcpu, range, other);
        }
    }
    return range;
}

void WRAP(tlb_protect_code)(struct uc_struct *uc, ram_addr_t page)
{
    struct softcpu *softcpu = ((struct softcpu_vcpu *)uc->cpu)->softcpu;
    struct host_range *range = host_range_of(softcpu, page);

    if (range == NULL || code_pages_has(range, page)) {
        return;
    }
    mark_page(range, page, true);
    softcpu->code_generation++;
    tlb_reset_dirty(uc->cpu, page & ~(CODE_PAGE_BYTES - 1), CODE_PAGE_BYTES);
}

static void make_dirty(CPUTLBEntry *entry, uintptr_t page)
{
    target_ulong flags = entry->addr_write & (CODE_PAGE_BYTES - 1);

    if (entry->addr_write != (target_ulong)-1 && flags == TLB_NOTDIRTY &&
        (entry->addr_write & ~(CODE_PAGE_BYTES - 1)) + entry->addend == page) {
        entry->addr_write &= ~(target_ulong)TLB_NOTDIRTY;
    }
}

void WRAP(tlb_unprotect_code)(struct uc_struct *uc, ram_addr_t address)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)uc->cpu;
    struct host_range *range = host_range_of(vcpu->softcpu, address);
    uintptr_t page = address & ~(CODE_PAGE_BYTES - 1);

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

void code_pages_free(struct softcpu *softcpu)
{
    for (uint32_t i = 0; i < softcpu->host_count; i++) {
        free(softcpu->hosts[i].code_pages);
    }
}
