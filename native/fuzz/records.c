/* SPDX-License-Identifier: BSD-2-Clause */
#include "records.h"

static uint32_t next_random(uint32_t *state)
{
    /* xorshift32 (Marsaglia 2003) */
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    uint32_t state = seed | 1;
    uint32_t room = (uint32_t)(max_size / sizeof(struct record));
    uint32_t limit = room < MAX_RECORDS ? room : MAX_RECORDS;
    uint32_t records = (uint32_t)(size / sizeof(struct record));
    uint8_t saved[sizeof(struct record)];
    uint32_t from;
    uint32_t to;

    if (limit == 0) {
        return 0;
    }
    records = records < limit ? records : limit;
    if (records == 0) {
        memset(data, 0, sizeof(struct record));
        records = 1;
    }
    from = next_random(&state) % records;
    to = next_random(&state) % records;
    switch (next_random(&state) % 8) {
    case 0: /* repeat one, here or elsewhere */
        if (records < limit) {
            memcpy(saved, data + from * sizeof(saved), sizeof(saved));
            memmove(data + (to + 1) * sizeof(saved), data + to * sizeof(saved), (records - to) * sizeof(saved));
            memcpy(data + to * sizeof(saved), saved, sizeof(saved));
            records++;
        }
        break;
    case 1: /* drop one */
        if (records > 1) {
            memmove(data + from * sizeof(saved), data + (from + 1) * sizeof(saved), (records - from - 1) * sizeof(saved));
            records--;
        }
        break;
    case 2: /* swap two */
        memcpy(saved, data + from * sizeof(saved), sizeof(saved));
        memmove(data + from * sizeof(saved), data + to * sizeof(saved), sizeof(saved));
        memcpy(data + to * sizeof(saved), saved, sizeof(saved));
        break;
    default: /* change one */
        LLVMFuzzerMutate(data + from * sizeof(saved), sizeof(saved), sizeof(saved));
        break;
    }
    return records * sizeof(struct record);
}
