/* triple-fault: an exception for which there is no interrupt table, and so none for the fault that this causes. */
#include "guest.h"

uint32_t main(void);
uint32_t main(void)
{
    static const struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) no_table;

    __asm__ volatile("lidt %0; ud2" : : "m"(no_table));
    return 1;
}
