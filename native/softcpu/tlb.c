/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Guest physical memory as the engine reaches it: what goes into its TLB, what
 * its page walker reads, and where an access that hits no RAM ends up. Takes
 * the place of Unicorn's own memory map, which stays empty.
 */
#include "engine.h"

/* QEMU's victim TLB: an entry that makes way is kept aside for a while. */
static void evict(CPUTLBDesc *desc, CPUTLBEntry *entry, uintptr_t index)
{
    size_t victim = desc->vindex++ % CPU_VTLB_SIZE;

    desc->vtable[victim] = *entry;
    desc->viotlb[victim] = desc->iotlb[index];
    desc->n_used_entries--;
}

static bool entry_is_for(struct uc_struct *uc, const CPUTLBEntry *entry, target_ulong page)
{
    return tlb_hit_page(uc, entry->addr_read, page) || tlb_hit_page(uc, entry->addr_write, page) ||
           tlb_hit_page(uc, entry->addr_code, page);
}

static void note_large_page(CPUTLBDesc *desc, target_ulong vaddr, target_ulong size)
{
    target_ulong mask = ~(size - 1);

    /* One range covers all large pages; it grows until it holds this one too. A flush inside it flushes all. */
    if (desc->large_page_addr == (target_ulong)-1) {
        desc->large_page_addr = vaddr & mask;
        desc->large_page_mask = mask;
        return;
    }
    mask &= desc->large_page_mask;
    while (((desc->large_page_addr ^ vaddr) & mask) != 0) {
        mask <<= 1;
    }
    desc->large_page_addr &= mask;
    desc->large_page_mask = mask;
}

static CPUTLBEntry make_entry(struct softcpu_vcpu *vcpu, target_ulong vaddr, hwaddr paddr, int prot, hwaddr *iotlb)
{
    struct softcpu *softcpu = vcpu->softcpu;
    /* A LAPIC can be moved over RAM. */
    struct engine_region *region = chips_have_address(vcpu, paddr) ? NULL : memory_find(vcpu, paddr);
    target_ulong read = vaddr;
    target_ulong write = vaddr;
    target_ulong code = vaddr;
    uintptr_t hva = 0;

    if (region != NULL && region->present && paddr + (TARGET_PAGE_SIZE - 1) <= region->last) {
        hva = (uintptr_t)region->hva + (paddr - region->gpa);
    }
    if (hva == 0) {
        read |= TLB_MMIO;
        write |= TLB_MMIO;
        code |= TLB_MMIO;
        *iotlb = paddr;
    } else if (region->flips) {
        /* One entry cannot point at memory for code and away from it for data: the kind that asked gets it. */
        *iotlb = paddr;
        if (softcpu->fill_is_fetch) {
            region->fetched = true;
            read = (target_ulong)-1;
            write = (target_ulong)-1;
        } else {
            hva = 0;
            read |= TLB_MMIO;
            write |= TLB_MMIO;
            code = (target_ulong)-1;
        }
    } else if (region->read_only) {
        region->fetched = true;
        write |= TLB_MMIO;
        *iotlb = paddr;
    } else {
        if (code_pages_has(region->host, hva)) {
            write |= TLB_NOTDIRTY;
        }
        *iotlb = hva;
    }
    if (softcpu->watched > 0 || (vcpu->cpu.env.dr[7] & 0xff) != 0) {
        uint32_t watched = debug_watched(softcpu, vaddr) | breakpoints_watched(vcpu, vaddr);

        read |= (watched & DEBUG_READ) ? TLB_WATCHPOINT : 0;
        write |= (watched & DEBUG_WRITE) ? TLB_WATCHPOINT : 0;
    }
    *iotlb -= vaddr;
    return (CPUTLBEntry){
        .addr_read = (prot & PAGE_READ) ? read : (target_ulong)-1,
        .addr_write = (prot & PAGE_WRITE) ? write : (target_ulong)-1,
        .addr_code = (prot & PAGE_EXEC) ? code : (target_ulong)-1,
        .addend = hva - vaddr,
        .paddr = paddr,
    };
}

void WRAP(tlb_set_page_with_attrs)(CPUState *cs, target_ulong vaddr, hwaddr paddr, MemTxAttrs attrs, int prot,
                                   int mmu_idx, target_ulong size)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)cs;
    CPUX86State *env = cs->env_ptr;
    CPUTLB *tlb = env_tlb(env);
    CPUTLBDesc *desc = &tlb->d[mmu_idx];
    uintptr_t index;
    CPUTLBEntry *entry;
    hwaddr iotlb;

    vaddr &= TARGET_PAGE_MASK;
    paddr &= TARGET_PAGE_MASK;
    if (size > TARGET_PAGE_SIZE) {
        note_large_page(desc, vaddr, size);
    }
    tlb->c.dirty = (uint16_t)(tlb->c.dirty | 1u << mmu_idx);
    for (int i = 0; i < CPU_VTLB_SIZE; i++) {
        if (entry_is_for(cs->uc, &desc->vtable[i], vaddr)) {
            memset(&desc->vtable[i], -1, sizeof(desc->vtable[i]));
            desc->n_used_entries--;
        }
    }
    index = tlb_index(env, (uintptr_t)mmu_idx, vaddr);
    entry = tlb_entry(env, (uintptr_t)mmu_idx, vaddr);
    if (entry->addr_read != (target_ulong)-1 || entry->addr_write != (target_ulong)-1 ||
        entry->addr_code != (target_ulong)-1) {
        if (entry_is_for(cs->uc, entry, vaddr)) {
            desc->n_used_entries--;
        } else {
            evict(desc, entry, index);
        }
    }
    *entry = make_entry(vcpu, vaddr, paddr, prot, &iotlb);
    desc->iotlb[index].addr = iotlb;
    desc->iotlb[index].attrs = attrs;
    desc->n_used_entries++;
}

