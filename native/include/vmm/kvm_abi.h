/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a cffi binding of <linux/kvm.h> needs beside it: one call for every
 * ioctl, and names for the kernel's unnamed structs and unions, so that their
 * layouts come from the compiler too.
 */
#ifndef VMM_KVM_ABI_H
#define VMM_KVM_ABI_H

#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define KVM_ABI_MEMBER(type, member) __typeof__(((type *)0)->member)

typedef KVM_ABI_MEMBER(struct kvm_run, hw) kvm_run_hw;
typedef KVM_ABI_MEMBER(struct kvm_run, fail_entry) kvm_run_fail_entry;
typedef KVM_ABI_MEMBER(struct kvm_run, ex) kvm_run_exception;
typedef KVM_ABI_MEMBER(struct kvm_run, io) kvm_run_io;
typedef KVM_ABI_MEMBER(struct kvm_run, debug) kvm_run_debug;
typedef KVM_ABI_MEMBER(struct kvm_run, mmio) kvm_run_mmio;
typedef KVM_ABI_MEMBER(struct kvm_run, hypercall) kvm_run_hypercall;
typedef KVM_ABI_MEMBER(struct kvm_run, tpr_access) kvm_run_tpr_access;
typedef KVM_ABI_MEMBER(struct kvm_run, internal) kvm_run_internal;
typedef KVM_ABI_MEMBER(struct kvm_run, emulation_failure) kvm_run_emulation_failure;
typedef KVM_ABI_MEMBER(struct kvm_run, system_event) kvm_run_system_event;
typedef KVM_ABI_MEMBER(struct kvm_run, eoi) kvm_run_eoi;
typedef KVM_ABI_MEMBER(struct kvm_run, msr) kvm_run_msr;
typedef KVM_ABI_MEMBER(struct kvm_run, s) kvm_run_sync;
typedef KVM_ABI_MEMBER(struct kvm_irqchip, chip) kvm_irqchip_state;
typedef KVM_ABI_MEMBER(struct kvm_ioapic_state, redirtbl[0]) kvm_ioapic_entry;
typedef KVM_ABI_MEMBER(struct kvm_irq_routing_entry, u) kvm_irq_routing_target;
typedef KVM_ABI_MEMBER(struct kvm_vcpu_events, exception) kvm_events_exception;
typedef KVM_ABI_MEMBER(struct kvm_vcpu_events, interrupt) kvm_events_interrupt;
typedef KVM_ABI_MEMBER(struct kvm_vcpu_events, nmi) kvm_events_nmi;
typedef KVM_ABI_MEMBER(struct kvm_vcpu_events, smi) kvm_events_smi;

/* ioctl(2) with a pointer: what it returned, or -errno. */
static inline int kvm_abi_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);

    return result < 0 ? -errno : result;
}

/* ioctl(2) with a number: what it returned, or -errno. */
static inline int kvm_abi_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
    int result = ioctl(fd, request, argument);

    return result < 0 ? -errno : result;
}

#endif
