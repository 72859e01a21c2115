"""The software CPU and memory that changes: code stored over, RAM and ROM that come and go, flash."""

import mmap

import pytest
from softcpu_rig import CODE, NOT_HERE, SoftcpuRig, values_of

from vmm.bus import Device
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


def test_a_device_that_stores_over_code() -> None:
    source = """
    .set function, 0x9000
    main:
        mov $200, %ebp
        action 0
    1:  mov $function, %eax
        call *%rax
        report %ebx
        action 0                            # the device rewrites the function
        mov $function, %eax
        call *%rax
        report %ebx
        action 1                            # and what stands right behind this OUT
        mov $1, %ebx
        report %ebx
        dec %ebp
        jnz 1b
        done
    """
    counts = {"function": 9, "behind": 1000}

    def rewrite_function(rig: SoftcpuRig) -> None:
        counts["function"] += 1
        rig.memory.write(0x9000, b"\xbb" + counts["function"].to_bytes(4, "little") + b"\xc3")  # mov $n, %ebx; ret

    def rewrite_behind(rig: SoftcpuRig) -> None:
        counts["behind"] += 1
        out = bytes.fromhex("b801000000 e7fc bb")  # mov $1, %eax; out %eax, $0xfc; mov $n, %ebx
        at = CODE + rig.memory.read(CODE, 0x2000).index(out) + len(out)
        rig.memory.write(at, counts["behind"].to_bytes(4, "little"))

    values = values_of(source, actions={0: rewrite_function, 1: rewrite_behind})
    expected: list[int] = []
    for n in range(200):
        expected += [10 + n, 11 + n, 1001 + n]
    assert values == expected


