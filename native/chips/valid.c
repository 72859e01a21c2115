/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A processor's state that is given from outside, as a snapshot's file gives it:
 * what no CPU of ours can have is refused, as KVM refuses it.
 */
#include "inside.h"

/* Intel SDM volume 3, 2.5. */
#define CR0_PE (1ull << 0)
#define CR0_NW (1ull << 29)
#define CR0_CD (1ull << 30)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
/* VME to OSXMMEXCPT, FSGSBASE, SMEP, SMAP: the most that the software CPU may offer. */
#define CR4_BITS 0x3107ffull
#define CR8_BITS 0xfull

#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
/* SCE, LME, LMA, NXE, FFXSR (AMD APM volume 2, 3.1.7); SVME is nobody's here. */
#define EFER_BITS 0x4d01ull

bool efer_is_valid(uint64_t value)
{
    return (value & ~EFER_BITS) == 0;
}

/* Intel SDM volume 3, 11.4.3 and 11.12.1. */
bool apic_base_is_valid(uint64_t value)
{
    const uint64_t modes = APIC_BASE_ENABLED | APIC_BASE_X2APIC;

    return (value & modes) != APIC_BASE_X2APIC && (value & ~(APIC_BASE_ADDRESS | modes | APIC_BASE_BSP)) == 0;
}

static bool is_long(const struct kvm_sregs *sregs)
{
    return (sregs->cr0 & CR0_PG) && (sregs->efer & EFER_LME);
}

bool sregs_are_valid(const struct kvm_sregs *sregs)
{
    if (sregs->cr0 >> 32 != 0 || (sregs->cr4 & ~CR4_BITS) != 0 || (sregs->cr8 & ~CR8_BITS) != 0 ||
        !efer_is_valid(sregs->efer) || !apic_base_is_valid(sregs->apic_base)) {
        return false;
    }
    if (((sregs->cr0 & CR0_PG) && !(sregs->cr0 & CR0_PE)) || ((sregs->cr0 & CR0_NW) && !(sregs->cr0 & CR0_CD))) {
        return false;
    }
    if (is_long(sregs)) {
        return (sregs->cr4 & CR4_PAE) && (sregs->efer & EFER_LMA);
    }
    return !(sregs->efer & EFER_LMA) && !sregs->cs.l;
}
