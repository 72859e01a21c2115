/* SPDX-License-Identifier: BSD-2-Clause */
#include "compare_writer.h"

static struct operand xmm_operand(struct writer *w, uint32_t alignment)
{
    return code_one_in(w, 3) ? code_in_memory(w, alignment) : code_in_register((uint8_t)code_below(w, 16));
}

static struct operand mmx_operand(struct writer *w)
{
    return code_one_in(w, 3) ? code_in_memory(w, 1) : code_in_register((uint8_t)code_below(w, 8));
}

static const uint8_t simd_prefixes[4] = {NO_PREFIX, 0x66, 0xf3, 0xf2};

void code_packed_instruction(struct writer *w)
{
    /* Both in MMX and in XMM registers. */
    static const uint8_t opcodes[] = {
        0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6f, 0x74, 0x75, 0x76, 0xd1, 0xd2,
        0xd3, 0xd4, 0xd5, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe8,
        0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc,
        0xfd, 0xfe, 0x7f,
    };
    bool xmm = code_one_in(w, 2);
    struct operand rm = xmm ? xmm_operand(w, 16) : mmx_operand(w);
    uint32_t prefix = xmm ? 0x66 : NO_PREFIX;
    uint32_t reg = code_below(w, xmm ? 16 : 8);

    switch (code_below(w, 8)) {
    case 0: { /* shift by an immediate */
        static const uint8_t shifts[] = {2, 4, 6};
        uint32_t opcode = 0x0f71 + code_below(w, 3);
        uint32_t operation = shifts[code_below(w, opcode == 0x0f73 ? 1 : 3)];

        if (opcode == 0x0f73) {
            operation = xmm ? (uint32_t[]){2, 3, 6, 7}[code_below(w, 4)] : (uint32_t[]){2, 6}[code_below(w, 2)];
        }
        code_encode(w, prefix, false, opcode, operation, code_in_register((uint8_t)reg), false);
        code_byte(w, code_below(w, 4) == 0 ? code_below(w, 256) : code_below(w, 65));
        break;
    }
    case 1: /* pshufw, pshufd */
        code_encode(w, xmm ? simd_prefixes[1 + code_below(w, 3)] : NO_PREFIX, false, 0x0f70, reg, rm, false);
        code_byte(w, code_below(w, 256));
        break;
    case 2: /* movd, movq from and to general registers */
        code_encode(w, prefix, code_one_in(w, 2), code_one_in(w, 2) ? 0x0f6e : 0x0f7e, reg, code_operand(w, 1), false);
        break;
    case 3: /* pmovmskb, pextrw */
        if (code_one_in(w, 2)) {
            code_encode(w, prefix, false, 0x0fd7, code_target(w), code_in_register((uint8_t)reg), false);
        } else {
            code_encode(w, prefix, false, 0x0fc5, code_target(w), code_in_register((uint8_t)reg), false);
            code_byte(w, code_below(w, 256));
        }
        break;
    case 4: /* pinsrw */
        code_encode(w, prefix, false, 0x0fc4, reg, code_operand(w, 1), false);
        code_byte(w, code_below(w, 256));
        break;
    case 5:
        if (xmm) {
            /* punpcklqdq, punpckhqdq, movdqu, movq, movntdq, and between MMX and XMM */
            static const uint16_t more[][2] = {{0x66, 0x6c}, {0x66, 0x6d}, {0xf3, 0x6f}, {0xf3, 0x7f}, {0xf3, 0x7e},
                                               {0x66, 0xd6}};
            uint32_t which = code_below(w, 8);

            if (which < 6) {
                code_encode(w, more[which][0], false, 0x0f00u + more[which][1], reg, rm, false);
            } else if (which == 6) {
                code_encode(w, 0xf3, false, 0x0fd6, reg, code_in_register((uint8_t)code_below(w, 8)), false); /* movq2dq */
            } else {
                code_encode(w, 0xf2, false, 0x0fd6, code_below(w, 8), code_in_register((uint8_t)code_below(w, 16)), false); /* movdq2q */
            }
        } else if (code_one_in(w, 4)) {
            code_byte(w, 0x0f); /* emms */
            code_byte(w, 0x77);
        } else {
            code_encode(w, NO_PREFIX, false, 0x0fe7, reg, code_in_memory(w, 1), false); /* movntq */
        }
        break;
    default:
        code_encode(w, prefix, false, 0x0f00u + opcodes[code_below(w, sizeof(opcodes))], reg, rm, false);
        break;
    }
}

