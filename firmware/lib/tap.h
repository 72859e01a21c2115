/*
 * Test results in the Test Anything Protocol, version 13 (testanything.org): `ok N - NAME`, `not ok N - NAME` with what
 * was seen as comments behind it, and the plan at the end.
 */
#ifndef TAP_H
#define TAP_H

#include "guest.h"

void tap_begin(const char *suite);
void tap_ok(bool passed, const char *name);
void tap_equal(uint32_t seen, uint32_t wanted, const char *name);
void tap_bytes(const void *seen, const void *wanted, uint32_t size, const char *name);
void tap_skip(const char *name, const char *why);
void tap_bail_out(const char *why);

/* Prints the plan; returns a guest's status: 0 if nothing failed. */
uint32_t tap_end(void);

#endif
