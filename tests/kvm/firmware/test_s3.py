"""Suspend to RAM, through SeaBIOS and OVMF: Linux writes "mem" into /sys/power/state, and goes on after the wake-up."""

import stat
from pathlib import Path

import pytest

from vmm import Machine, Reason
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.verify import initramfs, linux_guest

pytestmark = pytest.mark.needs_kvm

DEADLINE = 120.0

SECBOOT = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
"""It keeps in SMRAM what it needs to resume, and locks the chipset again."""

INIT = b"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
echo "states: $(/bin/busybox cat /sys/power/state)"
for turn in 1 2; do
    number=$turn$turn$turn
    echo mem >/sys/power/state
    echo "awake $number on $(/bin/busybox grep -c ^processor /proc/cpuinfo) CPUs"
done
/bin/busybox poweroff -f
"""


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    """A RAM disk whose /init suspends the machine twice."""

    def entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
        return initramfs.header(name, mode, len(data), device=device) + data + initramfs.padding(len(data))

    busybox = linux_guest.LinuxFiles.find().busybox.read_bytes()
    image = tmp_path / "initrd"
    image.write_bytes(
        b"".join(
            (
                entry("bin", stat.S_IFDIR | 0o755),
                entry("dev", stat.S_IFDIR | 0o755),
                entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
                entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
                entry("init", stat.S_IFREG | 0o755, INIT),
                initramfs.header(initramfs.TRAILER, 0),
            )
        )
    )
    return image


@pytest.mark.parametrize(
    ("firmware", "board", "cpus"),
    [
        ("seabios", "pc", 1),
        ("seabios", "q35", 2),
        ("ovmf", "q35", 2),
        (SECBOOT, "q35", 4),
    ],
)
def test_linux_sleeps_and_wakes(
    vmm_machine: MachineFactory, initrd: Path, firmware: str, board: str, cpus: int
) -> None:
    kernel = linux_guest.LinuxFiles.find().kernel
    machine: Machine = vmm_machine(
        firmware,
        machine=board,
        cpus=cpus,
        memory="512M",
        s3=True,
        kernel=kernel,
        initrd=initrd,
        append="console=ttyS0 no_timer_check no_console_suspend",
    )
    with pytest.raises(RuntimeError, match="not suspended"):
        machine.wakeup()
    for number in ("111", "222"):
        outcome = machine.run(deadline=DEADLINE)
        assert outcome.reason is Reason.SUSPENDED, machine.serial.text()
        assert machine.run(deadline=DEADLINE) == outcome
        machine.wakeup()
        machine.expect(rf"awake {number} on {cpus} CPUs", deadline=DEADLINE)
    outcome = machine.run(deadline=DEADLINE)
    assert outcome.reason is Reason.POWER_OFF, f"{outcome.details}\n{machine.serial.text()}"
    assert machine.serial.text().count("Linux version") == 1
    assert [reset.kind.value for reset in machine.resets] == ["wakeup"] * 2
