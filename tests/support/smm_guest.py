"""For guests of softcpu_rig.py with a handler of SMIs: from the label `handler` to `handler_end`, in real mode."""

HANDLER = """
    .macro install                          # the handler goes to the first SMBASE's
        lea handler, %rsi
        mov $0x38000, %rdi
        mov $handler_end - handler, %ecx
        rep movsb
    .endm
    .macro saved name, offset, base=0x30000
        .set \\name, \\base + \\offset
    .endm
    saved SAVED_RAX, 0xfff8
    saved SAVED_RIP, 0xff78
    saved SAVED_RFLAGS, 0xff70
    saved SAVED_SMBASE, 0xff00
    saved SAVED_REVISION, 0xfefc
    saved SAVED_EFER, 0xfed0
    saved SAVED_CR0, 0xff58
    saved SAVED_CR4, 0xff48
    .macro peek address                     # any address, from real mode
        mov $\\address, %ebx
        mov (%ebx), %eax
        out %eax, $0xf4
    .endm
"""
