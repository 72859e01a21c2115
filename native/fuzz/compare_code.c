/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Programs whose outcome the architecture defines: valid instructions, memory
 * operands inside the data page, and no instruction that reads a flag which
 * another has left undefined (a comparison is put in front of it). Operands,
 * register contents and exception masks are at random, so #DE, #GP, #MF and
 * #XM happen, and end a program.
 *
 * RBX is the data's address, R15 a small index, RSI and RDI are for string
 * instructions; no instruction is given them as a destination.
 */
#include "compare_writer.h"

#include <string.h>

uint32_t code_below(struct writer *w, uint32_t n)
{
    return random_below(w->random, n);
}

bool code_one_in(struct writer *w, uint32_t n)
{
    return code_below(w, n) == 0;
}

void code_byte(struct writer *w, uint32_t value)
{
    w->program->code[w->program->size++] = (uint8_t)value;
}

void code_immediate(struct writer *w, uint64_t value, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        code_byte(w, (uint32_t)(value >> (8 * i)) & 0xff);
    }
}

uint64_t code_any_value(struct writer *w)
{
    switch (code_below(w, 4)) {
    case 0:
        return code_below(w, 8);
    case 1:
        return (1ull << code_below(w, 64)) - code_below(w, 3);
    case 2:
        return ~(uint64_t)code_below(w, 8);
    default:
        return random_next(w->random);
    }
}

/* A general register to write to. */
uint8_t code_target(struct writer *w)
{
    static const uint8_t free_registers[] = {0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14};

    return free_registers[code_below(w, sizeof(free_registers))];
}

struct operand code_in_register(uint8_t reg)
{
    return (struct operand){.reg = reg};
}

/* Mostly aligned to the size that matters. */
struct operand code_in_memory(struct writer *w, uint32_t alignment)
{
    uint32_t disp = code_below(w, 0x600);

    if (!code_one_in(w, 12)) {
        disp &= ~(alignment - 1);
    }
    return (struct operand){.memory = true, .indexed = code_one_in(w, 8), .disp = disp};
}

struct operand code_operand(struct writer *w, uint32_t alignment)
{
    return code_one_in(w, 3) ? code_in_memory(w, alignment) : code_in_register(code_target(w));
}

/* prefix: 0, 66, F2, F3 in front of REX. opcode: up to three bytes, 0F first. */
void code_encode(struct writer *w, uint32_t prefix, bool wide, uint32_t opcode, uint32_t reg, struct operand rm, bool rex)
{
    uint32_t rex_byte = 0x40u | (wide ? 8 : 0) | (reg & 8 ? 4 : 0) | (rm.memory && rm.indexed ? 2 : 0) |
                        (!rm.memory && (rm.reg & 8) ? 1 : 0);

    if (prefix != NO_PREFIX) {
        code_byte(w, prefix);
    }
    if (rex || rex_byte != 0x40) {
        code_byte(w, rex_byte);
    }
    if (opcode > 0xffff) {
        code_byte(w, opcode >> 16);
    }
    if (opcode > 0xff) {
        code_byte(w, opcode >> 8 & 0xff);
    }
    code_byte(w, opcode & 0xff);
    if (!rm.memory) {
        code_byte(w, 0xc0 | (reg & 7) << 3 | (rm.reg & 7));
        return;
    }
    code_byte(w, 0x80 | (reg & 7) << 3 | (rm.indexed ? 4 : RBX));
    if (rm.indexed) {
        code_byte(w, (R15 & 7) << 3 | RBX);
    }
    code_immediate(w, rm.disp, 4);
}

/* In front of an instruction that reads these flags. */
void code_reads(struct writer *w, uint32_t flags)
{
    if (w->undefined & flags) {
        code_byte(w, 0x3c); /* cmp $imm8, %al */
        code_byte(w, code_below(w, 256));
        w->undefined = 0;
    }
}

void code_writes(struct writer *w, uint32_t defined, uint32_t undefined)
{
    w->undefined = (w->undefined & ~defined) | undefined;
}

struct width code_any_width(struct writer *w, uint32_t smallest)
{
    uint32_t log2 = smallest + code_below(w, 4 - smallest);

    return (struct width){.log2 = log2, .prefix = log2 == 1 ? 0x66 : NO_PREFIX, .wide = log2 == 3};
}

uint32_t code_immediate_bytes(struct width width)
{
    return width.log2 == 3 ? 4 : 1u << width.log2;
}

/* opcode is that of the byte form; the next one is for the others. */
void code_sized(struct writer *w, struct width width, uint32_t opcode, uint32_t reg, struct operand rm)
{
    code_encode(w, width.prefix, width.wide, opcode + (width.log2 > 0), reg, rm, width.log2 == 0);
}

static void one_instruction(struct writer *w, uint32_t flavour)
{
    static void (*const flavours[])(struct writer *) = {code_integer_instruction, code_x87_instruction,
                                                        code_sse_instruction, code_packed_instruction};

    flavours[code_one_in(w, 4) ? 0 : flavour](w);
}

static uint32_t any_single(struct writer *w)
{
    static const uint32_t special[] = {0,          0x80000000, 1,          0x807fffff, 0x00800000, 0x3f800000, 0xbf800000,
                                       0x7f800000, 0xff800000, 0x7fc00000, 0x7fa00001, 0xffc12345, 0x7f7fffff, 0x4effffff};

    return code_one_in(w, 2) ? special[code_below(w, sizeof(special) / sizeof(special[0]))] : (uint32_t)random_next(w->random);
}

static uint64_t any_double(struct writer *w)
{
    static const uint64_t special[] = {0,
                                       0x8000000000000000,
                                       1,
                                       0x800fffffffffffff,
                                       0x0010000000000000,
                                       0x3ff0000000000000,
                                       0xbff8000000000000,
                                       0x7ff0000000000000,
                                       0xfff0000000000000,
                                       0x7ff8000000000000,
                                       0x7ff4000000000001,
                                       0x7fefffffffffffff,
                                       0x41dfffffffc00000};

    return code_one_in(w, 2) ? special[code_below(w, sizeof(special) / sizeof(special[0]))] : random_next(w->random);
}

static void any_extended(struct writer *w, uint8_t *to)
{
    static const uint16_t exponents[] = {0, 1, 0x3fff, 0x3ffe, 0x4000, 0x4001, 0x403e, 0x7ffe, 0x7fff, 0x3f00};
    uint64_t mantissa = code_one_in(w, 4) ? 1ull << 63 : code_one_in(w, 4) ? 0 : random_next(w->random) | (code_one_in(w, 8) ? 0 : 1ull << 63);
    uint16_t exponent = code_one_in(w, 3) ? (uint16_t)(0x3fff - 8 + code_below(w, 16)) : exponents[code_below(w, 10)];

    exponent |= (uint16_t)(code_below(w, 2) << 15);
    memcpy(to, &mantissa, 8);
    memcpy(to + 8, &exponent, 2);
}

static void fill(struct writer *w, uint8_t *to, uint32_t size)
{
    for (uint32_t i = 0; i < size; i += 8) {
        uint32_t singles[2] = {any_single(w), any_single(w)};
        uint64_t value = code_one_in(w, 3) ? any_double(w) : code_one_in(w, 2) ? code_any_value(w) : 0;

        if (value == 0) {
            memcpy(&value, singles, 8);
        }
        memcpy(to + i, &value, 8);
    }
}

/* Mostly all exceptions masked. */
static uint32_t any_masks(struct writer *w)
{
    return code_one_in(w, 4) ? code_below(w, 64) : code_one_in(w, 3) ? 0x3f & ~(1u << code_below(w, 6)) : 0x3f;
}

static uint16_t any_control_word(struct writer *w)
{
    static const uint16_t precisions[] = {0x300, 0x300, 0x200, 0x000};

    return (uint16_t)(0x40 | any_masks(w) | precisions[code_below(w, 4)] | code_below(w, 4) << 10);
}

static uint32_t any_mxcsr(struct writer *w)
{
    return any_masks(w) << 7 | code_below(w, 4) << 13 | (code_one_in(w, 4) ? 0x8000 : 0) | (code_one_in(w, 4) ? 0x40 : 0) | code_below(w, 64);
}

static void make_state(struct writer *w)
{
    struct cpu_state *state = &w->program->state;

    for (int i = 0; i < 16; i++) {
        state->gpr[i] = code_any_value(w);
        fill(w, state->xmm[i], 16);
    }
    state->gpr[RBX] = COMPARE_DATA + BASE;
    state->gpr[RSP] = COMPARE_STACK + 0x800;
    state->gpr[6] = COMPARE_DATA + 0x1000; /* RSI */
    state->gpr[7] = COMPARE_DATA + 0x1400; /* RDI */
    state->gpr[R15] = code_below(w, 2) * 16 + (code_one_in(w, 4) ? code_below(w, 16) : 0);
    state->rip = COMPARE_CODE;
    state->rflags = 2 | (code_below(w, 0x1000) & ARITHMETIC);
    state->fcw = any_control_word(w);
    state->fsw = (uint16_t)(code_below(w, 8) << 11 | code_below(w, 16) << 8);
    state->valid = (uint8_t)random_next(w->random) | (code_one_in(w, 2) ? 0xff : 0);
    state->mxcsr = any_mxcsr(w) & ~0x3fu;
    for (int i = 0; i < 8; i++) {
        any_extended(w, state->st[i]);
    }
    fill(w, w->program->data, COMPARE_DATA_BYTES);
    fill(w, w->program->stack, COMPARE_STACK_BYTES);
    for (uint32_t i = 0; i < 8; i++) {
        uint16_t word = any_control_word(w);
        uint32_t mxcsr = any_mxcsr(w);

        memcpy(w->program->data + COMPARE_CONTROL_WORDS + 2 * i, &word, 2);
        memcpy(w->program->data + COMPARE_MXCSRS + 4 * i, &mxcsr, 4);
    }
}

void compare_make_program(uint64_t seed, struct compare_program *program)
{
    struct random random = {seed};
    struct writer w = {.random = &random, .program = program};
    uint32_t flavour = code_below(&w, 4);

    memset(program, 0, sizeof(*program));
    make_state(&w);
    while (program->count < COMPARE_INSTRUCTIONS) {
        program->starts[program->count] = program->size;
        program->undefined[program->count] = w.undefined;
        program->count++;
        one_instruction(&w, flavour);
    }
    program->starts[program->count] = program->size;
    program->undefined[program->count] = w.undefined;
    code_byte(&w, 0xcc);
}
