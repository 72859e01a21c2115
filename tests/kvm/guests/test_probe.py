"""The probe guest and its small relatives: what they find out on QEMU and on our machine, and that these agree."""

from collections.abc import Callable
from typing import Any

import pytest
from accelerators import PLAIN

from vmm import Machine
from vmm.firmware import guests
from vmm.run.outcome import Reason


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


@pytest.mark.needs_kvm
def test_apic_ids_with_holes_are_those_of_qemu(qemu: Callable[..., str], ours: Callable[..., str]) -> None:
    theirs = answers(qemu(guests.path("probe"), "-smp", "6,sockets=2,cores=3"))
    mine = answers(ours("probe", cpus=6, topology="sockets=2,cores=3"))
    for found in (theirs, mine):
        assert found["apic ids"] == ["0 1 2 4 5 6"]
        assert found["cpus at most"] == ["7"], "which is the limit of APIC ids"


@pytest.mark.needs_kvm
@pytest.mark.parametrize(("accel", "cpus"), [("kvm", 1024), ("auto", 300)])
def test_more_cpus_than_xapic_has_ids_for(ours: Callable[..., str], accel: str, cpus: int) -> None:
    found = answers(ours("probe", cpus=cpus, accel=accel))
    assert found["cpus started"] == [str(cpus)]
    assert found["apic ids"] == [" ".join(map(str, range(cpus)))]


@pytest.mark.needs_kvm
def test_a_snapshot_keeps_apic_ids_with_holes_beyond_255(vmm_machine: Callable[..., Any]) -> None:
    machine = vmm_machine("probe", cpus=255, topology="sockets=85,cores=3", accel="kvm")
    assert machine.run(until="apic ids:", deadline=120).reached
    ids = [vcpu.vcpu_id for vcpu in machine.vcpus]
    assert ids[3:6] + ids[-1:] == [4, 5, 6, 338]
    with machine.snapshot() as snapshot, Machine.restore(snapshot) as again:
        assert [vcpu.vcpu_id for vcpu in again.vcpus] == ids
        assert again.run(deadline=120).reason is Reason.POWER_OFF


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_exit_powers_qemu_off(qemu: Callable[..., str], machine: str) -> None:
    assert not qemu(guests.path("exit"), machine=machine)


def test_refused_is_executed_by_an_emulator_that_knows_fldcw(qemu: Callable[..., str]) -> None:
    assert qemu(guests.path("refused")) == "refused: before FLDCW\nrefused: after FLDCW\n"


LINES_OF_EACH_IMPLEMENTATION = {
    "item",  # compared by name below; keys follow from the position in the directory
    "items",
    "e820",  # QEMU lists the HyperTransport hole of its AMD model and what KVM needs
}
"""The probe's lines in which our machine need not say what QEMU says."""

ITEMS_OF_QEMU_ALONE = {
    "bios-geometry",  # for disks, which we have none of
    "etc/smi/features-ok",  # SMM
    "etc/smi/requested-features",
    "etc/smi/supported-features",
    "etc/tpm/log",
    "genroms/kvmvapic.bin",  # an option ROM of QEMU's
}

SIZES_OF_EACH_IMPLEMENTATION = {
    "etc/acpi/rsdp",  # ours has an XSDT: 36 bytes instead of 20
    "etc/acpi/tables",  # other devices, and QEMU pads it to 128 KiB
    "etc/smbios/smbios-tables",
    "etc/table-loader",
    "etc/e820",  # see above
}


def sizes(found: dict[str, list[str]]) -> dict[str, int]:
    """Size by name, from lines "NAME key 0xKEY size SIZE"."""
    parts = (line.rsplit(" ", 4) for line in found["item"])
    return {name: int(size) for name, _key, _0x, _size, size in parts}


@pytest.mark.needs_kvm
@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("cpus", [1, 4])
def test_ours_says_what_qemu_says(qemu: Callable[..., str], ours: Callable[..., str], machine: str, cpus: int) -> None:
    theirs = answers(qemu(guests.path("probe"), "-smp", f"{cpus},maxcpus=5", "-m", "96", machine=machine))
    found = answers(ours("probe", cpus=cpus, max_cpus=5, memory="96M", machine=machine))
    assert [name for name in found if name not in LINES_OF_EACH_IMPLEMENTATION] == [
        name for name in theirs if name not in LINES_OF_EACH_IMPLEMENTATION
    ]
    for name in found.keys() - LINES_OF_EACH_IMPLEMENTATION:
        assert found[name] == theirs[name], name
    ram = [entry for entry in theirs["e820"] if entry.endswith("type 1")]
    assert [entry for entry in found["e820"] if entry.endswith("type 1")] == ram
    our_sizes, their_sizes = sizes(found), sizes(theirs)
    assert our_sizes.keys() <= their_sizes.keys() - ITEMS_OF_QEMU_ALONE
    for name in our_sizes.keys() - SIZES_OF_EACH_IMPLEMENTATION:
        assert our_sizes[name] == their_sizes[name], name


@pytest.mark.needs_kvm
def test_on_ours_with_many_cpus(ours: Callable[..., str]) -> None:
    found = answers(ours("probe", cpus=64))
    assert found["cpus started"] == ["64"]
    assert found["apic ids"] == [" ".join(map(str, range(64)))]


@pytest.mark.hw
@pytest.mark.needs_kvm
def test_on_ours_with_an_item_of_the_user(ours: Callable[..., str]) -> None:
    found = answers(ours("probe", fw_cfg={"opt/org.example/greeting": b"hello"}))
    assert sizes(found)["opt/org.example/greeting"] == 5
    assert found["status"] == ["0"]


@pytest.mark.hw
@pytest.mark.needs_kvm
def test_refused_ends_on_an_interpreting_host_or_runs(vmm_machine: Callable[..., Any]) -> None:
    machine = vmm_machine(str(guests.path("refused")), accel="kvm")
    outcome = machine.run(deadline=60)
    printed = machine.debugcon.text()
    if outcome.reason is Reason.EMULATION_FAILURE:
        assert printed == "refused: before FLDCW\n"
        assert "fldcw" in outcome.message
        assert "-accel" in outcome.message
    else:
        assert outcome.reason is Reason.POWER_OFF, outcome.message
        assert printed == "refused: before FLDCW\nrefused: after FLDCW\n"


@pytest.mark.hw
@pytest.mark.needs_kvm
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_exit_powers_ours_off(ours: Callable[..., str], machine: str) -> None:
    assert not ours("exit", machine=machine)


@pytest.mark.needs_kvm
@pytest.mark.parametrize("name", ["hang", "silent"])
def test_a_guest_that_does_nothing_ends_at_the_deadline(vmm_machine: Callable[..., Any], name: str) -> None:
    outcome = vmm_machine(str(guests.path(name)), accel=PLAIN).run(deadline=1)
    assert outcome.reason is Reason.TIMEOUT
    assert "nothing" in outcome.message


@pytest.mark.hw
@pytest.mark.needs_kvm
def test_triple_fault_is_told_from_a_reset(vmm_machine: Callable[..., Any]) -> None:
    # KVM without hardware virtualization was seen to hang the vCPU instead: then the deadline has to end it.
    outcome = vmm_machine(str(guests.path("triple-fault")), accel=PLAIN).run(deadline=20)
    assert outcome.reason in {Reason.TRIPLE_FAULT, Reason.TIMEOUT}
