"""The device as a guest meets it, through the port table, without a virtual machine."""

import logging
import struct
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fw_cfg_rig import BUFFER, ERROR, RAM_SIZE, READ, SELECT, SKIP, WRITE, Rig
from vmm._native import ffi, lib

from vmm.devices.fw_cfg_format import Buffer, Key
from vmm.devices.fw_cfg_items import add_pc_items
from vmm.errors import ConfigError
from vmm.inputs import load_file
from vmm.layout import PORT_FW_CFG


def file(name: str, data: Buffer, **options: Any) -> Rig:
    rig = Rig()
    rig.device.add_file(name, data, **options)
    return rig.start()


def test_signature_can_be_read_without_selecting_anything() -> None:
    rig = Rig().start()
    assert rig.inp(0x511, 1, 4) == b"QEMU"
    assert rig.device.probes == 1


def test_ports_are_where_c_and_the_layout_say() -> None:
    assert range(lib.FW_CFG_PORT_FIRST, lib.FW_CFG_PORT_LAST + 1) == PORT_FW_CFG


def test_id_says_whether_there_is_dma() -> None:
    for dma, number in ((True, 3), (False, 1)):
        rig = Rig(dma=dma).start()
        rig.select(Key.ID)
        assert rig.inp(0x511, 1, 4) == struct.pack("<I", number)
        assert rig.inp(0x514, 4) == (b"QEMU" if dma else b"\xff" * 4)


def test_string_read_crosses_the_end_of_an_item_into_zeros() -> None:
    rig = file("opt/a", b"hello")
    rig.select(0x20)
    assert rig.inp(0x511, 1, 8) == b"hello\0\0\0"
    assert rig.inp(0x511) == b"\0"


def test_directory_is_sorted_and_big_endian() -> None:
    rig = Rig()
    for name in ("opt/b", "etc/z", "opt/a", "opt/B"):
        rig.device.add_file(name, name.encode())
    rig.start()
    rig.select(Key.FILE_DIR)
    raw = rig.inp(0x511, 1, 4 + 4 * 64)
    assert raw[:4] == bytes.fromhex("00000004")
    assert raw[4:12] == bytes.fromhex("0000000500200000")
    assert raw[12 : 12 + 56] == b"etc/z".ljust(56, b"\0")
    assert [raw[12 + 64 * i :][:5] for i in range(4)] == [b"etc/z", b"opt/B", b"opt/a", b"opt/b"]


def test_a_thousand_files_each_found_under_its_key() -> None:
    rig = Rig()
    for number in range(1000):
        rig.device.add_file(f"opt/org.example/{number:04}", b"%d" % number)
    rig.start()
    for number in (0, 31, 32, 999):
        rig.select(0x20 + number)
        assert rig.inp(0x511, 1, 4).rstrip(b"\0") == b"%d" % number
    rig.select(0x20 + 1000)
    assert rig.inp(0x511, 1, 4) == bytes(4)


def test_dma_reads_an_item_and_fills_the_rest_with_zeros() -> None:
    rig = file("opt/a", b"hello")
    rig.poke(BUFFER, b"x" * 10)
    assert rig.dma(0x0020 << 16 | SELECT | READ, 8, BUFFER) == 0
    assert rig.peek(BUFFER, 10) == b"hello\0\0\0xx"


def test_dma_write_reaches_the_item_and_its_owner() -> None:
    seen: list[tuple[int, bytes]] = []
    rig = file("opt/rw", bytes(8), writable=True, on_write=lambda offset, data: seen.append((offset, data)))
    rig.poke(BUFFER, b"abcd")
    assert rig.dma(0x0020 << 16 | SELECT | SKIP, 2, 0) == 0
    assert rig.dma(WRITE, 4, BUFFER) == 0
    assert rig.device.contents("opt/rw") == b"\0\0abcd\0\0"
    assert seen == [(2, b"abcd")]
    rig.device.reset()
    assert rig.device.contents("opt/rw") == bytes(8)


def test_select_callback_can_replace_what_is_about_to_be_read() -> None:
    rig = Rig()
    rig.device.add_file("opt/a", b"old", on_select=lambda: rig.device.replace_file("opt/a", b"newer"))
    rig.start()
    rig.select(0x20)
    assert rig.inp(0x511, 1, 6) == b"newer\0"
    rig.select(Key.FILE_DIR)
    assert rig.inp(0x511, 1, 8)[4:] == struct.pack(">I", 5)


