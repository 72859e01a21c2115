"""What hostile files and words may contain: one function a target, one call an input.

A function raises where something was raised that no such input should lead to.
"""

import hashlib
import random
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_inputs import MIB, number, scratch, spoiled

from vmm import Machine, MachineConfig, Snapshot
from vmm.cli.boot import parser
from vmm.cli.machine_config import config_from
from vmm.config.parts import Accelerator
from vmm.errors import VmmError
from vmm.firmware import guests
from vmm.firmware.clients import analyze_bytes
from vmm.handoff.kernel import load_kernel
from vmm.inputs import InputFile
from vmm.run import snapshot_file
from vmm.verify import guest_report, linux_report, smbios
from vmm.verify.guest_report import ReportError


@cache
def images() -> list[bytes]:
    """Firmware of several kinds, small enough to be looked at often."""
    return [Path(guests.path(name)).read_bytes() for name in ("probe", "exit", "conformance-fwctl")]


def volume(chance: random.Random) -> bytes:
    """A firmware volume with a file or two in it."""
    files = bytearray()
    for _ in range(chance.randrange(4)):
        body = chance.randbytes(chance.randrange(200))
        size = chance.choice((24 + len(body), number(chance, 24))).to_bytes(3, "little")
        files += (
            chance.randbytes(16) + chance.randbytes(2) + bytes([chance.randrange(16), chance.randrange(256)]) + size
        )
        files += b"\xf8" + body
    header = 0x48
    length = chance.choice((header + len(files), number(chance)))
    blocks = struct.pack("<IIII", number(chance, 32), number(chance, 32), 0, 0)
    head = (
        bytes(16)
        + chance.randbytes(16)
        + struct.pack("<Q4sIHHHBB", length, b"_FVH", 0xFEFF, header, 0, 0, 0, 2)
        + blocks
    )
    return head + bytes(files)


def firmware(chance: random.Random) -> None:
    """An image is refused in a line, or is one."""
    data = volume(chance) if chance.randrange(2) else chance.choice(images())
    data = spoiled(chance, data)
    if chance.randrange(2):
        data += bytes(-len(data) % 4096)
    path = scratch() / "image.fd"
    path.write_bytes(data)
    with suppress(VmmError):
        MachineConfig.create(str(path))
    with suppress(VmmError):
        analysis = analyze_bytes(data, path)
        str(analysis.text)
        analysis.as_dict()


def bzimage(chance: random.Random) -> bytes:
    """The header of a Linux kernel (Documentation/arch/x86/boot.rst), with any numbers in it."""
    setup = bytearray(0x400 + chance.randrange(0x1000))
    setup[0x1F1] = chance.choice((0, 1, 4, 64, 255))
    struct.pack_into("<H4sH", setup, 0x1FE, 0xAA55, b"\xeb\x66Hd", 0)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, chance.choice((0, 0x200, 0x203, 0x20C, 0x20F, 0xFFFF)))
    for at, size in (
        (0x211, 1),
        (0x214, 4),
        (0x22C, 4),
        (0x230, 4),
        (0x234, 1),
        (0x236, 2),
        (0x238, 4),
        (0x248, 4),
        (0x260, 4),
    ):
        setup[at : at + size] = number(chance, 8 * size).to_bytes(size, "little")
    return bytes(setup) + chance.randbytes(chance.randrange(0x2000))


@cache
def programs() -> list[bytes]:
    """ELF files and UEFI programs of ours."""
    places = Path(guests.path("probe")).parent
    return [(places / name).read_bytes() for name in ("probe.elf", "example.efi", "boot-sector.elf")]


def kernels(chance: random.Random) -> None:
    """A kernel is refused in a line, or its parts lie in RAM."""
    data = bzimage(chance) if chance.randrange(2) else chance.choice(programs())
    if chance.randrange(4):
        data = spoiled(chance, data)
    path = Path("kernel")
    initrd = InputFile(Path("initrd"), bytes(number(chance, 20))) if chance.randrange(2) else None
    low = chance.choice((MIB, 16 * MIB, 128 * MIB, 3 << 30))
    written: list[tuple[int, int]] = []

    def store(gpa: int, data: Any) -> None:
        if not 0 <= gpa <= gpa + len(data) <= low:
            raise ValueError("no memory")
        written.append((gpa, len(data)))

    with suppress(VmmError):
        load_kernel(InputFile(path, data), initrd, chance.randbytes(chance.randrange(100)), low).store(store)


TAGS = (
    b"FIRM",
    b"UMAP",
    b"E820",
    b"RSDP",
    b"ACPI",
    b"LOOK",
    b"SMEP",
    b"SMBT",
    b"CPUS",
    b"VAR ",
    b"ITEM",
    b"CMOS",
    b"NAME",
    b"END ",
)


