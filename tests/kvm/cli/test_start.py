"""What a boot loads: most of a short one is loading modules."""

import subprocess
import sys
from pathlib import Path

import pytest

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm

PROGRAM = """\
import sys
before = set(sys.modules)
from vmm.cli import main
status = main(sys.argv[1:])
print(*(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""

COUNTS_COLLECTIONS = """\
import gc, sys
from vmm.__main__ import main
for _ in range(20):
    gc.collect(0)
gc.callbacks.append(lambda phase, _: print("collected", file=sys.stderr) if phase == "start" else None)
main()
"""

OF_OTHERS = {
    *("capstone", "elftools", "jinja2", "rich"),
    *("bisect", "datetime", "fcntl", "ipaddress", "json", "locale"),
    *("math", "pathlib", "resource", "subprocess", "termios", "typing", "urllib", "uuid"),
}
"""For errors, texts, single options."""

OUR_OWN = {
    *("vmm._softcpu", "vmm.softcpu.engine"),
    *("vmm.cli.foreign", "vmm.cli.progress", "vmm.cli.script", "vmm.cli.snapshots"),
    *("vmm.config.drives", "vmm.config.items"),
    *("vmm.cpu.registers", "vmm.kvm.capabilities", "vmm.kvm.exits"),
    *("vmm.devices.flash", "vmm.devices.fw_cfg_python", "vmm.devices.fwctl", "vmm.devices.vmcoreinfo"),
    *("vmm.firmware.identity", "vmm.firmware.search", "vmm.firmware.variables"),
    *("vmm.handoff.direct", "vmm.handoff.kernel"),
    *("vmm.platform.bhyve", "vmm.platform.pc"),
    *("vmm.report", "vmm.verify"),
    *(
        "vmm.run.exit_times",
        "vmm.run.failure",
        "vmm.run.terminal",
        "vmm.run.timeline",
        "vmm.run.trace",
        "vmm.run.whole",
    ),
    *("vmm.tables.acpi", "vmm.tables.smbios"),
}
"""Each for what the command line below does not ask for, and a guest that exits at once does not read."""

MOST = 92
"""Modules of vmm's, each of which takes a tenth of a millisecond. It was 76; later 84, and a few more since coalesced
writes, RAM's mapping, a description's checks, a board's steps, an option's meaning and the ways to write a file have
their own; one since CPUs are arranged, one since a machine's assembly is apart from what can be done with it, one since
memory that C uses is pinned in one place, one since threads are started in one, and one since a VM is made ahead, which
saves ten milliseconds. Since `typing` is not loaded, what is there for type checkers alone is not, either."""


WITHOUT_KVM = {"vmm._softcpu", "vmm.softcpu.chips", "vmm.softcpu.engine"}


def loaded_for(*words: str, status: int = 0, accel: str = "kvm", serial: str = "none") -> set[str]:
    command = ["boot", *words, "-accel", accel, "-q", "-serial", serial, "-debugcon", "none"]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *command], capture_output=True, text=True, check=False)
    assert run.returncode == status, run.stderr
    return set(run.stderr.split())


@pytest.mark.usefixtures("kvm_device")
@pytest.mark.parametrize("guest", ["exit", str(guests.path("exit"))], ids=["name", "path"])
def test_a_plain_boot_loads_what_it_uses(guest: str) -> None:
    loaded = loaded_for(guest)
    assert {"vmm.kvm.ahead", "vmm.machine", "vmm.platform.q35"} <= loaded
    assert loaded & (OF_OTHERS | OUR_OWN) == set()
    own = {name for name in loaded if name.partition(".")[0] == "vmm"}
    assert len(own) <= MOST, sorted(own)


@pytest.mark.usefixtures("kvm_device")
def test_a_guest_that_reads_all_tables_loads_no_more_of_others() -> None:
    loaded = loaded_for("probe")
    assert {"vmm.tables.acpi", "vmm.tables.smbios"} <= loaded
    assert loaded & OF_OTHERS == set()


@pytest.mark.parametrize("serial", ["none", "stdio"])
def test_a_boot_without_kvm_loads_as_little(serial: str) -> None:
    loaded = loaded_for("exit", accel="softcpu", serial=serial)
    assert loaded >= WITHOUT_KVM
    assert loaded & OF_OTHERS == set()
    assert loaded & OUR_OWN <= WITHOUT_KVM | ({"vmm.run.terminal"} if serial == "stdio" else set())
    assert "vmm.run.expected" not in loaded


def test_a_short_boot_collects_no_garbage() -> None:
    """Of 20,000 objects that loading made, nearly all of which stay: it takes as long as some of the loading."""
    command = ["boot", "seabios", "-accel", "softcpu", "-q", "-serial", "none", "--until", "No bootable device"]
    run = subprocess.run(
        [sys.executable, "-c", COUNTS_COLLECTIONS, *command], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "collected" not in run.stderr


@pytest.mark.usefixtures("kvm_device")
def test_no_tick_of_a_kernels_is_lost(tmp_path: Path) -> None:
    """One without firmware counts them as soon as it has programmed the PIT: its VM keeps them from the start."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(4096))
    loaded = loaded_for("-direct", "-kernel", str(kernel), status=2)
    assert "vmm.machine" in loaded
    assert "vmm.kvm.ahead" not in loaded
