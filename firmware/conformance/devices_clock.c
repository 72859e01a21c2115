/* See devices_suite.h. This file: the clock that the other suites measure by, the PM timer. */
#include "devices_suite.h"

static uint16_t timer_port;

bool clock_init(void)
{
    timer_port = power_timer_port();
    return timer_port != 0;
}

uint32_t ticks(void)
{
    return in32(timer_port) & 0xffffffu;
}

uint32_t ticks_since(uint32_t start)
{
    return (ticks() - start) & 0xffffffu;
}
