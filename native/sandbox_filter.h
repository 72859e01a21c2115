/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Seccomp filters, rule by rule. A rule names system calls and conditions on
 * their arguments; a call is allowed by the first rule all of whose conditions
 * hold, and trapped (SIGSYS) where there is none.
 */
#ifndef VMM_SANDBOX_FILTER_H
#define VMM_SANDBOX_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILTER_MAX_INSTRUCTIONS 1024
#define FILTER_MAX_CONDITIONS 16 /* of one rule */

struct filter {
    struct sock_filter code[FILTER_MAX_INSTRUCTIONS];
    uint32_t length;
    uint32_t failing[FILTER_MAX_CONDITIONS]; /* jumps of the current rule that go to its end */
    uint32_t failing_count;
    bool full; /* more than there is room for: not to be used */
};

void filter_begin(struct filter *filter);
void filter_end(struct filter *filter);

/*
 * A rule: filter_rule, conditions, filter_allow. Arguments count from 0; their low 32 bits are looked at. It takes a
 * millisecond if each call has a rule of its own: the kernel tries a new filter with every call's number.
 */
void filter_rule(struct filter *filter, const uint32_t *calls, size_t count);
void filter_one_of(struct filter *filter, unsigned argument, const uint32_t *values, size_t count);
void filter_bits(struct filter *filter, unsigned argument, uint32_t mask, uint32_t value);
void filter_null(struct filter *filter, unsigned argument); /* all 64 bits */
void filter_allow(struct filter *filter);
void filter_fail(struct filter *filter, int error); /* instead of filter_allow: quietly, with this errno */

/* What the three kinds of filter consist of: sandbox_rules.c. */
void filter_process_rules(struct filter *filter, const int *channels, uint32_t count);
void filter_thread_rules(struct filter *filter, int vm, int vcpu, const int *files, uint32_t count);
void filter_disk_rules(struct filter *filter, int vm, const int *files, uint32_t count);

#endif
