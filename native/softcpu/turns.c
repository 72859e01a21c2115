/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * With virtual time: which vCPU executes when, which is to depend on nothing but
 * the guest. One thread executes all vCPUs, in the order of their indices. Each
 * has its turn for VIRTUAL_TURN_NS, or until it halts, waits to be started, or
 * executes PAUSE. What one of them, or a device, does to another, that one sees
 * at the start of its turn.
 */
#include "engine.h"

bool turns_is_over(const struct softcpu_vcpu *vcpu)
{
    const struct softcpu *softcpu = vcpu->softcpu;

    return virtual_time_is_on(vcpu) && softcpu->vcpu_count > 1 && virtual_time_now(softcpu) >= softcpu->virtual_time.turn_ends_ns;
}

uint32_t turns_count_awake(const struct softcpu *softcpu, bool *all_spin)
{
    uint32_t awake = 0;

    *all_spin = true;
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        if (run_is_awake(softcpu->vcpus[i])) {
            awake++;
            *all_spin = *all_spin && softcpu->vcpus[i]->spins;
        }
    }
    return awake;
}

/* The next one behind that whose turn is over, which is the last that is asked. NULL: all wait, or it failed. */
static struct softcpu_vcpu *find_awake(struct softcpu *softcpu, bool *failed)
{
    uint32_t before = softcpu->virtual_time.turn->core->index;

    for (uint32_t i = 1; i <= softcpu->vcpu_count; i++) {
        struct softcpu_vcpu *vcpu = softcpu->vcpus[(before + i) % softcpu->vcpu_count];

        if (!run_is_awake(vcpu) && !run_look_asleep(vcpu)) {
            *failed = true;
            return NULL;
        }
        if (run_is_awake(vcpu)) {
            return vcpu;
        }
    }
    return NULL;
}

/* NULL: the run ends. */
static struct softcpu_vcpu *next(struct softcpu *softcpu)
{
    struct softcpu_vcpu *vcpu = softcpu->virtual_time.turn;
    bool failed = false;
    bool all_spin;

    if (run_is_awake(vcpu) && !turns_is_over(vcpu)) {
        return vcpu;
    }
    while (!vmm_stop_requested(softcpu->vm)) {
        virtual_time_begin_look(softcpu, turns_count_awake(softcpu, &all_spin) == 0);
        vcpu = find_awake(softcpu, &failed);
        if (vcpu != NULL) {
            virtual_time_give_turn(vcpu);
            return vcpu;
        }
        if (failed) {
            return NULL;
        }
        if (!vmm_stop_requested(softcpu->vm)) {
            virtual_time_wait(softcpu);
        }
    }
    return NULL;
}

static void execute_in_turn(struct softcpu *softcpu)
{
    struct softcpu_vcpu *vcpu;

    do {
        vcpu = next(softcpu);
    } while (vcpu != NULL && run_execute(vcpu));
}

void softcpu_run_in_turn(struct softcpu *softcpu)
{
    bool entered = true;
    uint32_t begun = 0;

    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        entered = softcpu->core->enter(softcpu->vcpus[i]->core) && entered;
    }
    while (entered && begun < softcpu->vcpu_count && run_begin(softcpu->vcpus[begun])) {
        begun++;
    }
    if (begun == softcpu->vcpu_count) {
        execute_in_turn(softcpu);
    }
    for (uint32_t i = 0; i < begun; i++) {
        run_finish(softcpu->vcpus[i]);
    }
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        softcpu->core->leave(softcpu->vcpus[i]->core);
    }
}
