/*
 * What another CPU runs, copied to ap_start_page: real mode, CS = ap_start_page / 16, IP = 0.
 * It counts itself, notes its APIC id (CPUID leaf 1, EBX 31:24), and parks.
 */
    .section .rodata.ap, "a"
    .code16
    .globl ap_code, ap_code_end
ap_code:
    cli
    movl    $1, %eax
    cpuid
    shrl    $24, %ebx
    movl    $ap_seen, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    movb    $1, (%bx)
    movl    $ap_count, %eax
    shrl    $4, %eax
    movw    %ax, %ds
    lock incl 0
1:  hlt
    jmp     1b
ap_code_end:

/* Both are paragraphs, so that a real-mode segment can begin at each. */
    .bss
    .balign 16
    .globl ap_seen, ap_count
ap_seen:
    .skip   256
ap_count:
    .skip   16
