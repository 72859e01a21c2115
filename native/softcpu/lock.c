/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who executes: a first-come-first-served lock, and the ticker that makes the
 * owner look up once a millisecond (to hand over, to see a stop, an interrupt).
 */
#include "engine.h"

#include <signal.h>
#include <time.h>

/* Only has to make KVM_RUN return; the core's own kick is one below. */
#define KICK_SIGNAL (SIGRTMIN + 5)

static void on_kick(int signal)
{
    (void)signal;
}

static void kick_bounded_stays(struct assist *assist)
{
    for (uint32_t i = 0; i < assist->vcpu_count; i++) {
        struct assist_vcpu *vcpu = assist->vcpus[i];
        uint32_t ticks = __atomic_load_n(&vcpu->kick_after_ticks, __ATOMIC_ACQUIRE);

        if (ticks > 1) {
            __atomic_compare_exchange_n(&vcpu->kick_after_ticks, &ticks, ticks - 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED);
        } else if (ticks == 1) {
            /* Again each tick until it is out: a signal between the look and KVM_RUN is lost. */
            pthread_kill(vcpu->thread, KICK_SIGNAL);
        }
    }
}

static void *tick(void *opaque)
{
    struct assist *assist = opaque;
    const struct timespec interval = {.tv_nsec = TICK_NS};

    pthread_mutex_lock(&assist->lock_mutex);
    while (!assist->ticker_stop) {
        if (assist->owner == NULL && __atomic_load_n(&assist->bounded_stays, __ATOMIC_ACQUIRE) == 0) {
            pthread_cond_wait(&assist->ticker_wake, &assist->lock_mutex);
            continue;
        }
        if (assist->owner != NULL) {
            engine_ask_to_leave(assist->owner);
        }
        kick_bounded_stays(assist);
        pthread_mutex_unlock(&assist->lock_mutex);
        nanosleep(&interval, NULL);
        pthread_mutex_lock(&assist->lock_mutex);
    }
    pthread_mutex_unlock(&assist->lock_mutex);
    return NULL;
}

int lock_init(struct assist *assist)
{
    struct sigaction action = {.sa_handler = on_kick};
    sigset_t all, before;
    int error;

    sigemptyset(&action.sa_mask);
    sigaction(KICK_SIGNAL, &action, NULL);
    pthread_mutex_init(&assist->lock_mutex, NULL);
    pthread_cond_init(&assist->ticker_wake, NULL);
    /* The process's signals are for its other threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&assist->ticker, NULL, tick, assist);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        pthread_cond_destroy(&assist->ticker_wake);
        pthread_mutex_destroy(&assist->lock_mutex);
    }
    return error;
}

void lock_destroy(struct assist *assist)
{
    pthread_mutex_lock(&assist->lock_mutex);
    assist->ticker_stop = true;
    pthread_cond_signal(&assist->ticker_wake);
    pthread_mutex_unlock(&assist->lock_mutex);
    pthread_join(assist->ticker, NULL);
    pthread_cond_destroy(&assist->ticker_wake);
    pthread_mutex_destroy(&assist->lock_mutex);
}

void lock_acquire(struct assist_vcpu *vcpu)
{
    struct assist *assist = vcpu->assist;

    pthread_mutex_lock(&assist->lock_mutex);
    if (assist->owner == NULL) {
        assist->owner = vcpu;
        pthread_cond_signal(&assist->ticker_wake);
    } else {
        vcpu->next_waiting = NULL;
        if (assist->first_waiting == NULL) {
            assist->first_waiting = vcpu;
        } else {
            assist->last_waiting->next_waiting = vcpu;
        }
        assist->last_waiting = vcpu;
        __atomic_fetch_add(&assist->waiting, 1, __ATOMIC_RELAXED);
        while (assist->owner != vcpu) {
            pthread_cond_wait(&vcpu->turn, &assist->lock_mutex);
        }
    }
    pthread_mutex_unlock(&assist->lock_mutex);
}

void lock_release(struct assist_vcpu *vcpu)
{
    struct assist *assist = vcpu->assist;
    struct assist_vcpu *next;

    pthread_mutex_lock(&assist->lock_mutex);
    next = assist->first_waiting;
    assist->owner = next;
    if (next != NULL) {
        assist->first_waiting = next->next_waiting;
        __atomic_fetch_sub(&assist->waiting, 1, __ATOMIC_RELAXED);
        pthread_cond_signal(&next->turn);
    }
    pthread_mutex_unlock(&assist->lock_mutex);
}

void lock_yield(struct assist_vcpu *vcpu)
{
    if (__atomic_load_n(&vcpu->assist->waiting, __ATOMIC_RELAXED) > 0) {
        lock_release(vcpu);
        lock_acquire(vcpu);
    }
}

int bounded_kvm_run(struct assist_vcpu *vcpu, uint32_t ticks)
{
    struct assist *assist = vcpu->assist;
    int result;

    if (ticks == 0) {
        return ioctl(vcpu->core->fd, KVM_RUN, 0);
    }
    vcpu->thread = pthread_self();
    __atomic_store_n(&vcpu->kick_after_ticks, ticks, __ATOMIC_RELEASE);
    if (__atomic_fetch_add(&assist->bounded_stays, 1, __ATOMIC_ACQ_REL) == 0) {
        pthread_mutex_lock(&assist->lock_mutex);
        pthread_cond_signal(&assist->ticker_wake);
        pthread_mutex_unlock(&assist->lock_mutex);
    }
    result = ioctl(vcpu->core->fd, KVM_RUN, 0);
    /* With the lock that the ticker kicks under: it must not send a signal to a thread that has ended meanwhile. */
    pthread_mutex_lock(&assist->lock_mutex);
    __atomic_store_n(&vcpu->kick_after_ticks, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&assist->lock_mutex);
    __atomic_fetch_sub(&assist->bounded_stays, 1, __ATOMIC_ACQ_REL);
    return result;
}
