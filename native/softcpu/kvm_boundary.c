/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * KVM as what is around the CPU. It is entered in three ways only, in none of
 * which it executes an instruction of the guest:
 *
 *   parked    the vCPU waits for INIT or SIPI
 *   halted    it executed HLT and waits for an interrupt
 *   window    an interrupt waits that it can take: KVM acknowledges it
 *
 * An INIT ends any of them. KVM goes on to execute code of the guest only where
 * the one who sent it cannot be seen (an I/O APIC, an MSI), or where it resets
 * the boot processor at once: single-stepped, that is one instruction in real
 * mode, which KVM can represent.
 */
#include "kvm_around.h"

#include <time.h>

static bool begin(struct softcpu_vcpu *vcpu)
{
    return stubs_enter(vcpu) && interrupts_note_lapic(vcpu, false);
}

static bool wait_in_kvm(struct softcpu_vcpu *vcpu, bool interrupts, uint32_t ticks, bool *reset)
{
    if (!stubs_wait(vcpu, interrupts, ticks, reset)) {
        return false;
    }
    /* After a stop, KVM may not even have looked. */
    if (!*reset && (vcpu->acknowledged != NOTHING_ACKNOWLEDGED || !vmm_stop_requested(vcpu->softcpu->vm))) {
        interrupts_after_wait(vcpu);
    }
    if (!*reset && vcpu->acknowledged != NOTHING_ACKNOWLEDGED) {
        kvm_chips_note_interrupt(vcpu);
    } else if (!*reset && ticks != 0) {
        vcpu->no_tick_came = true;
    }
    return true;
}

/*
 * KVM_RUN of a vCPU that never started returns at its INIT. Once it has had
 * one, KVM_RUN would go on with the code that the SIPI names; KVM accepts that,
 * too, when it is asked for the state.
 */
static bool wait_for_start(struct softcpu_vcpu *vcpu)
{
    const struct timespec tick = {.tv_nsec = TICK_NS};
    struct kvm_mp_state state;

    if (!vmm_vcpu_ioctl(vcpu->core, KVM_GET_MP_STATE, &state)) {
        return false;
    }
    if (state.mp_state == KVM_MP_STATE_UNINITIALIZED) {
        return stubs_run_kvm(vcpu, 0);
    }
    if (state.mp_state == KVM_MP_STATE_INIT_RECEIVED) {
        nanosleep(&tick, NULL);
    }
    return true;
}

static uint64_t tsc(const struct softcpu_vcpu *vcpu)
{
    return __builtin_ia32_rdtsc() + vcpu->tsc_offset;
}

const struct boundary kvm_boundary = {
    .begin = begin,
    .end = stubs_leave,
    .find_reset = stubs_find_reset,
    .look = interrupts_look,
    .tick_is_late = kvm_chips_pit_is_late,
    .wait = wait_in_kvm,
    .wait_for_start = wait_for_start,
    .send_init = kvm_chips_send_init,
    .port = kvm_chips_port,
    .has_address = kvm_chips_have_address,
    .memory = kvm_chips_memory,
    .read_msr = kvm_guest_msr_read,
    .write_msr = kvm_guest_msr_write,
    .tsc = tsc,
};
