/* SPDX-License-Identifier: BSD-2-Clause */
#include "compare_writer.h"

static void arithmetic(struct writer *w)
{
    uint32_t operation = code_below(w, 8); /* add or adc sbb and sub xor cmp */
    struct width width = code_any_width(w, 0);
    struct operand rm = code_operand(w, 1);

    if (operation == 2 || operation == 3) {
        code_reads(w, CF);
    }
    switch (code_below(w, 4)) {
    case 0:
        if (rm.memory && operation != 7 && code_one_in(w, 3)) {
            code_byte(w, 0xf0);
        }
        code_sized(w, width, operation << 3, code_target(w), rm);
        break;
    case 1:
        code_sized(w, width, operation << 3 | 2, code_target(w), rm);
        break;
    case 2:
        code_sized(w, width, 0x80, operation, rm);
        code_immediate(w, code_any_value(w), code_immediate_bytes(width));
        break;
    default:
        width = code_any_width(w, 1);
        code_encode(w, width.prefix, width.wide, 0x83, operation, rm, false);
        code_immediate(w, code_any_value(w), 1);
        break;
    }
    code_writes(w, ARITHMETIC, operation == 1 || operation == 4 || operation == 6 ? AF : 0);
}

static void one_operand(struct writer *w)
{
    struct width width = code_any_width(w, 0);
    struct operand rm = code_operand(w, 1);

    switch (code_below(w, 6)) {
    case 0:
        code_sized(w, width, 0xfe, 0, rm); /* inc */
        code_writes(w, ARITHMETIC & ~CF, 0);
        break;
    case 1:
        code_sized(w, width, 0xfe, 1, rm); /* dec */
        code_writes(w, ARITHMETIC & ~CF, 0);
        break;
    case 2:
        code_sized(w, width, 0xf6, 2, rm); /* not */
        break;
    case 3:
        code_sized(w, width, 0xf6, 3, rm); /* neg */
        code_writes(w, ARITHMETIC, 0);
        break;
    case 4:
        code_sized(w, width, 0xf6, 0, rm); /* test */
        code_immediate(w, code_any_value(w), code_immediate_bytes(width));
        code_writes(w, ARITHMETIC, AF);
        break;
    default:
        code_sized(w, width, 0x84, code_target(w), rm); /* test */
        code_writes(w, ARITHMETIC, AF);
        break;
    }
}

static void multiply(struct writer *w)
{
    struct width width = code_any_width(w, 0);
    struct operand rm = code_operand(w, 1);
    uint32_t kind = code_below(w, 6);

    if (kind < 2) {
        code_sized(w, width, 0xf6, 4 + kind, rm);
    } else if (kind < 4) {
        /* Small dividends, so that not all of them are #DE. */
        if (!code_one_in(w, 4)) {
            code_byte(w, 0x31); /* xor %edx, %edx */
            code_byte(w, 0xd2);
            if (width.log2 == 0) {
                code_byte(w, 0x0f); /* movzbl %al, %eax */
                code_byte(w, 0xb6);
                code_byte(w, 0xc0);
            }
        }
        code_sized(w, width, 0xf6, 2 + kind + 2, rm);
        code_writes(w, 0, ARITHMETIC);
        return;
    } else {
        width = code_any_width(w, 1);
        if (kind == 4) {
            code_encode(w, width.prefix, width.wide, 0x0faf, code_target(w), rm, false);
        } else if (code_one_in(w, 2)) {
            code_encode(w, width.prefix, width.wide, 0x69, code_target(w), rm, false);
            code_immediate(w, code_any_value(w), code_immediate_bytes(width));
        } else {
            code_encode(w, width.prefix, width.wide, 0x6b, code_target(w), rm, false);
            code_immediate(w, code_any_value(w), 1);
        }
    }
    code_writes(w, CF | OF, SF | ZF | AF | PF);
}

static void shift(struct writer *w)
{
    struct width width = code_any_width(w, 0);
    struct operand rm = code_operand(w, 1);
    uint32_t operation = code_below(w, 8); /* rol ror rcl rcr shl shr sal sar */
    uint32_t kind = code_below(w, 3);
    uint32_t count = kind == 0 ? code_below(w, 256) : 1;
    uint32_t masked = count & (width.log2 == 3 ? 63 : 31);
    bool rotates = operation < 4;

    if (operation == 2 || operation == 3) {
        code_reads(w, CF);
    }
    if (kind == 2) {
        code_sized(w, width, 0xd2, operation, rm); /* by CL, of which nothing is known */
        code_writes(w, 0, rotates ? OF | (w->undefined & CF) : OF | AF | (width.log2 < 2 ? CF : 0));
        return;
    }
    code_sized(w, width, kind == 0 ? 0xc0 : 0xd0, operation, rm);
    if (kind == 0) {
        code_byte(w, count);
    }
    if (masked == 0) {
        return;
    }
    if (rotates) {
        code_writes(w, CF | OF, masked == 1 ? 0 : OF);
    } else {
        code_writes(w, ARITHMETIC,
               AF | (masked == 1 ? 0 : OF) | (masked >= 8u << width.log2 && operation != 7 ? CF : 0));
    }
}

