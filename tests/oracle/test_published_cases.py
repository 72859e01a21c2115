"""QEMU's own published fw_cfg cases (tests/qtest/fw_cfg-test.c there), asked of QEMU and of us."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from fw_cfg_rig import BUFFER, SELECT, WRITE, Rig
from qemu_qtest import Qemu, QemuSide

from vmm.devices.fw_cfg_format import Key
from vmm.devices.fw_cfg_items import Hpet, add_pc_items
from vmm.devices.vmcoreinfo import VmCoreInfo, add_vmcoreinfo

pytestmark = pytest.mark.usefixtures("each_qemu")

MEMORY = 128 << 20
UUID_TEXT = "4600cb32-38ec-4b2f-8acb-81c6ea54f2d8"


@dataclass(frozen=True)
class Case:
    """One question: an item by key or name, and the bytes it must have."""

    name: str
    item: int | str
    expected: bytes | tuple[bytes, ...]
    qemu: tuple[str, ...] = ()
    ours: Mapping[str, object] = field(default_factory=dict)

    def size(self) -> int:
        return len(self.expected if isinstance(self.expected, bytes) else self.expected[0])


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


SMP = ("-smp", "3,maxcpus=5")
SMP_OURS = {"cpus": 3, "apic_id_limit": 5}

CASES = [
    Case("signature", Key.SIGNATURE, b"QEMU"),
    Case("id", Key.ID, (u32(3), u32(1))),
    Case("uuid", Key.UUID, UUID(UUID_TEXT).bytes, ("-uuid", UUID_TEXT), {"uuid": UUID(UUID_TEXT).bytes}),
    Case("uuid bytes", Key.UUID, bytes.fromhex("4600cb3238ec4b2f8acb81c6ea54f2d8"), ("-uuid", UUID_TEXT),
         {"uuid": UUID(UUID_TEXT).bytes}),
    Case("no uuid", Key.UUID, bytes(16)),
    Case("ram size", Key.RAM_SIZE, u64(MEMORY)),
    Case("graphics", Key.NOGRAPHIC, u16(0), (), {"graphics": True}),
    Case("no graphics", Key.NOGRAPHIC, u16(1), ("-nographic", "-serial", "none", "-monitor", "none")),
    Case("one CPU", Key.NB_CPUS, u16(1)),
    Case("three CPUs", Key.NB_CPUS, u16(3), SMP, SMP_OURS),
    Case("max CPUs", Key.MAX_CPUS, u16(1)),
    Case("max CPUs is the limit of APIC ids", Key.MAX_CPUS, u16(5), SMP, SMP_OURS),
    Case("no NUMA nodes, a word for each APIC id", Key.NUMA, u64(0, 0)),
    Case("the same for five", Key.NUMA, u64(0, 0, 0, 0, 0, 0), SMP, SMP_OURS),
    Case("no boot menu", Key.BOOT_MENU, u16(0)),
    Case("boot menu", Key.BOOT_MENU, u16(1), ("-boot", "menu=on"), {"boot_menu": True}),
    Case("IRQ 0 override", Key.IRQ0_OVERRIDE, u32(1)),
    Case("HPET", Key.HPET, bytes.fromhex("0101a286800000d0fe").ljust(121, b"\0"), (),
         {"hpet": Hpet(0xFED00000, 0x8086A201, 0)}),
    Case("no HPET", Key.HPET, b"\xff".ljust(121, b"\0"), ("-machine", "hpet=off"), {}),
    Case("reboot timeout", "etc/boot-fail-wait", u32(15), ("-boot", "reboot-timeout=15"), {"reboot_timeout": 15}),
    Case("no reboot timeout", "etc/boot-fail-wait", u32(0xFFFFFFFF), ("-boot", "reboot-timeout=-1")),
    Case("reboot timeout left out", "etc/boot-fail-wait", u32(0xFFFFFFFF)),
    Case("splash time", "etc/boot-menu-wait", u16(12), ("-boot", "splash-time=12"), {"splash_time": 12}),
    Case("boot order without devices", "bootorder", b""),
    Case("sleep states", "etc/system-states", bytes.fromhex("800000010280"),
         ("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1")),
]  # fmt: skip


def our_side(**facts: object) -> Rig:
    rig = Rig()
    known: dict[str, object] = {"memory": MEMORY, "cpus": 1, "apic_id_limit": 1, "e820": b""} | facts
    add_pc_items(rig.device, **known)  # type: ignore[arg-type]  # the table's words
    return rig.start()


def check(item: int | str, size: int, files: dict[str, int], sizes: dict[str, int]) -> int:
    if isinstance(item, str):
        assert sizes[item] == size
        return files[item]
    return item


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_qemu_and_we_publish_the_same(case: Case, tmp_path: Path) -> None:
    size = case.size()
    expected = (case.expected,) if isinstance(case.expected, bytes) else case.expected
    with Qemu(tmp_path, MEMORY, case.qemu) as qemu:
        files = qemu.files()
        key = check(case.item, size, {n: f[0] for n, f in files.items()}, {n: f[1] for n, f in files.items()})
        assert qemu.item(key, size) in expected
    rig = our_side(**case.ours)
    sizes = {item.name: item.size for item in rig.device.items()}
    rig.select(check(case.item, size, {item.name: item.key for item in rig.device.items()}, sizes))
    assert rig.inp(0x511, 1, size) in expected


def vmcoreinfo_basic_write(dma: Callable[[int, int, int], int], poke: Callable[[int, bytes], None], key: int) -> None:
    """The case vmcoreinfo/basic-write: all 16 bytes at once, then read back by the caller."""
    poke(BUFFER, struct.pack("<HHIQ", 0, 1, 1 << 20, 0xFFFFFF00))
    assert dma(key << 16 | SELECT | WRITE, 16, BUFFER) == 0


def test_vmcoreinfo_basic_write(tmp_path: Path) -> None:
    expected = struct.pack("<HHIQ", 0, 1, 1 << 20, 0xFFFFFF00)
    seen: list[VmCoreInfo | None] = []
    rig = Rig()
    add_vmcoreinfo(rig.device, seen.append)
    rig.start()
    key = rig.device.key_of("etc/vmcoreinfo")
    rig.select(key)
    assert rig.inp(0x511, 1, 16) == u16(1) + bytes(14)
    vmcoreinfo_basic_write(rig.dma, rig.poke, key)
    rig.select(key)
    assert rig.inp(0x511, 1, 16) == expected
    assert seen == [VmCoreInfo(1, 1 << 20, 0xFFFFFF00)]

    with Qemu(tmp_path, MEMORY, ["-device", "vmcoreinfo"]) as qemu:
        key, size = qemu.files()["etc/vmcoreinfo"]
        assert qemu.item(key, size) == u16(1) + bytes(14)

        def poke(gpa: int, data: bytes) -> None:
            qemu.ram[gpa : gpa + len(data)] = data

        vmcoreinfo_basic_write(QemuSide(qemu).dma, poke, key)
        assert qemu.item(key, size) == expected
