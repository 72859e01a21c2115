/* SPDX-License-Identifier: BSD-2-Clause */
/* One of the vCPU's MSRs in KVM. */
#include "engine.h"

struct one_msr {
    struct kvm_msrs header;
    struct kvm_msr_entry entry;
};

bool kvm_msr_read(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    struct one_msr msr = {.header.nmsrs = 1, .entry.index = index};

    if (ioctl(vcpu->core->fd, KVM_GET_MSRS, &msr) != 1) {
        return false;
    }
    *value = msr.entry.data;
    return true;
}

bool kvm_msr_write(struct softcpu_vcpu *vcpu, uint32_t index, uint64_t value)
{
    struct one_msr msr = {.header.nmsrs = 1, .entry = {.index = index, .data = value}};

    return ioctl(vcpu->core->fd, KVM_SET_MSRS, &msr) == 1;
}
