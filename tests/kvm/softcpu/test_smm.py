"""System management mode of the software CPU: SMIs by a device, what is saved, hidden and held back."""

import pytest
from smm_guest import ACTIONS, HANDLER, OTHER, OTHER_MEMORY, OTHER_MEMORY_SAYS, other_memory, with_smis
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
    pytest.mark.usefixtures("both_kinds_of_chips"),
]


def test_an_smi_comes_right_behind_the_access_and_rsm_goes_on_there() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        mov $0x1122334455667788, %r10
        std
        action 1
    after:
        pushf
        pop %rbx
        report $0xa
        report %r10d
        shr $32, %r10
        report %r10d
        report %ebx
        report $after
        action 1
        report $0xb
        done
    .code16
    handler:
        peek SAVED_REVISION
        peek SAVED_RAX
        peek SAVED_RIP
        mov %cs, %ax
        movzwl %ax, %eax
        out %eax, $0xf4
        mov %cr0, %eax
        out %eax, $0xf4
        pushfl
        pop %eax
        out %eax, $0xf4
        mov $0xc0000080, %ecx
        rdmsr
        out %eax, $0xf4
        mov $SAVED_SMBASE, %ebx             # the next one elsewhere
        movl $0x50000, (%ebx)
        mov $0x58000, %ebx
        movl $0xf4e7aab0, (%ebx)            # mov $0xaa, %al; out %eax, $0xf4; rsm
        movw $0xaa0f, 4(%ebx)
        mov $0x99, %esi
        rsm
    handler_end:
    .code64
    """
    )
    first = values_of(source, actions=ACTIONS)
    saved, entry, after = first[:3], first[3:7], first[7:]
    assert saved == [0x20064, 1, after[4]]
    assert entry[0] == 0x3000
    assert entry[1] & 0x8000_0001 == 0, "neither paging nor protection"
    assert entry[2:] == [2, 0]
    assert after[:3] == [0xA, 0x5566_7788, 0x1122_3344]
    assert after[3] & 0x400, "DF is as it was"
    assert after[5] & 0xFF == 0xAA, "there is its handler"
    assert after[6:] == [0xB]


def test_memory_that_only_the_mode_sees() -> None:
    """Code and data, from the TLB as it was, and back; a device sees none of it."""
    with with_smis(SoftcpuRig(OTHER_MEMORY)) as rig:
        assert other_memory(rig) == OTHER_MEMORY_SAYS
        with pytest.raises(ValueError, match="no memory at 0xa0000"):
            rig.memory.read(0xA0000, 4)


def test_other_code_at_the_same_address() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        mov $0x90000, %edi                  # mov eax, 0x64; ret, and for the handler mov ax, 0x16; ret
        movl $0x000064b8, (%rdi)
        movw $0xc300, 4(%rdi)
        mov $3, %ebx
    1:  call *%rdi
        report %eax
        action 1
        dec %ebx
        jnz 1b
        done
    .code16
    handler:
        xor %eax, %eax
        mov $0x4000, %esp
        lcall $0x9000, $0
        out %eax, $0xf4
        rsm
    handler_end:
    .code64
    """
    )
    with with_smis(SoftcpuRig(source)) as rig:
        rig.memory.store_behind(0xA0000, b"\xb8\x16\x00\xcb")
        rig.memory.map_smm(0x90000, 0x1000, 0xA0000)
        rig.run()
        assert rig.values == [0x64, 0x16] * 3


def test_an_smi_in_the_mode_waits_for_its_end() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        action 1
        report $0xa
        done
    .code16
    handler:
        mov $count, %ebx
        mov (%ebx), %eax
        out %eax, $0xf4
        incl (%ebx)
        cmpl $3, (%ebx)
        jae 1f
        mov $1, %eax
        out %eax, $0xfc
        out %eax, $0xfc                     # a second one is the same
    1:  rsm
    handler_end:
    .code64
    .align 8
    count: .long 0
    """
    )
    assert values_of(source, actions=ACTIONS) == [0, 1, 2, 0xA]


def test_nmis_wait_until_the_mode_ends() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        gate 2, nmi
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
        action 1
        nop
        report $0xa
        done
    nmi:
        report $0x22
        iretq
    .code16
    handler:
        mov $0xfee00000, %ebx
        movl $0, 0x310(%ebx)
        movl $0x4400, 0x300(%ebx)           # an NMI to itself
        mov $200000, %ecx
    1:  pause
        loop 1b
        mov $0x11, %eax
        out %eax, $0xf4
        rsm
    handler_end:
    .code64
    """
    )
    assert values_of(source, actions=ACTIONS) == [0x11, 0x22, 0xA]


