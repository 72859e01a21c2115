/* See guest.h. */
#include "guest.h"

/*
 * Intel SDM vol. 3A, 11.4, 11.6 and 11.12: the local APIC's registers, at their address after reset; firmware that finds
 * more than 255 CPUs has changed to x2APIC.
 */
#define APIC_BASE 0xfee00000u
#define APIC_SPURIOUS 0x0f0
#define APIC_SPURIOUS_ENABLE 0x1ff
#define APIC_ICR_LOW 0x300
#define ICR_BUSY (1u << 12)
#define ICR_ALL_BUT_SELF (3u << 18)
#define ICR_INIT 0x4500u
#define ICR_STARTUP 0x4600u

/* Times in TSC ticks, for want of a clock whose frequency every machine knows: one tick is 0.2 to 1 ns. */
#define INIT_WAIT (1ull << 24)
#define SIPI_WAIT (1ull << 20)
#define QUIET_WAIT (1ull << 30)
#define GIVE_UP (1ull << 34)

extern const uint8_t ap_code[];
extern const uint8_t ap_code_end[];
extern uint8_t ap_start_page[];
extern volatile uint32_t ap_count;

static void apic_write(uint32_t offset, uint32_t value)
{
    if (x2apic())
        write_msr(MSR_X2APIC + offset / 16, value);
    else
        *(volatile uint32_t *)(APIC_BASE + offset) = value;
}

static uint32_t apic_read(uint32_t offset)
{
    return *(volatile uint32_t *)(APIC_BASE + offset);
}

static void pause_for(uint64_t ticks)
{
    uint64_t start = read_tsc();

    while (read_tsc() - start < ticks)
        __asm__ volatile("pause");
}

static void send(uint32_t command)
{
    /* x2APIC mode has no such bit. */
    while (!x2apic() && apic_read(APIC_ICR_LOW) & ICR_BUSY)
        ;
    apic_write(APIC_ICR_LOW, command | ICR_ALL_BUT_SELF);
}

uint8_t apic_id(void)
{
    uint32_t eax = 1;
    uint32_t ebx;
    uint32_t ecx = 0;
    uint32_t edx;

    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (uint8_t)(ebx >> 24);
}

uint32_t cpus_start(uint32_t expected)
{
    uint64_t patience = expected ? GIVE_UP : QUIET_WAIT;
    uint32_t startup = ICR_STARTUP | (uint32_t)ap_start_page >> 12;
    uint64_t last_news;
    uint32_t seen = 0;

    memcpy(ap_start_page, ap_code, (size_t)(ap_code_end - ap_code));
    apic_write(APIC_SPURIOUS, APIC_SPURIOUS_ENABLE);
    send(ICR_INIT);
    pause_for(INIT_WAIT);
    send(startup);
    pause_for(SIPI_WAIT);
    /* A CPU that already runs ignores the second one. */
    send(startup);
    last_news = read_tsc();
    while (!expected || seen < expected) {
        if (ap_count != seen) {
            seen = ap_count;
            last_news = read_tsc();
        } else if (read_tsc() - last_news > patience) {
            break;
        }
        __asm__ volatile("pause");
    }
    return seen;
}
