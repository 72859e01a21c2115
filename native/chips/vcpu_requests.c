/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The requests of KVM's API that vmm makes of a vCPU: what it has between two
 * runs. The same state is behind KVM_GET_FPU and KVM_GET_XSAVE, in the layout of
 * FXSAVE (Intel SDM volume 1, 10.5.1.1 and 13.4).
 */
#include "inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TSC_KHZ 1000000

#define MAX_CPUID 256u

#define XSTATE_BV 128 /* of xsave[] */
#define X87_AND_SSE 3u
#define MXCSR_BITS 0xffffu
#define XCR0_BITS 3ull /* x87 and SSE */

_Static_assert(sizeof(((struct processor *)0)->xsave) == sizeof(struct kvm_xsave), "all of it");

struct fxsave {
    uint16_t fcw;
    uint16_t fsw;
    uint8_t ftwx;
    uint8_t reserved;
    uint16_t fop;
    uint64_t rip;
    uint64_t rdp;
    uint32_t mxcsr;
    uint32_t mxcsr_mask;
    uint8_t fpr[8][16];
    uint8_t xmm[16][16];
};

static int get_fpu(const struct processor *processor, struct kvm_fpu *fpu)
{
    struct fxsave area;

    memcpy(&area, processor->xsave, sizeof(area));
    *fpu = (struct kvm_fpu){
        .fcw = area.fcw,
        .fsw = area.fsw,
        .ftwx = area.ftwx,
        .last_opcode = area.fop,
        .last_ip = area.rip,
        .last_dp = area.rdp,
    };
    memcpy(fpu->fpr, area.fpr, sizeof(fpu->fpr));
    memcpy(fpu->xmm, area.xmm, sizeof(fpu->xmm));
    return 0;
}

static int set_fpu(struct processor *processor, const struct kvm_fpu *fpu)
{
    struct fxsave area;

    memcpy(&area, processor->xsave, sizeof(area));
    area.fcw = fpu->fcw;
    area.fsw = fpu->fsw;
    area.ftwx = fpu->ftwx;
    area.fop = fpu->last_opcode;
    area.rip = fpu->last_ip;
    area.rdp = fpu->last_dp;
    memcpy(area.fpr, fpu->fpr, sizeof(area.fpr));
    memcpy(area.xmm, fpu->xmm, sizeof(area.xmm));
    memcpy(processor->xsave, &area, sizeof(area));
    processor->xsave[XSTATE_BV] |= X87_AND_SSE;
    return 0;
}

/* As KVM: whoever executes the guest gives MXCSR to the host's CPU, which takes no reserved bit. */
static int set_xsave(struct processor *processor, const struct kvm_xsave *xsave)
{
    struct fxsave area;

    memcpy(&area, xsave, sizeof(area));
    if (area.mxcsr & ~MXCSR_BITS) {
        return -EINVAL;
    }
    memcpy(processor->xsave, xsave, sizeof(processor->xsave));
    return 0;
}

static int get_sregs(struct processor *processor, struct kvm_sregs *sregs)
{
    *sregs = processor->sregs;
    sregs->apic_base = processor->lapic.base;
    sregs->cr8 = lapic_priority(processor) >> 4;
    return 0;
}

static int set_sregs(struct processor *processor, const struct kvm_sregs *sregs)
{
    if (!sregs_are_valid(sregs)) {
        return -EINVAL;
    }
    processor->sregs = *sregs;
    lapic_load_base(processor, sregs->apic_base);
    lapic_set_priority(processor, (uint32_t)sregs->cr8 << 4);
    return 0;
}

static int get_msrs(struct processor *processor, struct kvm_msrs *msrs)
{
    uint32_t done;
    uint64_t value;

    for (done = 0; done < msrs->nmsrs && msr_get(processor, msrs->entries[done].index, &value); done++) {
        msrs->entries[done].data = value;
    }
    return (int)done;
}

static int set_msrs(struct processor *processor, const struct kvm_msrs *msrs)
{
    uint32_t done = 0;

    while (done < msrs->nmsrs && msr_set(processor, msrs->entries[done].index, msrs->entries[done].data)) {
        done++;
    }
    return (int)done;
}

static int get_cpuid(const struct processor *processor, struct kvm_cpuid2 *cpuid)
{
    if (cpuid->nent < processor->cpuid_count) {
        return -E2BIG;
    }
    cpuid->nent = processor->cpuid_count;
    if (cpuid->nent > 0) {
        memcpy(cpuid->entries, processor->cpuid, cpuid->nent * sizeof(cpuid->entries[0]));
    }
    return 0;
}

static int set_cpuid(struct processor *processor, const struct kvm_cpuid2 *cpuid)
{
    struct kvm_cpuid_entry2 *entries;

    if (cpuid->nent > MAX_CPUID) {
        return -E2BIG;
    }
    entries = calloc(cpuid->nent + 1, sizeof(*entries));
    if (entries == NULL) {
        return -ENOMEM;
    }
    memcpy(entries, cpuid->entries, cpuid->nent * sizeof(*entries));
    free(processor->cpuid);
    processor->cpuid = entries;
    processor->cpuid_count = cpuid->nent;
    return 0;
}

static int set_mp_state(struct processor *processor, uint32_t state)
{
    if (state > KVM_MP_STATE_SIPI_RECEIVED) {
        return -EINVAL;
    }
    processor->mp_state = state;
    return 0;
}