def verify(chance: random.Random) -> None:
    """A report guest's stream is refused in a line, or decoded; so are SMBIOS tables and what Linux says."""
    stream = struct.pack("<4sQII", b"VMMR", 8, 1, chance.randrange(5))
    for _ in range(chance.randrange(12)):
        payload = chance.randbytes(chance.choice((0, 4, 8, 24, 28, 40, 64, 72, 300)))
        size = len(payload) if chance.randrange(10) else number(chance)
        stream += struct.pack("<4sQ", chance.choice(TAGS), size) + payload
    if chance.randrange(3) == 0:
        stream = spoiled(chance, stream)
    with suppress(ReportError):
        guest_report.decode(stream)
    with suppress(ReportError):
        linux_report.decode(linux_stream(chance))
    structures = b"".join(
        bytes([chance.randrange(130), chance.randrange(40)]) + chance.randbytes(chance.randrange(40)) + b"\0\0"
        for _ in range(5)
    )
    found = smbios._structures(spoiled(chance, structures))
    for key, one in smbios._structures(structures).items():
        list(smbios.differences(one, found.get(key, one)))


def linux_stream(chance: random.Random) -> bytes:
    """Files, in the form that `linux_report.files_of` takes."""
    names = ("dmesg", "uname", "nproc", "/sys/firmware/acpi/tables/APIC", "/sys/firmware/dmi/tables/DMI")
    lines = (b"<6>[ 0.0] BIOS-e820: [mem 0x0000-0x9fff] usable\n", b"<4>[ 0.1] ACPI: DSDT 0x00000000000E0000 000040\n")
    made = linux_report.START
    for _ in range(chance.randrange(6)):
        body = chance.choice((*lines, chance.randbytes(40), b"4\n", b""))
        made += f"FILE {len(body)} {chance.choice(names)}\n".encode() + body + b"\n"
    made += b"END\n"
    return spoiled(chance, made) if chance.randrange(2) else made


WORDS = (
    "ovmf", "seabios", "exit", "-m", "-smp", "-accel", "kvm", "-fw_cfg", "name=opt/a,string=b", "-drive", "-device",
    "vmgenid", "file=/nonexistent,format=raw,readonly=on", "virtio-blk-pci,drive=a", "-boot", "order=dc",
    "menu=on,splash-time=1", "-smbios", "type=1,serial=,,x", "type=4294967296", "-acpitable",
    "sig=ABCD,data=/dev/null", "-machine", "q35,max-ram-below-4g=1G", "-uuid", "-gdb", "tcp::0", "-s", "-S",
    "-kernel", "-append", "-e820", "-l", "bootrom,x", "-c", "-f", "fwcfg=bhyve", "--until", "--send", "a=b",
    "--timeout", "-serial", "none", "-debugcon", "-nographic", "-no-reboot", "--sandbox", "on", "--user", "0",
    "-global", "ICH9-LPC.disable_s3=0", "-bios", "-pflash", "-hda", "--esp", "/dev/null", "-rtc", "-cpu", "host",
    "4,sockets=2,threads=2", "host,phys-bits=40,-svm", "-numa", "node,cpus=0-1,mem=128", "cpu,node-id=0,socket-id=0",
    "dist,src=0,dst=1,val=20", "-object", "memory-backend-ram,id=a,size=128M",
)  # fmt: skip


def options(chance: random.Random) -> None:
    """Words are refused in a line, or are a machine; nothing is opened to be written."""
    words = [
        word if chance.randrange(3) else spoiled(chance, word.encode()).decode("utf-8", "surrogateescape")
        for word in chance.choices(WORDS, k=chance.randrange(1, 8))
    ]
    with suppress(VmmError, SystemExit):
        config_from(parser().parse(words, "firmware"))


@cache
def kept() -> bytes:
    """A snapshot's file."""
    path = scratch() / "exit.snap"
    with Machine("exit", accel="kvm", memory="16M") as machine, machine.snapshot() as snapshot:
        snapshot.save(path)
    return path.read_bytes()


def snapshots(chance: random.Random) -> None:
    """A file is refused in a line, or its machine runs; its checksum is right."""
    head = snapshot_file._HEADER
    data = kept()
    magic, version, zero, text_size, blobs_size, memory_size, _ = head.unpack_from(data)
    text = data[head.size : head.size + text_size]
    rest = data[head.size + text_size :]
    values = list(json_numbers(text))
    for _ in range(1 << chance.randrange(4)):
        begin, end = chance.choice(values)
        if chance.randrange(2) and end <= len(text):
            text = text[:begin] + str(number(chance)).encode()[: end - begin].rjust(end - begin) + text[end:]
        else:
            at = chance.randrange(len(rest))
            rest = rest[:at] + bytes([rest[at] ^ 1 << chance.randrange(8)]) + rest[at + 1 :]
    if chance.randrange(4) == 0:
        text = spoiled(chance, text)
    checksum = hashlib.sha256(text + rest).digest()
    header = head.pack(magic, version, zero, len(text), blobs_size, memory_size, checksum)
    path = scratch() / "spoiled.snap"
    path.write_bytes(header + text + rest)
    with suppress(VmmError), Snapshot.load(path) as snapshot:
        if snapshot.config.memory > 64 * MIB or snapshot.config.accel is not Accelerator.KVM:
            return
        with Machine.restore(snapshot) as machine:
            machine.run(deadline=0.05)


def json_numbers(text: bytes) -> Iterator[tuple[int, int]]:
    """Where numbers are."""
    for found in re.finditer(rb"(?<=[\[,:])-?\d+(?=[\],}])", text):
        yield found.span()
