/* SPDX-License-Identifier: BSD-2-Clause */
/* Where FXSAVE, and KVM_GET_XSAVE in front of all else, put the registers of x87 and SSE. */
#ifndef SOFTCPU_FXSAVE_H
#define SOFTCPU_FXSAVE_H

#include <stdint.h>

/* Intel SDM volume 2, FXSAVE: the area's 64-bit layout. */
struct fxsave_area {
    uint16_t control;
    uint16_t status;
    uint8_t valid; /* one bit per register, by number */
    uint8_t reserved;
    uint16_t opcode;
    uint64_t instruction;
    uint64_t operand;
    uint32_t mxcsr;
    uint32_t mxcsr_mask;
    uint8_t st[8][16]; /* by place on the stack */
    uint8_t xmm[16][16];
    uint8_t unused[96];
} __attribute__((aligned(16)));

_Static_assert(sizeof(struct fxsave_area) == 512, "as FXSAVE writes it");

#endif
