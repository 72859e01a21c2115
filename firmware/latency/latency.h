/* What modes.S and latency.c agree on. */
#ifndef LATENCY_H
#define LATENCY_H

/* Where modes.S runs: copied to RAM, for real mode reaches no ROM and long mode maps only the first GiB. */
#define LOW_CODE 0x3000
#define LOW_CODE_LIMIT 0x8000

/* Page tables of long mode: PML4, PDPT and one page directory. */
#define PAGE_TABLES 0x10000

/* The 64-bit task state segment with a permission bit for each port, and the byte of ones behind them. */
#define TSS 0x14000
#define TSS_FIXED_SIZE 104
#define TSS_SIZE (TSS_FIXED_SIZE + 8192 + 1)

/* The target of string instructions: a real-mode segment of its own. */
#define STRING_BUFFER 0x40000

/* struct parameters, at an address that every mode reaches with DS base 0. */
#define PARAMETERS 0x1800
#define P_ITERATIONS (PARAMETERS + 0)
#define P_EAX (PARAMETERS + 4)
#define P_EDX (PARAMETERS + 8)
#define P_ESI (PARAMETERS + 12)
#define P_EDI (PARAMETERS + 16)
#define P_EBP (PARAMETERS + 20)
#define P_TICKS (PARAMETERS + 24)
#define P_ROUTINE (PARAMETERS + 32)
#define P_ESP (PARAMETERS + 36)
#define P_DESCRIPTOR (PARAMETERS + 48)

#define MODE_REAL 0
#define MODE_PROTECTED 1
#define MODE_LONG 2
#define MODE_USER 3
#define MODES 4

/* Operations: what a loop repeats. The order is that of modes.S's table. */
#define OP_EMPTY 0
#define OP_IN8 1
#define OP_IN16 2
#define OP_IN32 3
#define OP_OUT8 4
#define OP_OUT16 5
#define OP_OUT32 6
#define OP_INS_UP 7
#define OP_INS_DOWN 8
#define OP_DMA 9
#define OP_OUT8_LOG 10
#define OPERATIONS 11

/* Instructions that a turn of OP_OUT8_LOG's loop has: where KVM interprets, the loop's own cost as much as a write does. */
#define LOG_UNROLLED 16

#endif