static void sse_moves(struct writer *w)
{
    /* Prefix, opcode, register forms: 1 yes, 2 that alone, 0 none; alignment. */
    static const uint8_t forms[][4] = {
        {0x00, 0x10, 1, 1},  {0x66, 0x10, 1, 1},  {0xf3, 0x10, 1, 1},  {0xf2, 0x10, 1, 1},  {0x00, 0x11, 1, 1},
        {0x66, 0x11, 1, 1},  {0xf3, 0x11, 1, 1},  {0xf2, 0x11, 1, 1},  {0x00, 0x12, 1, 1},  {0x66, 0x12, 0, 1},
        {0xf3, 0x12, 1, 16}, {0xf2, 0x12, 1, 1},  {0x00, 0x13, 0, 1},  {0x66, 0x13, 0, 1},  {0x00, 0x14, 1, 16},
        {0x66, 0x14, 1, 16}, {0x00, 0x15, 1, 16}, {0x66, 0x15, 1, 16}, {0x00, 0x16, 1, 1},  {0x66, 0x16, 0, 1},
        {0xf3, 0x16, 1, 16}, {0x00, 0x17, 0, 1},  {0x66, 0x17, 0, 1},  {0x00, 0x28, 1, 16}, {0x66, 0x28, 1, 16},
        {0x00, 0x29, 1, 16}, {0x66, 0x29, 1, 16}, {0x00, 0x2b, 0, 16}, {0x66, 0x2b, 0, 16}, {0x66, 0xe7, 0, 16},
        {0xf2, 0xf0, 0, 1},  {0x00, 0x54, 1, 16}, {0x66, 0x55, 1, 16}, {0x00, 0x56, 1, 16}, {0x66, 0x57, 1, 16},
    };
    const uint8_t *form = forms[code_below(w, sizeof(forms) / sizeof(forms[0]))];
    struct operand rm = form[2] == 0 ? code_in_memory(w, form[3]) : xmm_operand(w, form[3]);

    switch (code_below(w, 6)) {
    case 0:
        code_encode(w, code_one_in(w, 2) ? 0x66 : NO_PREFIX, false, 0x0fc6, code_below(w, 16), xmm_operand(w, 16), false); /* shufp */
        code_byte(w, code_below(w, 256));
        break;
    case 1:
        code_encode(w, code_one_in(w, 2) ? 0x66 : NO_PREFIX, false, 0x0f50, code_target(w), code_in_register((uint8_t)code_below(w, 16)), false);
        break;
    default:
        code_encode(w, form[0], false, 0x0f00u + form[1], code_below(w, 16), rm, false);
    }
}

