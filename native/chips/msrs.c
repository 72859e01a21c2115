/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Model-specific registers: those of the chips here, and plain storage for the
 * rest that a guest of the software CPU's CPUID (an early AMD processor) finds.
 * Which ones exist, with what values, is what KVM gives such a guest
 * (kvm_get_msr_common and kvm_set_msr_common in arch/x86/kvm/x86.c, the tables
 * of AMD's BKDG 32559 and of Intel SDM volume 4); what a guest may write to
 * those that code depends on, the software CPU checks itself.
 */
#include "inside.h"

#define MSR_TSC 0x10u
#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_FIRST 0x800u
#define MSR_X2APIC_LAST 0x8ffu
#define MSR_EFER 0xc0000080u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u

#define MTRR_DEFAULT_BITS 0xcffu
#define MTRR_BASE_RESERVED 0xf00u
#define MTRR_MASK_RESERVED 0x7ffu

enum takes {
    ANYTHING,
    NOTHING,      /* #GP */
    IGNORED,      /* as it was */
    ALL_OR_NONE,  /* of the bits: which errors of a bank are reported */
    MEMORY_TYPES, /* eight of them */
    DEFAULT_TYPE,
    BASE_AND_MASK, /* alternately: of a range of memory */
};

struct range {
    uint32_t first;
    uint32_t last;
    uint64_t initial;
    enum takes takes;
};

static const struct range ranges[] = {
    {0x17, 0x17, 0, NOTHING},                         /* platform ID */
    {0x2a, 0x2a, 1u << 24, NOTHING},                  /* EBL_CR_POWERON */
    {0x3b, 0x3b, 0, ANYTHING},                        /* TSC_ADJUST; what moves the TSC by it is the software CPU */
    {0x79, 0x79, 0, IGNORED},                         /* microcode update */
    {0x8b, 0x8b, 0x01000065, IGNORED},                /* its level */
    {0xcd, 0xcd, 3, NOTHING},                         /* bus frequency */
    {0xfe, 0xfe, 0x508, NOTHING},                     /* MTRRs: fixed, write-combining, 8 variable */
    {0x174, 0x176, 0, ANYTHING},                      /* SYSENTER */
    {0x179, 0x179, 32, NOTHING},                      /* machine check: 32 banks */
    {0x17a, 0x17a, 0, ANYTHING},                      /* its status */
    {0x198, 0x198, 1000 | 4ull << 40, NOTHING},       /* performance status */
    {0x199, 0x199, 0, IGNORED},                       /* and control */
    {0x1a0, 0x1a0, 1, ANYTHING},                      /* MISC_ENABLE: fast strings */
    {0x1d9, 0x1d9, 0, IGNORED},                       /* DEBUGCTL */
    {0x1db, 0x1de, 0, NOTHING},                       /* last branches */
    {0x200, 0x20f, 0, BASE_AND_MASK},                 /* variable MTRRs */
    {0x250, 0x250, 0, MEMORY_TYPES},                  /* fixed ones */
    {0x258, 0x259, 0, MEMORY_TYPES},
    {0x268, 0x26f, 0, MEMORY_TYPES},
    {0x277, 0x277, 0x0007040600070406, ANYTHING},     /* PAT */
    {0x2ff, 0x2ff, 0, DEFAULT_TYPE},
    {0x400, 0x47f, 0, ALL_OR_NONE},                   /* machine check banks */
    {0xc0000081, 0xc0000084, 0, ANYTHING},            /* STAR, LSTAR, CSTAR, FMASK */
    {0xc0000102, 0xc0000103, 0, ANYTHING},            /* KERNEL_GS_BASE, TSC_AUX */
    {0xc0010000, 0xc0010007, 0, IGNORED},             /* performance counters */
    {0xc0010010, 0xc0010010, 0, IGNORED},             /* SYSCFG */
    {0xc0010015, 0xc0010015, 0, ANYTHING},            /* HWCR */
    {0xc001001f, 0xc001001f, 0, IGNORED},             /* NB_CFG */
    {0xc0010020, 0xc0010020, 0, IGNORED},             /* microcode update */
    {0xc0010055, 0xc0010055, 0, IGNORED},             /* interrupt pending */
    {0xc0010058, 0xc0010058, 0, NOTHING},             /* MMIO configuration */
    {0xc0010112, 0xc0010113, 0, IGNORED},             /* TSEG */
    {0xc0010117, 0xc0010117, 0, IGNORED},             /* VM_HSAVE_PA */
    {0xc0011022, 0xc0011023, 0, IGNORED},             /* DC_CFG, BU_CFG2 */
};

#define RANGES (sizeof(ranges) / sizeof(ranges[0]))

static uint64_t *stored(struct processor *processor, uint32_t index)
{
    for (uint32_t i = 0; i < processor->msr_count; i++) {
        if (processor->msrs[i].index == index) {
            return &processor->msrs[i].value;
        }
    }
    return NULL;
}

void msrs_reset(struct processor *processor)
{
    processor->msr_count = 0;
    for (uint32_t i = 0; i < RANGES; i++) {
        for (uint32_t index = ranges[i].first; index <= ranges[i].last && processor->msr_count < STORED_MSRS; index++) {
            processor->msrs[processor->msr_count++] = (struct stored_msr){.index = index, .value = ranges[i].initial};
        }
    }
}

/* What of a processor's special registers is an MSR, too. */
static __u64 *special(struct processor *processor, uint32_t index)
{
    switch (index) {
    case MSR_EFER:
        return &processor->sregs.efer;
    case MSR_FS_BASE:
        return &processor->sregs.fs.base;
    case MSR_GS_BASE:
        return &processor->sregs.gs.base;
    default:
        return NULL;
    }
}

bool msr_get(struct processor *processor, uint32_t index, uint64_t *value)
{
    const __u64 *in_sregs = special(processor, index);
    const uint64_t *there;

    if (in_sregs != NULL) {
        *value = *in_sregs;
        return true;
    }
    if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) {
        return lapic_read_msr(processor, index, value);
    }
    switch (index) {
    case MSR_TSC:
        *value = tsc_now(processor);
        return true;
    case MSR_APIC_BASE:
        *value = processor->lapic.base;
        return true;
    case MSR_TSC_DEADLINE:
        *value = processor->lapic.tsc_deadline;
        return true;
    default:
        there = stored(processor, index);
        *value = there == NULL ? 0 : *there;
        return there != NULL;
    }
}

