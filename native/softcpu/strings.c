/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * REP MOVS and REP STOS, runs of elements at a time: helpers that
 * unicorn/patches/string-runs.patch adds, and what they share with REP INS
 * (ports.c). A run is what the elements are one by one: it is counted so, stays
 * in one page of RAM that nothing looks at, and never faults.
 */
#include "engine.h"

static target_ulong address_mask(uint32_t sizes)
{
    return UINT64_MAX >> (64 - (8u << (sizes >> 2)));
}

uint8_t *strings_plain_ram(CPUX86State *env, target_ulong address, MMUAccessType access)
{
    const CPUTLBEntry *entry = tlb_entry(env, (uintptr_t)cpu_mmu_index(env, false), address);
    target_ulong page = access == MMU_DATA_STORE ? tlb_addr_write(entry) : entry->addr_read;

    /* Its low bits are flags: code, a device, watched data, nothing. */
    return page == (address & TARGET_PAGE_MASK) ? (uint8_t *)(uintptr_t)(address + entry->addend) : NULL;
}

target_ulong strings_run(const CPUX86State *env, target_ulong address, int reg, uint32_t sizes, uint32_t bytes)
{
    target_ulong mask = address_mask(sizes);
    target_ulong before_wrap = mask - (env->regs[reg] & mask);
    target_ulong count = env->regs[R_ECX] & mask;
    target_ulong room = TARGET_PAGE_SIZE - (address & ~TARGET_PAGE_MASK);

    if (env->df != 1) {
        return 0;
    }
    room = room < bytes ? room : bytes;
    room = room - 1 <= before_wrap ? room : before_wrap + 1;
    room >>= sizes & 3;
    return count < room ? count : room;
}

/* Add to the low bits that mask names; those above stay if the register was used with 16 bits, and are zeros else. */
static void add_to_register(target_ulong *reg, target_ulong mask, target_ulong value)
{
    target_ulong kept = mask == UINT16_MAX ? *reg & ~mask : 0;

    *reg = kept | ((*reg + value) & mask);
}

void strings_advance(CPUX86State *env, int reg, uint32_t sizes, target_ulong count)
{
    add_to_register(&env->regs[reg], address_mask(sizes), count << (sizes & 3));
}

target_ulong strings_end(CPUX86State *env, uint32_t sizes, target_ulong count)
{
    add_to_register(&env->regs[R_ECX], address_mask(sizes), -count);
    /* The block has counted one. */
    env_cpu(env)->random_seed += count - 1;
    return count;
}

/* As many of them as come before what is due at an instruction. */
static target_ulong before_look(CPUX86State *env, target_ulong count)
{
    uint64_t left = virtual_time_left(owner_of(env));

    return count - 1 <= left ? count : left + 1;
}

static void fill(uint8_t *to, uint64_t element, uint32_t size_log2, target_ulong bytes)
{
    static const uint64_t once_in_each[] = {0x0101010101010101, 0x0001000100010001, 0x0000000100000001, 1};
    uint64_t eight = (element & (UINT64_MAX >> (64 - (8u << size_log2)))) * once_in_each[size_log2];

    for (; bytes >= sizeof(eight); bytes -= sizeof(eight), to += sizeof(eight)) {
        memcpy(to, &eight, sizeof(eight));
    }
    memcpy(to, &eight, bytes);
}

/*
 * REP STOS whose next element goes to a linear address; sizes: MemOps, of an
 * element, and above two bits of the registers. Returns how many elements are
 * over; 0: the next one needs the whole way, which also brings its page into
 * the TLB, or faults.
 */
target_ulong helper_rep_stos(CPUX86State *env, target_ulong address, uint32_t sizes)
{
    target_ulong count = strings_run(env, address, R_EDI, sizes, TARGET_PAGE_SIZE);
    uint8_t *to = strings_plain_ram(env, address, MMU_DATA_STORE);

    if (to == NULL || count < 2) {
        return 0;
    }
    count = before_look(env, count);
    fill(to, env->regs[R_EAX], sizes & 3, count << (sizes & 3));
    strings_advance(env, R_EDI, sizes, count);
    return strings_end(env, sizes, count);
}

/* The same of REP MOVS, and where its next element comes from. */
target_ulong helper_rep_movs(CPUX86State *env, target_ulong source, target_ulong address, uint32_t sizes)
{
    target_ulong count = strings_run(env, address, R_EDI, sizes, TARGET_PAGE_SIZE);
    target_ulong readable = strings_run(env, source, R_ESI, sizes, TARGET_PAGE_SIZE);
    uint8_t *to = strings_plain_ram(env, address, MMU_DATA_STORE);
    const uint8_t *from = strings_plain_ram(env, source, MMU_DATA_LOAD);
    target_ulong distance = (uintptr_t)to - (uintptr_t)from;

    if (to == NULL || from == NULL) {
        return 0;
    }
    count = count < readable ? count : readable;
    if (distance != 0 && distance < count << (sizes & 3)) {
        /* Elements behind those would be read from what the first ones wrote. */
        count = distance >> (sizes & 3);
    }
    if (count < 2) {
        return 0;
    }
    count = before_look(env, count);
    memmove(to, from, count << (sizes & 3));
    strings_advance(env, R_ESI, sizes, count);
    strings_advance(env, R_EDI, sizes, count);
    return strings_end(env, sizes, count);
}
