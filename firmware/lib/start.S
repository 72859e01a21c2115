/*
 * From the reset vector to main() in flat 32-bit protected mode.
 *
 * No paging, interrupts off. Instructions are kept plain: KVM hosts without VMX or SVM interpret all of this.
 */
#define CODE32 0x08
#define DATA32 0x10

    .section .reset, "ax"
    .code16
    .globl reset_vector
reset_vector:
    jmp     start16
    .balign 16, 0xff

    .section .text.start, "ax"
start16:
    cli
    cld
    /* DS is 0 at reset and reaches no ROM: address it by CS. */
    lgdtl   %cs:gdt_pointer
    movl    %cr0, %eax
    /* Caches on (CD = NW = 0), protection on. */
    andl    $0x9fffffff, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $CODE32, $start32

    .code32
start32:
    movw    $DATA32, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movw    %ax, %fs
    movw    %ax, %gs
    movl    $stack_top, %esp
    movl    $bss_start, %edi
    movl    $bss_end, %ecx
    subl    %edi, %ecx
    shrl    $2, %ecx
    xorl    %eax, %eax
    rep stosl
    call    main
    /* What main() returns is the guest's status. */
    pushl   %eax
    call    power_end
1:  hlt
    jmp     1b

    .balign 8
    .globl gdt
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff      /* 08: code, flat, 32-bit */
    .quad   0x00cf93000000ffff      /* 10: data, flat */
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt
