"""Virtual time: the same instructions in every run, whatever else the host does meanwhile."""

import json
import time
from pathlib import Path

import pytest
from command_line import vmm
from softcpu_rig import SoftcpuRig
from vmm._native import lib

from vmm import Machine
from vmm.errors import ConfigError
from vmm.report.collect import collect
from vmm.report.schema import VirtualTimeReport
from vmm.run.outcome import Reason
from vmm.run.virtual_time import Replayed, read_recording
from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")

ENDS = {"probe": None, "seabios": "No bootable device", "ovmf": "Shell>"}


def told(machine: Machine) -> VirtualTimeReport:
    assert machine.outcome is not None
    return collect(machine, machine.outcome)["virtual_time"]


def booted(firmware: str) -> VirtualTimeReport:
    with Machine(firmware, clock="virtual", devices="vmgenid") as machine:
        outcome = machine.run(ENDS[firmware], deadline=240)
        assert outcome.reason is (Reason.POWER_OFF if ENDS[firmware] is None else Reason.UNTIL), outcome.message
        return told(machine)


@pytest.mark.parametrize(
    ("firmware", "phases"),
    [("probe", []), ("seabios", ["POST", "boot"]), ("ovmf", ["SEC", "PEI", "DXE", "BDS", "shell"])],
)
def test_each_boot_executes_the_same(firmware: str, phases: list[str], request: pytest.FixtureRequest) -> None:
    at_rest = booted(firmware)
    assert [phase["name"] for phase in at_rest["phases"]] == phases
    assert all(phase["instructions"] > 0 for phase in at_rest["phases"])
    assert at_rest["instructions"] > 10_000
    assert at_rest["events"] > 1_000
    request.getfixturevalue("busy_host")
    assert booted(firmware) == at_rest


def test_resets_are_part_of_it() -> None:
    def reset_twice() -> VirtualTimeReport:
        with Machine("seabios", clock="virtual", boot="reboot-timeout=100", max_resets=2) as machine:
            outcome = machine.run(deadline=240)
            assert outcome.reason is Reason.RESET_LOOP, outcome.message
            starts = [event.instructions for event in machine.timeline if event.kind == "vcpu-started"]
            resets = [event.instructions for event in machine.timeline if event.kind == "reset"]
            assert starts == [0, *resets]
            assert len(set(starts)) == 3
            return told(machine)

    assert reset_twice() == reset_twice()


def test_what_was_typed_at_any_time_is_replayed(tmp_path: Path) -> None:
    recording = tmp_path / "typed.jsonl"

    def type_once(machine: Machine) -> None:
        # On the thread that waits, while the guest goes on: nothing says at which instruction.
        if machine.config.replay is None and not typed:
            typed.append(True)
            machine.send("\r")

    def dialogue(machine: Machine) -> tuple[str, VirtualTimeReport]:
        assert machine.run("Shell>", 240, on_poll=type_once).reason is Reason.UNTIL
        at_prompt = told(machine)["trace_hash"]
        if machine.config.replay is None:
            machine.send_line("ver")
        assert machine.run("UEFI v", 240).reason is Reason.UNTIL
        return at_prompt, told(machine)

    typed: list[bool] = []
    with Machine("ovmf", clock="virtual", record=recording) as machine:
        first = dialogue(machine)
    inputs = read_recording(recording.read_bytes())
    assert [entry.typed for entry in inputs] == [b"\r", b"ver\r"]
    assert first[1]["inputs"] == 2
    with Machine("ovmf", clock="virtual", replay=recording) as machine:
        assert dialogue(machine) == first
        with pytest.raises(ConfigError, match="a replay has what was typed already"):
            machine.send("x")
        assert machine.virtual_time is not None
        assert machine.virtual_time.replayed == Replayed(2, 2, exact=True)


def test_a_power_button_that_nobody_waited_for_is_replayed(tmp_path: Path) -> None:
    recording = tmp_path / "pressed.jsonl"
    with Machine("seabios", clock="virtual", record=recording) as machine:
        machine.power_button()
        machine.run("No bootable device", 240)
        first = told(machine)
    assert [entry.typed for entry in read_recording(recording.read_bytes())] == [None]
    with Machine("seabios", clock="virtual", replay=recording) as machine:
        machine.run("No bootable device", 240)
        assert told(machine) == first


SEABIOS = ("boot", "--clock", "virtual", "-q", "-serial", "none", "--timeout", "240")

GIVEN = '{"instructions": 1000000, "time_ns": 0, "type": "x"}\n'
AT_NO_TIME = '{"instructions": 4000000000000000000, "time_ns": 0, "press": "power-button"}\n'