/* Intel SDM volume 3, table 12-8. */
static bool is_memory_type(uint64_t type)
{
    return type == 0 || type == 1 || (type >= 4 && type <= 6);
}

static bool are_memory_types(uint64_t value)
{
    for (uint32_t shift = 0; shift < 64; shift += 8) {
        if (!is_memory_type(value >> shift & 0xff)) {
            return false;
        }
    }
    return true;
}

static bool may_write(const struct range *range, uint32_t index, uint64_t value)
{
    switch (range->takes) {
    case NOTHING:
        return false;
    case ALL_OR_NONE:
        /* Control of a bank; i386 Linux leaves one bit out. The software CPU says what a guest may write to status. */
        return (index & 3) != 0 || value == 0 || (value | 1u << 10) == UINT64_MAX;
    case MEMORY_TYPES:
        return are_memory_types(value);
    case DEFAULT_TYPE:
        return (value & ~(uint64_t)MTRR_DEFAULT_BITS) == 0 && is_memory_type(value & 0xff);
    case BASE_AND_MASK:
        return (index & 1) ? (value & MTRR_MASK_RESERVED) == 0
                           : (value & MTRR_BASE_RESERVED) == 0 && is_memory_type(value & 0xff);
    default:
        return true;
    }
}

static bool store(struct processor *processor, uint32_t index, uint64_t value)
{
    for (uint32_t i = 0; i < RANGES; i++) {
        if (index < ranges[i].first || index > ranges[i].last) {
            continue;
        }
        if (!may_write(&ranges[i], index, value)) {
            return false;
        }
        if (ranges[i].takes != IGNORED) {
            *stored(processor, index) = value;
        }
        return true;
    }
    return false;
}

bool msr_set(struct processor *processor, uint32_t index, uint64_t value)
{
    __u64 *in_sregs = special(processor, index);

    if (in_sregs != NULL) {
        if (index == MSR_EFER && !efer_is_valid(value)) {
            return false;
        }
        *in_sregs = value;
        return true;
    }
    if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) {
        return lapic_write_msr(processor, index, value);
    }
    switch (index) {
    case MSR_TSC:
        processor->tsc_offset = value - now_ns(processor->chips);
        return true;
    case MSR_APIC_BASE:
        if (!apic_base_is_valid(value)) {
            return false;
        }
        lapic_load_base(processor, value);
        return true;
    case MSR_TSC_DEADLINE:
        timer_write_deadline(processor, value);
        return true;
    default:
        return store(processor, index, value);
    }
}

uint32_t msrs_list(uint32_t *indices, uint32_t room)
{
    static const uint32_t others[] = {MSR_TSC, MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_EFER, MSR_FS_BASE, MSR_GS_BASE};
    uint32_t count = 0;

    for (uint32_t i = 0; i < RANGES; i++) {
        for (uint32_t index = ranges[i].first; index <= ranges[i].last; index++) {
            if (count < room) {
                indices[count] = index;
            }
            count++;
        }
    }
    for (uint32_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (count < room) {
            indices[count] = others[i];
        }
        count++;
    }
    return count;
}
