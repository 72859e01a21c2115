"""vCPUs: KVM_RUN, and the exits that end it."""

import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_guest import CODE, TinyGuest
from vmm._native import ffi, lib

from vmm.cpu.cpuid import Guest, cpuid_entries
from vmm.kvm import Vcpu, Vm, exits

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]


@pytest.fixture
def vcpu(vm: Vm) -> Iterator[Vcpu]:
    """The CPU of a machine without interrupt controllers."""
    with vm.create_vcpu(0) as created:
        yield created


def test_run_out() -> None:
    # mov dx, 0x3f8 ; mov eax, 0x44332211 ; out dx, eax
    with TinyGuest("ba f8 03  66 b8 11 22 33 44  66 ef") as guest:
        out = guest.vcpu.run_once()
        assert isinstance(out, exits.Io)
        assert (out.port, out.size, out.count, out.is_write) == (0x3F8, 4, 1, True)
        assert bytes(out.data) == b"\x11\x22\x33\x44"


def test_run_in_takes_the_answer() -> None:
    # mov dx, 0x510 ; in ax, dx ; hlt
    with TinyGuest("ba 10 05  ed  f4") as guest:
        answer = guest.vcpu.run_once()
        assert isinstance(answer, exits.Io)
        assert (answer.port, answer.size, answer.is_write) == (0x510, 2, False)
        answer.data[:] = b"\xcd\xab"
        assert isinstance(guest.vcpu.run_once(), exits.Hlt)
        assert guest.vcpu.get_regs().rax == 0xABCD


def test_run_string_output() -> None:
    # mov dx, 0x402 ; mov si, 0x3000 ; mov cx, 5 ; rep outsb ; hlt
    with TinyGuest("ba 02 04  be 00 30  b9 05 00  f3 6e  f4") as guest:
        guest.memory[0x3000:0x3005] = b"guest"
        received = bytearray()
        while isinstance(out := guest.vcpu.run_once(), exits.Io):
            assert (out.port, out.size, len(out.data)) == (0x402, 1, out.count)
            received += out.data
        assert received == b"guest"


def test_run_string_input() -> None:
    # mov dx, 0x511 ; mov di, 0x3000 ; mov cx, 8 ; rep insb ; hlt
    with TinyGuest("ba 11 05  bf 00 30  b9 08 00  f3 6c  f4") as guest:
        answers = iter(b"fw_cfg!\n")
        counts = []
        while isinstance(request := guest.vcpu.run_once(), exits.Io):
            counts.append(request.count)
            for element in range(request.count):
                request.data[element] = next(answers)
        assert guest.memory[0x3000:0x3008] == b"fw_cfg!\n"
        assert max(counts) > 1


def test_run_mmio() -> None:
    # mov bx, 0xf000 ; mov ds, bx ; mov eax, [0x20] ; mov [0x28], eax
    with TinyGuest("bb 00 f0  8e db  66 a1 20 00  66 a3 28 00") as guest:
        load = guest.vcpu.run_once()
        assert isinstance(load, exits.Mmio)
        assert (load.gpa, load.is_write, len(load.data)) == (0xF0020, False, 4)
        load.data[:] = b"\xef\xbe\xad\xde"
        store = guest.vcpu.run_once()
        assert isinstance(store, exits.Mmio)
        assert (store.gpa, store.is_write, bytes(store.data)) == (0xF0028, True, b"\xef\xbe\xad\xde")


def test_run_with_immediate_exit() -> None:
    with TinyGuest("eb fe") as guest:  # jmp $
        guest.vcpu.set_immediate_exit(True)
        assert guest.vcpu.run_once() == exits.Intr()
        assert guest.vcpu.get_regs().rip == CODE
        guest.load("f4")
        guest.vcpu.set_immediate_exit(False)
        assert guest.vcpu.run_once() == exits.Hlt()


def test_a_guest_reads_its_own_control_registers() -> None:
    # mov rax, cr0 ; mov rbx, cr3 ; mov rcx, cr4 ; hlt
    with TinyGuest("0f 20 c0  0f 20 db  0f 20 e1  f4") as guest:
        # 2 MiB at the same address (SDM volume 3, 4.5.4): present, writable, accessed, dirty.
        for table, entry in ((0x8000, 0x9023), (0x9000, 0xA023), (0xA000, 0xE3)):
            guest.memory[table : table + 8] = struct.pack("<Q", entry)
        guest.vcpu.set_cpuid2(
            cpuid_entries(guest.kvm, 0, Guest())
        )  # without long mode in it, newer kernels refuse that
        sregs = guest.vcpu.get_sregs()
        # PE, ET, WP and PG as in the host's own CR0: KVM leaves reads of that one alone then, but of no other.
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80010011, 0x8000, 0x20, 0x500
        sregs.cs.l, sregs.cs.db, sregs.cs.type = 1, 0, 11
        guest.vcpu.set_sregs(sregs)
        assert guest.vcpu.run_once() == exits.Hlt()
        regs = guest.vcpu.get_regs()
        assert (regs.rax, regs.rbx, regs.rcx) == (0x80010011, 0x8000, 0x20)


