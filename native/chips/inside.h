/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside the chips. All of it with the machine's lock held, but for chips.c and the requests, which take it. */
#ifndef VMM_CHIPS_INSIDE_H
#define VMM_CHIPS_INSIDE_H

#include <linux/kvm.h>
#include <pthread.h>

#include "vmm/chips.h"
#include "vmm/clock.h"

#define GSIS 24u
#define APIC_BASE_BSP (1u << 8)
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLED (1u << 11)
#define APIC_BASE_ADDRESS (((1ull << 52) - 1) & ~0xfffull)

/* Intel SDM volume 3, 11.6.1. */
enum delivery {
    DELIVER_FIXED = 0,
    DELIVER_LOWEST = 1,
    DELIVER_SMI = 2,
    DELIVER_NMI = 4,
    DELIVER_INIT = 5,
    DELIVER_STARTUP = 6,
    DELIVER_EXTINT = 7,
};

enum shorthand { TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS };

/* An interrupt on its way to local APICs. */
struct message {
    enum delivery delivery;
    enum shorthand shorthand;
    uint32_t destination;
    uint8_t vector;
    bool logical;
    bool level;  /* trigger mode; of an INIT: with assert */
    bool assert; /* of an INIT */
    bool wide;   /* destination has 32 bits: an x2APIC sent it */
    const struct processor *sender;
};

typedef __typeof__(((struct kvm_ioapic_state *)0)->redirtbl[0]) ioapic_entry;

#define LAPIC_REGISTERS 64u

/* Intel SDM volume 3, 11.4. */
struct lapic {
    uint32_t reg[LAPIC_REGISTERS]; /* by offset / 16 */
    uint64_t base;                 /* MSR 1b */
    uint64_t due_ns;               /* when the count reaches 0; 0: it stands */
    uint64_t tsc_deadline;         /* 0: disarmed */
    uint32_t missed;               /* ticks of a period that the host came too late for */
};

#define STORED_MSRS 224u

struct stored_msr {
    uint32_t index;
    uint64_t value;
};

struct processor {
    struct chips *chips;
    uint32_t id;
    struct lapic lapic;
    bool init_pending;
    bool startup_pending;
    uint8_t startup_vector;
    uint8_t nmi_pending; /* how many */
    bool nmi_in_progress;
    bool extint_pending; /* the 8259 pair is to be asked, as a message said */
    bool nudged;
    uint64_t waits_until; /* for what is due by itself, at the latest; 0: it does not wait */
    bool looks; /* by itself: what comes meanwhile, it is told */
    pthread_cond_t changed;
    void (*wake)(void *opaque);
    void (*smi)(void *opaque);
    void *opaque;
    uint64_t tsc_offset; /* to the chips' clock, modulo 2^64 */
    /* What the requests of KVM give and take. */
    struct kvm_regs regs;
    struct kvm_sregs sregs; /* but apic_base and cr8, which are the local APIC's */
    uint32_t xsave[1024]; /* struct kvm_xsave, whose end clang takes for one of any length */
    struct kvm_debugregs debugregs;
    struct kvm_vcpu_events events;
    uint64_t xcr0;
    uint32_t mp_state;
    uint32_t msr_count;
    struct stored_msr msrs[STORED_MSRS];
    uint32_t cpuid_count;
    struct kvm_cpuid_entry2 *cpuid;
};

/* Of struct kvm_pit_state2's reserved[], given and taken: has a count that ends once ended, or is none loaded? */
#define PIT_INTERRUPTED 0
/* And the ticks that it came too late for. */
#define PIT_MISSED 1

/* Channel 0's interrupts, beside what struct kvm_pit_state2 holds. */
struct pit_ticks {
    uint64_t done;   /* since count_load_time */
    uint32_t missed; /* as a local APIC's */
    bool high;       /* the wire */
};

struct chips {
    pthread_mutex_t lock;
    struct guest_clock clock; /* CLOCK_MONOTONIC, unless a test has it stand */
    struct kvm_pic_state pic[2]; /* master, slave */
    struct kvm_ioapic_state ioapic;
    struct kvm_pit_state2 pit;
    struct pit_ticks ticks;
    bool has_irqchip;
    bool has_pit;
    bool wide_messages; /* destinations have more than 8 bits */
    uint32_t lines; /* GSIs as devices drive them */
    uint64_t clock_offset; /* of kvmclock to that */
    uint32_t bsp;
    uint32_t count;
    struct processor *processors[CHIPS_MAX_CPUS];
};

/* Late by more, a guest gets no more of them than this: its handler takes longer than a period. */
#define MISSED_TICKS 200u

/* About what the kernel itself comes too late: a guest whose timer's period is shorter makes no thread spin here. */
#define SHORTEST_WAIT_NS 50000u

/* chips.c, deliver.c */
/* Something may have come for it. */
void wake(struct processor *processor);
/* Those that take what the 8259 pair has. */
void wake_for_pic(struct chips *chips);
/* The 8254's next interrupt comes at another time: whoever would sleep longer looks again. */
void wake_for_pit(struct chips *chips, uint64_t due);
uint32_t deliver(struct chips *chips, const struct message *message);
/*
 * A destination of 15 bits, from the field that xAPIC has and from the byte that a unit for remapping interrupts would
 * look at: the bit that would ask for that, and bits 8 to 14 (KVM_FEATURE_MSI_EXT_DEST_ID in
 * Documentation/virt/kvm/x86/cpuid.rst; struct IO_APIC_route_entry in arch/x86/include/asm/io_apic.h of Linux).
 */
