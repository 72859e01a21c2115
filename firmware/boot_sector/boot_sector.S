/*
 * boot-sector: what a BIOS loads from a disk. Reads the sector behind itself by INT 13h, prints its text on COM1, and
 * powers the machine off.
 *
 * Real mode at 0:7c00, DL is the disk (IBM PC). Registers as in lib/platform.c; PMBASE is where SeaBIOS put it.
 */
#include "ports.h"

#define LOADED 0x7c00
#define TEXT 0x8000        /* where the second sector goes */
#define COM1 0x3f8
#define LINE_STATUS 5
#define TRANSMIT_EMPTY 0x20
#define PM1_CONTROL 0x604
#define SLP_EN 0x2000

    .section .text.start, "ax"
    .code16
    .globl  boot_sector
boot_sector:
    cli
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movw    $LOADED, %sp
    sti
    cld
    movw    $packet, %si
    movb    $0x42, %ah          /* extended read (EDD 3.0) */
    int     $0x13
    cli                         /* SeaBIOS prints on COM1 as well, in its timer's interrupts */
    movw    $failed, %bx
    jc      say
    movw    $TEXT, %bx
say:
    movw    $began, %si
    call    print
    movw    %bx, %si
    call    print
    movw    $ended, %si
    call    print
    movw    $PM1_CONTROL, %dx
    movw    $SLP_EN, %ax
    outw    %ax, %dx
off:
    cli
    hlt
    jmp     off

/* The text at SI, up to its NUL; keeps DL. */
print:
    pushw   %dx
print_next:
    lodsb
    testb   %al, %al
    jz      printed
    movb    %al, %ah
    movw    $COM1 + LINE_STATUS, %dx
busy:
    inb     %dx, %al
    testb   $TRANSMIT_EMPTY, %al
    jz      busy
    movw    $COM1, %dx
    movb    %ah, %al
    outb    %al, %dx
    jmp     print_next
printed:
    popw    %dx
    ret

began:
    .asciz  "boot-sector: "
failed:
    .asciz  "cannot read"
ended:
    .asciz  "\r\n"

    .balign 4
packet:                         /* disk address packet: one sector, the second, to 0:TEXT */
    .byte   16, 0
    .word   1
    .word   TEXT, 0
    .quad   1

    .section .signature, "a"
    .word   0xaa55
