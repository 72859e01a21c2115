/*
 * refused: executes FLDCW, which KVM's instruction interpreter does not know, as OVMF's first FPU set-up does. Where
 * the processor or another interpreter executes it, the guest says so and ends well.
 */
#include "guest.h"

uint32_t main(void);
uint32_t main(void)
{
    static const uint16_t control_word = 0x037f;

    console_init();
    print("refused: before FLDCW\n");
    __asm__ volatile("fninit; fldcw %0" : : "m"(control_word));
    print("refused: after FLDCW\n");
    return 0;
}
