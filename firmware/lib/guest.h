/*
 * What our guests share: ports, the console, the platform, the other CPUs.
 *
 * Everything runs in flat 32-bit protected mode without paging (start.S), with one thread of control; other CPUs only
 * count themselves.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ports.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void in8_string(uint16_t port, void *buffer, uint32_t count)
{
    __asm__ volatile("rep insb" : "+D"(buffer), "+c"(count) : "d"(port) : "memory");
}

static inline uint64_t read_tsc(void)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline uint64_t read_msr(uint32_t index)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

/* Intel SDM vol. 3A, 11.4.4 and 11.12: register N of the local APIC is MSR 0x800 + N / 16 in x2APIC mode. */
#define MSR_APIC_BASE 0x1b
#define MSR_APIC_BASE_X2APIC (1u << 10)
#define MSR_X2APIC 0x800

/* Whether firmware has changed this CPU to x2APIC: the registers are MSRs, and nothing answers at their address. */
static inline bool x2apic(void)
{
    return read_msr(MSR_APIC_BASE) & MSR_APIC_BASE_X2APIC;
}

void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);

/*
 * The console: the debug port 0x402 where it answers e9 (QEMU's isa-debugcon, Bochs), else 0xe9 likewise, else COM1.
 * print() knows %s, %c, %u and %x (32 bits each) and %%; a decimal width pads numbers with zeros.
 */
void console_init(void);
void put_char(char c);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The machine, told by the host bridge's PCI device id, as firmware does. */
enum platform { PLATFORM_UNKNOWN, PLATFORM_PC, PLATFORM_Q35, PLATFORM_BHYVE };

enum platform platform_detect(void);
const char *platform_name(enum platform platform);
uint32_t pci_read32(uint8_t device, uint8_t function, uint8_t offset);
void pci_write32(uint8_t device, uint8_t function, uint8_t offset, uint32_t value);

/* The port of the ACPI PM timer (24 bits are safe), made accessible; 0 if the platform is unknown. */
#define PM_TIMER_HZ 3579545u
uint16_t power_timer_port(void);

/*
 * The end, with a status a shell can see. 0: the machine is powered off through ACPI (S5). Anything else goes to
 * QEMU's isa-debug-exit port first (0xf4; QEMU then exits with status << 1 | 1) and then resets the machine, which
 * vmm reports as a failure of the guest.
 */
void power_end(uint32_t status) __attribute__((noreturn));

/*
 * Starts every other CPU (INIT, SIPI, SIPI to all but self) and waits until `expected` of them have reported, or, with
 * 0 (unknown), until none has for a while. Returns how many did. ap_seen[id] is set for each APIC id that ran.
 */
uint32_t cpus_start(uint32_t expected);
uint8_t apic_id(void);

extern volatile uint8_t ap_seen[4096];

/* Set before cpus_start(): let some of them go on executing (ap.S). */
extern volatile uint8_t ap_busy;

/* Likewise: where the one with id 1 goes on, in real mode without a stack: segment << 16 | offset; 0: it parks. */
extern volatile uint32_t ap_entry;

#endif