def test_run_single_steps() -> None:
    with TinyGuest("40 40 f4") as guest:  # inc ax ; inc ax ; hlt
        guest.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
        for step in (1, 2):
            stop = guest.vcpu.run_once()
            assert isinstance(stop, exits.Debug)
            assert (stop.exception, stop.pc) == (1, CODE + step)
            assert stop.dr6 & 1 << 14, "the single-step flag (SDM volume 3, 17.2.3)"
            assert guest.vcpu.get_regs().rax == step
        guest.vcpu.set_guest_debug(0)
        assert guest.vcpu.run_once() == exits.Hlt()


def test_set_guest_debug_takes_breakpoints(vcpu: Vcpu) -> None:
    # That they fire is not asked for: hosts that are emulated ones don't.
    vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP, {0: CODE, 7: 0x402})


def test_run_of_what_kvm_cannot_emulate() -> None:
    with TinyGuest("d9 2e 00 f0 f4") as guest:  # fldcw [0xf000], from where no memory is
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, 0xF000, guest.memory)
        failure = guest.vcpu.run_once()
        assert isinstance(failure, exits.InternalError)
        assert failure.suberror == lib.KVM_INTERNAL_ERROR_EMULATION
        assert failure.instruction.startswith(bytes.fromhex("d92e00f0"))
        assert failure.data
        assert guest.vcpu.get_regs().rip == CODE


def test_run_to_a_triple_fault() -> None:
    """KVM_EXIT_SHUTDOWN; on a host that interprets ring 0 the vCPU hangs, and a signal must get it back."""
    # lidt [0x2000], whose limit is 0 ; int3
    with TinyGuest("0f 01 1e 00 20  cc") as guest:
        seen: list[exits.Exit] = []
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run_once()), daemon=True)
        thread.start()
        assert thread.ident is not None
        hardware = {"vmx", "svm"} & set(Path("/proc/cpuinfo").read_text(encoding="ascii").split())
        thread.join(60 if hardware else 0.5)
        if thread.is_alive():
            guest.vcpu.set_immediate_exit(True)
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            thread.join(60)
        signal.signal(signal.SIGUSR1, before)
        assert seen == [exits.Shutdown()] or (seen == [exits.Intr()] and not hardware)


def test_run_sync_registers() -> None:
    with TinyGuest("e6 10 e6 11 f4") as guest:  # out 0x10, al ; out 0x11, al
        vcpu = guest.vcpu
        vcpu.sync_registers(lib.KVM_SYNC_X86_REGS)
        vcpu.run_once()
        synced = vcpu.run.s.regs.regs
        assert synced.rip in {CODE, CODE + 2}, "before or behind the OUT, as KVM pleases"
        synced.rax = 0x5A
        vcpu.mark_synced_dirty(lib.KVM_SYNC_X86_REGS)
        out = vcpu.run_once()
        assert isinstance(out, exits.Io)
        assert bytes(out.data) == b"\x5a"


def test_starting_an_ap_wakes_its_thread() -> None:
    """KVM_RUN of an AP blocks, without the interpreter's lock, until INIT and SIPI come."""
    with TinyGuest("f4", irqchip=True) as guest, guest.vm.create_vcpu(1) as ap:
        guest.load("e6 80 f4", at=0x3000)  # out 0x80, al
        ap.set_lapic(ap.get_lapic())  # until then, KVM finds no CPU behind APIC id 1
        seen: list[exits.Exit] = []

        def run() -> None:
            while not seen or seen[-1] == exits.Woken():
                seen.append(ap.run_once())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        # A message-signalled interrupt may carry INIT (5) and start-up (6), SDM volume 3, 11.11.2; KVM takes both.
        assert guest.vm.signal_msi(0xFEE01000, 0x4500)
        assert guest.vm.signal_msi(0xFEE01000, 0x4603)
        thread.join(60)
        assert not thread.is_alive()
        last = seen[-1]
        assert isinstance(last, exits.Io)
        assert last.port == 0x80
        assert ap.get_sregs().cs.base == 0x3000


def test_an_interrupt_ends_hlt() -> None:
    # sti ; hlt ; jmp back to the hlt; vector 0x41: out 0x81, al
    with TinyGuest("fb f4 eb fd", irqchip=True) as guest:
        guest.memory[0x41 * 4 : 0x42 * 4] = struct.pack("<HH", 0x2000, 0)
        guest.load("e6 81", at=0x2000)
        lapic = guest.vcpu.get_lapic()
        ffi.buffer(lapic)[0xF0:0xF2] = b"\xff\x01"
        guest.vcpu.set_lapic(lapic)
        timer = threading.Timer(0.05, guest.vm.signal_msi, (0xFEE00000, 0x41))
        timer.start()
        out = guest.vcpu.run_once()
        timer.join()
        assert isinstance(out, exits.Io)
        assert out.port == 0x81
