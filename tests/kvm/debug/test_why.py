"""Why a guest ended: what every vCPU was doing, exceptions, and the last accesses to devices, as fields and as text."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from accelerators import PLAIN
from moments import run_in_moments
from real_mode_rom import RESET, START, image
from report_schema import check_report

from vmm import Machine
from vmm.debug import why
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.report import page
from vmm.report.collect import collect
from vmm.run.evidence import Access
from vmm.run.outcome import Outcome, Reason
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = pytest.mark.needs_kvm

ACCELERATORS = ["kvm", "kvm+softcpu", "softcpu"]

POLLS = "ba 08 06 b9 05 00 ed e2 fd"  # mov dx, 0x608; mov cx, 5; 1: in eax -> in ax, dx; loop 1b
WRITES = "b0 5a e6 80 b0 61 ba 02 04 ee"  # out 0x80, 0x5a; out 0x402, 'a'
NOBODY = "ba 34 12 ec"  # in al, 0x1234
STAYS = "eb fe"


def accesses(outcome: Outcome) -> Sequence[Access]:
    return outcome.evidence.accesses if outcome.evidence else ()


def written(outcome: Outcome) -> list[int]:
    return [access.value for access in accesses(outcome) if access.is_write]


def in_main(outcome: Outcome) -> bool:
    vcpus = outcome.evidence.vcpus if outcome.evidence else ()
    return any(vcpu.place is not None and vcpu.place.function == "main" for vcpu in vcpus)


@pytest.fixture
def create(vmm_machine: MachineFactory, tmp_path: Path) -> Callable[..., Machine]:
    def made(code: str, **options: object) -> Machine:
        path = tmp_path / "guest.rom"
        path.write_bytes(image(code))
        return vmm_machine(str(path), machine="pc", **options)

    return made


@pytest.mark.parametrize("accel", [pytest.param("kvm", marks=pytest.mark.hw), "kvm+softcpu", "softcpu"])
def test_the_last_accesses_have_their_devices(create: Callable[..., Machine], accel: str) -> None:
    machine = create(WRITES + NOBODY + POLLS + STAYS, accel=accel)
    outcome = run_in_moments(machine, lambda outcome: accesses(outcome)[-1:] and accesses(outcome)[-1].times == 5)
    assert outcome.evidence is not None
    wrote, printed, asked, polled = outcome.evidence.accesses
    assert wrote == Access(wrote.vcpu, wrote.device, "port", 0x80, 1, 1, is_write=True, value=0x5A, times=1)
    assert (printed.device, printed.address, printed.value) == ("debugcon", 0x402, ord("a"))
    assert (asked.vcpu, asked.device, asked.is_write, asked.value) == (0, "", False, 0xFF)
    assert (polled.address, polled.size, polled.times, polled.is_write) == (0x608, 2, 5, False)
    assert "IN 0x608 -> " in outcome.details
    assert ", 5 times (" in outcome.details
    assert "IN 0x1234 -> 0xff (nobody is there)" in outcome.details


def test_only_the_last_accesses_are_kept(create: Callable[..., Machine]) -> None:
    # mov cl, 40; 1: mov al, cl; out 0x80, al; in al, 0x71; loop 1b
    machine = create("31 c9 b1 28 88 c8 e6 80 e4 71 e2 f8" + STAYS, accel=PLAIN)
    outcome = run_in_moments(machine, lambda outcome: written(outcome)[-1:] == [1])
    assert len(accesses(outcome)) == 32
    assert written(outcome) == list(range(16, 0, -1))
    # A machine that goes on keeps them, and one entry is no more than one.
    machine.reset()
    assert machine.run(deadline=0.1).evidence is not None


@pytest.mark.parametrize("accel", ACCELERATORS)
def test_a_reset_that_ends_the_run_says_who_asked(create: Callable[..., Machine], accel: str) -> None:
    outcome = create(RESET, accel=accel, reboot=False).run(deadline=20)
    assert outcome.reason is Reason.RESET
    assert outcome.evidence is not None
    (vcpu,) = outcome.evidence.vcpus
    assert START <= vcpu.rip & 0xFFFF <= START + 8
    assert (outcome.evidence.accesses[-1].address, outcome.evidence.accesses[-1].value) == (0xCF9, 6)
    assert "OUT 0xcf9 <- 0x06" in outcome.details


def test_exceptions_of_the_software_cpu(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("triple-fault"), accel="kvm+softcpu")
    outcome = machine.run(deadline=20)
    assert outcome.evidence is not None
    (vcpu,) = outcome.evidence.vcpus
    # An IDT with no entries: #UD, on its way to its handler #GP of the gate (SDM volume 3, 6.13), and then #DF.
    assert [(each.name, each.error_code) for each in vcpu.exceptions] == [("#UD", None), ("#GP", 0x32), ("#DF", 0)]
    assert {each.rip for each in vcpu.exceptions} == {vcpu.rip}
    assert vcpu.place is not None
    assert (vcpu.place.module, vcpu.place.function, vcpu.place.function_offset) == ("triple-fault", "main", 7)
    assert vcpu.code[0].text == "ud2"
    assert [place.function for place in vcpu.stack] == ["start", "start32"] or vcpu.stack
    assert "last exception: #UD at 0x" in outcome.details
    assert outcome.details.count("ud2") == 1


def test_what_the_other_vcpus_were_doing(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("hang", cpus=3, accel=PLAIN)
    outcome = run_in_moments(machine, in_main)
    assert outcome.evidence is not None
    assert [(vcpu.vcpu, vcpu.started) for vcpu in outcome.evidence.vcpus] == [(0, True), (1, False), (2, False)]
    assert "vCPU 1, 2: not started" in outcome.details


@pytest.mark.parametrize(("words", "status"), [(["hang", "--timeout", "3"], 3), (["triple-fault"], 1)])
def test_the_reports_have_all_of_it(tmp_path: Path, words: list[str], status: int) -> None:
    json_path, html_path = tmp_path / "report.json", tmp_path / "report.html"
    written = ["--json", str(json_path), "--html", str(html_path), "-serial", "none"]
    done = subprocess.run([sys.executable, "-m", "vmm", "boot", *words, *written], capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    report = json.loads(json_path.read_text())
    check_report(report)
    (vcpu,) = report["why"]["vcpus"]
    assert vcpu["place"]["function"] == "main"
    shown = html_path.read_text()
    for words_shown in (vcpu["code"][0]["text"], "main+", "registers of vCPU 0"):
        assert words_shown in shown


def test_a_wanted_end_is_not_explained(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe")
    outcome = machine.run(deadline=60)
    assert outcome.reached
    assert outcome.evidence is None
    assert "why" not in collect(machine, outcome)


def test_another_process_tells_the_same(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("hang", accel=PLAIN, sandbox="process")
    outcome = run_in_moments(machine, in_main)
    assert outcome.evidence is not None
    (vcpu,) = outcome.evidence.vcpus
    assert in_main(outcome)
    assert vcpu.registers["rip"] == vcpu.rip


def test_a_page_of_a_guest_that_set_up_rubbish(create: Callable[..., Machine]) -> None:
    # lgdt and paging on from nowhere: mov eax, cr0; or eax, 0x80000001; mov cr0, eax
    machine = create("0f 20 c0 66 0d 01 00 00 80 0f 22 c0" + STAYS, accel="kvm+softcpu", reboot=False)
    outcome = machine.run(deadline=20)
    assert outcome.evidence is not None
    assert outcome.reason in {Reason.TRIPLE_FAULT, Reason.KVM_FAILURE}
    assert "Why" in page.render(collect(machine, outcome))


@pytest.mark.skipif(has_hardware_virtualization(), reason="runs in KVM")
def test_an_exception_in_uefis_shell(vmm_machine: MachineFactory) -> None:
    """The software CPU's account, edk2's on the console, and what is found on the stack are the same."""
    machine = vmm_machine("ovmf")
    machine.expect("any other key to continue", deadline=120)
    machine.send_line()
    machine.expect("Shell> ", deadline=60)
    machine.send_line("mm 8000000000000000 -MEM -w 4 -n")  # not canonical
    machine.expect(r"!!!! Find image based on IP|!!!! Can't find image", deadline=60)
    outcome = run_in_moments(machine, lambda outcome: "CpuDeadLoop" in outcome.details)
    assert outcome.evidence is not None
    (vcpu,) = outcome.evidence.vcpus
    assert vcpu.place is not None
    assert vcpu.place.module == "CpuDxe"
    assert "CpuDeadLoop" in vcpu.verdict
    last = vcpu.exceptions[-1]
    assert (last.name, last.error_code) == ("#GP", 0)
    assert f"last exception: {last}" in outcome.details
    assert outcome.evidence.said.startswith("!!!! X64 Exception Type - 0D(#GP")
    assert outcome.evidence.said.endswith("ExceptionData - 0000000000000000")
    assert f"RIP  - {last.rip:016X}" in machine.serial.text()
    found = why.evidence(0, machine.registers(), machine.memory.read, lambda _: None).exceptions
    assert [(each.vector, each.error_code, each.rip) for each in found] == [(13, 0, last.rip)]
