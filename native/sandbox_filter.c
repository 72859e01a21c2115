/* SPDX-License-Identifier: BSD-2-Clause */
#include "sandbox_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>

#define X32_BIT 0x40000000u /* arch/x86/include/uapi/asm/unistd.h: the same calls, with other layouts */

static void emit(struct filter *filter, struct sock_filter instruction)
{
    if (filter->length == FILTER_MAX_INSTRUCTIONS) {
        filter->full = true;
        return;
    }
    filter->code[filter->length++] = instruction;
}

static void load(struct filter *filter, size_t offset)
{
    emit(filter, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void answer(struct filter *filter, uint32_t action)
{
    emit(filter, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action));
}

/* Compare what is loaded; go to the rule's end, which is not known yet, if it is something else. */
static void unless_equal_fail(struct filter *filter, uint32_t value)
{
    if (filter->failing_count == FILTER_MAX_CONDITIONS) {
        filter->full = true;
        return;
    }
    filter->failing[filter->failing_count++] = filter->length;
    emit(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 0));
}

void filter_begin(struct filter *filter)
{
    filter->length = 0;
    filter->failing_count = 0;
    filter->full = false;
    load(filter, offsetof(struct seccomp_data, arch));
    emit(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
    answer(filter, SECCOMP_RET_KILL_PROCESS);
    load(filter, offsetof(struct seccomp_data, nr));
    emit(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1));
    answer(filter, SECCOMP_RET_TRAP);
}

void filter_end(struct filter *filter)
{
    answer(filter, SECCOMP_RET_TRAP);
}

/* Go on where what is loaded is one of these, else to the rule's end. */
static void unless_one_of_fail(struct filter *filter, const uint32_t *values, size_t count)
{
    for (size_t i = 0; i + 1 < count; i++) {
        emit(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, values[i], (uint8_t)(count - 1 - i), 0));
    }
    filter->full |= count > UINT8_MAX;
    unless_equal_fail(filter, values[count - 1]);
}

void filter_rule(struct filter *filter, const uint32_t *calls, size_t count)
{
    filter->failing_count = 0;
    load(filter, offsetof(struct seccomp_data, nr));
    unless_one_of_fail(filter, calls, count);
}

static void load_argument(struct filter *filter, unsigned argument)
{
    load(filter, offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t));
}

void filter_one_of(struct filter *filter, unsigned argument, const uint32_t *values, size_t count)
{
    load_argument(filter, argument);
    unless_one_of_fail(filter, values, count);
}

void filter_bits(struct filter *filter, unsigned argument, uint32_t mask, uint32_t value)
{
    load_argument(filter, argument);
    emit(filter, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask));
    unless_equal_fail(filter, value);
}

void filter_null(struct filter *filter, unsigned argument)
{
    load_argument(filter, argument);
    unless_equal_fail(filter, 0);
    load(filter, offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t) + sizeof(uint32_t));
    unless_equal_fail(filter, 0);
}

static void finish(struct filter *filter, uint32_t action)
{
    answer(filter, action);
    for (uint32_t i = 0; i < filter->failing_count && !filter->full; i++) {
        uint32_t jump = filter->failing[i];
        uint32_t distance = filter->length - jump - 1;

        filter->full = distance > UINT8_MAX;
        filter->code[jump].jf = (uint8_t)distance;
    }
}

void filter_allow(struct filter *filter)
{
    finish(filter, SECCOMP_RET_ALLOW);
}

void filter_fail(struct filter *filter, int error)
{
    finish(filter, SECCOMP_RET_ERRNO | ((uint32_t)error & SECCOMP_RET_DATA));
}
