"""What the guest writes back: the places of the VM generation id and of a kernel's crash notes."""

import json
from pathlib import Path

import pytest

from vmm import Machine
from vmm.cli import main
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def boot(*words: str) -> int:
    """`vmm boot` in this process, which its sandbox would take away from all tests behind this one."""
    return main(["boot", *words, "--sandbox", "off"])


def test_the_address_of_the_generation_id_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    words = ["seabios", "-device", f"vmgenid,guid={GUID}", "-serial", "none", "--json", str(path)]
    assert boot(*words, "--until", "No bootable device", "--timeout", "60") == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["vmgenid"]["guid"] == GUID
    address = report["vmgenid"]["address"]
    assert address % 4096 == 40
    assert f"{GUID}, at GPA {address:#x}" in capfd.readouterr().err


def test_what_a_guest_writes_into_vmcoreinfo_is_received(capfd: pytest.CaptureFixture[str]) -> None:
    with Machine("conformance-fw-cfg", devices=["vmcoreinfo"]) as machine:
        assert machine.run(deadline=60).reason is Reason.POWER_OFF
        note = machine.vmcoreinfo
    assert note is not None
    assert note.guest_format
    assert boot("conformance-fw-cfg", "-device", "vmcoreinfo", "-serial", "none", "-debugcon", "none") == 0
    assert f"at GPA {note.address:#x}" in capfd.readouterr().err


def test_a_machine_without_these_devices_has_neither() -> None:
    with Machine("exit") as machine:
        assert machine.run(deadline=60).reason is Reason.POWER_OFF
        assert machine.vmgenid_address is None
        assert machine.vmcoreinfo is None


def test_a_repaired_table_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "ssdt.aml"
    table.write_bytes(b"SSDT" + (36).to_bytes(4, "little") + bytes(28))
    assert boot("exit", "-acpitable", f"file={table}") == 0
    assert "checksum of SSDT is 0x00, repaired to" in capfd.readouterr().err
