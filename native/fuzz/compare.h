/* SPDX-License-Identifier: BSD-2-Clause */
/* What the software CPU and the host's own are compared by: a program, and the state around it. */
#ifndef VMM_FUZZ_COMPARE_H
#define VMM_FUZZ_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "x86_code.h"

/* Addresses, the same in both: softcpu_guest.h has them for the guest. Nothing else is touched by a program. */
#define COMPARE_CODE 0x10000u
#define COMPARE_CODE_BYTES 0x1000u
#define COMPARE_STACK 0x1e000u
#define COMPARE_STACK_BYTES 0x1000u
#define COMPARE_DATA 0x20000u
#define COMPARE_DATA_BYTES 0x2000u
/* In the data: words that FLDCW, and MXCSR values that LDMXCSR can load. */
#define COMPARE_CONTROL_WORDS 0x1f00u
#define COMPARE_MXCSRS 0x1f40u

#define COMPARE_INSTRUCTIONS 24

/* Between two instructions. */
struct cpu_state {
    uint64_t gpr[16]; /* in the order of their numbers */
    uint64_t rip;
    uint32_t rflags;
    uint16_t fcw;
    uint16_t fsw;
    uint8_t valid; /* x87 registers that are not empty, by number */
    uint32_t mxcsr;
    uint8_t st[8][16]; /* by place on the stack, 10 bytes each */
    uint8_t xmm[16][16];
};

/* How a program ended. */
struct cpu_end {
    struct cpu_state state;
    uint32_t vector; /* 3 is its regular end */
    uint32_t error_code;
    uint8_t stack[COMPARE_STACK_BYTES];
    uint8_t data[COMPARE_DATA_BYTES];
};

struct compare_program {
    struct cpu_state state;
    uint8_t code[COMPARE_CODE_BYTES];
    uint32_t size;
    uint32_t count;
    uint32_t starts[COMPARE_INSTRUCTIONS + 1]; /* offsets in the code; the last is the end */
    uint32_t undefined[COMPARE_INSTRUCTIONS + 1]; /* flags that have no defined value in front of it */
    uint8_t stack[COMPARE_STACK_BYTES];
    uint8_t data[COMPARE_DATA_BYTES];
};

/* native_cpu.c: to be called once, in a process of its own. False: errno says why. */
bool native_cpu_prepare(void);
void native_cpu_run(const struct compare_program *program, struct cpu_end *end);

/* compare_code.c: instructions and the state in front of them; the same for the same seed. */
void compare_make_program(uint64_t seed, struct compare_program *program);

#endif
