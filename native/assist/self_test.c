/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Is the engine that was linked in the one whose internals are used here? The
 * layouts are checked by the compiler, the version and a first translation now.
 */
#include "engine.h"

/* Major, minor, patch; the last byte says which build. */
#define WANTED_VERSION 0x020104u

uint32_t assist_engine_version(void)
{
    return uc_version(NULL, NULL);
}

const char *assist_self_test(void)
{
    if (assist_engine_version() >> 8 != WANTED_VERSION) {
        return "the software CPU needs Unicorn 2.1.4, another version is linked in";
    }
    return NULL;
}
