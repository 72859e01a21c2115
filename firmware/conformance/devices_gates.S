/*
 * Where the gates of devices_interrupts.c lead. Their end is POPF and RET instead of IRET, which KVM's instruction
 * emulator does not know in protected mode, and hosts without VMX or SVM have nothing but the emulator.
 */
    .macro gate name, vector
    .globl \name
\name:
    pushal
    pushl   $\vector
    jmp     serve
    .endm

    .text
    gate    on_irq4, 0x24
    gate    on_irq8, 0x28
    gate    on_message, 0x40
    gate    on_ioapic, 0x41

serve:
    cld
    call    interrupts_serve
    addl    $4, %esp
    popal
    /* EIP, CS, EFLAGS become: a free slot, EFLAGS, EIP. */
    pushl   %eax
    movl    4(%esp), %eax
    xchgl   %eax, 12(%esp)
    movl    %eax, 8(%esp)
    popl    %eax
    addl    $4, %esp
    popfl
    ret
