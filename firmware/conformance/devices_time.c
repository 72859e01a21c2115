/* See devices_suite.h. This file: the clocks, RTC (Motorola MC146818A) and HPET (IA-PC HPET 1.0a). */
#include "devices_suite.h"

#define RTC_INDEX 0x70
#define RTC_DATA 0x71
#define RTC_IRQ 8

#define RTC_SECONDS 0
#define RTC_HOURS 4
#define RTC_A 0x0a
#define RTC_B 0x0b
#define RTC_C 0x0c
#define RTC_D 0x0d
#define RTC_B_24_HOURS 0x02
#define RTC_B_UPDATE 0x10
#define RTC_B_ALARM 0x20
#define RTC_B_PERIODIC 0x40
#define RTC_C_UPDATE 0x10
#define RTC_ALARM_ANY 0xff

#define HPET 0xfed00000u
#define HPET_PERIOD 0x004
#define HPET_CONFIG 0x010
#define HPET_STATUS 0x020
#define HPET_COUNTER 0x0f0
#define HPET_TIMER0 0x100
#define HPET_ROUTES 0x104
#define HPET_COMPARATOR0 0x108
#define HPET_MESSAGE0 0x110
#define HPET_LEVEL 0x02u
#define HPET_INTERRUPT 0x04u
#define HPET_GSI_SHIFT 9
#define HPET_MESSAGE 0x4000u
#define HPET_MESSAGE_CAPABLE 0x8000u

#define IOAPIC_INDEX 0xfec00000u
#define IOAPIC_DATA 0xfec00010u
#define IOAPIC_LEVEL (1u << 15)
#define IOAPIC_MASKED (1u << 16)

static uint8_t rtc_read(uint8_t at)
{
    out8(RTC_INDEX, at);
    return in8(RTC_DATA);
}

static void rtc_write(uint8_t at, uint8_t value)
{
    out8(RTC_INDEX, at);
    out8(RTC_DATA, value);
}

static void rtc_acknowledge(void)
{
    (void)rtc_read(RTC_C);
}

/* Waits until the clock's second changes, for two seconds at most. */
static bool rtc_second(void)
{
    uint32_t start = ticks();

    (void)rtc_read(RTC_C);
    while (!(rtc_read(RTC_C) & RTC_C_UPDATE)) {
        if (ticks_since(start) > 2 * PM_TIMER_HZ)
            return false;
    }
    return true;
}

/* A second by the RTC is a second by the PM timer; a busy host may disturb some of the tries, not all. */
static bool clocks_agree(void)
{
    for (uint32_t try = 0; try < 5; try++) {
        uint32_t start;
        uint32_t elapsed;

        if (!rtc_second())
            return false;
        start = ticks();
        if (!rtc_second())
            return false;
        elapsed = ticks_since(start);
        if (elapsed > PM_TIMER_HZ - PM_TIMER_HZ / 50 && elapsed < PM_TIMER_HZ + PM_TIMER_HZ / 50)
            return true;
    }
    return false;
}

static void rtc_interrupt(uint8_t enable, uint32_t count, const char *name)
{
    rtc_acknowledge();
    interrupts_acknowledge(rtc_acknowledge);
    interrupts_unmask(RTC_IRQ);
    rtc_write(RTC_B, RTC_B_24_HOURS | enable);
    tap_ok(interrupts_wait(VECTOR_PIC + RTC_IRQ, count), name);
    rtc_write(RTC_B, RTC_B_24_HOURS);
    interrupts_mask(RTC_IRQ);
    interrupts_acknowledge(NULL);
    rtc_acknowledge();
}

