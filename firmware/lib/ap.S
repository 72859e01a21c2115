/*
 * What another CPU runs, copied to ap_start_page: real mode, CS = ap_start_page / 16, IP = 0.
 * It counts itself, notes its APIC id (CPUID leaf 0xb, EDX, which has 32 bits; else leaf 1, EBX 31:24), and parks; where
 * ap_busy is set, the one with id 1 computes for ever instead, and the one with id 2 uses a device; where ap_entry is
 * set, the one with id 1 goes there.
 */
    .section .rodata.ap, "a"
    .code16
    .globl ap_code, ap_code_end
ap_code:
    cli
    xorl    %eax, %eax
    cpuid
    movl    %eax, %esi
    movl    $1, %eax
    cpuid
    shrl    $24, %ebx
    movl    %ebx, %edi
    cmpl    $0xb, %esi
    jb      5f
    movl    $0xb, %eax
    xorl    %ecx, %ecx
    cpuid
    testl   %ebx, %ebx
    jz      5f
    movl    %edx, %edi
5:  andl    $4095, %edi
    movl    $ap_seen, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    movb    $1, (%di)
    movl    $ap_count, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    lock incl 0
    movl    $ap_entry, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    cmpl    $0, 0
    je      4f
    cmpl    $1, %edi
    jne     4f
    ljmpw   *0
4:
    movl    $ap_busy, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    cmpb    $0, 0
    je      1f
    cmpl    $2, %edi
    ja      1f
    je      3f
2:  jmp     2b
3:  inb     $0x71, %al
    jmp     3b
1:  hlt
    jmp     1b
ap_code_end:

/* All are paragraphs, so that a real-mode segment can begin at each. */
    .bss
    .balign 16
    .globl ap_seen, ap_count, ap_busy, ap_entry
ap_seen:
    .skip   4096
ap_count:
    .skip   16
ap_busy:
    .skip   16
ap_entry:
    .skip   16
