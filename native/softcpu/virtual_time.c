/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Time that goes by what the guest does: a nanosecond for each instruction,
 * VIRTUAL_ACCESS_NS more for what takes long on a PC or is done to wait, and to
 * the next deadline where the guest waits for one. One vCPU executes at a time
 * (turns.c), and its instructions are time for the others, too: whatever comes
 * from outside of the guest so comes at the same instruction in every run.
 *
 * Whatever is due is seen to between two blocks, the first at which the vCPU has
 * counted enough instructions (unicorn/exec/gen-icount.h). No other thread may
 * make it leave, but for good: on the way back into an instruction that changes
 * its own block, the engine would execute another one and count it again.
 */
#include "engine.h"

#include "vmm/clock.h"

#define HASH_MULTIPLIER 0x9e3779b97f4a7c15u /* 2^64 by the golden ratio */

/* Instructions between two looks, at the most: some milliseconds, until what is typed is noticed. */
#define LONGEST_STRETCH 1000000u

/* 146 years: what is due later never comes, so that no sum is beyond 64 bits. */
#define LATEST_NS (1ull << 62)

/* Its own: so goes the limit at which it leaves translated code, too. */
static uint64_t own_instructions(const struct softcpu_vcpu *vcpu)
{
    return vcpu->cpu.parent_obj.random_seed;
}

/* Of all vCPUs. */
static uint64_t instructions(const struct virtual_time *time)
{
    return time->others + own_instructions(time->turn);
}

static uint64_t now_ns(const struct virtual_time *time)
{
    return time->start_ns + instructions(time) + time->spent_ns;
}

static struct virtual_time *time_of(const struct softcpu_vcpu *vcpu)
{
    return &vcpu->softcpu->virtual_time;
}

bool virtual_time_is_on(const struct softcpu_vcpu *vcpu)
{
    return time_of(vcpu)->clock != NULL;
}

static uint64_t show(const struct softcpu *softcpu)
{
    const struct virtual_time *time = &softcpu->virtual_time;
    struct guest_clock *chips = softcpu->core->chips->clock(softcpu->vm->chips);
    uint64_t now = now_ns(time);

    __atomic_store_n(&time->clock->instructions, instructions(time), __ATOMIC_RELAXED);
    __atomic_store_n(&time->clock->offset_ns, now, __ATOMIC_RELAXED);
    __atomic_store_n(&chips->offset_ns, now, __ATOMIC_RELAXED);
    __atomic_store_n(&chips->instructions, instructions(time), __ATOMIC_RELAXED);
    return now;
}

uint64_t virtual_time_now(const struct softcpu *softcpu)
{
    return now_ns(&softcpu->virtual_time);
}

uint64_t virtual_time_left(const struct softcpu_vcpu *vcpu)
{
    uint64_t limit = (uint64_t)vcpu->cpu.parent_obj.icount_budget;
    uint64_t count = own_instructions(vcpu);

    if (!virtual_time_is_on(vcpu)) {
        return UINT64_MAX;
    }
    return limit > count ? limit - count : 0;
}

static void leave_at(struct softcpu_vcpu *vcpu, uint64_t count)
{
    CPU(&vcpu->cpu)->icount_budget = (int64_t)count;
}

static void spend(struct softcpu_vcpu *vcpu, uint64_t ns)
{
    uint64_t limit = (uint64_t)CPU(&vcpu->cpu)->icount_budget;

    time_of(vcpu)->spent_ns += ns;
    /* Too early, for one that counts instructions alone, means one look more. */
    leave_at(vcpu, limit > ns ? limit - ns : 1);
    show(vcpu->softcpu);
}

void virtual_time_spend(struct softcpu_vcpu *vcpu)
{
    if (virtual_time_is_on(vcpu)) {
        spend(vcpu, VIRTUAL_ACCESS_NS);
    }
}

void virtual_time_pause(struct softcpu_vcpu *vcpu)
{
    struct virtual_time *time = time_of(vcpu);
    uint64_t longest;
    bool all_spin;

    vcpu->spins = own_instructions(vcpu) - vcpu->paused_at < VIRTUAL_LOOP_INSTRUCTIONS;
    vcpu->paused_at = own_instructions(vcpu);
    longest = VIRTUAL_LONGEST_PAUSE_NS / turns_count_awake(vcpu->softcpu, &all_spin);
    longest = longest > VIRTUAL_ACCESS_NS ? longest : VIRTUAL_ACCESS_NS;
    time->pause_ns = all_spin && time->pause_ns != 0 ? 2 * time->pause_ns : VIRTUAL_ACCESS_NS;
    time->pause_ns = time->pause_ns < longest ? time->pause_ns : longest;
    spend(vcpu, time->pause_ns);
    time->turn_ends_ns = 0;
}

static uint64_t mixed(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * HASH_MULTIPLIER;
    return hash ^ hash >> 32;
}

void virtual_time_trace(struct softcpu_vcpu *vcpu, enum traced what, uint64_t where, uint64_t value)
{
    struct virtual_time *time = time_of(vcpu);

    if (!virtual_time_is_on(vcpu)) {
        return;
    }
    if (vmm_stop_requested(vcpu->softcpu->vm)) {
        /* By what the access did; the ticker would see it a while later. */
        engine_ask_to_leave(vcpu);
    }
    time->trace_hash = mixed(time->trace_hash, instructions(time) ^ (uint64_t)vcpu->core->index << 48);
    time->trace_hash = mixed(time->trace_hash, (uint64_t)what << 56 ^ where);
    time->trace_hash = mixed(time->trace_hash, value);
    count(&time->traced);
}

