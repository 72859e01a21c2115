"""What is loaded: our guests, Linux where KASLR put it; OVMF's are in test_gdb.py, to boot it once less."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from accelerators import PLAIN
from moments import run_in_moments

from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.verify.linux_guest import LinuxFiles

pytestmark = pytest.mark.needs_kvm


def test_a_guest_of_ours_has_its_functions(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("hang", accel=PLAIN)
    details = run_in_moments(machine, lambda outcome: "main+0x0" in outcome.details).details
    (image,) = machine.images()
    assert (image.name, image.kind, image.path) == ("hang", "guest", str(guests.symbols("hang")))
    rip = machine.registers().linear_rip
    assert f"vCPU 0: at RIP {rip:#x} (hang+{rip - image.base:#x}, main+0x0), 32-bit code" in details
    assert f"=> {rip:x}: eb fe" in details
    assert "a loop of 2 bytes" in details


def test_a_rom_that_says_nothing_is_named_as_a_whole(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    (tmp_path / "own.rom").write_bytes(
        bytes.fromhex("fa f4").ljust(0xFFF0, b"\xff") + bytes.fromhex("e9 0d 00 fa f4").ljust(16, b"\xff")
    )
    machine = vmm_machine(str(tmp_path / "own.rom"), machine="pc", accel=PLAIN)
    assert "(own.rom+0x" in run_in_moments(machine, lambda outcome: "(own.rom+0x" in outcome.details).details
    assert machine.images() == []


def test_a_bios_s_option_rom_is_named_as_it_names_itself(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    rom = bytearray(b"\x55\xaa\x04\xeb\xfe".ljust(0x800, b"\0"))  # 2 KiB; jmp $
    rom[0x18:0x1C] = struct.pack("<HH", 0x60, 0x40)
    rom[0x40:0x60] = struct.pack("<4sBBHBBIHH10x", b"$PnP", 1, 2, 0, 0, 0, 0, 0, 0x80)
    rom[0x60:0x78] = struct.pack("<4sHH16x", b"PCIR", 0x1AF4, 0x1001)
    rom[0x80:0x90] = b"vmm's test ROM\0\0"
    rom[-1] = -sum(rom) & 0xFF
    (tmp_path / "own.rom").write_bytes(rom)
    machine = vmm_machine("seabios", option_roms=tmp_path / "own.rom")
    details = run_in_moments(machine, lambda outcome: "(vmm's test ROM+0x3)" in outcome.details).details
    assert "(vmm's test ROM+0x3)" in details
    (image,) = machine.images()
    assert (image.name, image.size, image.kind) == ("vmm's test ROM", 0x800, "rom")
    assert image.detail == "of PCI device 1af4:1001"
    assert 0xC0000 <= image.base < 0xF0000


def test_linux_is_found_where_kaslr_put_it(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(
        "none", direct=True, kernel=LinuxFiles.find().kernel, memory="512M", append="console=ttyS0 quiet no_timer_check"
    )
    machine.expect("Kernel panic - not syncing: VFS", deadline=120)
    (image,) = machine.images()
    assert (image.name, image.kind) == ("vmlinux", "linux")
    assert image.base % (2 << 20) == 0
    assert image.base != 0xFFFFFFFF81000000 or "loaded 0x0 above" in image.detail
    assert image.detail.startswith("Linux version ")
    assert f"loaded {image.base - 0xFFFFFFFF81000000:#x} above the addresses of its vmlinux" in image.detail
    assert machine.registers().linear_rip in image


def test_vmm_images() -> None:
    words = [sys.executable, "-m", "vmm", "images", "hang", "--timeout", "3"]
    text = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "hang.elf" in text.stdout
    assert "3 s passed" in text.stderr
    found = json.loads(subprocess.run([*words, "--json", "-"], check=True, capture_output=True).stdout)
    assert found["schema"] == "vmm-images/1"
    assert found["reason"] == "timeout"
    assert [image["name"] for image in found["images"]] == ["hang"]
    for more, status in ((["--until", "never"], 3), (["--until", "("], 2), (["--json", "/nowhere/x"], 2)):
        assert subprocess.run([*words, *more], check=False, capture_output=True).returncode == status


def test_memory_that_nobody_used_is_left_alone(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("hang", accel=PLAIN, memory="64M")
    memory = machine.memory
    assert memory.touched(0x1000000, 0x1000000) == []
    memory.write(0x1003FFF, b"ab")
    memory.write(0x1800000, b"c")
    assert memory.touched(0x1000000, 0x1000000) == [(0x1003000, 0x2000), (0x1800000, 0x1000)]
    machine.images()
    # But for the places where UEFI's system table is looked for.
    added = set(memory.touched(0x1000000, 0x1000000)) - {(0x1003000, 0x2000), (0x1800000, 0x1000)}
    assert added <= {(gpa, 0x1000) for gpa in range(0x1000000, 0x2000000, 4 << 20)}
    (rom,) = (region for region in memory.regions() if region.gpa == machine.config.firmware.code_address)
    assert memory.touched(rom.gpa, rom.size)
    assert memory.touched(0x80000000, 0x1000) == [(0x80000000, 0x1000)]  # no memory: nothing is known of it