def test_code_that_changes_itself() -> None:
    source = """
    main:
        mov $1000, %ebp
        xor %r12d, %r12d
    1:  mov %ebp, patched + 1               # another block
        call patched
        add %ebx, %r12d
        mov %ebp, ahead + 1                 # this block, ahead of the store
        nop
    ahead:
        mov $0, %ecx
        add %ecx, %r12d
        dec %ebp
        jnz 1b
        report %r12d
        movl $0x5007, 0x45000               # the same page at 1 GiB: store there, run here
        movl $0x45007, 0x44000
        movl $0x44007, 0x21008
        mov %cr3, %rax
        mov %rax, %cr3
        movl $0x0000bb90, 0x5000            # nop; mov $0, %ebx
        movw $0, 0x5004
        movb $0xc3, 0x5006
        mov $0x40000000, %rdi
        mov $100, %ebp
        xor %r12d, %r12d
    2:  mov %ebp, 2(%rdi)
        mov $0x5000, %eax
        call *%rax
        add %ebx, %r12d
        dec %ebp
        jnz 2b
        report %r12d
        done
    .align 64
    patched:
        mov $0, %ebx
        ret
    """
    assert values_of(source) == [1000 * 1001, 100 * 101 // 2]


def test_code_that_another_cpu_changes() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne runner
        start_others
        wait_for_cpus 2
        mov $500, %ebp
    1:  mov %ebp, patched + 1
        mov %ebp, turn
    2:  pause
        cmpl $0, turn
        jne 2b
        dec %ebp
        jnz 1b
        report total
        done
    runner:
        cmpl $0, turn
        jne 3f
        pause
        jmp runner
    3:  call patched
        add %ecx, total
        movl $0, turn
        jmp runner
    .align 64
    turn: .long 0
    total: .long 0
    .align 4096
    patched:
        mov $0, %ecx
        ret
    """
    assert values_of(source, cpus=2) == [500 * 501 // 2]


def test_code_and_data_where_no_memory_is() -> None:
    source = """
    undefined:
        mov (%rsp), %rbx                    # all-ones is no instruction
        report %ebx
        done
    main:
        gate 6, undefined
        mov $0x3f000000, %edi               # in the first GiB, beyond RAM
        mov (%rdi), %eax
        mov %eax, %ebx
        report %ebx
        movl $5, (%rdi)
        lock incl (%rdi)
        report (%rdi)
        jmp *%rdi
    """
    assert values_of(source) == [0xFFFFFFFF, 0xFFFFFFFF, 0x3F000000]


def test_code_in_ram_that_is_shown_piece_by_piece() -> None:
    """A chipset's PAM registers make RAM of one segment, then of that and the next: the same pages, another region."""
    source = """
    main:
        mov $0xd0000, %edi
        action 0
        call *%rdi
        report %ebx
        action 1
        call *%rdi
        report %ebx
        movl $2, 1(%rdi)
        call *%rdi
        report %ebx
        action 2                            # a device stores there
        call *%rdi
        report %ebx
        done
    """

    def show_one(rig: SoftcpuRig) -> None:
        rig.memory.map_ram(0xD0000, 0x1000)
        store(rig, 1)

    def show_two(rig: SoftcpuRig) -> None:
        rig.memory.unmap(0xD0000)
        rig.memory.map_ram(0xD0000, 0x2000)

    def store(rig: SoftcpuRig, number: int) -> None:
        rig.memory.write(0xD0000, b"\xbb" + number.to_bytes(4, "little") + b"\xc3")  # mov $n, %ebx; ret

    assert values_of(source, actions={0: show_one, 1: show_two, 2: lambda rig: store(rig, 3)}) == [1, 1, 2, 3]


def test_read_only_memory_ignores_stores() -> None:
    source = """
    main:
        mov $0xd0000, %edi
        report (%rdi)
        movl $1, (%rdi)
        lock incl (%rdi)
        report (%rdi)
        action 0                            # the chipset shows RAM there now
        movl $7, (%rdi)
        report (%rdi)
        action 1                            # and the ROM again
        report (%rdi)
        done
    """

    def show_ram(rig: SoftcpuRig) -> None:
        rig.memory.unmap(0xD0000)
        rig.memory.map_ram(0xD0000, 0x1000)

    def show_rom(rig: SoftcpuRig) -> None:
        rig.memory.unmap(0xD0000)
        rig.memory.map_rom(0xD0000, rom)

    rom = mmap.mmap(-1, 0x1000)
    rom[:] = b"\x44\x33\x22\x11" * 1024
    with SoftcpuRig(source) as rig:
        rig.memory.map_rom(0xD0000, rom)
        rig.actions = {0: lambda: show_ram(rig), 1: lambda: show_rom(rig)}
        rig.run()
        assert rig.values == [0x11223344, 0x11223344, 7, 0x11223344]
        assert rom[:4] == b"\x44\x33\x22\x11"


class Chip(Device):
    """A flash chip in little: 70h shows a status, ffh the array."""

    def __init__(self, rig: SoftcpuRig, array: mmap.mmap) -> None:
        self.rig, self.array = rig, array
        self.reads = 0
        rig.memory.map_rom(0xD0000, array)

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return 0x80

    def write(self, offset: int, size: int, value: int) -> None:
        shown = any(region.gpa == 0xD0000 for region in self.rig.memory.regions())
        if value == 0x70 and shown:
            self.rig.memory.unmap(0xD0000)
        elif value == 0xFF and not shown:
            self.rig.memory.map_rom(0xD0000, self.array)


def test_a_flash_chip_changes_modes_between_two_instructions() -> None:
    source = """
    main:
        mov $0xd0000, %edi
        mov $0xd0100, %esi
        mov $500, %ebp
    1:  cmpl $0x11223344, (%rdi)
        jne bad
        call *%rsi                          # code in the array
        cmp $55, %ebx
        jne bad
        movb $0x70, (%rdi)
        cmpb $0x80, (%rdi)
        jne bad
        movb $0x70, (%rdi)
        movb $0xff, (%rdi)
        cmpl $0x11223344, (%rdi)
        jne bad
        dec %ebp
        jnz 1b
        report $0x900d
        done
    bad:
        report $0xbad
        done
    """
    array = mmap.mmap(-1, 0x1000)
    array[:4] = b"\x44\x33\x22\x11"
    array[0x100:0x106] = bytes.fromhex("bb37000000 c3")  # mov $55, %ebx; ret
    with SoftcpuRig(source) as rig:
        rig.memory.park_roms(True)
        chip = Chip(rig, array)
        rig.mmio.add(0xD0000, 0xD0FFF, chip, "chip")
        slots = rig.memory.slots_used
        rig.run()
        assert rig.values == [0x900D]
        assert chip.reads == 500
        assert rig.memory.slots_used == slots
        rig.memory.unmap(0xD0000)
        rig.memory.map_ram(0xD0000, 0x1000)  # something else wants the addresses
        assert rig.memory.slots_used == slots
        rig.memory.park_roms(False)
