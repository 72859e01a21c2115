/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A PC's interrupt controllers and timer without KVM: the 8259 pair with its
 * ELCR, the 8254 with port 61, the I/O APIC, and a local APIC in each CPU. And
 * what else KVM keeps of a vCPU between two runs, for a machine that has none:
 * registers, MSRs, MP state.
 *
 * State goes in and out as with KVM, by the requests of <linux/kvm.h> that vmm
 * makes, with their numbers, structures and errors (Documentation/virt/kvm/api.rst).
 * What executes the guest uses struct chips_calls instead.
 *
 * One lock for all of a machine's, a leaf: nothing else is taken under it. Every
 * function here takes it by itself. Time is CLOCK_MONOTONIC, as KVM's chips have
 * it, unless somebody sets the clock; no thread is needed for it: whoever
 * executes or waits looks what is due.
 */
#ifndef VMM_CHIPS_H
#define VMM_CHIPS_H

#include <stdbool.h>
#include <stdint.h>

#define CHIPS_MAX_CPUS 1024u
#define CHIPS_MAX_ID 4096u /* APIC IDs are below it, as KVM's */

struct chips;
struct processor;

/* NULL: no memory. */
struct chips *chips_new(void);
void chips_free(struct chips *chips);

struct guest_clock;

/* The time that they go by, to be set before there is a CPU. */
struct guest_clock *chips_clock(struct chips *chips);

/* As another guest's stands now; before there is a CPU. */
void chips_go_by(struct chips *chips, const struct guest_clock *clock);

/* A CPU whose APIC ID is `id`, freed with the chips. NULL: no memory, or there is no room for it, or it exists. */
struct processor *chips_add(struct chips *chips, uint32_t id);

/* Requests of /dev/kvm, of a machine and of a vCPU: the result, or a negative errno. Numbers are given as pointers. */
int chips_system_request(unsigned long request, void *argument);
int chips_vm_request(struct chips *chips, unsigned long request, void *argument);
int chips_vcpu_request(struct processor *processor, unsigned long request, void *argument);

struct vmm_vm;
struct vmm_vcpu;

/* Whatever the core asks of KVM, it asks these from now on. */
void chips_attach(struct chips *chips, struct vmm_vm *vm);
/* Before they are freed; then the answer is EBADF. No vCPU runs. */
void chips_detach(struct vmm_vm *vm);
void chips_attach_vcpu(struct processor *processor, struct vmm_vcpu *vcpu);

/* What a processor has for the one who executes it; the first that applies, from the top. */
enum chips_event {
    CHIPS_NOTHING,
    CHIPS_RESET, /* an INIT or SIPI has just changed the registers that the requests give, and the MP state */
    CHIPS_NMI,
    CHIPS_INTERRUPT,
};

/* Which of these one waits for. */
struct chips_wanted {
    bool reset;
    bool nmi;
    bool interrupt;
};

/* For a module that is linked separately. */
struct chips_calls {
    /*
     * What executes this CPU, and what to call, on any thread and with the chips' lock held, when something may have
     * come for it, and when an SMI has. NULL: nobody executes it any more.
     */
    void (*execute)(struct processor *processor, void (*wake)(void *opaque), void (*smi)(void *opaque), void *opaque);
    /* What is there, with timers as of now. */
    enum chips_event (*look)(struct processor *processor, struct chips_wanted wanted);
    /* Take it: the vector of an NMI or interrupt, or -1 where there is none any more. */
    int (*acknowledge)(struct processor *processor, struct chips_wanted wanted);
    /* Wait for it, or for a nudge: what there is then. */
    enum chips_event (*wait)(struct processor *processor, struct chips_wanted wanted);
    /* When the next of its timers is due; UINT64_MAX: none is. */
    uint64_t (*due)(struct processor *processor);
    struct guest_clock *(*clock)(struct chips *chips);
    /* End a wait, or the next one if there is none; from any thread. */
    void (*nudge)(struct processor *processor);
    void (*set_priority)(struct processor *processor, uint32_t cr8);
    uint32_t (*priority)(struct processor *processor);
    /* Its time-stamp counter: nanoseconds. */
    uint64_t (*tsc)(const struct processor *processor);
    /* An INIT to itself. */
    void (*send_init)(struct processor *processor);
    /* Is there a chip at the address, as this CPU's APIC base says? */
    bool (*has_address)(const struct processor *processor, uint64_t gpa);
    uint32_t (*load)(struct processor *processor, uint64_t gpa, uint32_t size);
    void (*store)(struct processor *processor, uint64_t gpa, uint32_t size, uint32_t value);
    uint32_t (*in)(struct chips *chips, uint32_t port, uint32_t size);
    void (*out)(struct chips *chips, uint32_t port, uint32_t size, uint32_t value);
    /* False: #GP. */
    bool (*read_msr)(struct processor *processor, uint32_t index, uint64_t *value);
    bool (*write_msr)(struct processor *processor, uint32_t index, uint64_t value);
};

extern const struct chips_calls chips_calls;

#endif
