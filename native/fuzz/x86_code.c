/* SPDX-License-Identifier: BSD-2-Clause */
#include "x86_code.h"

#include <stdbool.h>
#include <string.h>

uint64_t random_next(struct random *random)
{
    /* SplitMix64 (Steele, Lea, Flood 2014). */
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t random_below(struct random *random, uint32_t below)
{
    return (uint32_t)((random_next(random) >> 32) * below >> 32);
}

#define MAX_INSTRUCTION 15
#define MAX_SEQUENCE 20 /* of one with what sets its registers */

struct instruction {
    uint8_t bytes[MAX_SEQUENCE];
    uint32_t size;
};

static void put(struct instruction *to, uint64_t value, uint32_t size)
{
    for (uint32_t i = 0; i < size && to->size < MAX_SEQUENCE; i++) {
        to->bytes[to->size++] = (uint8_t)(value >> (8 * i));
    }
}

static bool one_in(struct random *random, uint32_t n)
{
    return random_below(random, n) == 0;
}

/* Small, near a power of two, or anything. */
static uint64_t immediate(struct random *random)
{
    switch (random_below(random, 4)) {
    case 0:
        return random_below(random, 16);
    case 1:
        return (1ull << random_below(random, 64)) - random_below(random, 3);
    case 2:
        return 0x20000 + random_below(random, 0x20000); /* data of the guest */
    default:
        return random_next(random);
    }
}

static void put_modrm(struct random *random, uint32_t bits, bool addresses_16, struct instruction *to)
{
    uint8_t modrm = (uint8_t)random_next(random);
    uint32_t mod;
    uint32_t rm = modrm & 7;

    if (one_in(random, 3)) {
        modrm |= 0xc0; /* a register: half of the instructions' forms */
    }
    mod = modrm >> 6;
    put(to, modrm, 1);
    if (mod == 3) {
        return;
    }
    if (addresses_16) {
        put(to, immediate(random), mod == 1 ? 1 : (mod == 2 || rm == 6) ? 2 : 0);
        return;
    }
    if (rm == 4) {
        uint8_t sib = (uint8_t)random_next(random);

        put(to, sib, 1);
        rm = mod == 0 ? sib & 7 : rm;
    }
    if (mod == 0 && rm == 5 && bits == 64) {
        put(to, random_below(random, 0x2000), 4); /* relative to RIP */
    } else {
        put(to, immediate(random), mod == 1 ? 1 : (mod == 2 || rm == 5) ? 4 : 0);
    }
}

/* Opcodes of one byte without ModRM: which, and how many bytes of immediate (9: the operand's size, up to 4). */
static uint32_t plain_immediate(uint8_t opcode)
{
    switch (opcode) {
    case 0x04: case 0x0c: case 0x14: case 0x1c: case 0x24: case 0x2c: case 0x34: case 0x3c:
    case 0x6a: case 0xa8: case 0xcd: case 0xd4: case 0xd5: case 0xe4: case 0xe5: case 0xe6: case 0xe7:
        return 1;
    case 0x05: case 0x0d: case 0x15: case 0x1d: case 0x25: case 0x2d: case 0x35: case 0x3d: case 0x68: case 0xa9:
        return 9;
    default:
        if (opcode >= 0x70 && opcode <= 0x7f) {
            return 1;
        }
        if ((opcode >= 0xb0 && opcode <= 0xb7) || (opcode >= 0xe0 && opcode <= 0xe3) || opcode == 0xeb) {
            return 1;
        }
        return (opcode >= 0xb8 && opcode <= 0xbf) ? 9 : 0;
    }
}

static bool has_modrm(uint8_t opcode)
{
    static const uint8_t others[] = {0x62, 0x63, 0x69, 0x6b, 0xc4, 0xc5};

    return (opcode < 0x40 && (opcode & 7) < 4) || (opcode >= 0x80 && opcode <= 0x8f) || opcode == 0xc0 ||
           opcode == 0xc1 || opcode == 0xc6 || opcode == 0xc7 || (opcode >= 0xd0 && opcode <= 0xd3) ||
           (opcode >= 0xd8 && opcode <= 0xdf) || opcode == 0xf6 || opcode == 0xf7 || opcode >= 0xfe ||
           memchr(others, opcode, sizeof(others)) != NULL;
}

static void put_one_byte_opcode(struct random *random, uint32_t bits, bool addresses_16, struct instruction *to)
{
    uint8_t opcode = (uint8_t)random_next(random);
    uint32_t size;

    put(to, opcode, 1);
    if (!has_modrm(opcode)) {
        size = plain_immediate(opcode);
        /* Jumps stay near, and mostly lead on. */
        put(to, (opcode >= 0x70 && opcode <= 0x7f) || opcode >= 0xe0 ? random_below(random, 24) : immediate(random),
            size == 9 ? (one_in(random, 2) ? 2 : 4) : size);
        return;
    }
    put_modrm(random, bits, addresses_16, to);
    if (opcode == 0x80 || opcode == 0x82 || opcode == 0x83 || opcode == 0x6b || opcode == 0xc0 || opcode == 0xc1 ||
        opcode == 0xc6 || opcode == 0xf6) {
        put(to, immediate(random), 1);
    } else if (opcode == 0x81 || opcode == 0x69 || opcode == 0xc7 || opcode == 0xf7) {
        put(to, immediate(random), 4);
    }
}

static void put_two_byte_opcode(struct random *random, uint32_t bits, bool addresses_16, struct instruction *to)
{
    static const uint8_t with_immediate[] = {0x70, 0x71, 0x72, 0x73, 0xa4, 0xac, 0xba, 0xc2, 0xc4, 0xc5, 0xc6};
    uint8_t opcode = (uint8_t)random_next(random);

    put(to, 0x0f, 1);
    if (one_in(random, 5)) {
        opcode = one_in(random, 2) ? 0x38 : 0x3a;
    } else if (one_in(random, 8)) {
        static const uint8_t bit_tests[] = {0xa3, 0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xc0, 0xc1, 0xc7};

        opcode = bit_tests[random_below(random, sizeof(bit_tests))];
    } else if (one_in(random, 8)) {
        opcode = (uint8_t)(one_in(random, 2) ? 0x20 + random_below(random, 4) : random_below(random, 2)); /* CRn, DRn */
    }
    put(to, opcode, 1);
    if (opcode == 0x38 || opcode == 0x3a) {
        put(to, random_next(random), 1);
    } else if (opcode >= 0x80 && opcode <= 0x8f) {
        put(to, random_below(random, 64), 4);
        return;
    } else if (opcode == 0x05 || opcode == 0x34 || opcode == 0x07 || opcode == 0x35) {
        return;
    }
    put_modrm(random, bits, addresses_16, to);
    if (opcode == 0x3a || memchr(with_immediate, opcode, sizeof(with_immediate)) != NULL) {
        put(to, immediate(random), 1);
    }
}

static void put_register(struct random *random, uint8_t opcode, uint64_t value, uint32_t size, struct instruction *to)
{
    if (!one_in(random, 8)) {
        put(to, opcode, 1);
        put(to, value, size);
    }
}

/* REP INS, MOVS or STOS of some elements: in data, over the guest's programs, or wherever ESI and EDI are. */
static void put_string(struct random *random, uint32_t bits, struct instruction *to)
{
    static const uint8_t opcodes[] = {0x6c, 0xa4, 0xaa};
    uint32_t size = bits == 16 ? 2 : 4;
    uint64_t place = one_in(random, 4) ? 0x10000 + random_below(random, 0x8000) : immediate(random);

    put_register(random, 0xb9, one_in(random, 8) ? random_next(random) : random_below(random, 0x1200), size, to);
    put_register(random, 0xbf, place, size, to);
    if (one_in(random, 2)) {
        /* Near its destination, for elements that others are made of. */
        put(to, 0xbe, 1);
        put(to, one_in(random, 2) ? place + random_below(random, 64) - 32 : immediate(random), size);
    }
    if (one_in(random, 4)) {
        put(to, one_in(random, 2) ? 0x67 : 0x66, 1);
    }
    put(to, 0xf3, 1);
    if (bits == 64 && one_in(random, 4)) {
        put(to, 0x48, 1);
    }
    put(to, opcodes[random_below(random, sizeof(opcodes))] + random_below(random, 2), 1);
}

static struct instruction make(struct random *random, uint32_t bits)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    struct instruction instruction = {.size = 0};
    bool addresses_16 = bits == 16;

    if (one_in(random, 50)) {
        put_string(random, bits, &instruction);
        return instruction;
    }
    while (one_in(random, 2) && instruction.size < 4) {
        uint8_t prefix = prefixes[random_below(random, one_in(random, 2) ? 4 : sizeof(prefixes))];

        if (prefix == 0x67) {
            addresses_16 = bits == 32;
        }
        put(&instruction, prefix, 1);
    }
    if (bits == 64 && one_in(random, 2)) {
        put(&instruction, 0x40 | random_below(random, 16), 1);
    }
    switch (random_below(random, 8)) {
    case 0:
        put(&instruction, random_next(random), 8);
        break;
    case 1: /* x87 */
        put(&instruction, 0xd8 + random_below(random, 8), 1);
        put_modrm(random, bits, addresses_16, &instruction);
        break;
    case 2:
    case 3:
    case 4:
        put_two_byte_opcode(random, bits, addresses_16, &instruction);
        break;
    default:
        put_one_byte_opcode(random, bits, addresses_16, &instruction);
        break;
    }
    if (instruction.size > MAX_INSTRUCTION) {
        instruction.size = MAX_INSTRUCTION;
    }
    return instruction;
}

void x86_code_fill(struct random *random, uint32_t bits, uint8_t *code, size_t size)
{
    size_t at = 0;

    while (at < size) {
        struct instruction instruction = make(random, bits);
        /* Now and then the same again and again: what one instruction leaks, a block leaks many times. */
        uint32_t repeat = one_in(random, 40) ? 1 + random_below(random, 1200) : 1;

        for (uint32_t i = 0; i < repeat && at < size; i++) {
            size_t room = size - at < instruction.size ? size - at : instruction.size;

            memcpy(code + at, instruction.bytes, room);
            at += room;
        }
    }
}
