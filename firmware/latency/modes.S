/*
 * The timed loops, assembled for 16, 32 and 64 bits, and the ways into and out of the modes they run in.
 *
 * All of it is position-dependent on LOW_CODE, where latency.c copies it; LOW(symbol) is where a symbol then is.
 * Interrupts are off throughout; the only exception there is takes ring 3 back to ring 0.
 *
 * A loop finds its registers in struct parameters (latency.h): EBX iterations, EAX value or DMA descriptor (big-endian),
 * EDX port, ESI size of a string or DMA control word, EDI DMA descriptor, EBP string buffer. It leaves TSC ticks there.
 */
#include "latency.h"

#define LOW(symbol) (LOW_CODE + (symbol) - low_start)

#define CODE32 0x08
#define DATA32 0x10
#define CODE16 0x18
#define DATA16 0x20
#define CODE64 0x28
#define USER_DATA 0x30
#define USER_CODE64 0x38
#define TASK_STATE 0x40

#define VECTOR_UD 6

#define CR0_PE 0x00000001
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define FLAGS_IOPL3 0x3002

    .section .rodata.low, "a"
    .globl low_start, low_end, low_routines
    .globl low_gdt_pointer, low_enter_real, low_enter_protected, low_enter_long, low_enter_user
    .balign 16
low_start:

low_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff      /* 08: code, 32-bit */
    .quad   0x00cf93000000ffff      /* 10: data */
    .quad   0x00009b000000ffff      /* 18: code, 16-bit, base 0, 64 KiB */
    .quad   0x000093000000ffff      /* 20: data, 64 KiB, as real mode wants it */
    .quad   0x00af9b000000ffff      /* 28: code, 64-bit */
    .quad   0x00cff3000000ffff      /* 30: data, ring 3 */
    .quad   0x00affb000000ffff      /* 38: code, 64-bit, ring 3 */
    /* 40: 64-bit TSS; Intel SDM vol. 3A, 8.2.3. */
    .word   TSS_SIZE - 1, TSS & 0xffff, 0x8900 | TSS >> 16, 0
    .quad   0
low_gdt_pointer:
    .word   low_gdt_pointer - low_gdt - 1
    .long   LOW(low_gdt)

    .balign 8
idt:
    .skip   16 * VECTOR_UD
    .word   LOW(back_in_long), CODE64, 0x8e00, 0
    .quad   0
idt_pointer:
    .word   idt_pointer - idt - 1
    .quad   LOW(idt)

    .macro  timed name, bits, before, body, after
\name\()_\bits:
    movl    P_ITERATIONS, %ebx
    movl    P_ESI, %esi
    movl    P_EDI, %edi
    movl    P_EBP, %ebp
    \before
    rdtsc
    movl    %eax, P_TICKS
    movl    %edx, P_TICKS + 4
    movl    P_EAX, %eax
    movl    P_EDX, %edx
1:  \body
    decl    %ebx
    jnz     1b
    rdtsc
    subl    P_TICKS, %eax
    sbbl    P_TICKS + 4, %edx
    movl    %eax, P_TICKS
    movl    %edx, P_TICKS + 4
    \after
    jmp     leave_\bits
    .endm

    .macro  log_turn
    .rept   LOG_UNROLLED
    outb    %al, %dx
    .endr
    .endm

    .macro  all_timed bits
    timed   empty, \bits, , ,
    timed   in8, \bits, , "inb %dx, %al",
    timed   in16, \bits, , "inw %dx, %ax",
    timed   in32, \bits, , "inl %dx, %eax",
    timed   out8, \bits, , "outb %al, %dx",
    timed   out16, \bits, , "outw %ax, %dx",
    timed   out32, \bits, , "outl %eax, %dx",
    timed   ins_up, \bits, , "movl %esi, %ecx; movl %ebp, %edi; rep insb",
    timed   ins_down, \bits, std, "movl %esi, %ecx; movl %ebp, %edi; rep insb", cld
    /* The device clears the control word: it is written anew each time. */
    timed   dma, \bits, , "movl %esi, (%edi); outl %eax, %dx",
    timed   out8_log, \bits, , log_turn,
    .endm

    .code16
    all_timed 16
    .code32
    all_timed 32
    .code64
    all_timed 64

/* Offsets of the loops from low_start: one row an operation, 16, 32 and 64 bits. */
    .balign 4
low_routines:
    .irp    name, empty, in8, in16, in32, out8, out16, out32, ins_up, ins_down, dma, out8_log
    .long   \name\()_16 - low_start, \name\()_32 - low_start, \name\()_64 - low_start
    .endr

/*
 * void low_enter_MODE(void), called in flat 32-bit mode: run the loop at P_ROUTINE in that mode and come back.
 */
    .code32
low_enter_protected:
    pushal
    jmp     *P_ROUTINE
leave_32:
    popal
    ret

low_enter_real:
    pushal
    movl    %esp, P_ESP
    ljmpl   $CODE16, $LOW(protected16)
    .code16
protected16:
    movw    $DATA16, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    %cr0, %eax
    andl    $~CR0_PE, %eax
    movl    %eax, %cr0
    ljmp    $0, $LOW(real16)
real16:
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    %ax, %ss
    movw    $STRING_BUFFER >> 4, %ax
    movw    %ax, %es
    jmp     *P_ROUTINE
leave_16:
    movl    %cr0, %eax
    orl     $CR0_PE, %eax
    movl    %eax, %cr0
    ljmpl   $CODE32, $LOW(back_in_32)
    .code32
back_in_32:
    movw    $DATA32, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    P_ESP, %esp
    popal
    ret

low_enter_long:
    pushal
    movl    $LOW(long64), %edi
    jmp     to_long
low_enter_user:
    pushal
    movl    $LOW(user64), %edi
to_long:
    movl    %esp, P_ESP
    movl    $PAGE_TABLES, %eax
    movl    %eax, %cr3
    movl    %cr4, %eax
    orl     $CR4_PAE, %eax
    movl    %eax, %cr4
    movl    $MSR_EFER, %ecx
    rdmsr
    orl     $EFER_LME, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $CR0_PG, %eax
    movl    %eax, %cr0
    ljmpl   $CODE64, $LOW(in_long)
    .code64
in_long:
    jmp     *%rdi
long64:
    movl    P_ROUTINE, %eax
    jmp     *%rax
leave_64:
    movw    %cs, %ax
    testb   $3, %al
    jz      back_in_long
    /* From ring 3 by #UD: unlike SYSCALL and INT, all KVM hosts deliver it. Nobody looks at its frame. */
    ud2
back_in_long:
    movl    P_ESP, %esp
    pushq   $CODE32
    pushq   $LOW(leave_long)
    lretq
    .code32
leave_long:
    movl    %cr0, %eax
    andl    $~CR0_PG, %eax
    movl    %eax, %cr0
    movl    $MSR_EFER, %ecx
    rdmsr
    andl    $~EFER_LME, %eax
    wrmsr
    jmp     back_in_32

    .code64
user64:
    lidt    LOW(idt_pointer)
    /* Its descriptor may be marked busy from the last time. */
    movb    $0x89, LOW(low_gdt) + TASK_STATE + 5
    movw    $TASK_STATE, %ax
    ltr     %ax
    movl    P_ROUTINE, %ecx
    movl    %esp, %eax
    pushq   $USER_DATA | 3
    pushq   %rax
    pushq   $FLAGS_IOPL3
    pushq   $USER_CODE64 | 3
    pushq   %rcx
    iretq
low_end:
