/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A machine of two vCPUs and 256 KiB of RAM for the software CPU alone, without
 * KVM, and the world that a fuzzed program finds: tables that skip one byte at
 * each exception and go on.
 */
#ifndef VMM_FUZZ_SOFTCPU_GUEST_H
#define VMM_FUZZ_SOFTCPU_GUEST_H

#include "engine.h"

#define GUEST_CPUS 2
#define CODE_BYTES 0x2000u

#define RAM_BYTES 0x40000u

/* Memory map; all below 64 KiB but the programs, their data and stacks. */
#define STUBS 0x1000u
#define GDT 0x2000u
#define TSS 0x2800u
#define IDT_32 0x3000u
#define IDT_64 0x3800u /* 256 gates of 16 bytes, up to 0x47ff */
#define PML4 0x5000u
#define PDPT 0x6000u
#define DIRECTORY 0x7000u
#define HIGH_DIRECTORY 0x8000u
#define DIRECTORY_32 0x9000u
#define RING0_STACK 0xb000u
#define IST_STACK 0xd000u
#define PROGRAMS 0x10000u
#define PROGRAM_STRIDE 0x4000u
#define STACKS 0x1e000u
#define DATA 0x20000u

/* The program's last instruction is this interrupt; its handler halts. */
#define END_VECTOR 0x80

enum guest_mode { MODE_REAL, MODE_PROTECTED_16, MODE_PROTECTED_32, MODE_PAGED_32, MODE_COMPATIBILITY, MODE_LONG, MODES };

/* One input; files hold exactly this. */
struct program {
    uint8_t mode;
    uint8_t ring3;
    uint8_t start;     /* where in its page the code begins, in units of 16 bytes */
    uint8_t trap_flag; /* begin with RFLAGS.TF */
    uint32_t registers; /* seed */
    uint32_t side_by_side; /* the vCPUs have a thread each, as a machine's do */
    uint32_t budget;    /* instructions of a round; 0: the clock ends it */
    uint32_t size;      /* of each code, at most CODE_BYTES */
    uint8_t code[GUEST_CPUS][CODE_BYTES];
};

struct guest {
    struct vmm_vm vm;
    struct vmm_vcpu core[GUEST_CPUS];
    struct kvm_run run[GUEST_CPUS]; /* of no KVM: an access to its chips ends the program */
    struct softcpu *softcpu;
    struct softcpu_vcpu *vcpus[GUEST_CPUS];
    CPUX86State pristine;
    uint8_t *ram;
    uint8_t *image;
};

uint32_t program_bits(const struct program *program);

/* NULL: no memory. There is no way to give it back: a process has one. */
struct guest *guest_new(void);

/* Everything as it was before any program, then this one in memory and registers. */
void guest_load(struct guest *guest, const struct program *program);

#endif
