/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE /* gettid */
#include "vmm/profile.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "vmm/clock.h"
#include "vmm/machine.h"

/* Linux's name, which glibc has only since 2.39. */
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

void profile_add(struct ring *profile, uint64_t address)
{
    const struct profile_sample sample = {.time_ns = monotonic_ns(), .address = address};

    ring_add(profile, &sample);
}

int profile_arm(struct vmm_vcpu *vcpu)
{
    const struct timespec interval = {.tv_nsec = PROFILE_INTERVAL_NS};
    const struct itimerspec every = {.it_interval = interval, .it_value = interval};
    struct sigevent event = {
        .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = VMM_KICK_SIGNAL, .sigev_value.sival_ptr = vcpu->run};

    if (vcpu->profile == NULL || vcpu->engine != NULL) {
        return 0;
    }
    event.sigev_notify_thread_id = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &vcpu->profile_timer) != 0) {
        return -errno;
    }
    vcpu->profile_armed = true;
    return timer_settime(vcpu->profile_timer, 0, &every, NULL) == 0 ? 0 : -errno;
}

void profile_disarm(struct vmm_vcpu *vcpu)
{
    if (vcpu->profile_armed) {
        vcpu->profile_armed = false;
        timer_delete(vcpu->profile_timer);
    }
}

void profile_look(struct vmm_vcpu *vcpu)
{
    struct kvm_mp_state state;
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    /* A stop sets it, too, but only once it can be seen that a stop is asked for, which the caller looks at next. */
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    /* Before its start, asking for its state would take away the INIT that watch_for_start waits for. */
    if (__atomic_load_n(&vcpu->started_ns, __ATOMIC_RELAXED) != 0 && ioctl(vcpu->fd, KVM_GET_MP_STATE, &state) == 0 &&
        state.mp_state == KVM_MP_STATE_RUNNABLE && ioctl(vcpu->fd, KVM_GET_REGS, &regs) == 0 &&
        ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) == 0) {
        profile_add(vcpu->profile, sregs.cs.base + regs.rip);
    }
}
