"""What a machine's vCPUs execute, as a profile tells it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import START, image

from vmm import Machine
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.report import page, text
from vmm.report.collect import collect
from vmm.report.profile import NamedProfile
from vmm.run import profile as run_profile
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

DEADLINE = 120.0
BASE = 0xFFFF0000
"""CS.base after power-on: the code of these ROMs is there until a far jump."""

SPIN = "eb fe"  # jmp $
SPIN_THEN_HALT = (
    "66 b9 00 80 00 00"  # mov ecx, 0x8000
    "66 49 75 fc"  # next: dec ecx; jnz next
    "ba 02 04 b0 58 ee"  # mov dx, 0x402; mov al, 'X'; out dx, al
    "fa f4 eb fd"  # cli; stop: hlt; jmp stop
)
both_accelerators = pytest.mark.parametrize("accel", ["kvm", "kvm+softcpu", "softcpu"])


def run_until_sampled(machine: Machine, least: int) -> None:
    """Let it run until the profiler has so many samples."""

    def enough(machine: Machine) -> None:
        profiler = machine._profiler  # asking for the profile itself would end the run
        if profiler is not None and len(profiler._times) >= least:
            machine.stop()

    machine.run(deadline=DEADLINE, on_poll=enough)


@both_accelerators
def test_samples_are_where_the_guest_is(tmp_path: Path, accel: str) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(SPIN))
    with Machine(str(rom), machine="pc", accel=accel, profile=True) as machine:
        run_until_sampled(machine, 50)
        found = machine.profile()
        assert found is not None
        counted = Counter(sample.address for sample in found.samples)
        assert counted[BASE + START] >= 45
        times = [sample.time_ns for sample in found.samples]
        assert times == sorted(times)
        place = found.place(found.samples[-1])
        assert (place.module, place.function) == ("rom.bin", "")
        # The machine goes on, and so does its profile.
        run_until_sampled(machine, len(found.samples) + 50)
        again = machine.profile()
        assert again is not None
        assert len(again.samples) >= len(found.samples) + 50


@both_accelerators
def test_a_vcpu_that_waits_is_not_sampled(tmp_path: Path, accel: str) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(SPIN_THEN_HALT))
    with Machine(str(rom), machine="pc", accel=accel, cpus=2, profile=True) as machine:
        assert machine.run(until="X", deadline=DEADLINE).reached
        assert machine.run(deadline=0.2).reason is Reason.TIMEOUT
        found = machine.profile()
    assert found is not None
    # 200 ms of HLT would be 200; the instructions before it may be hit.
    halted = [sample for sample in found.samples if sample.address - BASE - START > 0xA]
    assert len(halted) <= 3, halted
    assert {sample.vcpu for sample in found.samples} <= {0}


def test_functions_of_a_guest_of_ours(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN, profile=True)
    run_until_sampled(machine, 20)
    found = machine.profile()
    assert found is not None
    places = Counter((place.module, place.function) for place in map(found.place, found.samples))
    (module, function), _ = places.most_common(1)[0]
    assert module == "hang"
    assert function


def test_what_the_ring_cannot_hold_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_profile, "MAX_SAMPLES", 10)
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(SPIN))
    with Machine(str(rom), machine="pc", accel=PLAIN, profile=True) as machine:
        polls = 0

        def enough(machine: Machine) -> None:
            nonlocal polls
            polls += 1
            profiler = machine._profiler
            if profiler is not None and profiler._beyond:
                machine.stop()

        outcome = machine.run(deadline=DEADLINE, on_poll=enough)
        found = machine.profile()
        assert found is not None
        assert len(found.samples) <= 10
        assert found.lost > 0
        report = collect(machine, outcome)
        report["profile"] = NamedProfile(found, report, machine.started_ns).report()
    assert report["profile"]["lost"] == found.lost
    assert "more were not kept" in page.render(report)


def test_none_was_asked_for(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("exit"))
    machine.run(deadline=DEADLINE)
    assert machine.profile() is None
    with pytest.raises(TypeError, match="profile"):
        Machine("exit", profile="yes")  # type: ignore[arg-type]


def test_where_the_time_of_a_boot_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vmm", "boot", "ovmf", "-smp", "2", "--timeout", "120", "-serial", "none"]
    command += ["--until", "Shell>", "--send", r"any other key to continue=\r"]
    command += ["--profile", "boot.json", "--json", "report.json", "--html", "report.html"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["profile"]
    phases = [phase["name"] for phase in found["phases"]]
    assert phases == ["SEC", "PEI", "DXE", "BDS", "shell"]
    assert all(phase["accesses"] for phase in found["phases"])
    # The others may be over between two samples, on a busy host above all.
    assert all(phase["samples"] for phase in found["phases"] if phase["name"] in {"SEC", "DXE"})
    assert sum(phase["samples"] for phase in found["phases"]) == found["samples"]
    assert sum(stack["samples"] for stack in found["stacks"]) == found["samples"]
    read = sum(item["bytes_read"] for item in report["fw_cfg"]["items"])
    assert 0.9 * read <= sum(phase["fw_cfg_bytes"] for phase in found["phases"]) <= read
    # The decompressor of the other volumes is in SEC.
    assert {("SEC", "SecMain"), ("PEI", "PeiCore"), ("DXE", "DxeCore")} <= {
        (stack["phase"], stack["module"]) for stack in found["stacks"]
    }
    unknown = sum(stack["samples"] for stack in found["stacks"] if stack["module"] == "?")
    assert unknown <= 0.02 * found["samples"]
    folded = (tmp_path / "boot.folded").read_text()
    assert sum(int(line.rpartition(" ")[2]) for line in folded.splitlines()) == found["samples"]
    speedscope = json.loads((tmp_path / "boot.json").read_text())
    frames = len(speedscope["shared"]["frames"])
    for part in speedscope["profiles"]:
        assert len(part["samples"]) == len(part["weights"])
        assert part["endValue"] == sum(part["weights"])
        assert all(0 <= frame < frames for stack in part["samples"] for frame in stack)
    weights = sum(part["endValue"] for part in speedscope["profiles"])
    assert weights == found["samples"] * found["interval_ns"]
    told = text.text(report)
    assert "SecMain" in told
    assert 'class="flame"' in (tmp_path / "report.html").read_text()