static void double_shift(struct writer *w)
{
    struct width width = code_any_width(w, 2);
    bool right = code_one_in(w, 2);
    bool by_cl = code_one_in(w, 2);
    uint32_t count = code_below(w, 256);

    code_encode(w, width.prefix, width.wide, (right ? 0x0facu : 0x0fa4u) + (by_cl ? 1 : 0), code_target(w), code_operand(w, 1), false);
    if (!by_cl) {
        code_byte(w, count);
    }
    if (by_cl) {
        code_writes(w, 0, OF | AF);
    } else if ((count & (width.wide ? 63 : 31)) != 0) {
        code_writes(w, ARITHMETIC, AF | ((count & (width.wide ? 63 : 31)) == 1 ? 0 : OF));
    }
}

static void bits(struct writer *w)
{
    struct width width = code_any_width(w, 1);

    switch (code_below(w, 3)) {
    case 0:
        code_encode(w, width.prefix, width.wide, 0x0fa3 + 8 * code_below(w, 4), code_target(w), code_in_register(code_target(w)), false);
        code_writes(w, CF, OF | SF | AF | PF);
        break;
    case 1:
        code_encode(w, width.prefix, width.wide, 0x0fba, 4 + code_below(w, 4), code_operand(w, 1), false);
        code_byte(w, code_below(w, 256));
        code_writes(w, CF, OF | SF | AF | PF);
        break;
    default:
        code_encode(w, width.prefix, width.wide, 0x0fbc + code_below(w, 2), code_target(w), code_operand(w, 1), false);
        code_writes(w, ZF, CF | OF | SF | AF | PF);
        break;
    }
}

/* Which flags the sixteen conditions look at. */
static const uint32_t condition_flags[8] = {OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF};

static void conditional(struct writer *w)
{
    uint32_t condition = code_below(w, 16);
    struct width width = code_any_width(w, 1);
    uint32_t over = code_below(w, 3);

    code_reads(w, condition_flags[condition / 2]);
    switch (code_below(w, 3)) {
    case 0:
        code_encode(w, width.prefix, width.wide, 0x0f40 + condition, code_target(w), code_operand(w, 1), false);
        break;
    case 1:
        code_encode(w, NO_PREFIX, false, 0x0f90 + condition, 0, code_operand(w, 1), true);
        break;
    default:
        code_byte(w, 0x70 + condition);
        code_byte(w, 3 * over);
        for (uint32_t i = 0; i < over; i++) {
            code_byte(w, 0x8d); /* lea 1(%rdx), %edx */
            code_byte(w, 0x52);
            code_byte(w, 0x01);
        }
        break;
    }
}

static void move(struct writer *w)
{
    struct width width = code_any_width(w, 0);
    struct width wider = code_any_width(w, 1);

    switch (code_below(w, 11)) {
    case 0:
        code_sized(w, width, 0x88, code_target(w), code_operand(w, 1));
        break;
    case 1:
        code_sized(w, width, 0x8a, code_target(w), code_operand(w, 1));
        break;
    case 2:
        code_sized(w, width, 0xc6, 0, code_operand(w, 1));
        code_immediate(w, code_any_value(w), code_immediate_bytes(width));
        break;
    case 3:
        code_encode(w, wider.prefix, wider.wide, 0x0fb6 + 8 * code_below(w, 2), code_target(w), code_operand(w, 1), true);
        break;
    case 4:
        code_encode(w, wider.prefix, wider.wide, 0x0fb7 + 8 * code_below(w, 2), code_target(w), code_operand(w, 1), false);
        break;
    case 5:
        code_encode(w, NO_PREFIX, true, 0x63, code_target(w), code_operand(w, 1), false); /* movslq */
        break;
    case 6:
        code_encode(w, wider.prefix, wider.wide, 0x8d, code_target(w), code_in_memory(w, 1), false); /* lea */
        break;
    case 7:
        code_sized(w, width, 0x86, code_target(w), code_operand(w, 1)); /* xchg */
        break;
    case 8: {
        uint8_t reg = code_target(w);

        code_byte(w, 0x40 | (code_one_in(w, 2) ? 8 : 0) | (reg >> 3)); /* bswap */
        code_byte(w, 0x0f);
        code_byte(w, 0xc8 | (reg & 7));
        break;
    }
    case 9: {
        uint8_t reg = code_target(w);

        code_byte(w, 0x48 | (reg >> 3));
        code_byte(w, 0xb8 | (reg & 7));
        code_immediate(w, code_any_value(w), 8);
        break;
    }
    default:
        code_byte(w, code_one_in(w, 2) ? 0x48 : 0x90); /* cltq or nop; cqto */
        code_byte(w, 0x98 + code_below(w, 2));
        break;
    }
}

