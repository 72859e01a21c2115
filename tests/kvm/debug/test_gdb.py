"""Debian's gdb and lldb, at guests of a few instructions and at our own."""

import re
from pathlib import Path

import pytest
from accelerators import PLAIN
from debug_rig import Client, Debugged
from real_mode_rom import START, image

from vmm import Reason
from vmm.firmware import contents, guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = pytest.mark.needs_kvm

BASE = 0xFFFF0000 + START
"""Linear address of a ROM's first instruction: CS's base is still that of the reset."""

COUNTER = "31 c0 8e d8 bb 00 20 40 89 07 b9 03 00 bf 00 30 8e c0 f3 aa fa 90 eb ef"
"""+0 xor ax,ax; mov ds,ax; mov bx,2000h; +7 inc ax; +8 mov [bx],ax; +a mov cx,3; mov di,3000h; mov es,ax; +12 rep
stosb; +14 cli; nop; +16 jmp +7"""

WITHOUT_BREAKPOINTS = pytest.mark.skipif(
    has_hardware_virtualization(), reason="an emulated SVM host's breakpoints never fire (docs/hosts.md)"
)
SOFTWARE_CPU = pytest.param(
    "kvm+softcpu", marks=pytest.mark.skipif(has_hardware_virtualization(), reason="runs in KVM")
)
BOTH = pytest.mark.parametrize("accel", ["kvm", SOFTWARE_CPU, "softcpu"])


@pytest.fixture
def rom(tmp_path: Path) -> str:
    (tmp_path / "rom").write_bytes(image(COUNTER))
    return str(tmp_path / "rom")


def stops(printed: str) -> list[int]:
    """The addresses at which gdb says that it stands."""
    return [int(address, 16) for address in re.findall(r"^(?:.*, )?0x([0-9a-f]+) in ", printed, re.MULTILINE)]


@WITHOUT_BREAKPOINTS
@BOTH
@pytest.mark.parametrize("cpus", [1, 4])
def test_breakpoints_in_real_mode(vmm_machine: MachineFactory, rom: str, accel: str, cpus: int) -> None:
    with Debugged(vmm_machine(rom, machine="pc", accel=accel, cpus=cpus, gdb="tcp::0", hold=True)) as debugged:
        printed = debugged.gdb(
            f"break *{BASE + 7:#x}",
            f"hbreak *{BASE + 0x14:#x}",
            *(["continue"] * 4),
            "info threads",
            "p/x $cs_base",
            "p $eax",
        )
    assert stops(printed)[:5] == [0xFFFFFFF0, BASE + 7, BASE + 0x14, BASE + 7, BASE + 0x14]
    assert len(re.findall(r"Thread \d+ \"vCPU \d\"", printed.partition("Target Id")[2])) == cpus
    assert "$1 = 0xffff0000" in printed


