"""The initial RAM disk that makes Linux report, and the stream that comes back."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cli import verify as verify_command
from vmm.errors import ConfigError, HostError
from vmm.tables.e820 import E820Entry
from vmm.verify import linux, linux_report
from vmm.verify.guest_report import GuestReport, Kind, ReportError
from vmm.verify.linux_guest import LinuxFiles, build_initramfs

DMESG = b"""<5>[    0.000000] Linux version 6.1
<6>[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
<6>[    0.000000] BIOS-e820: [mem 0x000000000ffff000-0x000000000fffffff] ACPI data
<6>[    0.000000] BIOS-e820: [mem 0x00000000c8000000-0x00000000c80fffff] type 77
<6>[    0.000000] ACPI: RSDP 0x00000000000E0000 000024 (v02 VMM   )
<6>[    0.000000] ACPI: SSDT 0x0000000000001000 000024 (v01 VMM    VMM      00000001 VMM  00000001)
<6>[    0.000000] ACPI: SSDT 0x0000000000002000 000024 (v01 VMM    VMM      00000001 VMM  00000001)
<4>[    0.100000] ACPI BIOS Warning (bug): something
<3>[    0.200000] usb: something else
<12>[    0.300000] ACPI: a warning of a user's
"""


def stream(*files: tuple[str, bytes]) -> bytes:
    records = b"".join(b"FILE %d %s\n%s\n" % (len(data), name.encode(), data) for name, data in files)
    return b"whatever the kernel said\n\nVMM-LINUX 1\n" + records + b"END\n[    9.0] reboot: Power down\n"


GOOD = stream(
    ("dmesg", DMESG),
    ("nproc", b"4\n"),
    ("/sys/firmware/acpi/tables/SSDT2", b"SSDT second"),
    ("/sys/firmware/acpi/tables/SSDT1", b"SSDT first\nFILE 3 x\nabc"),
    ("/sys/firmware/qemu_fw_cfg/by_key/33/name", b"etc/e820\n"),
    ("/sys/firmware/qemu_fw_cfg/by_key/33/size", b"400\n"),
    ("/sys/firmware/qemu_fw_cfg/by_key/33/raw", bytes(range(256))),
)


def test_a_map_that_comes_in_two_parts_is_taken_whole() -> None:
    log = (
        b"<6>[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
        b"<6>[    0.000000] extended physical RAM map:\n"
        b"<6>[    0.000000] extended: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
        b"<6>[    0.000000] extended: [mem 0x0000000000100000-0x00000000001fffff] soft reserved\n"
    )
    report = linux_report.decode(stream(("dmesg", log), ("nproc", b"1\n")))
    assert report.e820 == [E820Entry(0, 0xA0000, 1), E820Entry(0x100000, 0x100000, 0xEFFFFFFF)]


def test_what_the_log_has_lost_of_the_map_sysfs_has() -> None:
    log = b"<6>[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x00000000001fffff] type 77\n"
    places = [("0", 0, 0x9FFFF, "System RAM"), ("10", 0x100000, 0x1FFFFF, "Unknown E820 type"), ("2", 0x200000, 1, "")]
    text = "".join(
        f"/sys/firmware/memmap/{name}/end:{last:#x}\n/sys/firmware/memmap/{name}/type:{kind}\n"
        f"/sys/firmware/memmap/{name}/start:{base:#x}\n"
        for name, base, last, kind in places
    )
    report = linux_report.decode(stream(("dmesg", log), ("memmap", text.encode()), ("nproc", b"1\n")))
    assert report.e820 == [E820Entry(0, 0xA0000, 1), E820Entry(0x100000, 0x100000, 77)]


def test_a_report_is_decoded() -> None:
    report = linux_report.decode(GOOD)
    assert report.kind is Kind.LINUX
    assert report.e820 == [
        E820Entry(0, 0xA0000, 1),
        E820Entry(0xFFFF000, 0x1000, 3),
        E820Entry(0xC8000000, 0x100000, 77),
    ]
    assert report.processors == (4, 4)
    assert report.rsdp is not None
    assert report.rsdp.address == 0xE0000
    assert [(table.address, table.data[:10]) for table in report.acpi] == [
        (0x1000, b"SSDT first"),
        (0x2000, b"SSDT secon"),
    ]
    (item,) = report.items
    assert (item.key, item.name, item.data, item.size) == (33, "etc/e820", bytes(range(256)), 400)
    assert linux.complaints(report) == ["ACPI BIOS Warning (bug): something", "ACPI: a warning of a user's"]


@pytest.mark.parametrize("cut", [10, 40, len(GOOD) // 2, len(GOOD) - 40])
def test_a_cut_report_is_refused(cut: int) -> None:
    with pytest.raises(ReportError):
        linux_report.decode(GOOD[:cut])


@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_whatever_linux_sends_is_decoded_or_refused(noise: bytes, at: int) -> None:
    with suppress(ReportError):
        linux_report.decode(GOOD[:at] + noise + GOOD[at + len(noise) :])


def test_a_host_without_linux_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(HostError, match="vmm fetch-linux"):
        LinuxFiles.find()


def test_verify_linux_brings_its_own_kernel() -> None:
    with pytest.raises(ConfigError, match="leave out -kernel"):
        verify_command.run(["linux", "-direct", "-kernel", "bzImage"])


def test_cpio_reads_the_initial_ram_disk(tmp_path: Path) -> None:
    names = ("vmlinuz", "qemu_fw_cfg.ko", "busybox")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(path.name.encode() * 3)
    image = build_initramfs(LinuxFiles(*paths))
    listing = subprocess.run(["cpio", "-itv"], input=image, capture_output=True, check=True).stdout.decode()
    lines = {line.split()[-1]: line.split() for line in listing.splitlines()}
    assert set(lines) == {"bin", "dev", "dev/console", "bin/busybox", "qemu_fw_cfg.ko", "init"}
    assert lines["init"][0] == "-rwxr-xr-x"
    assert lines["dev/console"][0] == "crw-------"
    assert lines["dev/console"][4:6] == ["5,", "1"]
    module = subprocess.run(
        ["cpio", "-i", "--to-stdout", "--quiet", "qemu_fw_cfg.ko"], input=image, capture_output=True, check=True
    )
    assert module.stdout == b"qemu_fw_cfg.ko" * 3


def test_clocks_that_disagree_on_a_busy_host_are_no_complaint_about_tables() -> None:
    watchdog = "clocksource:                       'acpi_pm' wd_nsec: 499 wd_now: 1 wd_last: 2 mask: ffffff"
    complaint = "ACPI BIOS Warning (bug): Incorrect checksum in table [SSDT]"
    assert linux.complaints(GuestReport(log=[(4, watchdog), (4, complaint)])) == [complaint]