def test_callback_that_raises_is_kept_and_reported_once() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    rig = file("opt/a", b"x", on_select=fail)
    rig.select(0x20)
    rig.select(0x20)
    assert [type(error) for error in rig.failures] == [ZeroDivisionError]
    assert rig.failures[0].__notes__ == ["in a callback of fw_cfg item opt/a"]


def test_statistics_tell_a_partial_from_a_whole_read() -> None:
    rig = Rig()
    rig.device.add_file("opt/part", b"12345678")
    rig.device.add_file("opt/whole", b"12345678")
    rig.start()
    rig.select(rig.device.key_of("opt/part"))
    rig.inp(0x511, 1, 7)
    rig.dma(rig.device.key_of("opt/whole") << 16 | SELECT | READ, 8, BUFFER)
    part, whole = (item for item in rig.device.items() if item.name.startswith("opt/"))
    assert (part.selects, part.reads, part.bytes_read, part.read_to_end) == (1, 1, 7, False)
    assert (whole.selects, whole.reads, whole.bytes_read, whole.read_to_end) == (1, 1, 8, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("opt/" + "x" * 52, "56 characters"),
        ("", "needs a name"),
        ("opt/é", "printable ASCII"),
        ("opt/\n", "printable ASCII"),
        ("opt/twice", "taken"),
    ],
)
def test_bad_names_are_refused(name: str, text: str) -> None:
    rig = Rig()
    rig.device.add_file("opt/twice", b"")
    with pytest.raises(ConfigError, match=text):
        rig.device.add_file(name, b"")


def test_fixed_keys_are_checked() -> None:
    rig = Rig()
    for key in (Key.SIGNATURE, Key.FILE_DIR, 0x20, 0x4000, 0x1FFFF):
        with pytest.raises(ConfigError):
            rig.device.add_item(key, b"")


def test_name_outside_opt_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    with caplog.at_level(logging.WARNING):
        rig.device.add_user_file("opt/fine", b"")
        assert not caplog.records
        rig.device.add_user_file("etc/mine", b"")
    assert "etc/mine" in caplog.text


def test_a_large_file_stays_what_it_was_when_it_was_named(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 8192)
    rig = file("opt/large", load_file(large, "-fw_cfg").data)
    large.write_bytes(b"")
    assert rig.dma(0x0020 << 16 | SELECT | SKIP, (2 << 20) - 256, 0) == 0
    assert rig.dma(READ, 256, BUFFER) == 0
    assert rig.peek(BUFFER, 256) == bytes(range(256))


@pytest.mark.parametrize("first", ["directory", "file", "host"])
def test_late_files_are_built_once_when_somebody_looks(first: str) -> None:
    built = []

    def build() -> dict[str, bytes]:
        built.append(1)
        return {"etc/a": b"first", "etc/b": b"second"}

    rig = Rig()
    rig.device.add_late_files(["etc/a", "etc/b"], build)
    rig.start()
    rig.select(Key.SIGNATURE)
    assert not built
    if first == "directory":
        rig.select(Key.FILE_DIR)
        entries = rig.inp(0x511, 1, 4 + 2 * 64)
        assert [struct.unpack_from(">I", entries, 4 + 64 * i)[0] for i in range(2)] == [5, 6]
    elif first == "file":
        rig.select(0x21)
        assert rig.inp(0x511, 1, 6) == b"second"
    else:
        assert rig.device.contents("etc/a") == b"first"
    rig.select(Key.FILE_DIR)
    rig.select(0x20)
    assert rig.inp(0x511, 1, 7) == b"first\0\0"
    assert built == [1]
    assert rig.device.is_writable("etc/a") is False


