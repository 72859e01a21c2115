/* See tap.h. */
#include "tap.h"

static uint32_t count;
static uint32_t failures;

void tap_begin(const char *suite)
{
    print("TAP version 13\n# %s\n", suite);
}

void tap_ok(bool passed, const char *name)
{
    failures += !passed;
    print("%sok %u - %s\n", passed ? "" : "not ", ++count, name);
}

void tap_equal(uint32_t seen, uint32_t wanted, const char *name)
{
    tap_ok(seen == wanted, name);
    if (seen != wanted)
        print("#   seen 0x%x, wanted 0x%x\n", seen, wanted);
}

void tap_bytes(const void *seen, const void *wanted, uint32_t size, const char *name)
{
    const uint8_t *s = seen;
    const uint8_t *w = wanted;
    uint32_t i = 0;

    while (i < size && s[i] == w[i])
        i++;
    tap_ok(i == size, name);
    if (i < size)
        print("#   byte %u of %u: seen 0x%2x, wanted 0x%2x\n", i, size, (uint32_t)s[i], (uint32_t)w[i]);
}

void tap_skip(const char *name, const char *why)
{
    print("ok %u - %s # SKIP %s\n", ++count, name, why);
}

void tap_bail_out(const char *why)
{
    print("Bail out! %s\n", why);
    failures++;
}

uint32_t tap_end(void)
{
    print("1..%u\n# failed: %u\n", count, failures);
    return failures ? 1 : 0;
}
