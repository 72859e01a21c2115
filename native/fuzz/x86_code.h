/* SPDX-License-Identifier: BSD-2-Clause */
/* Machine code at random, mostly valid: the same for the same seed. */
#ifndef VMM_FUZZ_X86_CODE_H
#define VMM_FUZZ_X86_CODE_H

#include <stddef.h>
#include <stdint.h>

struct random {
    uint64_t state;
};

uint64_t random_next(struct random *random);
/* 0 to below - 1. */
uint32_t random_below(struct random *random, uint32_t below);

/* Fill code with instructions for 16-, 32- or 64-bit mode; the last may be cut off. */
void x86_code_fill(struct random *random, uint32_t bits, uint8_t *code, size_t size);

#endif