def test_late_files_that_follow_the_guest_are_built_again_at_its_first_selection_after_each_reset() -> None:
    state = [b"A"]
    rig = Rig()
    rig.device.add_late_files(["etc/a"], lambda: {"etc/a": state[-1] * 4}, follow_guest=True)
    rig.device.add_late_files(["etc/b"], lambda: {"etc/b": state[-1]}, first={"etc/b": b"0"}, follow_guest=True)
    rig.start()
    rig.select(Key.FILE_DIR)
    entries = rig.inp(0x511, 1, 4 + 2 * 64)
    assert [struct.unpack_from(">I", entries, 4 + 64 * i)[0] for i in range(2)] == [4, 1]
    state.append(b"B")
    assert rig.device.contents("etc/a") == b"BBBB"
    state.append(b"C")
    rig.select(0x20)
    assert rig.inp(0x511, 1, 4) == b"CCCC"
    state.append(b"D")
    rig.select(0x20)
    assert rig.inp(0x511, 1, 4) == b"CCCC"
    rig.select(0x21)
    assert rig.inp(0x511, 1, 1) == b"D"
    rig.device.reset()
    rig.select(0x20)
    assert rig.inp(0x511, 1, 4) == b"DDDD"


def test_stop_cuts_a_transfer_of_gigabytes_and_no_other() -> None:
    rig = file("opt/a", b"hello")
    block = rig.add_memory(RAM_SIZE, 64 << 20)
    # The same host memory over and over: 4 GiB for the guest, of which a transfer takes most of a second.
    for number in range(1, 62):
        pointer = rig.backing[-1]
        assert lib.guest_memory_add(rig.memory, RAM_SIZE + number * len(block), len(block), pointer, 0) == 0
    last = RAM_SIZE + 62 * len(block)
    end = rig.add_memory(last, 16)
    end[:] = b"x" * 16
    lib.vmm_vm_stop(rig.core, ffi.NULL, 0)
    assert rig.dma(0x0020 << 16 | SELECT | READ, 8 << 20, RAM_SIZE) == 0
    assert rig.dma(0x0020 << 16 | SELECT | READ, last + 16 - RAM_SIZE, RAM_SIZE) == ERROR
    assert bytes(end) == b"x" * 16
    lib.vmm_vm_resume(rig.core)
    assert rig.dma(0x0020 << 16 | SELECT | READ, last + 16 - RAM_SIZE, RAM_SIZE) == 0
    assert bytes(end) == bytes(16)


def test_transfer_through_4_gib_of_nothing_takes_no_time() -> None:
    rig = file("opt/a", b"")
    for _ in range(1000):
        assert rig.dma(0x0020 << 16 | SELECT | READ, 0xFFFFFFFF, RAM_SIZE) == ERROR


def test_msr_feature_control_is_there_for_cpus_that_have_it() -> None:
    for value, expected in ((5, bytes.fromhex("0500000000000000")), (None, None)):
        rig = Rig()
        add_pc_items(rig.device, memory=RAM_SIZE, cpus=1, apic_id_limit=1, e820=b"", feature_control=value)
        rig.start()
        found = {item.name for item in rig.device.items()}
        assert ("etc/msr_feature_control" in found) == (expected is not None)
        if expected is not None:
            assert rig.device.contents("etc/msr_feature_control") == expected


def test_boot_menu_and_waits_are_little_endian_milliseconds() -> None:
    rig = Rig()
    machine = partial(add_pc_items, rig.device, memory=RAM_SIZE, cpus=1, apic_id_limit=1, e820=b"")
    machine(boot_menu=True, splash_time=12, reboot_timeout=15)
    rig.start()
    assert rig.device.contents("etc/boot-menu-wait") == b"\x0c\x00"
    assert rig.device.contents("etc/boot-fail-wait") == b"\x0f\x00\x00\x00"
    rig.select(Key.BOOT_MENU)
    assert rig.inp(0x511, 1, 2) == b"\x01\x00"


@pytest.mark.parametrize("in_python", [False, True])
def test_the_first_selection_of_an_item_has_a_time(in_python: bool) -> None:
    rig = Rig()
    rig.device.add_file("opt/a", b"a")
    rig.device.add_file("opt/b", b"b")
    rig.start(in_python=in_python)
    assert rig.device.first_selected() == []
    before = time.monotonic_ns()
    rig.select(rig.device.key_of("opt/b"))
    between = time.monotonic_ns()
    rig.select(rig.device.key_of("opt/a"))
    rig.select(rig.device.key_of("opt/b"))
    first = {name: at_ns for name, at_ns, _ in rig.device.first_selected()}
    assert before <= first.pop("opt/b") <= between <= first.pop("opt/a") <= time.monotonic_ns()
    assert first == {}
