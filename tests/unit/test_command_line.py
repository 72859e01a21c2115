"""The command line's words: QEMU's and bhyve's, ours and those that we have nothing for."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pexpect
import pytest

from vmm.cli import COMMANDS, EXIT_STATUSES, main
from vmm.cli.boot import EXAMPLES
from vmm.cli.machine_arguments import add_machine_arguments
from vmm.cli.machine_config import disks_from
from vmm.cli.parser import Parser, fitted
from vmm.errors import ConfigError


def parse(line: str) -> Namespace:
    parser = Parser("boot", "", "", "")
    add_machine_arguments(parser)
    parser.add_argument("--until")
    return parser.parse(shlex.split(line), "firmware")


def refused(line: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(line)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("-append -v", "append", "-v"),
        ("-append -h", "append", "-h"),
        ("-append '-v -- x=y'", "append", "-v -- x=y"),
        ("-append ''", "append", ""),
        ("-smp -4", "smp", "-4"),
        ("--smp 4", "smp", "4"),
        ("--kernel k", "kernel", "k"),
        ("-c4", "bhyve_cpus", "4"),
        ("-m512M", "m", "512M"),
        ("--until=a=b", "until", "a=b"),
        ("--until -x", "until", "-x"),
        ("-m 1 -m 2", "m", "2"),
        ("-fw_cfg a -fw_cfg -b", "fw_cfg", ["a", "-b"]),
        ("-U 123", "uuid", "123"),
        ("-M q35", "machine", "type=q35"),
        ("-machine usb=off,type=q35", "machine", "type=q35"),
        ("-machine pc-i440fx-7.2,accel=kvm:tcg,fwcfg=qemu", "machine", "type=pc,fwcfg=qemu"),
        ("-pflash a,b.fd", "drive", ["if=pflash,format=raw,file=a,,b.fd"]),
        ("-M pc,hpet=on -no-hpet", "machine", "type=pc,hpet=off"),
        ("-M pc -machine fwcfg=qemu -M q35", "machine", "type=q35,fwcfg=qemu"),
        ("-smp maxcpus=4 -smp 2", "smp", "maxcpus=4,cpus=2"),
        ("-smp 2,maxcpus=8 -smp 4", "smp", "cpus=4,maxcpus=8"),
        ("-boot menu=on,splash=a,,b -boot d", "boot", "menu=on,splash=a,,b,order=d"),
        ("-boot c -boot n", "boot", "order=n"),
        ("-serial mon:stdio", "serial", "stdio"),
        ("-serial stdio -serial none", "serial", "stdio"),
        ("-accel kvm,kernel-irqchip=on", "accel", "kvm"),
        ("-accel kvm -accel tcg,thread=multi", "accel", "kvm"),
        ("-- -x", "firmware", "-x"),
        ("ovmf --", "firmware", "ovmf"),
        ("-direct ovmf -smp 2", "firmware", "ovmf"),
        ("-", "firmware", "-"),
        ("-M q35 -no-acpi", "machine", "type=q35,acpi=off"),
        ("-machine q35,acpi=off", "machine", "type=q35,acpi=off"),
        ("-device pvpanic,events=1", "device", ["pvpanic,events=1"]),
        ("-global ICH9-LPC.disable_s3=0", "machine", "s3=on"),
        ("-machine pc -global PIIX4_PM.disable_s3=off", "machine", "type=pc,s3=on"),
        ("-machine q35,smm=on", "machine", "type=q35,smm=on"),
        ("-global cfi.pflash01.secure=on", "machine", "secure-flash=on"),
        ("-global driver=cfi.pflash01,property=secure,value=off", "machine", "secure-flash=off"),
        ("-no-reboot", "no_reboot", True),
        ("--no-reboot", "no_reboot", True),
    ],
)
def test_words_are_taken_as_qemu_takes_them(line: str, field: str, value: object) -> None:
    assert getattr(parse(line), field) == value


@pytest.mark.parametrize(
    "line",
    [
        "-cpu host",
        "-cpu max,migratable=off",
        "-cpu host,kvm=on,migratable=no",
        "-nographic",
        "-display none",
        "--display none",
        "-nodefaults",
        "-enable-kvm",
        "-name a,b=c",
        "-monitor none",
        "-net none",
        "-nic none",
        "-vga none",
        "-rtc base=utc,clock=host",
        "-parallel none",
        "-k de",
        "-global ICH9-LPC.disable_s3=1",
        "-global isa-debugcon.iobase=0x402",
        "-audiodev none,id=x",
        "-A",
        "-s 0:0,hostbridge",
        "-s 31,lpc",
    ],
)
def test_what_changes_nothing_is_taken_with_a_note(line: str) -> None:
    arguments = parse(f"{line} ovmf")
    assert arguments.firmware == "ovmf"
    assert len(arguments.notes) == 1
    assert line.replace("--", "-") in arguments.notes[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-cpu qemu64", "-cpu qemu64: the guest sees the host's processor"),
        ("-cpu host,-sse", "-cpu host,-sse: '-sse' can't be changed here; known are phys-bits=N"),
        ("-cdrom x", "-cdrom x: the only disks are virtio ones"),
        ("-hda d", "-hda d: the only disks are virtio ones"),
        ("-device virtio-blk-device,drive=x", "-device virtio-blk-device,drive=x: the only disks are virtio ones"),
        ("-device nvme", "-device nvme: the only disks are virtio ones"),
        ("-device e1000,netdev=n", "-device e1000,netdev=n: there is no network"),
        ("-device qemu-xhci", "-device qemu-xhci: there is no USB"),
        ("-device virtio-vga", "-device virtio-vga: there is no display"),
        ("-device ramfb", "-device ramfb: there is no display"),
        ("-device isa-debug-exit,iobase=0xf4", "a guest ends the run by powering off"),
        (
            "-device pvpanic-pci",
            "-device pvpanic-pci: no such device here; known are virtio-blk-pci, virtio-net-pci, vhost-user-blk-pci",
        ),
        ("-monitor stdio", "-monitor stdio: there is no monitor"),
        ("-qmp stdio", "-qmp stdio: there is no monitor"),
        ("-display gtk", "-display gtk: there is no display"),
        ("-G 1234", "-G 1234: the spelling here is -gdb tcp:[HOST]:PORT"),
        ("-s 2,virtio-net,tap0", "no such device here; known are virtio-blk, hostbridge and lpc"),
        ("-rtc base=localtime", "-rtc base=localtime: the clock is the host's, in UTC"),
        (
            "-machine q35,accel=tcg",
            "-machine accel=tcg: the accelerators are -accel auto, kvm, kvm+softcpu and softcpu",
        ),
        ("-machine q35,foo=on", "-machine foo=on: no such property here; known are type, fwcfg"),
        ("-machine microvm", "-machine microvm: not known; known are auto, q35, pc, bhyve"),
        ("-netdev user,id=n", "-netdev user,id=n: there is no network but another program's: -netdev vhost-user"),
        ("-netdev id=n,type=tap", "-netdev id=n,type=tap: there is no network but another program's"),
        ("-chardev pty,id=c", "-chardev pty,id=c: only for vhost-user: socket,id=ID,path=SOCKET"),
        ("-chardev id=socket,backend=pty", "-chardev id=socket,backend=pty: only for vhost-user"),
        ("-device id=virtio-blk,driver=tpm-tis", "-device id=virtio-blk,driver=tpm-tis: there is no TPM"),
        ("-drive file=a,if=ide", "-drive file=a,if=ide: the only disks are virtio ones"),
        ("-drive if=virtio,media=cdrom,file=a", "file=a: there are no CD drives; an image of a CD boots as a disk"),
        ("-drive format=raw,file=fat:rw:esp", "-drive format=raw,file=fat:rw:esp: a folder as a disk is --esp DIR"),
        (
            "-accel kvm,kernel-irqchip=split",
            "-accel kernel-irqchip=split: no such property here; known are accel, coalesced",
        ),
        ("-accel tcg", "-accel tcg: the accelerators are -accel auto, kvm, kvm+softcpu and softcpu"),
        ("-serial pty", "-serial pty: not a target; known are stdio, none and file:PATH"),
        ("-debugcon tcp::1,server", "-debugcon tcp::1,server: not a target; known are stdio, none and file:PATH"),
        ("-global cfi.pflash01.width=1", "devices have no such properties"),
        ("-serial stdio -serial file:x", "-serial file:x: there is one such port"),
        ("-trace x", "-trace x: instructions are not logged; --trace PATH"),
        ("-run-with user=nobody", "-run-with user=nobody: --user and --sandbox say as whom"),
        ("-shim shim.efi", "-shim shim.efi: "),
        ("-smpx 4", "unknown option -smpx"),
        ("-acpit file=x", "unknown option -acpit"),
        ("-smp=4", "unknown option -smp=4"),
        ("-serialnone", "unknown option -serialnone"),
        ("-smp", "-smp: its value is missing"),
        ("-cdrom", "-cdrom: its value is missing"),
        ("ovmf seabios", "one FIRMWARE at the most, not ovmf and seabios"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(line: str, reason: str) -> None:
    assert reason in refused(line)[0]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("-netdev type=vhost-user,id=n,chardev=c", "netdev", ["type=vhost-user,id=n,chardev=c"]),
        ("-netdev id=n,type=vhost-user,chardev=c", "netdev", ["id=n,type=vhost-user,chardev=c"]),
        ("-chardev id=c,path=pty,backend=socket", "chardev", ["id=c,path=pty,backend=socket"]),
        ("-device drive=d,driver=virtio-blk-pci", "device", ["drive=d,driver=virtio-blk-pci"]),
        ("-object id=s,qom-type=secret,file=f", "object", ["id=s,qom-type=secret,file=f"]),
        ("-chardev backend=socket,id=c,path=pty", "chardev", ["backend=socket,id=c,path=pty"]),
        ("-drive file=a,,if=ide,if=none,id=d", "drive", ["file=a,,if=ide,if=none,id=d"]),
        ("-drive file=media=cdrom,media=disk", "drive", ["file=media=cdrom,media=disk"]),
        ("-accel accel=kvm+softcpu,coalesced=off", "accel", "accel=kvm+softcpu,coalesced=off"),
        ("-drive file=fat.img,if=virtio", "drive", ["file=fat.img,if=virtio"]),
        ("-serial null", "serial", "null"),
        ("-debugcon file:tcp:x", "debugcon", "file:tcp:x"),
    ],
)
def test_values_that_only_look_like_those_of_others_are_taken(line: str, field: str, value: object) -> None:
    arguments = parse(f"{line} -cpu host")
    assert getattr(arguments, field) == value
    assert len(arguments.notes) == 1


def test_the_document_shows_what_is_said() -> None:
    """Of values that cannot be served, too, all at once."""
    lines = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8").splitlines()
    command = next(line for line in lines if line.startswith("vmm boot probe -cpu host"))
    said = [f"vmm: {line}" for line in refused(command.removeprefix("vmm boot "))]
    assert len(said) == 3
    at = lines.index(said[0])
    assert lines[at - 1 : at + 4] == ["```", *said, "```"]


def test_all_that_cannot_be_served_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(shlex.split("boot -cpu host -hda disk.img -net user -zzz -device virtio-rng-pci ovmf"))
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(lines) == 4
    for line, start in zip(
        lines, ("-hda disk.img:", "-net user:", "-device virtio-rng-pci:", "unknown option -zzz"), strict=True
    ):
        assert line.startswith(f"vmm: {start}")


@pytest.mark.parametrize("words", [["help", "boot"], ["boot", "--help"], ["boot", "-help"], ["boot", "-h", "-zzz"]])
def test_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert capsys.readouterr().out.startswith("usage: vmm boot [FIRMWARE]")


def test_help_for_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err
    assert main(["help"]) == 0


@pytest.mark.parametrize("option", ["-serial", "-kernel", "-uuid", "-machine", "--esp", "-fw_cfg"])
def test_two_dashes_are_no_value(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["boot", option, "--"]) == 2
    assert capsys.readouterr().err == f"vmm: {option} --: no value is called so; ./-- is a file's\n"


@pytest.mark.parametrize("device", ["blk-pci", "fs-pci,tag=home", "device-pci,virtio-id=2"])
def test_devices_that_another_process_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    words = ["-chardev", f"socket,id=c0,path={tmp_path / 'nobody'}", "-device", f"vhost-user-{device},chardev=c0"]
    assert main(["boot", "probe", "-q", *words]) != 0
    assert "start the backend first" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_fits_a_narrow_terminal(words: list[str]) -> None:
    command = ["-m", "vmm", *words, "--help"]
    with pexpect.spawn(sys.executable, command, dimensions=(50, 60), encoding="utf-8", timeout=60) as process:
        lines = process.read().replace("\r", "").splitlines()
    assert lines[0].startswith("usage: vmm")
    # A path or an option can't be cut.
    assert [line for line in lines if len(line) > 60 and " " in line.strip()] == []
    assert not any(len(line) - len(line.lstrip()) > 30 for line in lines)


def test_help_without_a_terminal_is_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["boot", "--help"])
    printed = capsys.readouterr().out
    assert EXAMPLES.strip() in printed
    assert EXIT_STATUSES.strip() in printed


@pytest.mark.parametrize(("columns", "width"), [("60", 58), ("1000", 118), ("0", 118), ("x", 118), ("9" * 5000, 118)])
def test_help_without_a_terminal_has_the_width_that_columns_says(columns: str, width: int) -> None:
    command = [sys.executable, "-m", "vmm", "boot", "--help"]
    told = subprocess.run(command, env=os.environ | {"COLUMNS": columns}, capture_output=True, text=True, check=True)
    assert max(len(line) for line in told.stdout.splitlines() if " " in line.strip() and "-drive" not in line) == width


def test_what_goes_on_below_stays_together_on_a_narrow_terminal() -> None:
    text = (
        "A paragraph that has\nmore than one line.\n\n"
        "  vmm boot -smp 4                    what it does,\n"
        "                                     in two lines\n"
        "  4    a status that has\n"
        "       two lines\n"
        "  vmm boot \\\n"
        "        ovmf\n"
    )
    assert fitted(text, 26) == (
        "A paragraph that has more\nthan one line.\n\n"
        "  vmm boot -smp 4\n"
        "      what it does, in two\n"
        "      lines\n"
        "  4    a status that has\n"
        "       two lines\n"
        "  vmm boot ovmf"
    )


def test_passphrases_of_disks() -> None:
    line = "-object qom-type=secret,id=s,file=a,,b -drive file=x,format=luks,key-secret=s -drive file=y,format=raw"
    assert disks_from(parse(line)) == ["file=x,format=luks,secret-file=a,,b", "file=y,format=raw"]
    line = "-object secret,id=s,file=key -drive file=x,format=qcow2,encrypt.key-secret=s"
    assert disks_from(parse(line)) == ["file=x,format=qcow2,secret-file=key"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-object secret,id=s,data=abc", "whoever lists processes would see it"),
        ("-object secret,id=s", "the form is secret,id=ID,file=PATH"),
        ("-object secret,id=s,file=key,format=base64", "the form is secret,id=ID,file=PATH"),
        ("-object secret,id=s,file=key", "id=s: no -drive has it as key-secret="),
        ("-drive file=x,format=luks,key-secret=s", "there is no -object secret,id=s,file=PATH"),
    ],
)
def test_passphrases_that_make_no_sense(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        disks_from(parse(line))