@pytest.mark.parametrize(
    ("recording", "ends", "complaint", "status"),
    [
        (GIVEN + AT_NO_TIME, ("probe",), "0 of 2 inputs given: the run", 1),
        (AT_NO_TIME, ("seabios", "--until", "SeaBIOS"), "0 of 1 input given: the run", 0),
        (AT_NO_TIME, ("seabios", "--until", "never", "--timeout", "0.5"), "0 of 1 input given: the run", 3),
        (
            GIVEN,
            ("seabios", "--until", "No bootable"),
            "1 of 1 input given, not all of them at the instructions of the recording: the run",
            1,
        ),
    ],
)
def test_a_run_that_is_not_the_recorded_one_says_so(
    tmp_path: Path, recording: str, ends: tuple[str, ...], complaint: str, status: int
) -> None:
    """The last recording has an instruction at which nothing can come."""
    path, report = tmp_path / "typed.jsonl", tmp_path / "report.json"
    path.write_text(recording)
    run = vmm(*SEABIOS, "--replay", path, "--json", report, *ends)
    assert f"vmm: --replay: {complaint} was not the recorded one\n" in run.stderr
    assert run.returncode == status, run.stderr
    told = json.loads(report.read_text())["replay"]
    given = int(complaint.split(maxsplit=1)[0])
    assert told == {"inputs": recording.count("\n"), "given": given, "same": False}


def test_a_recording_to_stdout_is_replayed(tmp_path: Path) -> None:
    recorded = vmm(*SEABIOS, "seabios", "--record", "-", "--send", "SeaBIOS=x", "--until", "No bootable", cwd=tmp_path)
    assert (recorded.returncode, list(tmp_path.iterdir())) == (0, []), recorded.stderr
    path = tmp_path / "typed.jsonl"
    path.write_text(recorded.stdout)
    replayed = vmm(*SEABIOS, "seabios", "--replay", path, "--until", "No bootable", "--json", "-")
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert json.loads(replayed.stdout)["replay"] == {"inputs": 1, "given": 1, "same": True}


def test_what_was_counted_can_be_asked_for_once_the_machine_is_closed() -> None:
    with Machine("probe", clock="virtual") as machine:
        machine.run(deadline=240)
        at_end = told(machine)
    assert told(machine) == at_end


def test_what_another_thread_types_as_the_machine_closes_is_refused() -> None:
    with Machine("probe", clock="virtual") as machine:
        virtual_time = machine.virtual_time
        assert virtual_time is not None
    # As a thread that found the machine open yet.
    with pytest.raises(ValueError, match="the machine is closed"):
        virtual_time.feed(b"x")
    with pytest.raises(ValueError, match="the machine is closed"):
        virtual_time.press_power_button()


def test_no_snapshot() -> None:
    with Machine("probe", clock="virtual") as machine, pytest.raises(ConfigError, match="--clock virtual: no snapshot"):
        machine.snapshot()


# Guests of a few instructions.


def values(source: str) -> list[int]:
    with SoftcpuRig(source, virtual=True) as rig:
        rig.run()
        assert rig.done.is_set()
        return rig.values


def test_an_instruction_takes_a_nanosecond_and_an_access_a_microsecond() -> None:
    source = """
    main:
        mov $10000, %ecx
        rdtsc
        mov %eax, %ebx
    1:  dec %ecx
        jnz 1b
        rdtsc
        sub %ebx, %eax
        mov %eax, %ebp
        rdtsc
        mov %eax, %ebx
        .rept 10
        in $0x80, %al
        .endr
        rdtsc
        sub %ebx, %eax
        mov %eax, %esi
        report %ebp
        report %esi
        done
    """
    loop, accesses = values(source)
    # The read that ends it, two instructions each time, and a few around them: blocks are counted as they begin.
    assert 0 <= loop - 1_000 - 2 * 10_000 <= 40
    assert 0 <= accesses - 1_000 - 10 * 1_000 <= 40


def test_an_hour_of_halt_takes_no_time_of_ours() -> None:
    source = """
    main:
        gate 0x40, handler
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0x0a, 0x3e0(%rdi)             # by 128
        movl $0x40, 0x320(%rdi)             # one-shot
        mov $0x0a, %ecx
        rdtsc
        mov %eax, %ebx
        mov %edx, %ebp
        movl $28125000000 / 1000, 0x380(%rdi)   # 3.6 s
        xor %esi, %esi
    1:  sti
        hlt
        cmp $1000, %esi
        jb 1b
        rdtsc
        shl $32, %rdx
        or %rdx, %rax
        shl $32, %rbp
        or %rbp, %rbx
        sub %rbx, %rax
        mov %rax, %rbx
        report %ebx
        shr $32, %rbx
        report %ebx
        done
    handler:
        inc %esi
        push %rax
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
        movl $28125000000 / 1000, 0x380(%rax)
        pop %rax
        iretq
    """
    began = time.monotonic()
    low, high = values(source)
    hour = 3_600_000_000_000
    assert hour <= (high << 32 | low) <= hour + 10_000_000
    assert time.monotonic() - began < 240


def test_waiting_in_a_loop_takes_few_turns_of_it() -> None:
    """A second, by the TSC: without PAUSE a turn is a microsecond, with it soon 64."""
    source = """
    .macro wait_a_second how:vararg
        rdtsc
        shl $32, %rdx
        lea (%rax, %rdx), %rbx
        add $1000000000, %rbx
        xor %ebp, %ebp
    3:  inc %ebp
        \\how
        rdtsc
        shl $32, %rdx
        or %rdx, %rax
        cmp %rbx, %rax
        jb 3b
        report %ebp
    .endm
    main:
        wait_a_second nop
        wait_a_second pause
        done
    """
    plain, paused = values(source)
    assert 990_000 <= plain <= 1_000_000
    assert 10_000 <= paused <= 20_000


def test_an_interrupt_comes_at_the_same_instruction_each_time() -> None:
    """A periodic interrupt in a loop that counts: how far it was each time."""
    source = """
    main:
        gate 0x40, handler
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0x0b, 0x3e0(%rdi)             # by 1
        movl $0x20040, 0x320(%rdi)          # periodic
        movl $12345, 0x380(%rdi)
        xor %ebx, %ebx
        xor %esi, %esi
        sti
    1:  inc %ebx
        cmp $100, %esi
        jb 1b
        done
    handler:
        inc %esi
        report %ebx
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
        iretq
    """
    first = values(source)
    assert len(first) == 100
    assert values(source) == first


def test_what_a_tlb_holds_does_not_depend_on_the_hosts_time() -> None:
    """A guest sees it that clears accessed bits and flushes nothing: what is held sets none again."""
    source = """
    .set tables, 0x600000                   # a page directory, and four page tables behind it
    .set window, 0x40000000
    .macro touch pages
        mov $window, %eax
        mov $\\pages, %ecx
    1:  mov (%rax), %edx
        add $0x1000, %eax
        dec %ecx
        jnz 1b
    .endm
    .macro flush
        mov %cr3, %rax
        mov %rax, %cr3
    .endm
    main:
        mov $tables, %edi
        mov $tables + 0x1007, %eax
        mov $4, %ecx
    1:  mov %rax, (%rdi)
        add $8, %edi
        add $0x1000, %eax
        dec %ecx
        jnz 1b
        mov $tables + 0x1000, %edi
        mov $4 * 512, %ecx
    1:  movq $0x700007, (%rdi)
        add $8, %edi
        dec %ecx
        jnz 1b
        movq $tables + 7, 0x21008           # the second GiB
        .rept 6                             # it grows
        flush
        touch 2000
        .endr
        .rept 3                             # time passes for the host, and little is used
        action 1
        flush
        touch 10
        .endr
        flush
        touch 600
        mov $tables + 0x1000, %edi
        mov $600, %ecx
    1:  andb $~0x20, (%rdi)
        add $8, %edi
        dec %ecx
        jnz 1b
        touch 600
        xor %ebx, %ebx
        mov $tables + 0x1000, %edi
        mov $600, %ecx
    1:  mov (%rdi), %eax
        shr $5, %eax
        and $1, %eax
        add %eax, %ebx
        add $8, %edi
        dec %ecx
        jnz 1b
        report %ebx
        done
    """

    def set_again(pause: float) -> list[int]:
        with SoftcpuRig(source, virtual=True) as rig:
            rig.actions[1] = lambda: time.sleep(pause)
            rig.run()
            assert rig.done.is_set()
            return rig.values

    assert set_again(0) == set_again(0.15)


@pytest.mark.parametrize(
    "deaf",
    [
        # A timer that ticks for ever, and nobody hears it.
        "movl $0x20040, 0x320(%rdi); movl $0x0b, 0x3e0(%rdi); movl $1000, 0x380(%rdi); cli; hlt",
        # One that is due in 292 years.
        "movl $0x40040, 0x320(%rdi); mov $0x6e0, %ecx; mov $0x7fffffff, %edx; wrmsr; sti; hlt",
        # None.
        "sti; hlt",
    ],
    ids=["unheard", "far", "none"],
)
def test_a_guest_that_waits_for_ever_can_be_stopped(deaf: str) -> None:
    source = f"""
    main:
        gate 0x40, handler
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        mov $1, %eax
        out %eax, $0xfc
        {deaf}
        report $1
    handler:
        report $2
        hlt
    """
    with SoftcpuRig(source, virtual=True) as rig:
        rig.actions[1] = rig.done.set  # which stops it, a moment later
        assert rig.run() == [lib.VCPU_STOPPED]
        assert rig.values == []