static void sse_arithmetic(struct writer *w)
{
    static const uint8_t opcodes[] = {0x51, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x5a};
    uint32_t prefix = simd_prefixes[code_below(w, 4)];
    uint32_t reg = code_below(w, 16);
    struct operand rm = xmm_operand(w, 16);

    switch (code_below(w, 9)) {
    case 0:
        code_encode(w, prefix, false, 0x0fc2, reg, rm, false);
        code_byte(w, code_one_in(w, 16) ? code_below(w, 256) : code_below(w, 8));
        break;
    case 1:
        code_encode(w, code_one_in(w, 2) ? 0x66 : NO_PREFIX, false, 0x0f2e + code_below(w, 2), reg, rm, false);
        code_writes(w, ARITHMETIC, 0);
        break;
    case 2:
        code_encode(w, code_one_in(w, 2) ? 0xf3 : NO_PREFIX, false, 0x0f52 + code_below(w, 2), reg, rm, false);
        break;
    case 3:
        code_encode(w, code_one_in(w, 2) ? 0x66 : 0xf2, false, (uint32_t[]){0x0f7c, 0x0f7d, 0x0fd0}[code_below(w, 3)], reg, rm, false);
        break;
    case 4:
        code_encode(w, simd_prefixes[code_below(w, 3)], false, 0x0f5b, reg, rm, false);
        break;
    case 5:
        code_encode(w, simd_prefixes[1 + code_below(w, 3)], false, 0x0fe6, reg, rm, false);
        break;
    case 6: /* cvtsi2ss, cvtsi2sd, and back */
        if (code_one_in(w, 2)) {
            code_encode(w, 0xf2 + code_below(w, 2), code_one_in(w, 2), 0x0f2a, reg, code_operand(w, 1), false);
        } else {
            code_encode(w, 0xf2 + code_below(w, 2), code_one_in(w, 2), 0x0f2c + code_below(w, 2), code_target(w), xmm_operand(w, 1), false);
        }
        break;
    case 7: /* cvtpi2ps, cvtpi2pd, and back */
        if (code_one_in(w, 2)) {
            code_encode(w, code_one_in(w, 2) ? 0x66 : NO_PREFIX, false, 0x0f2a, reg, mmx_operand(w), false);
        } else {
            code_encode(w, code_one_in(w, 2) ? 0x66 : NO_PREFIX, false, 0x0f2c + code_below(w, 2), code_below(w, 8), xmm_operand(w, 16), false);
        }
        break;
    default:
        code_encode(w, prefix, false, 0x0f00u + opcodes[code_below(w, sizeof(opcodes))], reg, rm, false);
    }
}

/* Valid with a register operand: of D8 to DF, one bit each from C0 on. As in unicorn/patches/host-fpu.patch, and some. */
static const uint64_t x87_registers[8] = {
    0xffffffffffffffff, 0xffff7f3300ffffff & ~0xfe0000ull, 0x00000200ffffffff, 0x00ffff0cffffffff,
    0xffffffff0000ffff, 0x0000ffffffff00ff, 0xffffffff0200ffff, 0x00ffff0100000000,
};
static const uint8_t x87_memory[8] = {0xff, 0x0d, 0xff, 0xaf, 0xff, 0x0f, 0xff, 0xff};

void code_x87_instruction(struct writer *w)
{
    for (;;) {
        uint32_t opcode = code_below(w, 8);
        uint32_t modrm = 0xc0 + code_below(w, 64);
        uint32_t reg = code_below(w, 8);

        switch (code_below(w, 24)) {
        case 0:
            code_encode(w, NO_PREFIX, false, 0xd9, 5, (struct operand){.memory = true, .disp = COMPARE_CONTROL_WORDS - BASE + 2 * code_below(w, 8)},
                   false); /* fldcw */
            return;
        case 1:
            code_encode(w, NO_PREFIX, false, code_one_in(w, 2) ? 0xd9 : 0xdd, 7, code_in_memory(w, 1), false); /* fnstcw, fnstsw */
            return;
        case 2:
            code_byte(w, 0x9b); /* fwait */
            return;
        case 3:
            code_encode(w, NO_PREFIX, false, 0x0fae, 2, (struct operand){.memory = true, .disp = COMPARE_MXCSRS - BASE + 4 * code_below(w, 8)},
                   false); /* ldmxcsr */
            return;
        case 4:
            code_encode(w, NO_PREFIX, false, 0x0fae, 3, code_in_memory(w, 1), false); /* stmxcsr */
            return;
        default:
            break;
        }
        if (code_one_in(w, 3)) {
            if (x87_memory[opcode] >> reg & 1) {
                code_encode(w, NO_PREFIX, false, 0xd8 + opcode, reg, code_in_memory(w, 1), false);
                return;
            }
        } else if (x87_registers[opcode] >> (modrm - 0xc0) & 1) {
            if ((opcode == 2 || opcode == 3) && modrm < 0xe0) {
                code_reads(w, CF | PF | ZF); /* fcmov */
            }
            code_byte(w, 0xd8 + opcode);
            code_byte(w, modrm);
            if ((opcode == 3 || opcode == 7) && modrm >= 0xe8) {
                code_writes(w, ARITHMETIC, 0);
            }
            return;
        }
    }
}

void code_sse_instruction(struct writer *w)
{
    if (code_one_in(w, 3)) {
        sse_moves(w);
    } else {
        sse_arithmetic(w);
    }
}
