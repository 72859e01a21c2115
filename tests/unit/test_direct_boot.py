"""What a kernel without firmware gets told, and which machines cannot have one."""

import struct
from pathlib import Path

import pytest

from vmm.cli.machine_arguments import add_machine_arguments
from vmm.cli.machine_config import config_from
from vmm.cli.parser import Parser
from vmm.config.machine import MachineConfig
from vmm.errors import ConfigError
from vmm.handoff.direct import boot_params, extended_map
from vmm.tables.e820 import E820Entry


def test_boot_params_are_where_zero_page_rst_has_them() -> None:
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x201] = 0x6A
    setup[0x202:0x206] = b"HdrS"
    setup[0x26B], setup[0x26C] = 0xAA, 0xBB
    page = boot_params(bytes(setup), [E820Entry(0, 0xA0000, 1), E820Entry(0x1_0000_0000, 0x1000, 2)], 0xE0010)
    assert len(page) == 4096
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0010,)
    assert page[0x1E8] == 2
    assert page[0x1F1] == 1
    assert page[0x202:0x206] == b"HdrS"
    # The header ends 0x202 + the byte at 0x201; what follows is not the kernel's to fill in.
    assert (page[0x26B], page[0x26C]) == (0xAA, 0)
    assert struct.unpack_from("<QQI", page, 0x2D0) == (0, 0xA0000, 1)
    assert struct.unpack_from("<QQI", page, 0x2E4) == (0x1_0000_0000, 0x1000, 2)


def test_more_ranges_than_boot_params_holds_are_setup_data() -> None:
    ranges = [E820Entry(index << 20, 0x1000, 2) for index in range(130)]
    assert extended_map(ranges[:128]) == b""
    assert extended_map(ranges) == struct.pack("<QII", 0, 1, 40) + struct.pack(
        "<QQIQQI", 128 << 20, 0x1000, 2, 129 << 20, 0x1000, 2
    )
    page = boot_params(bytes(1024), ranges[:128], 0, more=0x1234_5000)
    assert page[0x1E8] == 128
    assert struct.unpack_from("<Q", page, 0x250) == (0x1234_5000,)
    assert struct.unpack_from("<QQI", page, 0x2D0 + 127 * 20) == (127 << 20, 0x1000, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-direct"], "-direct starts a kernel; give -kernel PATH too"),
        (["ovmf", "-direct", "-kernel", "KERNEL"], "leave out FIRMWARE"),
        (["-direct", "-kernel", "KERNEL", "-machine", "bhyve"], "for the machines q35 and pc"),
        (["-direct", "-kernel", "KERNEL", "-machine", "q35,fwcfg=bhyve"], "with fw_cfg"),
        (["-direct", "-kernel", "/nonexistent"], "/nonexistent"),
        (["none"], "a machine without firmware starts nothing but a kernel"),
        (["-initrd", "KERNEL"], "-kernel"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(4096))
    parser = Parser("boot", "", "", "")
    add_machine_arguments(parser)
    arguments = parser.parse([str(kernel) if word == "KERNEL" else word for word in words], "firmware")
    with pytest.raises(ConfigError, match=message):
        config_from(arguments)


def test_the_command_line_says_the_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(4096))
    parser = Parser("boot", "", "", "")
    add_machine_arguments(parser)
    words = ["-direct", "-kernel", str(kernel), "-initrd", str(kernel), "-append", "one two"]
    config = config_from(parser.parse(words, "firmware"))
    assert (config.kernel, config.initrd, config.append, config.direct) == (
        (kernel, bytes(4096)),
        (kernel, bytes(4096)),
        b"one two",
        True,
    )
    assert config.machine_type == "q35"
    assert config == MachineConfig.create(
        "none", kernel=kernel, initrd=kernel, append="one two", direct=True, serial="stdio", debugcon="stdio"
    )
