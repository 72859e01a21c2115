"""-kernel with real firmware: OVMF starts a UEFI program that comes through fw_cfg."""

import subprocess
import sys
from pathlib import Path

import pytest

from vmm import Machine
from vmm.devices.fw_cfg import FwCfg
from vmm.firmware import guests
from vmm.run.outcome import Reason
from vmm.verify import guest_report

pytestmark = pytest.mark.needs_kvm


def test_ovmf_starts_a_uefi_program() -> None:
    reported = bytearray()

    def add_mailbox(fw_cfg: FwCfg) -> None:
        fw_cfg.add_file(
            guest_report.STREAM_FILE,
            bytes(guest_report.STREAM_FILE_SIZE),
            writable=True,
            on_write=lambda _offset, data: reported.extend(data),
        )

    image = guests.report("report.efi")
    with Machine("ovmf", kernel=image, append="some words", customize=add_mailbox) as machine:
        outcome = machine.run(deadline=120)
        assert outcome.reason is Reason.POWER_OFF, outcome.message
        # OVMF of Debian 12 reads the file and the items, that of Debian 13 only the file.
        assert machine.trace.was_read_to_end("etc/boot/kernel")
        assert machine.trace.was_read_to_end("cmdline_data")
    assert reported


PVH_KERNEL = """
    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long entry
    .text
    .code32
    .globl entry
entry:
    cmpl $0x336ec578, (%ebx)        # hvm_start_info's magic
    jne wrong
    movl 24(%ebx), %esi             # its cmdline_paddr
1:  lodsb
    testb %al, %al
    jz 2f
    movw $0x402, %dx
    outb %al, %dx
    jmp 1b
2:  movb $'!', %al
    outb %al, %dx
wrong:
    hlt
    jmp wrong
"""


@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_seabios_starts_a_pvh_kernel(tmp_path: Path, sandbox: str) -> None:
    source, kernel = tmp_path / "kernel.S", tmp_path / "kernel"
    source.write_text(PVH_KERNEL, encoding="ascii")
    words = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x200000,-e,entry,--build-id=none,-z,noexecstack"]
    subprocess.run(["gcc", "-m32", *words, "-o", kernel, source], check=True)
    # What starts it comes from QEMU's package, which the sandbox, of a process of its own, keeps out of reach.
    command = [sys.executable, "-m", "vmm", "boot", "seabios", "-kernel", str(kernel), "-append", "the words"]
    command += ["--sandbox", sandbox, "--until", "the words!", "--timeout", "60", "--quiet", "-serial", "none"]
    done = subprocess.run([*command, "-debugcon", "stdio"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
