/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which vCPU executes: a first-come-first-served lock, and the ticker that makes the
 * owner look up once a millisecond (to hand over, to see a stop, an interrupt).
 *
 * At a stop, nobody waits for a turn any more: where the host is busy, each of hundreds
 * would have to wait for a processor of the host before the next one does.
 */
#include "engine.h"

#include "vmm/clock.h"

#include <signal.h>
#include <time.h>

#define NS_PER_S 1000000000u

static void kick_bounded_stays(struct softcpu *softcpu)
{
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        struct softcpu_vcpu *vcpu = softcpu->vcpus[i];
        uint32_t ticks = __atomic_load_n(&vcpu->kick_after_ticks, __ATOMIC_ACQUIRE);

        if (ticks > 1) {
            __atomic_compare_exchange_n(&vcpu->kick_after_ticks, &ticks, ticks - 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED);
        } else if (ticks == 1) {
            /* Again each tick until it is out: a signal between the look and KVM_RUN is lost. */
            pthread_kill(vcpu->thread, VMM_KICK_SIGNAL);
        }
    }
}

/* Needs lock_mutex, as all that follow but for the ticker and the calls from outside. */
static void enqueue(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    vcpu->queued = true;
    vcpu->next_waiting = NULL;
    if (softcpu->first_waiting == NULL) {
        softcpu->first_waiting = vcpu;
    } else {
        softcpu->last_waiting->next_waiting = vcpu;
    }
    softcpu->last_waiting = vcpu;
    __atomic_fetch_add(&softcpu->waiting, 1, __ATOMIC_RELAXED);
}

static struct softcpu_vcpu *dequeue(struct softcpu *softcpu)
{
    struct softcpu_vcpu *vcpu = softcpu->first_waiting;

    if (vcpu != NULL) {
        softcpu->first_waiting = vcpu->next_waiting;
        vcpu->queued = false;
        __atomic_fetch_sub(&softcpu->waiting, 1, __ATOMIC_RELAXED);
    }
    return vcpu;
}

static void send_all_away(struct softcpu *softcpu)
{
    struct softcpu_vcpu *vcpu;

    while ((vcpu = dequeue(softcpu)) != NULL) {
        pthread_cond_signal(&vcpu->turn);
    }
}

/* Returns without lock_mutex: whoever is woken needs it, and would sleep again at once. */
static void hand_over(struct softcpu *softcpu)
{
    struct softcpu_vcpu *next = dequeue(softcpu);

    __atomic_store_n(&softcpu->owner, next, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&softcpu->lock_mutex);
    if (next != NULL) {
        pthread_cond_signal(&next->turn);
    }
}

static void wait_for_turn(struct softcpu_vcpu *vcpu)
{
    while (vcpu->queued) {
        pthread_cond_wait(&vcpu->turn, &vcpu->softcpu->lock_mutex);
    }
}

/* Cut short by lock_destroy, for which whoever closes a machine waits. */
static void sleep_for_a_tick(struct softcpu *softcpu)
{
    uint64_t end = monotonic_ns() + TICK_NS;
    const struct timespec until = {.tv_sec = (time_t)(end / NS_PER_S), .tv_nsec = (long)(end % NS_PER_S)};

    pthread_cond_timedwait(&softcpu->ticker_end, &softcpu->lock_mutex, &until);
}

static void *tick(void *opaque)
{
    struct softcpu *softcpu = opaque;

    pthread_mutex_lock(&softcpu->lock_mutex);
    while (!softcpu->ticker_stop) {
        if (softcpu->owner == NULL && __atomic_load_n(&softcpu->bounded_stays, __ATOMIC_ACQUIRE) == 0) {
            pthread_cond_wait(&softcpu->ticker_wake, &softcpu->lock_mutex);
            continue;
        }
        if (softcpu->owner != NULL && (!virtual_time_is_on(softcpu->owner) || vmm_stop_requested(softcpu->vm))) {
            engine_ask_to_leave(softcpu->owner);
        }
        if (vmm_stop_requested(softcpu->vm)) {
            send_all_away(softcpu);
        }
        kick_bounded_stays(softcpu);
        sleep_for_a_tick(softcpu);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
    return NULL;
}

int lock_init(struct softcpu *softcpu)
{
    pthread_condattr_t monotonic;
    sigset_t all, before;
    int error;

    pthread_mutex_init(&softcpu->lock_mutex, NULL);
    pthread_cond_init(&softcpu->ticker_wake, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&softcpu->ticker_end, &monotonic);
    pthread_condattr_destroy(&monotonic);
    /* The process's signals are for its other threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&softcpu->ticker, NULL, tick, softcpu);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        pthread_cond_destroy(&softcpu->ticker_end);
        pthread_cond_destroy(&softcpu->ticker_wake);
        pthread_mutex_destroy(&softcpu->lock_mutex);
    }
    return error;
}

void lock_destroy(struct softcpu *softcpu)
{
    pthread_mutex_lock(&softcpu->lock_mutex);
    softcpu->ticker_stop = true;
    pthread_cond_signal(&softcpu->ticker_wake);
    pthread_cond_signal(&softcpu->ticker_end);
    pthread_mutex_unlock(&softcpu->lock_mutex);
    pthread_join(softcpu->ticker, NULL);
    pthread_cond_destroy(&softcpu->ticker_end);
    pthread_cond_destroy(&softcpu->ticker_wake);
    pthread_mutex_destroy(&softcpu->lock_mutex);
}

void lock_acquire(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->owner == NULL) {
        __atomic_store_n(&softcpu->owner, vcpu, __ATOMIC_RELAXED);
        pthread_cond_signal(&softcpu->ticker_wake);
    } else if (!vmm_stop_requested(softcpu->vm)) {
        enqueue(vcpu);
        wait_for_turn(vcpu);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}

void lock_release(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->owner == vcpu) {
        hand_over(softcpu);
        return;
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}

void lock_assert_owner(const struct softcpu_vcpu *vcpu)
{
#ifdef VMM_SANITIZE
    if (__atomic_load_n(&vcpu->softcpu->owner, __ATOMIC_RELAXED) != vcpu) {
        fprintf(stderr, "softcpu: vCPU %u calls into the engine without its lock\n", vcpu->core->index);
        __builtin_trap();
    }
#else
    (void)vcpu;
#endif
}

void lock_yield(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    if (__atomic_load_n(&softcpu->waiting, __ATOMIC_RELAXED) == 0) {
        return;
    }
    pthread_mutex_lock(&softcpu->lock_mutex);
    if (softcpu->first_waiting != NULL) {
        /*
         * In the queue before the other one runs: in between, this thread could be without a processor of the host for
         * long, and one that spins with PAUSE would find nobody to yield to.
         */
        enqueue(vcpu);
        hand_over(softcpu);
        pthread_mutex_lock(&softcpu->lock_mutex);
        wait_for_turn(vcpu);
    }
    pthread_mutex_unlock(&softcpu->lock_mutex);
}
