/*
 * exit: powers the machine off at once, in as few instructions as knowing the machine takes. What remains of a run's
 * time is the VMM's.
 *
 * Real mode, no stack, no memory. The registers written are those of power_off() in lib/platform.c.
 */
#include "ports.h"

    .macro  pci_write device, function, register, value
    movw    $PCI_ADDRESS, %dx
    movl    $(0x80000000 | \device << 11 | \function << 8 | \register), %eax
    outl    %eax, %dx
    movw    $PCI_DATA, %dx
    movl    $\value, %eax
    outl    %eax, %dx
    .endm

    .macro  pm1_control port, value
    movw    $\port, %dx
    movw    $\value, %ax
    outw    %ax, %dx
    .endm

    .section .reset, "ax"
    .code16
    .globl reset_vector
reset_vector:
    jmp     start16
    .balign 16, 0xff

    .section .text.start, "ax"
start16:
    movw    $PCI_ADDRESS, %dx
    movl    $0x80000000, %eax
    outl    %eax, %dx
    movw    $PCI_DATA + 2, %dx
    inw     %dx, %ax
    cmpw    $0x1237, %ax
    je      pc
    cmpw    $0x1275, %ax
    je      bhyve

    pci_write 0x1f, 0, 0x40, 0x601      /* PMBASE */
    pci_write 0x1f, 0, 0x44, 0x80       /* ACPI_CNTL.ACPI_EN */
    pm1_control 0x604, 0x2000           /* SLP_EN, type 0 */
    jmp     off
pc:
    pci_write 1, 3, 0x40, 0x601         /* PMBASE */
    pci_write 1, 3, 0x80, 0x01          /* PMREGMISC.PMIOSE */
    pm1_control 0x604, 0x2000
    jmp     off
bhyve:
    pm1_control 0x404, 0x3400           /* SLP_EN, type 5 */
off:
    cli
    hlt
    jmp     off
