"""Guests for softcpu_rig.py that have a handler of SMIs, and what they ask for; some for any accelerator."""

from softcpu_rig import SoftcpuRig

SMI_HERE, SMI_ALL, OTHER = 1, 2, 3
"""Actions: what a guest's `action` asks for."""

ACTIONS = {
    SMI_HERE: lambda rig: rig.softcpu.smi(rig.core.accessing),
    SMI_ALL: lambda rig: rig.softcpu.smi(None),
}
"""Of the software CPU."""


def with_smis(rig: SoftcpuRig) -> SoftcpuRig:
    """Let a machine's guest ask the software CPU for them."""
    rig.actions = {number: lambda act=act: act(rig) for number, act in ACTIONS.items()}  # type: ignore[misc]
    return rig


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
"""The handler is from the label `handler` to `handler_end`, in real mode."""

OTHER_MEMORY = (
    HANDLER
    + """
    main:
        install
        mov $0xa0000, %ebx
        report (%rbx)
        action 1
        report (%rbx)
        movl $0x33333333, (%rbx)
        action 1
        report (%rbx)
        done
    .code16
    handler:
        peek SAVED_REVISION
        peek 0xa0000
        movl $0x22222222, (%ebx)
        peek 0xa0000
        rsm
    handler_end:
    .code64
    """
)
"""One address, two memories: looks and writes, outside and in the handler, twice."""


def other_memory(rig: SoftcpuRig) -> list[int]:
    """What `OTHER_MEMORY` says where 0xa0000 is the mode's, and was 0x11111111."""
    rig.memory.store_behind(0xA0000, b"\x11" * 4)
    rig.memory.map_smm(0xA0000, 0x20000, 0xA0000)
    rig.run()
    return rig.values


OTHER_MEMORY_SAYS = [
    *(0xFFFF_FFFF, 0x20064, 0x1111_1111, 0x2222_2222),
    *(0xFFFF_FFFF, 0x20064, 0x2222_2222, 0x2222_2222, 0xFFFF_FFFF),
]


def smi_to_who_halts(send: str) -> str:
    """The guest whose second CPU halts when the first one sends it an SMI: `HALTED_SAYS`."""
    return (
        HANDLER
        + f"""
    main:
        cmp $0, %ebx
        jne other
        install
        start_others
        wait_for_cpus 2
    1:  mov $2000000, %ecx
    2:  loop 2b
        {send}                              # again: the first may come before the other one halts
        cmpl $1, awake
        jb 1b
        done
    other:
        cli
        hlt
        report $0xa
        incl awake
        hlt
    .code16
    handler:
        mov $0xfee00020, %ebx
        mov (%ebx), %eax
        shr $24, %eax
        out %eax, $0xf4
        rsm
    handler_end:
    .code64
    .align 8
    awake: .long 0
    """
    )


HALTED_SAYS = {1, 0xA}
"""The second CPU was in the handler, once or more, and went on behind HLT."""


def smi_to_some(send: str, count: int) -> str:
    """The guest of three CPUs, whose first one sends SMIs that so many of them are to get: they report their APIC ids.

    None returns: their states have one place, as SMBASE is the same.
    """
    return (
        HANDLER
        + f"""
    main:
        mov $0xfee00000, %rax
        mov 0x20(%rax), %ecx
        shr $24, %ecx
        mov $0x01000000, %edx
        shl %cl, %edx
        mov %edx, 0xd0(%rax)
        movl $0x1ff, 0xf0(%rax)
        cmp $0, %ebx
        jne other
        install
        start_others
        wait_for_cpus 3
    1:  pause
        cmpl $2, ready
        jb 1b
        mov $2000000, %ecx                  # until they halt
    2:  loop 2b
        {send}
    3:  pause
        jmp 3b
    other:
        lock incl ready
    5:  cli
        hlt
        report $0xbad
        jmp 5b
    .code16
    handler:
        mov $0xfee00020, %ebx
        mov (%ebx), %eax
        shr $24, %eax
        out %eax, $0xf4
        mov $1, %eax
        mov $entries, %ebx
        lock xadd %eax, (%ebx)
        cmp ${count - 1}, %eax
        jb 6f
        mov $2000000, %ecx                  # would another one come?
    7:  loopl 7b
        out %eax, $0xf8
    6:  pause
        jmp 6b
    handler_end:
    .code64
    .align 8
    ready: .long 0
    entries: .long 0
    """
    )
