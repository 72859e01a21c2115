"""The probe guest: what it finds out on QEMU."""

from collections.abc import Callable

import pytest

from vmm import guests


def answers(text: str) -> dict[str, list[str]]:
    """The probe's lines, as lists of values by name."""
    found: dict[str, list[str]] = {}
    lines = text.splitlines()
    assert lines[0] == "vmm probe"
    for line in lines[1:]:
        name, value = line.split(": ", 1)
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("cpus", [1, 3])
def test_on_qemu(qemu: Callable[..., str], machine: str, cpus: int) -> None:
    found = answers(qemu(guests.path("probe"), "-smp", f"{cpus},maxcpus=5", "-m", "96", machine=machine))
    assert found["machine"] == [machine]
    assert found["interface"] == ["fw_cfg"]
    assert found["fw_cfg id"] == ["0x3 (port, DMA)"]
    assert found["dma signature"] == ["QEMU CFG"]
    assert found["cpus at boot"] == [str(cpus)]
    assert found["cpus at most"] == ["5"]
    assert found["ram size"] == ["0x0000000006000000"]
    assert "base 0x0000000000000000 length 0x0000000006000000 type 1" in found["e820"]
    assert int(found["items"][0]) == len(found["item"])
    assert found["cpus started"] == [str(cpus)]
    assert found["apic ids"] == [" ".join(map(str, range(cpus)))]
    assert found["status"] == ["0"]


def test_on_qemu_without_dma(qemu: Callable[..., str]) -> None:
    found = answers(qemu(guests.path("probe"), "-global", "fw_cfg.dma_enabled=off"))
    assert found["fw_cfg id"] == ["0x1 (port)"]
    assert "dma signature" not in found


@pytest.mark.needs_kvm
def test_on_qemu_with_kvm(qemu: Callable[..., str]) -> None:
    found = answers(qemu(guests.path("probe"), "-smp", "2", accelerator="kvm"))
    assert found["cpus started"] == ["2"]
    assert found["status"] == ["0"]


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_exit_powers_qemu_off(qemu: Callable[..., str], machine: str) -> None:
    assert not qemu(guests.path("exit"), machine=machine)


def test_refused_is_executed_by_an_emulator_that_knows_fldcw(qemu: Callable[..., str]) -> None:
    assert qemu(guests.path("refused")) == "refused: before FLDCW\nrefused: after FLDCW\n"