static void exchange(struct writer *w)
{
    struct width width = code_any_width(w, 0);

    switch (code_below(w, 3)) {
    case 0:
        code_sized(w, width, 0x0fc0, code_target(w), code_operand(w, 1)); /* xadd */
        code_writes(w, ARITHMETIC, 0);
        break;
    case 1: {
        struct operand rm = code_operand(w, 1);

        if (!rm.memory && code_one_in(w, 2)) {
            code_encode(w, NO_PREFIX, true, 0x8b, 0, rm, false); /* so that they are the same */
        }
        code_sized(w, width, 0x0fb0, code_target(w), rm); /* cmpxchg */
        code_writes(w, ARITHMETIC, 0);
        break;
    }
    default: {
        bool wide = code_one_in(w, 2);

        /* cmpxchg8b with RBX: the low half of what is stored */
        code_encode(w, NO_PREFIX, wide, 0x0fc7, 1, code_in_memory(w, wide ? 16 : 8), false);
        code_writes(w, ZF, 0);
        break;
    }
    }
}

static void flags(struct writer *w)
{
    static const uint8_t opcodes[] = {0xf5, 0xf8, 0xf9, 0xfc, 0xfd}; /* cmc clc stc cld std */

    switch (code_below(w, 3)) {
    case 0:
        code_reads(w, CF | PF | AF | ZF | SF);
        code_byte(w, 0x9f); /* lahf */
        break;
    case 1:
        code_byte(w, 0x9e); /* sahf */
        code_writes(w, CF | PF | AF | ZF | SF, 0);
        break;
    default: {
        uint8_t opcode = opcodes[code_below(w, sizeof(opcodes))];

        if (opcode == 0xf5) {
            code_reads(w, CF);
        }
        code_byte(w, opcode);
        if (opcode < 0xfc) {
            code_writes(w, CF, 0);
        }
        break;
    }
    }
}

static void stack(struct writer *w)
{
    uint8_t reg = code_target(w);

    switch (code_below(w, 3)) {
    case 0:
        code_byte(w, 0x40 | (reg >> 3));
        code_byte(w, 0x50 | (reg & 7));
        break;
    case 1:
        code_byte(w, 0x40 | (reg >> 3));
        code_byte(w, 0x58 | (reg & 7));
        break;
    default:
        code_byte(w, 0x6a);
        code_byte(w, code_below(w, 256));
        break;
    }
}

static void string(struct writer *w)
{
    static const uint8_t opcodes[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae}; /* movs cmps stos lods scas */
    uint8_t opcode = opcodes[code_below(w, sizeof(opcodes))];
    struct width width = code_any_width(w, 0);
    bool compares = opcode == 0xa6 || opcode == 0xae;
    uint32_t repeat = code_below(w, 3); /* none, F2, F3 */

    if (repeat != 0) {
        if (compares) {
            code_reads(w, ARITHMETIC); /* of zero iterations, they stay */
        }
        code_byte(w, 0xb9); /* mov $n, %ecx */
        code_immediate(w, code_below(w, 9), 4);
        code_byte(w, 0xf1 + repeat);
    }
    if (width.prefix != NO_PREFIX) {
        code_byte(w, width.prefix);
    }
    if (width.wide) {
        code_byte(w, 0x48);
    }
    code_byte(w, opcode + (width.log2 > 0 ? 1u : 0));
    if (compares) {
        code_writes(w, ARITHMETIC, 0);
    }
}

static void loop(struct writer *w)
{
    code_byte(w, 0xe3); /* jrcxz over two bytes */
    code_byte(w, 2);
    code_byte(w, 0x31); /* xor %r8d, %r8d would need REX: xor %ebp, %ebp */
    code_byte(w, 0xed);
    code_writes(w, ARITHMETIC, ARITHMETIC); /* done, or not */
}

void code_integer_instruction(struct writer *w)
{
    static void (*const kinds[])(struct writer *) = {
        arithmetic,  arithmetic, one_operand, multiply, shift,  double_shift, bits,
        conditional, conditional, move,       move,     exchange, flags, stack, string, loop,
    };

    kinds[code_below(w, sizeof(kinds) / sizeof(kinds[0]))](w);
}
