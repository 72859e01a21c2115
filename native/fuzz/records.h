/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Inputs are sequences of fixed records, one operation each, so that a
 * mutation changes, repeats, drops or moves whole operations instead of
 * shifting all bytes that follow.
 */
#ifndef VMM_FUZZ_RECORDS_H
#define VMM_FUZZ_RECORDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MAX_RECORDS 16

/* 24 bytes without padding; the corpus script writes the same. */
struct record {
    uint8_t operation;
    uint8_t place;
    uint16_t number;
    uint32_t length;
    uint64_t address;
    uint8_t bytes[8];
};

_Static_assert(sizeof(struct record) == 24, "make_corpus.py writes 24 bytes");

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Stop the fuzzer here: a promise of the code under test is broken. */
#define PROMISE(condition)     \
    do {                       \
        if (!(condition)) {    \
            __builtin_trap();  \
        }                      \
    } while (0)

#endif
