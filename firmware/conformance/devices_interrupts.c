/* See devices_suite.h. */
#include "devices_suite.h"

#define PIC_MASTER 0x20
#define PIC_SLAVE 0xa0
#define PIC_EOI 0x20
#define PIC_CASCADE 2
#define LAPIC_EOI 0xfee000b0u
#define LAPIC_SPURIOUS 0xfee000f0u
#define LAPIC_ENABLE 0x1ffu
#define LAPIC_LINT0 0xfee00350u
#define LAPIC_EXTINT 0x700u

#define GATES (VECTOR_IOAPIC + 1)
#define INTERRUPT_GATE 0x8e00u
#define CODE_SELECTOR 0x08u
#define DEADLINE_S 4u

struct gate {
    uint16_t offset_low;
    uint16_t selector;
    uint16_t type;
    uint16_t offset_high;
};

void on_irq4(void);
void on_irq8(void);
void on_message(void);
void on_ioapic(void);

static struct gate gates[GATES];
static volatile uint32_t hits[GATES];
static void (*volatile quieten)(void);

/* Called by the gates' code (devices_gates.S) with interrupts off. */
void interrupts_serve(uint32_t vector);

void interrupts_serve(uint32_t vector)
{
    hits[vector]++;
    if (quieten)
        quieten();
    if (vector >= VECTOR_MESSAGE) {
        store32(LAPIC_EOI, 0);
        return;
    }
    if (vector >= VECTOR_PIC + 8)
        out8(PIC_SLAVE, PIC_EOI);
    out8(PIC_MASTER, PIC_EOI);
}

static void set_gate(uint8_t vector, void (*handler)(void))
{
    gates[vector].offset_low = (uint16_t)(uint32_t)handler;
    gates[vector].offset_high = (uint16_t)((uint32_t)handler >> 16);
    gates[vector].selector = CODE_SELECTOR;
    gates[vector].type = INTERRUPT_GATE;
}

void interrupts_init(void)
{
    struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) table = {sizeof(gates) - 1, (uint32_t)gates};

    set_gate(VECTOR_PIC + 4, on_irq4);
    set_gate(VECTOR_PIC + 8, on_irq8);
    set_gate(VECTOR_MESSAGE, on_message);
    set_gate(VECTOR_IOAPIC, on_ioapic);
    __asm__ volatile("lidt %0" : : "m"(table));
    /* Intel 8259A: ICW1 to ICW4, edge-triggered, cascaded at input 2, 8086 mode. */
    out8(PIC_MASTER, 0x11);
    out8(PIC_MASTER + 1, VECTOR_PIC);
    out8(PIC_MASTER + 1, 1 << PIC_CASCADE);
    out8(PIC_MASTER + 1, 0x01);
    out8(PIC_SLAVE, 0x11);
    out8(PIC_SLAVE + 1, VECTOR_PIC + 8);
    out8(PIC_SLAVE + 1, PIC_CASCADE);
    out8(PIC_SLAVE + 1, 0x01);
    out8(PIC_MASTER + 1, 0xff & ~(1 << PIC_CASCADE));
    out8(PIC_SLAVE + 1, 0xff);
    /* The PICs' output is the boot CPU's LINT0 (MultiProcessor Specification 1.4, 3.6.2.2, virtual wire mode). */
    store32(LAPIC_SPURIOUS, LAPIC_ENABLE);
    store32(LAPIC_LINT0, LAPIC_EXTINT);
}

static uint16_t mask_port(uint8_t irq)
{
    return irq < 8 ? PIC_MASTER + 1 : PIC_SLAVE + 1;
}

void interrupts_unmask(uint8_t irq)
{
    out8(mask_port(irq), (uint8_t)(in8(mask_port(irq)) & ~(1u << (irq & 7))));
}

void interrupts_mask(uint8_t irq)
{
    out8(mask_port(irq), (uint8_t)(in8(mask_port(irq)) | 1u << (irq & 7)));
}

uint32_t interrupts_at(uint8_t vector)
{
    return hits[vector];
}

void interrupts_acknowledge(void (*acknowledge)(void))
{
    quieten = acknowledge;
}

bool interrupts_wait(uint8_t vector, uint32_t wanted)
{
    uint32_t before = hits[vector];
    uint32_t start = ticks();

    /* The timer is read with interrupts on: where all is emulated, they get in only at such an exit. */
    __asm__ volatile("sti" : : : "memory");
    while (hits[vector] - before < wanted && ticks_since(start) < DEADLINE_S * PM_TIMER_HZ) {
    }
    __asm__ volatile("cli" : : : "memory");
    return hits[vector] - before >= wanted;
}
