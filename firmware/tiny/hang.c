/* hang: computes for ever with interrupts off, without an exit that a VMM could notice. */
#include "guest.h"

uint32_t main(void);
uint32_t main(void)
{
    for (;;)
        __asm__ volatile("");
}
