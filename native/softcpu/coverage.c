/* SPDX-License-Identifier: BSD-2-Clause */
/* Which code the guest reached: each block is noted when it is translated, so that translated code is as ever. */
#include "engine.h"

#include "vmm/clock.h"
#include "vmm/coverage.h"

/* What is translated is what is executed next, up to its first fault. */
TranslationBlock *WRAP(tb_gen_code)(CPUState *cs, target_ulong pc, target_ulong cs_base, uint32_t flags, int cflags)
{
    TranslationBlock *block = REAL(tb_gen_code)(cs, pc, cs_base, flags, cflags);
    struct ring *coverage = ((struct softcpu_vcpu *)cs)->softcpu->vm->coverage;

    if (coverage != NULL) {
        const struct coverage_block noted = {.time_ns = monotonic_ns(), .address = pc, .size = block->size};

        ring_add(coverage, &noted);
    }
    return block;
}
