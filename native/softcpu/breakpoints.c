/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The guest's own debug registers, as far as they watch data, and general
 * detection. An access to watched data makes the engine begin its instruction
 * once more, alone; #DB comes behind it (Intel SDM volume 3, 19.2). Breakpoints
 * at instructions and ports are the engine's.
 */
#include "engine.h"

/* Intel SDM volume 3, figure 19-1. */
#define DR6_BREAKPOINTS 0xfu
#define DR6_GENERAL_DETECT (1u << 13)
#define DR6_SINGLE_STEP (1u << 14)
#define DR7_ENABLED 0xffu
#define DR7_GENERAL_DETECT (1u << 13)
#define DR7_KIND(dr7, i) ((dr7) >> (16 + 4 * (i)) & 3)
#define DR7_LENGTH(dr7, i) ((dr7) >> (18 + 4 * (i)) & 3)
#define KIND_WRITE 1
#define KIND_ACCESS 3

/* As debug_kind has them; 0: it does not watch data in [address, address + length). */
static uint32_t watches(const CPUX86State *env, uint32_t i, uint64_t address, uint64_t length)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    uint32_t dr7 = (uint32_t)env->dr[7];
    uint32_t kind = DR7_KIND(dr7, i);
    uint64_t watched = lengths[DR7_LENGTH(dr7, i)];
    uint64_t start = env->dr[i] & ~(watched - 1);

    if (!(dr7 >> 2 * i & 3) || (kind != KIND_WRITE && kind != KIND_ACCESS) ||
        (start - address >= length && address - start >= watched)) {
        return 0;
    }
    return kind == KIND_WRITE ? DEBUG_WRITE : DEBUG_WRITE | DEBUG_READ;
}

uint32_t breakpoints_watched(const struct softcpu_vcpu *vcpu, target_ulong page)
{
    uint32_t kinds = 0;

    if (vcpu->cpu.env.dr[7] & DR7_ENABLED) {
        for (uint32_t i = 0; i < 4; i++) {
            kinds |= watches(&vcpu->cpu.env, i, page, TARGET_PAGE_SIZE);
        }
    }
    return kinds;
}

void breakpoints_access(struct softcpu_vcpu *vcpu, uint64_t address, uint64_t length, uint32_t kind,
                        uintptr_t return_address)
{
    uint32_t hit = 0;

    for (uint32_t i = 0; i < 4; i++) {
        hit |= (watches(&vcpu->cpu.env, i, address, length) & kind) ? 1u << i : 0;
    }
    if (hit == 0) {
        return;
    }
    if (return_address == 0) {
        /* Of the delivery of an interrupt or exception: #DB follows at its handler. */
        vcpu->debug_trap |= hit;
        engine_ask_to_leave(vcpu);
    } else if (vcpu->executes_one) {
        vcpu->data_breakpoints |= hit;
    } else {
        engine_leave_before(vcpu, LEAVE_BREAKPOINT, return_address);
    }
}

int breakpoints_execute_one(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;
    bool steps = (env->eflags & TF_MASK) != 0;
    int next;

    vcpu->executes_one = true;
    vcpu->data_breakpoints = 0;
    next = engine_execute_one(vcpu);
    vcpu->executes_one = false;
    if (next != LEAVE_WATCHPOINT && vcpu->data_breakpoints != 0) {
        bool waits = (env->hflags & HF_INHIBIT_IRQ_MASK) != 0;

        vcpu->debug_trap |= vcpu->data_breakpoints | (steps && !waits ? DR6_SINGLE_STEP : 0);
    }
    return next;
}

/*
 * Not behind MOV SS or POP SS: it waits for one instruction more (Intel SDM
 * volume 3, 6.8.3). STI, which is followed by the same, touches no data.
 */
bool breakpoints_trap_is_next(const struct softcpu_vcpu *vcpu)
{
    return vcpu->debug_trap != 0 && !(vcpu->cpu.env.hflags & HF_INHIBIT_IRQ_MASK);
}

void breakpoints_join(struct softcpu_vcpu *vcpu)
{
    vcpu->cpu.env.dr[6] |= vcpu->debug_trap;
    vcpu->debug_trap = 0;
}

void breakpoints_single_step(struct softcpu_vcpu *vcpu)
{
    vcpu->debug_trap |= DR6_SINGLE_STEP;
}

void breakpoints_deliver(struct softcpu_vcpu *vcpu)
{
    CPUX86State *env = &vcpu->cpu.env;

    env->dr[6] = (env->dr[6] & ~(target_ulong)DR6_BREAKPOINTS) | vcpu->debug_trap;
    env->dr[7] &= ~(target_ulong)DR7_GENERAL_DETECT;
    vcpu->debug_trap = 0;
    do_interrupt_x86_hardirq(env, EXCP01_DB, 1);
}

/* An instruction that reads or writes a debug register that is there is told to the handler first. */
static void check_access(CPUX86State *env, int reg, uintptr_t return_address)
{
    if ((reg == 4 || reg == 5) && (env->cr[4] & CR4_DE_MASK)) {
        raise_exception_ra(env, EXCP06_ILLOP, return_address);
    }
    if (env->dr[7] & DR7_GENERAL_DETECT) {
        env->dr[6] |= DR6_GENERAL_DETECT;
        raise_exception_ra(env, EXCP01_DB, return_address);
    }
}

target_ulong WRAP(helper_get_dr)(CPUX86State *env, int reg)
{
    check_access(env, reg, GETPC());
    return REAL(helper_get_dr)(env, reg);
}

/*
 * A breakpoint is found when its instruction is translated, watched data when
 * its page comes into the TLB: what was done before knows nothing of either.
 */
void WRAP(helper_set_dr)(CPUX86State *env, int reg, target_ulong value)
{
    bool armed = (env->dr[7] & DR7_ENABLED) != 0;

    check_access(env, reg, GETPC());
    REAL(helper_set_dr)(env, reg, value);
    if (armed || (env->dr[7] & DR7_ENABLED) != 0) {
        memory_drop_all_code(owner_of(env)->softcpu);
        tlb_flush(env_cpu(env));
    }
}
