/*
 * Where the IDT of exits.c leads, and where its second CPU begins. The end of a gate is POPF and RET instead of IRET,
 * which KVM's instruction emulator does not know in protected mode, and hosts without VMX or SVM have nothing else.
 */
#define APIC_EOI 0xfee000b0
#define CODE32 0x08
#define DATA32 0x10

    .macro  counting name, counter
    .globl  \name
\name:
    incl    \counter
    movl    $0, APIC_EOI
    /* EIP, CS, EFLAGS become: a free slot, EFLAGS, EIP. */
    pushl   %eax
    movl    4(%esp), %eax
    xchgl   %eax, 12(%esp)
    movl    %eax, 8(%esp)
    popl    %eax
    addl    $4, %esp
    popfl
    ret
    .endm

    .text
    counting on_timer, timer_seen
    counting on_self, self_seen
    counting on_ipi, ipi_seen

    /* #UD, #GP, or its time is up: the instruction is not to be had here; go on where its caller said. */
    .globl  on_ud, on_gp, on_stuck
on_stuck:
    movl    $0, APIC_EOI
    jmp     on_ud
on_gp:
    addl    $4, %esp
on_ud:
    addl    $12, %esp
    movl    $1, faulted
    jmp     *resume

    /* Real mode reaches it below 1 MiB, where the last 64 KiB of the image are, too: segment f000. */
    .globl  second_cpu
    .code16
second_cpu:
    lgdtl   %cs:gdt_pointer
    movl    %cr0, %eax
    andl    $0x9fffffff, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $CODE32, $second_protected
    .code32
second_protected:
    movw    $DATA32, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    $second_stack_top, %esp
    call    second_main
1:  hlt
    jmp     1b

    .bss
    .balign 16
    .skip   4096
second_stack_top:
