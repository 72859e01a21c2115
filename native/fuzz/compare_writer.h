/* SPDX-License-Identifier: BSD-2-Clause */
/* Writing the instructions of a program to compare: compare_code.c. */
#ifndef VMM_FUZZ_COMPARE_WRITER_H
#define VMM_FUZZ_COMPARE_WRITER_H

#include "compare.h"

#define CF 0x001u
#define PF 0x004u
#define AF 0x010u
#define ZF 0x040u
#define SF 0x080u
#define OF 0x800u
#define ARITHMETIC (CF | PF | AF | ZF | SF | OF)

#define NO_PREFIX 0
#define RBX 3
#define RSP 4
#define R15 15
/* What RBX points at, in the data. */
#define BASE 0x200u

struct writer {
    struct random *random;
    struct compare_program *program;
    uint32_t undefined;
};

/* The operand that ModRM's rm names. */
struct operand {
    bool memory;
    bool indexed; /* RBX + R15 + disp */
    uint8_t reg;
    uint32_t disp;
};

/* Of an integer instruction: log2 of its bytes, at random; a byte register needs REX to be BPL, not CH. */
struct width {
    uint32_t log2;
    uint32_t prefix;
    bool wide;
};

uint32_t code_below(struct writer *w, uint32_t n);
bool code_one_in(struct writer *w, uint32_t n);
void code_byte(struct writer *w, uint32_t value);
void code_immediate(struct writer *w, uint64_t value, uint32_t size);
/* Small, near a power of two, or anything. */
uint64_t code_any_value(struct writer *w);
/* A general register to write to. */
uint8_t code_target(struct writer *w);
struct operand code_in_register(uint8_t reg);
/* Mostly aligned to the size that matters. */
struct operand code_in_memory(struct writer *w, uint32_t alignment);
/* Either; a general register. */
struct operand code_operand(struct writer *w, uint32_t alignment);
/* prefix: 0, 66, F2, F3, in front of REX. opcode: up to three bytes, 0F first. rex: even if it says nothing. */
void code_encode(struct writer *w, uint32_t prefix, bool wide, uint32_t opcode, uint32_t reg, struct operand rm, bool rex);
/* In front of an instruction that reads these flags. */
void code_reads(struct writer *w, uint32_t flags);
void code_writes(struct writer *w, uint32_t defined, uint32_t undefined);
/* smallest: log2 of bytes. */
struct width code_any_width(struct writer *w, uint32_t smallest);
uint32_t code_immediate_bytes(struct width width);
/* opcode is that of the byte form; the next one is for the others. */
void code_sized(struct writer *w, struct width width, uint32_t opcode, uint32_t reg, struct operand rm);

/* One instruction, or one and what has to be in front of it. compare_integers.c, compare_simd.c */
void code_integer_instruction(struct writer *w);
void code_x87_instruction(struct writer *w);
void code_sse_instruction(struct writer *w);
void code_packed_instruction(struct writer *w);

#endif
