/*
 * The report guest for a BIOS: an option ROM that offers itself as a boot device (BIOS Boot Specification 1.01, 3.3),
 * collects E820 in real mode and goes on in flat 32-bit protected mode, in C, at 0x20000. It never returns.
 *
 * rom_image.py writes the size at offset 2 and both checksums.
 */
#define CODE32 0x08
#define DATA32 0x10

#define E820_SEGMENT 0x5000     /* u32 count, then entries of 20 bytes from offset 16 */
#define SCRATCH 0xff00          /* in that segment: GDT pointer, far pointer */
#define E820_LIMIT 0xe000

    .section .rom16, "ax"
    .code16
rom:
    .byte   0x55, 0xaa, 0
    jmp     initialize
    .org    rom + 0x1a
    .word   pnp - rom

/* Plug and Play BIOS 1.0A, 3.2: the expansion header. */
    .balign 16
pnp:
    .ascii  "$PnP"
    .byte   1, 2                /* revision, length / 16 */
    .word   0                   /* no further header */
    .byte   0, 0                /* reserved, checksum */
    .long   0                   /* device */
    .word   manufacturer - rom, product - rom
    .byte   0, 0, 0             /* device type */
    .byte   0x04                /* indicators: an initial program load device */
    .word   0, 0                /* boot connection vector, disconnect vector */
    .word   bootstrap - rom     /* bootstrap entry vector */
    .word   0, 0
manufacturer:
    .asciz  "vmm"
product:
    .asciz  "vmm report A"      /* a boot menu shows it; the last letter may be patched, and is reported */

    .globl  initialize
initialize:
    xorw    %ax, %ax
    lretw

bootstrap:
    cli
    cld
    movw    $E820_SEGMENT, %ax
    movw    %ax, %es
    movw    $16, %di
    xorl    %ebx, %ebx
    xorl    %ebp, %ebp
1:  movl    $0xe820, %eax
    movl    $0x534d4150, %edx   /* "SMAP" */
    movl    $20, %ecx
    int     $0x15
    jc      2f
    cmpl    $0x534d4150, %eax
    jne     2f
    addw    $20, %di
    incl    %ebp
    cmpw    $E820_LIMIT, %di
    ja      2f
    testl   %ebx, %ebx
    jnz     1b
2:  movl    %ebp, %es:0
    movw    %cs, %ax
    movzwl  %ax, %ebp
    shll    $4, %ebp            /* where the ROM lies */
    movw    $(gdt16_end - gdt16 - 1), %es:SCRATCH
    leal    (gdt16 - rom)(%ebp), %eax
    movl    %eax, %es:(SCRATCH + 2)
    leal    (start32 - rom)(%ebp), %eax
    movl    %eax, %es:(SCRATCH + 8)
    movw    $CODE32, %es:(SCRATCH + 12)
    lgdtl   %es:SCRATCH
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   *%es:(SCRATCH + 8)

    .balign 8
gdt16:
    .quad   0
    .quad   0x00cf9b000000ffff  /* 08: code, flat, 32-bit */
    .quad   0x00cf93000000ffff  /* 10: data, flat */
gdt16_end:

    .code32
start32:
    movw    $DATA32, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    $bios_stack_top, %esp
    leal    bios_load_offset(%ebp), %esi
    movl    $bios_load_start, %edi
    movl    $bios_load_words, %ecx
    rep movsl
    movl    $bios_bss_start, %edi
    movl    $bios_bss_words, %ecx
    xorl    %eax, %eax
    rep stosl
    leal    (product - rom)(%ebp), %eax
    pushl   %eax
    movl    $bios_main, %eax
    call    *%eax
1:  hlt
    jmp     1b
