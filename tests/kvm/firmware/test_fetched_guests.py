"""Firmware, kernels and loaders of other Debians, which scripts/fetch-guests gets: each shows what it is to show."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from debian import fetched, firmware

from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = pytest.mark.needs_kvm

DEADLINE = 240.0

Step = tuple[str, str]
"""What is waited for, a regular expression, and what is typed then: no more than 15 characters for a BIOS, whose buffer
holds no more."""

WITHOUT_ROOT = "VFS: Unable to mount root fs"
"""Where a kernel's own start ends that has neither disk nor initial RAM disk."""

COMPLAINTS = re.compile(r"(?i)firmware bug|MP-BIOS|ACPI (BIOS )?(error|warning)|hpet: .*(fail|wrong)|\bOops\b|\bBUG:")
"""Of Linux, about the machine."""


def dialogue(vmm_machine: MachineFactory, image: str, steps: Sequence[Step], **options: Any) -> str:
    """Run a machine until the last step was seen; return all that it printed, without terminal escapes."""
    machine = vmm_machine(image, **options)
    for shown, typed in steps:
        machine.expect(shown, deadline=DEADLINE)
        if typed:
            machine.send(typed)
    return re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]", "", machine.serial.text())


def test_ovmf_ia32_reaches_its_shell(vmm_machine: MachineFactory) -> None:
    steps = [("any other key to continue", "\r"), ("Shell> ", "memmap\r"), (r"Total Memory:\s+511 MB", "")]
    said = dialogue(vmm_machine, firmware("ovmf-ia32-trixie"), steps, memory="512M", cpus=2)
    assert "EDK II" in said


def test_ovmf_2026_finds_nothing_to_boot(vmm_machine: MachineFactory) -> None:
    dialogue(vmm_machine, firmware("ovmf-sid"), [("No bootable option or device was found", "")])


@pytest.mark.parametrize(("name", "cpus"), [("trixie", 1), ("trixie", 4), ("sid", 1), ("sid", 2), ("sid", 8)])
def test_ovmf_with_secure_boot_and_smm(vmm_machine: MachineFactory, name: str, cpus: int) -> None:
    """To the menu, for there is nothing that Microsoft's keys signed."""
    image = fetched(f"ovmf-secboot-{name}", "OVMF_CODE_4M.secboot.fd")
    options = {"variables": image.with_name("OVMF_VARS_4M.ms.fd"), "persist": False, "cpus": cpus}
    machine = vmm_machine(str(image), **options)
    machine.expect("Boot Manager Menu", deadline=DEADLINE)
    assert machine.config.has_secure_flash
    assert machine.started_s().count(None) == 0


@pytest.mark.parametrize("accel", ["auto", "kvm"])
def test_seabios_1_17(vmm_machine: MachineFactory, accel: str) -> None:
    machine = vmm_machine(firmware("seabios-sid"), accel=accel)
    machine.expect("No bootable device", deadline=DEADLINE)
    assert "SeaBIOS (version 1.17" in machine.debugcon.text()
    assert "Found QEMU fw_cfg" in machine.debugcon.text()


@pytest.mark.parametrize(
    ("bios", "file", "platform"),
    [("seabios", "ipxe.lkrn", "pcbios"), ("ovmf", "ipxe-amd64.efi", "efi")],
    ids=["bios", "uefi"],
)
def test_ipxe_takes_commands(vmm_machine: MachineFactory, bios: str, file: str, platform: str) -> None:
    steps = [
        ("Ctrl-B for the iPXE command line", "\x02"),
        ("iPXE> ", "echo <${"),
        (r"echo <\$\{", "platform}>\r"),
        (f"<{platform}>", ""),
    ]
    dialogue(vmm_machine, bios, steps, kernel=fetched("ipxe-trixie", file))