def test_an_init_waits_until_the_mode_ends() -> None:
    source = (
        HANDLER
        + """
    main:
        cmp $0, %ebx
        jne second
        install
        start_others
        wait_for_cpus 2
    1:  pause
        cmpl $1, inside
        jb 1b
        mov $0xfee00000, %rax
        movl $0x01000000, 0x310(%rax)
        movl $0x4500, 0x300(%rax)
        mov $3000000, %ecx
    2:  loop 2b
        report $0x1
        movl $1, go_on
    3:  pause
        cmpl $2, inside
        jb 3b
        mov $3000000, %ecx
    4:  loop 4b
        report returned                     # RSM was the last that it did
        mov $0xfee00000, %rax
    7:  movl $0x4601, 0x300(%rax)           # again until it is heard: on a busy host the INIT may not have been yet
        mov $100000, %ecx
    8:  loop 8b
        cmpl $3, cpus_entered(%rip)
        jb 7b
        report $0x3
        done
    second:
        cmp $1, %ebx
        jne 5f
        action 1
        incl returned
    5:  pause
        jmp 5b
    .code16
    handler:
        mov $inside, %ebx
        incl (%ebx)
        mov $go_on, %edi
    6:  pause
        cmpl $0, (%edi)
        jz 6b
        mov $0x2, %eax
        out %eax, $0xf4
        incl (%ebx)
        rsm
    handler_end:
    .code64
    .align 8
    inside: .long 0
    go_on: .long 0
    returned: .long 0
    """
    )
    assert values_of(source, cpus=2, actions=ACTIONS) == [1, 2, 0, 3]


def test_hlt_in_the_mode_is_ended_by_an_interrupt() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        movl $0x38000000 + (woken - handler) + 0x8000, 0x100      # real mode's vector 0x40: 0x3800 is 0x38000 / 16
        movw $woken - handler, 0x100
        movw $0x3800, 0x102
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
        movl $0x40, 0x320(%rax)
        movl $0xb, 0x3e0(%rax)
        action 1
        report $0xa
        done
    .code16
    handler:
        mov $0x6000, %esp
        mov $real_idt_pointer, %ebx
        lidtl (%ebx)
        mov $0xfee00380, %ebx
        movl $10000000, (%ebx)
        sti
        hlt
        mov $0x33, %eax
        out %eax, $0xf4
        rsm
    woken:
        mov $0x22, %eax
        out %eax, $0xf4
        mov $0xfee000b0, %ebx
        movl $0, (%ebx)
        iret
    handler_end:
    .code64
    """
    )
    assert values_of(source, actions=ACTIONS) == [0x22, 0x33, 0xA]


def test_a_run_may_end_in_the_mode_and_go_on_there() -> None:
    source = (
        HANDLER
        + """
    main:
        install
        action 1
        report $0xa
        done
    .code16
    handler:
        mov $3, %eax
        out %eax, $0xfc
    1:  pause
        mov $0x6000, %ebx                   # written between the runs
        cmpl $0, (%ebx)
        jz 1b
        mov $SAVED_REVISION, %ebx
        mov (%ebx), %eax
        out %eax, $0xf4
        rsm
    handler_end:
    .code64
    """
    )
    with with_smis(SoftcpuRig(source)) as rig:
        rig.actions[OTHER] = rig.stop
        assert rig.run(seconds=20) == [lib.VCPU_STOPPED]
        assert rig.values == []
        assert rig.softcpu is not None
        saved = rig.softcpu.save_vcpu(rig.cores[0])
        assert rig.softcpu.has_registers(saved)
        rig.memory.write(0x6000, b"\1")
        rig.run()
        assert rig.values == [0x20064, 0xA]
