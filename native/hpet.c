/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/hpet.h"

#include <stddef.h>

uint64_t hpet_counter(const struct hpet *hpet)
{
    uint64_t stood = hpet->registers[HPET_COUNTER / 8];

    if (!hpet->running) {
        return stood;
    }
    return stood + (guest_clock_ns(hpet->clock) - hpet->since_ns) / HPET_TICK_NS;
}

void hpet_access(void *opaque, struct io_access *access)
{
    struct hpet *hpet = opaque;

    if (access->is_write) {
        hpet->device.handler(hpet->device.opaque, access);
        return;
    }
    for (uint32_t element = 0; element < access->count; element++) {
        uint8_t *data = access->data + (size_t)element * access->size;
        uint64_t counter = hpet_counter(hpet);

        for (uint32_t byte = 0; byte < access->size; byte++) {
            uint64_t at = access->offset + byte;
            uint64_t value = at / 8 == HPET_COUNTER / 8 ? counter : hpet->registers[at / 8];

            data[byte] = (uint8_t)(value >> (8 * (at % 8)));
        }
    }
}