static void look_soon(struct softcpu_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
    engine_ask_to_leave(vcpu);
}

void virtual_time_chips_written(struct softcpu_vcpu *vcpu)
{
    if (virtual_time_is_on(vcpu)) {
        look_soon(vcpu);
    }
}

void virtual_time_begin_look(struct softcpu *softcpu, bool waits)
{
    struct virtual_time *time = &softcpu->virtual_time;
    uint64_t now = show(softcpu);
    bool takes;

    if (__atomic_exchange_n(&time->input_waits, false, __ATOMIC_ACQUIRE) && time->queued_at == UINT64_MAX) {
        /* Not here, for this may be any place of several with the same count: a replay finds the next one's alone. */
        time->queued_at = instructions(time) + !waits;
    }
    if (waits && time->queued_at != UINT64_MAX) {
        /* Nobody has executed anything since. */
        time->queued_at = instructions(time);
    }
    takes = instructions(time) >= time->queued_at || (instructions(time) >= time->replay_at && now >= time->replay_ns);
    if (takes) {
        time->queued_at = UINT64_MAX;
    }
    if (takes || now >= time->device_ns) {
        time->call(time->opaque, takes);
    }
}

static uint64_t next_due(const struct softcpu_vcpu *vcpu)
{
    const struct virtual_time *time = time_of(vcpu);
    uint64_t due = vcpu->softcpu->core->chips->due(vcpu->core->processor);

    due = due < time->device_ns ? due : time->device_ns;
    return due < LATEST_NS ? due : UINT64_MAX;
}

void virtual_time_end_look(struct softcpu_vcpu *vcpu)
{
    const struct virtual_time *time = time_of(vcpu);
    uint64_t now = show(vcpu->softcpu);
    uint64_t due = next_due(vcpu);
    uint64_t count = instructions(time);
    uint64_t limit;

    if (vcpu->softcpu->vcpu_count > 1 && time->turn_ends_ns < due) {
        due = time->turn_ends_ns;
    }
    limit = due == UINT64_MAX ? UINT64_MAX : count + (due > now ? due - now : 0);
    limit = limit < count + LONGEST_STRETCH ? limit : count + LONGEST_STRETCH;
    limit = limit < time->queued_at ? limit : time->queued_at;
    limit = limit < time->replay_at ? limit : time->replay_at;
    /* A block has to be executed between two looks. */
    leave_at(vcpu, (limit > count ? limit : count + 1) - time->others);
}

void virtual_time_give_turn(struct softcpu_vcpu *vcpu)
{
    struct virtual_time *time = time_of(vcpu);

    if (vcpu->softcpu->vcpu_count == 1) {
        return;
    }
    time->others = instructions(time) - own_instructions(vcpu);
    time->turn = vcpu;
    time->turn_ends_ns = now_ns(time) + VIRTUAL_TURN_NS;
    vcpu->spins = false;
    virtual_time_end_look(vcpu);
    /* What came for it meanwhile, it sees now. */
    __atomic_store_n(&vcpu->look_at_kvm, true, __ATOMIC_RELAXED);
}

void virtual_time_wait(struct softcpu *softcpu)
{
    struct virtual_time *time = &softcpu->virtual_time;
    uint64_t now = show(softcpu);
    uint64_t due = UINT64_MAX;

    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        uint64_t own = next_due(softcpu->vcpus[i]);

        due = own < due ? own : due;
    }
    if (instructions(time) >= time->replay_at && time->replay_ns < due) {
        due = time->replay_ns;
    }
    if (due == UINT64_MAX) {
        /* Nothing comes by itself: for a nudge. */
        softcpu->core->chips->wait(softcpu->vcpus[0]->core->processor, (struct chips_wanted){.reset = false});
        return;
    }
    time->spent_ns += due > now ? due - now : 1;
    show(softcpu);
}

void virtual_time_end(const struct softcpu_vcpu *vcpu)
{
    if (virtual_time_is_on(vcpu)) {
        show(vcpu->softcpu);
    }
}

void softcpu_set_virtual_time(struct softcpu *softcpu, struct guest_clock *clock, void (*call)(void *opaque, bool takes),
                              void *opaque)
{
    softcpu->virtual_time = (struct virtual_time){
        .clock = clock,
        .start_ns = clock->offset_ns,
        .call = call,
        .opaque = opaque,
        .device_ns = UINT64_MAX,
        .queued_at = UINT64_MAX,
        .replay_at = UINT64_MAX,
    };
}

void softcpu_set_due(struct softcpu *softcpu, uint64_t device_ns)
{
    softcpu->virtual_time.device_ns = device_ns;
    look_soon(softcpu->virtual_time.turn);
}

void softcpu_set_replay(struct softcpu *softcpu, uint64_t count, uint64_t ns)
{
    softcpu->virtual_time.replay_at = count;
    softcpu->virtual_time.replay_ns = ns;
}

void softcpu_note_input(struct softcpu *softcpu)
{
    struct softcpu_vcpu *vcpu = softcpu->vcpus[0];

    __atomic_store_n(&softcpu->virtual_time.input_waits, true, __ATOMIC_RELEASE);
    softcpu->core->chips->nudge(vcpu->core->processor);
}

void softcpu_read_trace(const struct softcpu *softcpu, uint64_t *hash, uint64_t *count_of)
{
    *hash = softcpu->virtual_time.trace_hash;
    *count_of = __atomic_load_n(&softcpu->virtual_time.traced, __ATOMIC_RELAXED);
}