void suite_rtc(void)
{
    uint8_t seconds;

    rtc_write(RTC_A, 0x26);
    rtc_write(RTC_B, RTC_B_24_HOURS);
    tap_equal(rtc_read(RTC_D), 0x80, "RTC: register D says the time is valid");
    rtc_write(0x50, 0xa5);
    tap_equal(rtc_read(0x50), 0xa5, "CMOS: holds what is written");
    seconds = rtc_read(RTC_SECONDS);
    tap_ok((seconds & 0x0f) < 10 && seconds < 0x60, "RTC: seconds are BCD");
    tap_ok(rtc_read(RTC_HOURS) < 0x24, "RTC: hours are 24");
    tap_ok(clocks_agree(), "RTC: a second is 3,579,545 ticks of the PM timer");
    rtc_interrupt(RTC_B_UPDATE, 1, "RTC: update interrupt on IRQ 8");
    rtc_interrupt(RTC_B_PERIODIC, 20, "RTC: periodic interrupts on IRQ 8");
    rtc_write(1, RTC_ALARM_ANY);
    rtc_write(3, RTC_ALARM_ANY);
    rtc_write(5, RTC_ALARM_ANY);
    rtc_interrupt(RTC_B_ALARM, 1, "RTC: alarm interrupt on IRQ 8");
}

static void hpet_acknowledge(void)
{
    store32(HPET + HPET_STATUS, 1);
}

static void hpet_start(uint32_t config)
{
    uint32_t ten_milliseconds = 10000000u / (load32(HPET + HPET_PERIOD) / 1000000u);

    store32(HPET + HPET_CONFIG, 0);
    store32(HPET + HPET_TIMER0, config);
    store32(HPET + HPET_COMPARATOR0, load32(HPET + HPET_COUNTER) + ten_milliseconds);
    store32(HPET + HPET_COMPARATOR0 + 4, 0);
    store32(HPET + HPET_CONFIG, 1);
}

static void hpet_stop(void)
{
    store32(HPET + HPET_TIMER0, 0);
    store32(HPET + HPET_CONFIG, 0);
    hpet_acknowledge();
    interrupts_acknowledge(NULL);
}

static void ioapic_route(uint32_t gsi, uint32_t low)
{
    store32(IOAPIC_INDEX, 0x11 + 2 * gsi);
    store32(IOAPIC_DATA, (uint32_t)apic_id() << 24);
    store32(IOAPIC_INDEX, 0x10 + 2 * gsi);
    store32(IOAPIC_DATA, low);
}

static void suite_hpet_message(void)
{
    if (!(load32(HPET + HPET_TIMER0) & HPET_MESSAGE_CAPABLE)) {
        tap_skip("HPET: message", "not capable");
        return;
    }
    store32(HPET + HPET_MESSAGE0, VECTOR_MESSAGE);
    store32(HPET + HPET_MESSAGE0 + 4, 0xfee00000u | (uint32_t)apic_id() << 12);
    hpet_start(HPET_INTERRUPT | HPET_MESSAGE);
    tap_ok(interrupts_wait(VECTOR_MESSAGE, 1), "HPET: message");
    hpet_stop();
}

void suite_hpet(void)
{
    uint32_t routes;
    uint32_t gsi = 0;
    uint32_t before;

    if (load32(HPET) == 0xffffffffu) {
        tap_skip("HPET", "there is none");
        return;
    }
    tap_ok(load32(HPET + HPET_PERIOD) - 1 < 100000000u, "HPET: at least 10 MHz");
    store32(HPET + HPET_CONFIG, 0);
    before = load32(HPET + HPET_COUNTER);
    tap_equal(load32(HPET + HPET_COUNTER), before, "HPET: halted, the counter stands");
    /* Where the input is 2, as on QEMU, it is the PICs' cascade, too. */
    interrupts_mask(2);
    routes = load32(HPET + HPET_ROUTES);
    while (gsi < 31 && !(routes >> gsi & 1))
        gsi++;
    hpet_start(gsi << HPET_GSI_SHIFT | HPET_LEVEL | HPET_INTERRUPT);
    interrupts_acknowledge(hpet_acknowledge);
    ioapic_route(gsi, VECTOR_IOAPIC | IOAPIC_LEVEL);
    tap_ok(interrupts_wait(VECTOR_IOAPIC, 1), "HPET: one-shot through the IOAPIC, level-triggered");
    tap_ok(load32(HPET + HPET_COUNTER) != before, "HPET: enabled, the counter runs");
    tap_equal(load32(HPET + HPET_STATUS), 0, "HPET: status is cleared by a one");
    ioapic_route(gsi, IOAPIC_MASKED);
    hpet_stop();
    suite_hpet_message();
}