static int get_events(const struct processor *processor, struct kvm_vcpu_events *events)
{
    *events = processor->events;
    events->nmi.pending = processor->nmi_pending;
    events->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    return 0;
}

static int set_events(struct processor *processor, const struct kvm_vcpu_events *events)
{
    processor->events = *events;
    if (events->flags & KVM_VCPUEVENT_VALID_NMI_PENDING) {
        processor->nmi_pending = events->nmi.pending < 2 ? events->nmi.pending : 2;
    }
    return 0;
}

static int set_debugregs(struct processor *processor, const struct kvm_debugregs *registers)
{
    if (registers->flags != 0 || (registers->dr6 | registers->dr7) >> 32 != 0) {
        return -EINVAL;
    }
    processor->debugregs = *registers;
    return 0;
}

static int get_xcrs(const struct processor *processor, struct kvm_xcrs *xcrs)
{
    memset(xcrs, 0, sizeof(*xcrs));
    xcrs->nr_xcrs = 1;
    xcrs->xcrs[0].value = processor->xcr0;
    return 0;
}

static int set_xcrs(struct processor *processor, const struct kvm_xcrs *xcrs)
{
    if (xcrs->nr_xcrs > KVM_MAX_XCRS) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < xcrs->nr_xcrs; i++) {
        if (xcrs->xcrs[i].xcr != 0 || !(xcrs->xcrs[i].value & 1) || (xcrs->xcrs[i].value & ~XCR0_BITS) != 0) {
            return -EINVAL;
        }
        processor->xcr0 = xcrs->xcrs[i].value;
    }
    return 0;
}

static int attribute(struct processor *processor, const struct kvm_device_attr *wanted, bool set)
{
    uint64_t *value = (uint64_t *)(uintptr_t)wanted->addr;

    if (wanted->group != KVM_VCPU_TSC_CTRL || wanted->attr != KVM_VCPU_TSC_OFFSET) {
        return -ENXIO;
    }
    if (set) {
        processor->tsc_offset = *value;
    } else {
        *value = processor->tsc_offset;
    }
    return 0;
}

static int serve_interrupts(struct processor *processor, unsigned long request, void *argument)
{
    switch (request) {
    case KVM_GET_LAPIC:
        /* A count that has ended and one that stands look the same: what is due becomes a request first. */
        if (processor->lapic.due_ns != 0) {
            timer_run(processor, now_ns(processor->chips));
        }
        lapic_get(processor, argument);
        return 0;
    case KVM_SET_LAPIC:
        lapic_set(processor, argument);
        return 0;
    case KVM_GET_MP_STATE:
        accept_reset(processor);
        ((struct kvm_mp_state *)argument)->mp_state = processor->mp_state;
        return 0;
    case KVM_SET_MP_STATE:
        return set_mp_state(processor, ((const struct kvm_mp_state *)argument)->mp_state);
    case KVM_GET_VCPU_EVENTS:
        return get_events(processor, argument);
    case KVM_SET_VCPU_EVENTS:
        return set_events(processor, argument);
    case KVM_NMI:
        accept_nmi(processor);
        wake(processor);
        return 0;
    default:
        return -ENOTTY;
    }
}

static int serve(struct processor *processor, unsigned long request, void *argument)
{
    switch (request) {
    case KVM_GET_REGS:
        *(struct kvm_regs *)argument = processor->regs;
        return 0;
    case KVM_SET_REGS:
        processor->regs = *(const struct kvm_regs *)argument;
        return 0;
    case KVM_GET_SREGS:
        return get_sregs(processor, argument);
    case KVM_SET_SREGS:
        return set_sregs(processor, argument);
    case KVM_GET_FPU:
        return get_fpu(processor, argument);
    case KVM_SET_FPU:
        return set_fpu(processor, argument);
    case KVM_GET_XSAVE:
        memcpy(argument, processor->xsave, sizeof(processor->xsave));
        return 0;
    case KVM_SET_XSAVE:
        return set_xsave(processor, argument);
    case KVM_GET_XCRS:
        return get_xcrs(processor, argument);
    case KVM_SET_XCRS:
        return set_xcrs(processor, argument);
    case KVM_GET_DEBUGREGS:
        *(struct kvm_debugregs *)argument = processor->debugregs;
        return 0;
    case KVM_SET_DEBUGREGS:
        return set_debugregs(processor, argument);
    case KVM_GET_MSRS:
        return get_msrs(processor, argument);
    case KVM_SET_MSRS:
        return set_msrs(processor, argument);
    case KVM_GET_CPUID2:
        return get_cpuid(processor, argument);
    case KVM_SET_CPUID2:
        return set_cpuid(processor, argument);
    case KVM_GET_TSC_KHZ:
        return TSC_KHZ;
    case KVM_GET_DEVICE_ATTR:
        return attribute(processor, argument, false);
    case KVM_SET_DEVICE_ATTR:
        return attribute(processor, argument, true);
    default:
        return serve_interrupts(processor, request, argument);
    }
}

int chips_vcpu_request(struct processor *processor, unsigned long request, void *argument)
{
    int result;

    pthread_mutex_lock(&processor->chips->lock);
    result = serve(processor, request, argument);
    pthread_mutex_unlock(&processor->chips->lock);
    return result;
}
