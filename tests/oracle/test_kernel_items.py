"""The items of -kernel, -initrd and -append, byte for byte as Debian's QEMU publishes them."""

import struct
import subprocess
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.devices.fw_cfg_format import Key
from vmm.errors import ConfigError
from vmm.handoff import kernel as handoff
from vmm.handoff.kernel import WHOLE_KERNEL, Kernel
from vmm.inputs import load_file

MEMORY = 128 << 20

SIZES = {
    Key.KERNEL_DATA: Key.KERNEL_SIZE,
    Key.INITRD_DATA: Key.INITRD_SIZE,
    Key.CMDLINE_DATA: Key.CMDLINE_SIZE,
    Key.SETUP_DATA: Key.SETUP_SIZE,
}
NUMBERS = (0x07, 0x08, 0x0A, 0x0B, 0x10, 0x13, 0x14, 0x16, 0x17)


def load_kernel(path: Path, initrd: Path | None, command_line: str) -> Kernel:
    disk = None if initrd is None else load_file(initrd, "-initrd")
    return handoff.load_kernel(load_file(path, "-kernel"), disk, command_line.encode(), MEMORY)


def bzimage(path: Path, *, protocol: int, sectors: int = 5, load_flags: int = 1, xload: int = 0) -> Path:
    image = bytearray(range(256)) * 40
    image[0x1F1] = sectors
    image[0x202:0x208] = b"HdrS" + struct.pack("<H", protocol)
    image[0x211] = load_flags
    image[0x22C:0x230] = struct.pack("<I", 0x37FFFFFF)
    image[0x236:0x238] = struct.pack("<H", xload)
    path.write_bytes(image)
    return path


def pvh_kernel(path: Path) -> Path:
    source = path.with_suffix(".S")
    source.write_text(
        """
        .section .note.Xen, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long entry
        .text
        .globl entry
        entry: hlt
        .data
        .long 0x12345678
        .skip 9000
        .bss
        .skip 5000
        """,
        encoding="ascii",
    )
    subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x200000,-e,entry,--build-id=none",
         "-Wl,-z,noexecstack", "-o", path, source],
        check=True,
    )  # fmt: skip
    return path


def of_qemu(directory: Path, arguments: list[str]) -> dict[int, bytes]:
    with Qemu(directory, MEMORY, arguments) as qemu:
        found = {key: qemu.item(key, 4) for key in NUMBERS}
        for data, size in SIZES.items():
            length = int.from_bytes(found[size], "little")
            found[data] = qemu.item(data, length) if length < 1 << 20 else b""
        return found


def of_ours(kernel: Kernel) -> dict[int, bytes]:
    return {key: bytes(kernel.keys.get(key, bytes(4 if key in NUMBERS else 0))) for key in (*NUMBERS, *SIZES)}


LINUX = {
    "recent": {"protocol": 0x20F, "xload": 0x2},
    "low-initrd": {"protocol": 0x20F},
    "no-sector-count": {"protocol": 0x20C, "sectors": 0},
    "2.02": {"protocol": 0x202},
    "2.01": {"protocol": 0x201},
    "2.00": {"protocol": 0x200},
    "loaded-low": {"protocol": 0x204, "load_flags": 0},
}


@pytest.mark.usefixtures("each_qemu")
@pytest.mark.parametrize("name", LINUX)
@pytest.mark.parametrize("with_initrd", [False, True])
@pytest.mark.parametrize("append", ["", "console=ttyS0 quiet"])
def test_linux(tmp_path: Path, name: str, with_initrd: bool, append: str) -> None:
    kernel = bzimage(tmp_path / "bzImage", **LINUX[name])
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd" * 1000)
    arguments = ["-kernel", str(kernel), "-append", append, *(["-initrd", str(initrd)] if with_initrd else [])]
    ours = load_kernel(kernel, initrd if with_initrd else None, append)
    assert of_ours(ours) == of_qemu(tmp_path, arguments)
    assert bytes(ours.files[WHOLE_KERNEL]) == kernel.read_bytes()


@pytest.mark.usefixtures("each_qemu")
def test_pvh(tmp_path: Path) -> None:
    kernel = pvh_kernel(tmp_path / "vmlinux")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd" * 1000)
    ours = load_kernel(kernel, initrd, "quiet")
    theirs = of_qemu(tmp_path, ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "quiet"])
    # QEMU has put the kernel into RAM already and offers no data to load.
    theirs[Key.KERNEL_DATA] = b""
    # QEMU's item lies in a stack frame that has ended: a guest reads whatever came after. Ours is the file's start.
    assert len(theirs.pop(Key.SETUP_DATA)) == 8192
    found = of_ours(ours)
    assert found.pop(Key.SETUP_DATA) == kernel.read_bytes()[:8192]
    assert found == theirs
    assert ours.entry == int.from_bytes(theirs[Key.KERNEL_ENTRY], "little") > 0x200000
    again = tmp_path / "again"
    again.mkdir()
    with Qemu(again, MEMORY, ["-kernel", str(kernel)]) as qemu:
        qemu.reset()
        for gpa, data in ours.segments:
            assert qemu.read(gpa, len(data)) == data


def test_uefi_program_survives_the_split(tmp_path: Path) -> None:
    program = tmp_path / "program.efi"
    program.write_bytes(b"MZ" + bytes(range(250)) * 20)
    kernel = load_kernel(program, None, "arguments")
    assert bytes(kernel.keys[Key.SETUP_DATA]) + bytes(kernel.keys[Key.KERNEL_DATA]) == program.read_bytes()
    assert kernel.keys[Key.CMDLINE_DATA] == b"arguments\0"


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"", "neither a Linux bzImage"),
        (b"text", "neither a Linux bzImage"),
        (b"\x7fELF", "damaged ELF"),
        (b"\x7fELF" + bytes(200), "damaged ELF"),
        (b"MZ", "no UEFI program"),
        (bytes(0x202) + b"HdrS\x0f\x02" + bytes(100), "setup area"),
    ],
)
def test_bad_kernels_are_one_clear_line(tmp_path: Path, contents: bytes, text: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(contents)
    with pytest.raises(ConfigError, match=text) as caught:
        load_kernel(path, None, "")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_initrd_larger_than_ram(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(MEMORY)
    with pytest.raises(ConfigError, match="do not fit"):
        load_kernel(bzimage(tmp_path / "bzImage", protocol=0x20F), initrd, "")