uint32_t long_destination(const struct chips *chips, uint32_t low, uint32_t high);
/* How many took it. */
uint32_t deliver_msi(struct chips *chips, uint64_t address, uint32_t data);
/* A wire of a device's, or the 8254's. */
void set_line(struct chips *chips, uint32_t gsi, bool level);
static inline uint64_t now_ns(const struct chips *chips)
{
    return guest_clock_ns(&chips->clock);
}

uint64_t tsc_now(const struct processor *processor);
void accept_nmi(struct processor *processor);
/* An INIT or a SIPI that waits takes effect. False: there is none. */
bool accept_reset(struct processor *processor);

/* pic.c */
void pic_reset(struct chips *chips);
void pic_load(struct chips *chips, uint32_t which, const struct kvm_pic_state *state);
void pic_set_line(struct chips *chips, uint32_t irq, bool level);
bool pic_has_interrupt(const struct chips *chips);
uint8_t pic_acknowledge(struct chips *chips);
/* Of an input: is it unmasked? Does its request wait? Or is it being served? */
bool pic_is_heard(const struct chips *chips, uint32_t irq);
bool pic_is_requested(const struct chips *chips, uint32_t irq);
bool pic_is_busy(const struct chips *chips, uint32_t irq);
uint8_t pic_read(struct chips *chips, uint32_t port);
void pic_write(struct chips *chips, uint32_t port, uint8_t value);
uint8_t elcr_read(const struct chips *chips, uint32_t port);
void elcr_write(struct chips *chips, uint32_t port, uint8_t value);

/* ioapic.c */
void ioapic_reset(struct chips *chips);
void ioapic_set_line(struct chips *chips, uint32_t pin, bool level);
void ioapic_end_of_interrupt(struct chips *chips, uint8_t vector);
bool ioapic_is_heard(const struct chips *chips, uint32_t pin);
bool ioapic_is_requested(const struct chips *chips, uint32_t pin);
bool ioapic_is_busy(const struct chips *chips, uint32_t pin);
uint32_t ioapic_load(const struct chips *chips, uint32_t offset);
void ioapic_store(struct chips *chips, uint32_t offset, uint32_t value);

/* pit.c */
void pit_reset(struct chips *chips);
uint8_t pit_read(struct chips *chips, uint32_t port);
void pit_write(struct chips *chips, uint32_t port, uint8_t value);
uint8_t port61_read(struct chips *chips);
void port61_write(struct chips *chips, uint8_t value);
/* Interrupts that are due. */
void pit_run(struct chips *chips, uint64_t now);
/* Its last one may have been seen to. */
void pit_interrupt_ended(struct chips *chips);
/* When the next one is; UINT64_MAX: never. */
uint64_t pit_due(const struct chips *chips);
/* Its state was set from outside. */
void pit_loaded(struct chips *chips);

/* lapic.c */
void lapic_reset(struct processor *processor);
/* After an INIT, its mode and ID stay (Intel SDM volume 3, 11.4.7.3). */
void lapic_init(struct processor *processor);
uint32_t lapic_priority(const struct processor *processor);
void lapic_set_priority(struct processor *processor, uint32_t value);
uint32_t lapic_load(struct processor *processor, uint32_t offset);
void lapic_store(struct processor *processor, uint32_t offset, uint32_t value);
bool lapic_read_msr(struct processor *processor, uint32_t index, uint64_t *value);
bool lapic_write_msr(struct processor *processor, uint32_t index, uint64_t value);
/* MSR 1b. False: #GP. */
bool lapic_set_base(struct processor *processor, uint64_t value);
/* The same as a request of KVM's, for any change. */
void lapic_load_base(struct processor *processor, uint64_t value);
void lapic_get(struct processor *processor, struct kvm_lapic_state *state);
void lapic_set(struct processor *processor, const struct kvm_lapic_state *state);

/* lapic_interrupts.c */
/* By software, too. */
bool lapic_is_enabled(const struct processor *processor);
bool lapic_is_named(const struct processor *processor, const struct message *message);
bool lapic_takes_pic(const struct processor *processor);
/* The vector that would be served next, or -1. */
int lapic_next(const struct processor *processor);
int lapic_acknowledge(struct processor *processor);
uint32_t lapic_processor_priority(const struct processor *processor);
/* False: it is off. */
bool lapic_accept(struct processor *processor, uint8_t vector, bool level);
bool lapic_is_requested(const struct processor *processor, uint8_t vector);
bool lapic_is_busy(const struct processor *processor, uint8_t vector);

/* lapic_timer.c */
void timer_run(struct processor *processor, uint64_t now);
uint64_t timer_due(const struct processor *processor);
uint32_t timer_current(const struct processor *processor, uint64_t now);
void timer_write_initial(struct processor *processor, uint32_t value);
void timer_write_divide(struct processor *processor, uint32_t value);
void timer_write_lvt(struct processor *processor, uint32_t value);
void timer_write_deadline(struct processor *processor, uint64_t value);
void timer_load(struct processor *processor, uint32_t current);

/* valid.c */
bool efer_is_valid(uint64_t value);
bool apic_base_is_valid(uint64_t value);
bool sregs_are_valid(const struct kvm_sregs *sregs);

/* msrs.c */
void msrs_reset(struct processor *processor);
bool msr_get(struct processor *processor, uint32_t index, uint64_t *value);
bool msr_set(struct processor *processor, uint32_t index, uint64_t value);
/* How many there are; fills in as many as there is room for. */
uint32_t msrs_list(uint32_t *indices, uint32_t room);

#endif
