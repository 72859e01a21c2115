/* silent: says nothing, touches no device, and sleeps for ever with interrupts off. */
#include "guest.h"

uint32_t main(void);
uint32_t main(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}