@pytest.mark.parametrize("bits", ["qemu-x86", "qemu-x86_64"])
def test_u_boot_lists_fw_cfg(vmm_machine: MachineFactory, bits: str) -> None:
    image = str(fetched("u-boot-trixie", f"{bits}.rom"))
    steps = [("=> ", "qfw list\r"), (r"opt/org.example/own[^=]*=> ", "qfw cpus\r"), (r"3 cpu\(s\) online", "")]
    dialogue(vmm_machine, image, steps, cpus=3, fw_cfg={"opt/org.example/own": b"x"})


@pytest.mark.parametrize(
    ("name", "file", "bios"),
    [
        ("memtest86+-trixie", "memtest86+ia32.bin", "seabios"),
        ("memtest86+-trixie", "memtest86+x64.bin", "seabios"),
        ("memtest86+-sid", "mt86+x64", "ovmf"),
    ],
)
def test_memtest_finds_memory_without_faults(vmm_machine: MachineFactory, name: str, file: str, bios: str) -> None:
    memory = "32M" if bios == "seabios" else "128M"
    options = {"kernel": fetched(name, file), "append": "console=ttyS0"}
    said = dialogue(vmm_machine, bios, [(r"#[1-9]  \[", "")], memory=memory, **options)
    assert re.search(r"Errors: 0 ", said)
    assert not re.search(r"Errors: [1-9]", said)


def test_grub_boots_from_a_disk(vmm_machine: MachineFactory) -> None:
    image = fetched("grub-trixie", "grub-rescue-cdrom.iso")
    steps = [
        ("GNU GRUB  version 2", "c"),
        ("grub> ", "echo $grub_cpu\r"),
        ("\ni386", "lsmmap\r"),
        ("length = 0x9fc00, available RAM", ""),
    ]
    dialogue(vmm_machine, "seabios", steps, drives=[f"file={image},format=raw,readonly=on"])


@pytest.mark.parametrize(
    ("name", "image", "version"),
    [
        ("linux-trixie", "none", r"6\.12\."),
        ("linux-sid", "ovmf-sid", r"7\.2\."),
        ("linux-686-bookworm", "seabios", r"6\.1\."),
        ("linux-pae-bookworm", "none", r"6\.1\."),
        ("linux-trixie", "qboot", r"6\.12\."),
    ],
)
def test_linux_complains_of_nothing(vmm_machine: MachineFactory, name: str, image: str, version: str) -> None:
    kernel = fetched(name, "vmlinuz")
    # Whether the PIT's interrupts come in time depends on what else the host does.
    options = {"kernel": kernel, "append": "console=ttyS0 no_timer_check", "direct": image == "none", "memory": "512M"}
    image = "/usr/share/qemu/qboot.rom" if image == "qboot" else firmware(image)
    said = dialogue(vmm_machine, image, [(f"Linux version {version}", ""), (WITHOUT_ROOT, "")], cpus=2, **options)
    assert "Total of 2 processors activated" in said
    assert not [line for line in said.splitlines() if COMPLAINTS.search(line)]


def test_xen_starts_its_processors(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    folder = tmp_path / "EFI" / "BOOT"
    folder.mkdir(parents=True)
    (folder / "BOOTX64.EFI").symlink_to(next(fetched("xen-trixie", "packages").parent.glob("xen-*.efi")))
    (folder / "linux").symlink_to(fetched("linux-trixie", "vmlinuz"))
    (folder / "BOOTX64.cfg").write_text(
        "[global]\ndefault=one\n[one]\noptions=console=com1 com1=115200,8n1 dom0_mem=512M\n"
        "kernel=linux console=hvc0 no_timer_check\n",
        encoding="ascii",
    )
    # Xen has no word for no_timer_check: where the host was busy at that moment it resets, and tries again.
    said = dialogue(
        vmm_machine, "ovmf", [(r"Xen version 4\.", ""), ("Brought up 1 CPUs", "")], esp=tmp_path, memory="1G"
    )
    assert "Platform timer is 100.000MHz HPET" in said
