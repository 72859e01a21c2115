"""What the thread that waits for a machine does meanwhile."""

import threading
from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import image

from vmm import Reason
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run import runner

pytestmark = pytest.mark.needs_kvm

GENEROUS = 60.0

PRINT_AND_STAY = "ba f8 03 b0 68 ee b0 69 ee eb fe"  # mov dx, 3f8; "hi"; jmp $
STAY = "eb fe"


def test_what_is_printed_is_looked_at_when_it_comes(
    vmm_machine: MachineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 10 * GENEROUS)
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(PRINT_AND_STAY))
    machine = vmm_machine(str(rom), machine="pc", accel=PLAIN)
    too_late: list[bool] = []

    def give_up() -> None:
        too_late.append(True)
        machine.stop()

    timer = threading.Timer(GENEROUS, give_up)
    timer.start()
    try:
        assert machine.run(until="hi").reached
    finally:
        timer.cancel()
        timer.join()
    assert not too_late


@pytest.mark.parametrize("says", [b"SeaBIOS", b"of ours"])
def test_tables_are_built_while_firmware_starts_but_not_for_a_small_guest(
    vmm_machine: MachineFactory, tmp_path: Path, says: bytes
) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(says + image(STAY)[len(says) :])
    machine = vmm_machine(str(rom), machine="pc", accel=PLAIN)
    assert machine.run(on_poll=lambda machine: machine.stop()).reason is Reason.STOPPED
    assert machine.fw_cfg is not None
    files = {item.name: item for item in machine.fw_cfg.items()}
    for name in ("etc/table-loader", "etc/acpi/tables", "etc/smbios/smbios-tables"):
        assert files[name].selects == 0
        assert (files[name].size > 0) is (says == b"SeaBIOS")
