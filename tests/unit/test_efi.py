"""UEFI applications without a machine: what a file is, and what a status becomes."""

import struct
from pathlib import Path
from typing import Any

import pytest

from vmm.config.machine import MachineConfig
from vmm.efi import status
from vmm.efi.image import check_application, is_signed
from vmm.efi.run import Application, Ended, partition_of
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.run.outcome import Outcome, Reason

ABORTED = 1 << 63 | 21


def example(**changed: int) -> bytes:
    """The example, with fields of its headers changed: machine, magic, subsystem."""
    data = bytearray(guests.efi("example").read_bytes())
    at = struct.unpack_from("<I", data, 60)[0]
    for name, offset in (("machine", 4), ("magic", 24), ("subsystem", 24 + 68)):
        if name in changed:
            struct.pack_into("<H", data, at + offset, changed[name])
    return bytes(data)


def test_an_application_is_one(tmp_path: Path) -> None:
    check_application(guests.efi("example"), "app")
    (tmp_path / "app").write_bytes(example(subsystem=10))
    check_application(tmp_path / "app", "app")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"\x7fELF" + bytes(100), "an ELF file; a linker, or objcopy"),
        (b"VZ" + bytes(100), "a terse executable"),
        (b"#!/bin/sh\n", "a script"),
        (b"\x1f\x8b" + bytes(100), "packed; gzip -d unpacks it"),
        (b"hello", "neither PE nor anything else"),
        (b"MZ" + bytes(100), "a DOS program, or a part of a PE file"),
        (b"MZ" + bytes(58) + b"\xff\xff\xff\x7f", "a DOS program, or a part of a PE file"),
        (example()[:120], "a DOS program, or a part of a PE file"),
        (example(machine=0x14C), "for 32-bit x86"),
        (example(machine=0xAA64), "for 64-bit ARM"),
        (example(machine=0x1234), "for the machine 0x1234"),
        (example(magic=0x10B), "PE, but with the magic number 0x10b instead of 0x20b"),
        (example(subsystem=11), "a UEFI boot service driver"),
        (example(subsystem=3), "a Windows console program"),
        (example(subsystem=99), "of the subsystem 99"),
    ],
)
def test_what_else_it_is(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "app").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        check_application(tmp_path / "app", "app.efi")
    assert str(caught.value).startswith(f"app.efi: no UEFI application for x86-64 (PE32+): it is {what}")


@pytest.mark.parametrize(
    ("value", "name", "process"),
    [
        (0, "EFI_SUCCESS", 0),
        (1 << 63 | 1, "EFI_LOAD_ERROR (0x8000000000000001)", 65),
        (1 << 63 | 14, "EFI_NOT_FOUND (0x800000000000000e)", 78),
        (ABORTED, "EFI_ABORTED (0x8000000000000015)", 85),
        (1 << 63 | 28, "EFI_END_OF_MEDIA (0x800000000000001c)", 92),
        (1 << 63 | 29, "0x800000000000001d", 93),
        (1 << 63 | 31, "EFI_END_OF_FILE (0x800000000000001f)", 95),
        (1 << 63 | 35, "EFI_HTTP_ERROR (0x8000000000000023)", 99),
        (1 << 63 | 36, "0x8000000000000024", 100),
        (1 << 63, "0x8000000000000000", 127),
        (1 << 63 | 63, "0x800000000000003f", 127),
        (1 << 63 | 1 << 62, "0xc000000000000000", 127),
        (1, "EFI_WARN_UNKNOWN_GLYPH (0x1)", 33),
        (7, "EFI_WARN_RESET_REQUIRED (0x7)", 39),
        (8, "0x8", 40),
        (31, "0x1f", 63),
        (32, "0x20", 127),
    ],
)
def test_a_status(value: int, name: str, process: int) -> None:
    assert status.name(value) == name
    assert status.exit_status(value) == process


def outcome(reason: Reason) -> Outcome:
    return Outcome(reason, 1.0, "what happened")


@pytest.mark.parametrize(
    ("ended", "process", "message"),
    [
        (Ended(outcome(Reason.POWER_OFF), True, 0, "", ""), 0, ""),
        (Ended(outcome(Reason.POWER_OFF), True, None, "", ""), 0, ""),
        (Ended(outcome(Reason.POWER_OFF), True, ABORTED, "", ""), 85, "a returned EFI_ABORTED (0x8000000000000015)"),
        (
            Ended(outcome(Reason.POWER_OFF), False, ABORTED, "", ""),
            1,
            "a was not started: EFI_ABORTED (0x8000000000000015)",
        ),
        (Ended(outcome(Reason.POWER_OFF), False, None, "", ""), 1, "a was not started: what happened"),
        (Ended(outcome(Reason.STOPPED), True, None, "#UD at RIP 0x1", ""), 1, "a crashed: #UD at RIP 0x1"),
        (Ended(outcome(Reason.STOPPED), False, None, "#UD at RIP 0x1", ""), 1, "the firmware crashed: #UD at RIP 0x1"),
        (Ended(outcome(Reason.TIMEOUT), True, None, "", ""), 3, "a did not end: what happened"),
        (Ended(outcome(Reason.TIMEOUT), False, None, "", ""), 3, "a was not started: what happened"),
        (Ended(outcome(Reason.TRIPLE_FAULT), True, None, "", ""), 1, "a did not return: what happened"),
    ],
)
def test_how_a_run_ended(ended: Ended, process: int, message: str) -> None:
    assert ended.exit_status == process
    assert ended.message("a") == message


def test_the_partition_of_an_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "build" / "tools" / "app.efi"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(example())
    (tmp_path / "other.efi").write_bytes(example())
    build = Path("build")
    assert partition_of(inside, None) == (inside, inside)
    assert partition_of(inside, build) == (inside, build)
    assert partition_of(Path("tools/app.efi"), "build") == (Path("build/tools/app.efi"), build)
    with pytest.raises(ConfigError, match=r"other\.efi: is not in build, which is what the guest sees of files"):
        partition_of(Path("other.efi"), build)
    with pytest.raises(ConfigError, match=r"cannot read build/none\.efi: no such file"):
        partition_of(Path("none.efi"), build)


def application(path: Path, *arguments: str, firmware: str = "ovmf", **options: Any) -> Application:
    path, esp = partition_of(path, None)
    return Application(path, arguments, MachineConfig.create(firmware, esp=esp, **options))


def test_a_signature_is_seen_in_the_headers() -> None:
    data = bytearray(example())
    assert not is_signed(bytes(data))
    at = struct.unpack_from("<I", data, 60)[0] + 24 + 112 + 4 * 8
    struct.pack_into("<II", data, at, len(data), 8)
    assert is_signed(bytes(data))
    assert not is_signed(bytes(data[:64]))
    assert not is_signed(b"")


def test_machines_that_run_none(tmp_path: Path) -> None:
    app = tmp_path / "app.efi"
    app.write_bytes(example())
    application(app, "x" * 1000)
    with pytest.raises(ConfigError, match=r"run: applications run under OVMF, and .* is another firmware"):
        application(app, firmware="seabios")
    with pytest.raises(ConfigError, match="run: -kernel is taken"):
        application(app, kernel=app)
    with pytest.raises(ConfigError, match="the arguments are too many: 4096 at the most, and 16383 characters"):
        application(app, "x" * 17000)
    with pytest.raises(ConfigError, match="the arguments are too many"):
        application(app, *["x"] * 4096)
    with pytest.raises(ConfigError, match="an argument is not UTF-8"):
        application(app, "\udcff")