/* QEMU's page walker, which calls the above. */
bool tlb_fill_noting_access(CPUState *cs, vaddr addr, int size, MMUAccessType access, int mmu_idx, bool probe,
                            uintptr_t return_address)
{
    ((struct softcpu_vcpu *)cs)->softcpu->fill_is_fetch = access == MMU_INST_FETCH;
    return x86_cpu_tlb_fill(cs, addr, size, access, mmu_idx, probe, return_address);
}

/* Entries with TLB_MMIO come here with the guest physical address: iotlb + vaddr. */
MemoryRegionSection *WRAP(iotlb_to_section)(CPUState *cs, hwaddr index, MemTxAttrs attrs)
{
    (void)index;
    (void)attrs;
    return &((struct softcpu_vcpu *)cs)->softcpu->io_section;
}

MemTxResult WRAP(memory_region_dispatch_read)(struct uc_struct *uc, MemoryRegion *region, hwaddr gpa, uint64_t *value,
                                              MemOp op, MemTxAttrs attrs)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)uc->cpu;
    uint32_t size = 1u << (op & MO_SIZE);
    struct engine_region *flash;

    (void)region;
    (void)attrs;
    if (chips_have_address(vcpu, gpa)) {
        *value = 0;
        virtual_time_spend(vcpu);
        chips_memory_access(vcpu, gpa, size, value, false);
        virtual_time_trace(vcpu, TRACED_LOAD, gpa, *value);
        return MEMTX_OK;
    }
    /* Nobody's bytes read as ones; those beyond the access are to be zeros. */
    *value = UINT64_MAX >> (64 - 8 * size);
    flash = memory_find(vcpu, gpa);
    if (flash != NULL && flash->present && gpa + size - 1 <= flash->last) {
        *value = 0;
        memcpy(value, flash->hva + (gpa - flash->gpa), size);
        return MEMTX_OK;
    }
    virtual_time_spend(vcpu);
    vcpu->softcpu->core->mmio_access(vcpu->core, gpa, size, (uint8_t *)value, false);
    virtual_time_trace(vcpu, TRACED_LOAD, gpa, *value);
    memory_after_device(vcpu);
    return MEMTX_OK;
}

MemTxResult WRAP(memory_region_dispatch_write)(struct uc_struct *uc, MemoryRegion *region, hwaddr gpa, uint64_t value,
                                               MemOp op, MemTxAttrs attrs)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)uc->cpu;
    uint32_t size = 1u << (op & MO_SIZE);

    (void)region;
    (void)attrs;
    virtual_time_spend(vcpu);
    if (chips_have_address(vcpu, gpa)) {
        chips_memory_access(vcpu, gpa, size, &value, true);
        virtual_time_trace(vcpu, TRACED_STORE, gpa, value);
        return MEMTX_OK;
    }
    vcpu->softcpu->core->mmio_access(vcpu->core, gpa, size, (uint8_t *)&value, true);
    virtual_time_trace(vcpu, TRACED_STORE, gpa, value);
    memory_after_device(vcpu);
    return MEMTX_OK;
}

/*
 * The page walker's accesses (and those of task switches and SMIs). What is not RAM
 * reads as zeros: a table there has no present entry.
 */
static uint8_t *physical(CPUState *cs, hwaddr gpa, uint32_t size, bool write)
{
    struct engine_region *region = memory_find((struct softcpu_vcpu *)cs, gpa);

    if (region == NULL || !region->present || gpa + size - 1 > region->last || (write && region->read_only)) {
        return NULL;
    }
    return region->hva + (gpa - region->gpa);
}

#define PHYSICAL_LOAD(name, type, result)                               \
    result WRAP(name)(CPUState * cs, hwaddr gpa)                        \
    {                                                                   \
        const uint8_t *from = physical(cs, gpa, sizeof(type), false);   \
        type value = 0;                                                 \
                                                                        \
        if (from != NULL) {                                             \
            memcpy(&value, from, sizeof(value));                        \
        }                                                               \
        return value;                                                   \
    }

#define PHYSICAL_STORE(name, type, argument)                            \
    void WRAP(name)(CPUState * cs, hwaddr gpa, argument value)          \
    {                                                                   \
        uint8_t *to = physical(cs, gpa, sizeof(type), true);            \
                                                                        \
        if (to != NULL) {                                               \
            memcpy(to, &value, sizeof(type));                           \
        }                                                               \
    }

PHYSICAL_LOAD(x86_ldub_phys, uint8_t, uint8_t)
PHYSICAL_LOAD(x86_lduw_phys, uint16_t, uint32_t)
PHYSICAL_LOAD(x86_ldl_phys, uint32_t, uint32_t)
PHYSICAL_LOAD(x86_ldq_phys, uint64_t, uint64_t)
PHYSICAL_STORE(x86_stl_phys_notdirty, uint32_t, uint32_t)
PHYSICAL_STORE(x86_stw_phys, uint16_t, uint32_t)
PHYSICAL_STORE(x86_stl_phys, uint32_t, uint32_t)
PHYSICAL_STORE(x86_stq_phys, uint64_t, uint64_t)
