"""A virtual machine that is made ahead: like any other, as far as its guest can tell."""

import errno
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from real_mode_rom import image
from tiny_guest import refused

from vmm import Machine
from vmm.kvm import Kvm
from vmm.kvm.ahead import VmAhead
from vmm.run.outcome import Reason
from vmm.run.resumption import prepare

pytestmark = [pytest.mark.needs_kvm, pytest.mark.usefixtures("kvm_device")]

LATE = (
    "31 c0  8e d8  8e d0  bc 00 70"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7000
    "c7 06 20 00 7f ff  8c 0e 22 00"  # vector 8: mov word [0x20], tick; mov [0x22], cs
    "b0 11 e6 20  b0 08 e6 21  b0 04 e6 21  b0 01 e6 21  b0 fe e6 21"  # the PIC: vectors from 8 on, IRQ 0 alone
    "b0 34 e6 43  30 c0 e6 40 e6 40"  # channel 0: mode 2, every 65,536 cycles, which are 55 ms
    "ba 02 04  b0 41 ee"  # mov dx, 0x402; mov al, 'A'; out dx, al
    "f6 06 00 05 01  74 f9"  # wait: test byte [0x500], 1; jz wait
    "31 db  31 f6  b9 ff ff"  # xor bx, bx; xor si, si; mov cx, 0xffff
    "e8 23 00  83 fb 08  72 f8"  # with interrupts off: call period; cmp bx, 8; jb
    "31 db  fb"  # xor bx, bx; sti
    "e8 18 00  89 f0  29 d8  83 f8 05  7d 0a"  # next: call period; mov ax, si; sub ax, bx; cmp ax, 5; jge kept
    "81 fb 64 00  72 ee"  # cmp bx, 100; jb next
    "b0 4c  eb 02"  # mov al, 'L'; jmp say
    "b0 4b  ee  fa f4"  # kept: mov al, 'K'; say: out dx, al; cli; hlt
    "30 c0 e6 43  e4 40 88 c4 e4 40 86 c4"  # period: mov al, 0; out 0x43, al; the count into ax
    "39 c8  89 c1  76 01  43  c3"  # cmp ax, cx; mov cx, ax; jbe +1; inc bx; ret
    "46  50  b0 20 e6 20  58  cf"  # tick: inc si; push ax; mov al, 0x20; out 0x20, al; pop ax; iret
)
"""Programs the PIT and says A; then takes no tick for 8 periods, and says whether they came later: K if they were kept,
L if they were lost."""


def test_it_has_a_pcs_chips_and_is_closed_with_its_context() -> None:
    with VmAhead() as ahead:
        refused(errno.EEXIST, ahead.vm.create_irqchip)
        refused(errno.EEXIST, ahead.vm.create_pit2)
        ahead.vm.create_vcpu(0).close()
    assert ahead.vm.closed
    assert ahead.vm.kvm.closed


def test_what_the_host_lacks_is_for_others_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.kvm.ahead.Kvm", lambda: Kvm("/dev/null"))
    assert VmAhead.begun() is None


@pytest.mark.hw
@pytest.mark.parametrize("made", [VmAhead, nullcontext])
def test_ticks_that_a_guest_is_late_to_take_are_kept(tmp_path: Path, made: Callable[[], Any]) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(LATE))
    with made() as ahead, Machine(str(rom), machine="pc", accel=PLAIN, ahead=ahead) as machine:
        assert machine.run(until="A", deadline=60).reason is Reason.UNTIL
        machine.memory.write(0x500, b"\1")
        assert machine.run(until="K|L", deadline=60).reason is Reason.UNTIL
        assert machine.debugcon.text() == "AK"


class Blind(VmAhead):
    """Has not looked yet when the guest runs."""

    def watch(self, poll: Callable[[], None] | None) -> Callable[[], None]:
        return poll or (lambda: None)


def test_a_guest_that_goes_on_has_programmed_the_pit_already(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(LATE))
    with Machine(str(rom), machine="pc", accel=PLAIN) as machine:
        assert machine.run(until="A", deadline=60).reason is Reason.UNTIL
        snapshot = machine.snapshot()
    with snapshot, Blind() as ahead:
        resumption = prepare(snapshot, (), None, "stopped")
        with Machine(resumption.config, resumption=resumption, ahead=ahead) as machine:
            machine.memory.write(0x500, b"\1")
            assert machine.run(until="K|L", deadline=60).reason is Reason.UNTIL
            assert machine.debugcon.text() == "AK"


@pytest.mark.parametrize("accel", ["kvm", "softcpu"])
def test_a_machine_closes_it_or_leaves_it_alone(tmp_path: Path, accel: str) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image("f4"))
    with VmAhead() as ahead, Machine(str(rom), machine="pc", accel=accel, ahead=ahead) as machine:
        assert (machine.vm is ahead.vm) == (accel == "kvm")
        machine.close()
        assert ahead.vm.closed == (accel == "kvm")
