"""The option ROM of QEMU's that starts a kernel under a BIOS."""

from pathlib import Path

from vmm import inputs
from vmm.errors import ConfigError

DIRECTORIES = (Path("/usr/share/qemu"), Path("/usr/share/qemu/optionroms"), Path("/usr/share/seabios"))
"""Where distributions put QEMU's pc-bios/optionrom."""


def kernel_rom_for(kernel: inputs.InputFile) -> inputs.InputFile:
    """Return the one that boots from fw_cfg what such a kernel is.

    Raises:
        ConfigError: there is none for it, or it is not installed.
    """
    # HdrS: boot.rst of Linux, the real-mode kernel header.
    if kernel.data[:2] == b"MZ" and kernel.data[0x202:0x206] != b"HdrS":
        raise ConfigError("-kernel: a BIOS starts no UEFI program; boot ovmf")
    name = "pvh.bin" if kernel.data[:4] == b"\x7fELF" else "linuxboot_dma.bin"
    for directory in DIRECTORIES:
        path = directory / name
        if inputs.is_file(path):
            return inputs.load_file(path, "-kernel")
    raise ConfigError(f"-kernel: a BIOS needs QEMU's option ROM {name}; Debian has it in qemu-system-data")
