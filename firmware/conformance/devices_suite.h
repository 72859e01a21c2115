/*
 * conformance-devices: what a guest can see of the PC's devices, case by case, as TAP on the console.
 *
 * Every expectation is a data sheet's, and QEMU's devices meet it, too. What a machine does not have is skipped.
 */
#ifndef DEVICES_SUITE_H
#define DEVICES_SUITE_H

#include "guest.h"
#include "tap.h"

void suite_pci(enum platform platform);
void suite_acpi(enum platform platform);
void suite_rtc(void);
void suite_serial(void);
void suite_hpet(void);
void suite_flash(void);

/* Vectors: IRQs 0 to 15 of the PICs, then two for messages and IOAPIC inputs. */
#define VECTOR_PIC 0x20
#define VECTOR_MESSAGE 0x40
#define VECTOR_IOAPIC 0x41

/* Loads an IDT that counts, and puts the PICs at VECTOR_PIC with every line masked. */
void interrupts_init(void);
void interrupts_unmask(uint8_t irq);
void interrupts_mask(uint8_t irq);

/* Interrupts at a vector so far; `acknowledge`, if set, is called by the handler to quieten the device. */
uint32_t interrupts_at(uint8_t vector);
void interrupts_acknowledge(void (*acknowledge)(void));

/* Lets interrupts in until `vector` was hit `count` times more, for a few seconds at most: was it? */
bool interrupts_wait(uint8_t vector, uint32_t count);

/* The PM timer: ticks of PM_TIMER_HZ since `start`, 24 bits. */
bool clock_init(void); /* false: a machine without one that this guest knows */
uint32_t ticks(void);
uint32_t ticks_since(uint32_t start);

static inline uint8_t load8(uint32_t address)
{
    return *(volatile uint8_t *)address;
}

static inline uint32_t load32(uint32_t address)
{
    return *(volatile uint32_t *)address;
}

static inline void store8(uint32_t address, uint8_t value)
{
    *(volatile uint8_t *)address = value;
}

static inline void store32(uint32_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

#endif