@BOTH
def test_steps_over_rep_cli_and_hlt(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    (tmp_path / "rom").write_bytes(image("b9 02 00 f3 aa fa f4 90"))  # mov cx, 2; rep stosb; cli; hlt; nop
    with Debugged(vmm_machine(str(tmp_path / "rom"), machine="pc", accel=accel, gdb="tcp::0", hold=True)) as debugged:
        printed = debugged.gdb(*(["stepi"] * 6), "p/x $ecx & 0xffff", "p $eflags")
    seen = stops(printed)[1:]
    # A REP is one step for each element, or for several: KVM's interpreter takes them together.
    assert [address for index, address in enumerate(seen) if address not in seen[:index]][:3] == [
        BASE,
        BASE + 3,
        BASE + 5,
    ]
    assert seen[-1] in {BASE + 6, BASE + 7}
    assert "$1 = 0x0" in printed


@pytest.mark.skipif(has_hardware_virtualization(), reason="runs in KVM")
def test_watchpoints_stop_behind_the_access(vmm_machine: MachineFactory, rom: str) -> None:
    with Debugged(vmm_machine(rom, machine="pc", gdb="tcp::0", hold=True)) as debugged:
        printed = debugged.gdb(
            "watch *(short *)0x2000",
            "continue",
            "continue",
            "delete",
            "awatch *(char *)0x3001",
            "continue",
            "p/x $edi & 0xffff",
        )
    assert re.findall(r"New value = (-?\d+)", printed)[:2] == ["1", "2"]
    assert stops(printed)[1:4] == [BASE + 0xA, BASE + 0xA, BASE + 0x12]
    assert "$1 = 0x3002" in printed  # the second of three bytes that REP STOSB stores


@pytest.mark.skipif(has_hardware_virtualization(), reason="its KVM has data breakpoints")
@pytest.mark.usefixtures("kvm_device")
def test_what_kvm_here_cannot_do_is_refused(vmm_machine: MachineFactory, rom: str) -> None:
    machine = vmm_machine(rom, machine="pc", accel="kvm", gdb="tcp::0", hold=True)
    with Debugged(machine), Client(machine) as client:
        assert b"use -accel kvm+softcpu" in (client.ask(b"Z2,2000,2") or b"")
        assert [client.ask(b"Z0,%x,1" % address) for address in range(4)] == [b"OK"] * 4
        assert b"use -accel kvm+softcpu" in (client.ask(b"Z0,5,1") or b"")
        assert client.ask(b"z0,0,1") == b"OK"
        assert client.ask(b"Z1,5,1") == b"OK"


@WITHOUT_BREAKPOINTS
@BOTH
def test_our_guest_with_its_symbols(vmm_machine: MachineFactory, accel: str) -> None:
    machine = vmm_machine("probe", accel=accel, cpus=4, gdb="tcp::0", hold=True)
    with Debugged(machine, until="never") as debugged:
        printed = debugged.gdb("break main", "continue", "bt", "info line", symbols=guests.symbols("probe"))
        assert re.search(r"Breakpoint 1, main \(\) at .*probe\.c:\d+", printed)
        assert debugged.join().reason is Reason.POWER_OFF  # detached, it went on


@BOTH
def test_registers_and_memory_are_written(vmm_machine: MachineFactory, rom: str, accel: str) -> None:
    with Debugged(vmm_machine(rom, machine="pc", accel=accel, gdb="tcp::0", hold=True)) as debugged:
        printed = debugged.gdb(
            *("set $ebx = 0x1234", "set $xmm3.v2_int64[1] = 77", "set $st1 = 2.5", "set $mxcsr = 0x1f81"),
            *("set *(int *)0x4000 = 0x11223344", f"set $eip = {BASE + 7:#x}", "stepi", "maint flush register-cache"),
            *("p/x $ebx", "p $xmm3.v2_int64[1]", "p $st1", "p/x $mxcsr", "x/4xb 0x4000", "p $eax", "p/x $ftag"),
            "maint packet Qqemu.PhyMemMode:1",
            *("x/xw 0x4000", "maint packet m4000,2", "set *(int *)0xfffffff0 = 1", "p $cs = 8"),
        )
    assert "$1 = 0x1234" in printed
    assert "$2 = 77" in printed
    assert "$3 = 2.5" in printed
    assert "$4 = 0x1f81" in printed
    assert "0x44\t0x33\t0x22\t0x11" in printed
    assert "$5 = 1" in printed
    assert stops(printed)[1] == BASE + 8
    assert 'received: "4433"' in printed
    assert "Cannot access memory at address 0xfffffff0" in printed  # a ROM


@BOTH
def test_lldb(vmm_machine: MachineFactory, rom: str, accel: str) -> None:
    with Debugged(vmm_machine(rom, machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)) as debugged:
        printed = debugged.lldb(
            *("thread list", "register read eip cr0", "thread step-inst", "thread step-inst", "register read eip"),
            *("memory read 0xfffffff0 0xfffffff3", "detach"),
        )
    assert re.search(r"thread #2: tid = 0x0*2", printed)
    assert "eip = 0xfffffff0" in printed
    assert f"eip = {BASE + 2:#010x}" in printed
    assert "e9 0d ff" in printed


def test_description_follows_the_code(vmm_machine: MachineFactory) -> None:
    def is_32_bit() -> bool:
        with Client(debugged.machine) as client:
            return b">i386<" in (client.ask(b"qXfer:features:read:target.xml:0,400") or b"")

    with Debugged(vmm_machine("hang", accel=PLAIN, gdb="tcp::0")) as debugged:
        while not is_32_bit():
            pass
        printed = debugged.gdb("show architecture", "info registers eip", symbols=guests.symbols("hang"))
    assert 'currently "i386"' in printed
    assert re.search(r"eip +0x[0-9a-f]+ +0x[0-9a-f]+ <main", printed)


@pytest.mark.skipif(has_hardware_virtualization(), reason="an emulated SVM host's breakpoints never fire")
def test_ovmf_in_its_shell(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("ovmf", cpus=4, gdb="tcp::0")
    machine.expect("any other key to continue", deadline=120)
    machine.send_line()
    machine.expect("Shell>", deadline=60)
    with Debugged(machine, until=r"UEFI Interactive Shell v2") as debugged:
        # Where it waits for the timer's interrupt, which comes back; and where it returns to then.
        printed = debugged.gdb(
            *("set $here = $pc", "hbreak *$here", "continue", "p $pc == $here", "info threads", "x/i $here - 1"),
            *("thread 3", "monitor translate 0xfffffff0", "monitor registers", "monitor trace", "monitor fw_cfg"),
            *('eval "monitor images %#lx", $pc', "monitor images"),
            *("thread 1", "delete", 'eval "awatch *(long *)%#lx", $sp', "continue", "stepi", "stepi"),
        )
        machine.send_line("ver")
        assert debugged.join().reason is Reason.UNTIL
    names = {image.name for image in machine.images()}
    assert {"SecMain", "PeiCore", "PlatformPei", "DxeIpl", "DxeCore", "CpuDxe", "Shell", "VariableRuntimeDxe"} <= names
    # Each is there, with the GUID that its file has in the firmware's volumes.
    files = {module.guid: module.name for module in contents.read(machine.config.firmware.code).modules}
    assert all(files[image.guid] == image.name for image in machine.images() if image.guid is not None)
    assert len(names) > 80
    assert re.search(r"^CpuDxe\+0x[0-9a-f]+$", printed, re.MULTILINE)
    assert re.search(r"^ +fffc[0-9a-f]+ +0x[0-9a-f]+ +SecMain ", printed, re.MULTILINE)
    assert "$1 = 1" in printed
    assert printed.count("64-bit code in long mode") >= 4
    assert re.search(r"0x[0-9a-f]+:\s+hlt", printed)
    assert re.search(r"0xfffffff0: GPA 0xfffffff0\nPML4E at 0x[0-9a-f]+: 0x[0-9a-f]+\nPDPTE", printed)
    assert "vCPU 2: 64-bit code in long mode, CPL 0, HALTED" in printed
    assert "vCPU 3 started" in printed
    assert "etc/acpi/tables" in printed
    assert "hit Hardware access (read/write) watchpoint 2" in printed
