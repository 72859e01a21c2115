"""Short real benchmarks: that all is measured and told; never how long it took."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = pytest.mark.needs_kvm

needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU, a rival, is not installed")


def bench(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "bench", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert ended.returncode == status, ended.stderr
    return ended


def found(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@needs_qemu
@pytest.mark.usefixtures("kvm_device")
def test_all_contenders_of_pio_measure_the_same_cases(tmp_path: Path) -> None:
    report, html = tmp_path / "pio.json", tmp_path / "pio.html"
    words = ["--rounds", "2", "--test", "in8-fwcfg", "--test", "insb-up", "--test", "in8-pic"]
    printed = bench("pio", *words, "--json", str(report), "--html", str(html)).stdout
    result = found(report)
    assert result["failed"] == {}
    assert result["rounds"] == 2
    assert [case["key"] for case in result["cases"]][:2] == ["in8-fwcfg", "in8-pic"]
    for case in result["cases"]:
        assert list(case["measured"]) == ["vmm", "vmm-python", "bare-loop", "qemu-kvm"]
        assert all(len(measured["rounds"]) == 2 for measured in case["measured"].values())
        assert all(measured["summary"]["maximum"] > 0 for measured in case["measured"].values())
    assert {row["name"] for row in result["vmm_times"]} >= {"exit io", "in 0x511"}
    assert "too few rounds" in printed
    assert "bare KVM_RUN loop" in printed
    page = html.read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "$ vmm bench pio" in page
    (image,) = json.loads(report.read_text(encoding="utf-8"))["origin"]["images"]
    assert image["sha256"] in page


@pytest.mark.usefixtures("kvm_device")
def test_dma_moves_every_size(tmp_path: Path) -> None:
    report = tmp_path / "dma.json"
    bench("dma", "--rounds", "1", "--contender", "vmm", "--contender", "bare-loop", "--json", str(report))
    result = found(report)
    assert [case["bytes"] for case in result["cases"]][::11] == [16, 64 << 20]
    assert all(set(case["measured"]) == {"vmm", "bare-loop"} for case in result["cases"])


@needs_qemu
@pytest.mark.usefixtures("kvm_device")
def test_exits_are_measured_by_all_contenders(tmp_path: Path) -> None:
    report = tmp_path / "exits.json"
    names = ["cpuid", "vmcall", "inl_from_qemu", "mmio_read_hpet", "hlt_timer", "ipi_halt", "touch_2m"]
    tests = [word for name in names for word in ("--test", name)]
    bench("exits", "--rounds", "1", *tests, "--json", str(report))
    result = found(report)
    assert [case["key"] for case in result["cases"]] == names
    # Where KVM interprets, a hypercall is written anew for ever; each of them says so then.
    without = {key.split()[0] for key in result["failed"]}
    assert without <= {"vmcall"}
    for case in result["cases"]:
        contenders = [] if case["key"] in without else ["vmm", "vmm-python", "bare-loop", "qemu-kvm"]
        assert list(case["measured"]) == contenders
        assert all(measured["summary"]["median"] > 0 for measured in case["measured"].values())
    assert {row["name"] for row in result["vmm_times"]} >= {"exit io", "exit mmio", "in 0x1234"}


@pytest.mark.usefixtures("kvm_device")
def test_a_guest_that_exits_and_a_warm_machine(tmp_path: Path) -> None:
    report = tmp_path / "boot.json"
    cases = ("--case", "exit", "--case", "start", "--case", "machine")
    bench("boot", "--rounds", "1", *cases, "--contender", "vmm", "--json", str(report))
    result = found(report)
    assert not result["failed"]
    assert {case["key"]: list(case["measured"]) for case in result["cases"]} == {
        "exit": ["vmm"],
        "start": ["interpreter", "site", "library", "modules", "vmm", "kvm"],
        "machine": ["vmm-warm"],
    }


@pytest.mark.usefixtures("kvm_device")
def test_growth_is_measured(tmp_path: Path) -> None:
    report, html = tmp_path / "growth.json", tmp_path / "growth.html"
    words = ["--memory", "64M,256M,1G", "--items", "1,10,100", "--contender", "vmm", "--rounds", "1"]
    bench("boot", *words, "--json", str(report), "--html", str(html))
    scales = found(report)["scales"]
    assert [scale["key"] for scale in scales] == ["items", "memory"]
    assert [x for x, _ in scales[1]["points"]["vmm"]] == [64 << 20, 256 << 20, 1 << 30]
    assert all(scale["growth"] == {} and scale["no_growth"] for scale in scales), "one round is no law"
    assert "<svg" in html.read_text(encoding="utf-8")
    images = json.loads(report.read_text(encoding="utf-8"))["origin"]["images"]
    assert [Path(image["path"]).name for image in images] == ["probe.fd", "exit.fd"]


@needs_qemu
def test_snapshots_are_taken_and_restored_beside_qemu(tmp_path: Path) -> None:
    report, html = tmp_path / "snapshot.json", tmp_path / "snapshot.html"
    words = ["--rounds", "1", "--case", "take", "--case", "test", "--json", str(report), "--html", str(html)]
    bench("snapshot", *words)
    result = found(report)
    assert result["failed"] == {}
    measured = {case["key"]: list(case["measured"]) for case in result["cases"]}
    assert measured == {"take": ["vmm", "qemu-tcg"], "test": ["vmm"]}
    assert "What snapshots cost" in html.read_text(encoding="utf-8")


@needs_qemu
def test_a_disk_is_read_beside_qemu(tmp_path: Path) -> None:
    report, html = tmp_path / "disk.json", tmp_path / "disk.html"
    bench("disk", "--rounds", "1", "--json", str(report), "--html", str(html))
    result = found(report)
    assert result["failed"] == {}
    assert [case["key"] for case in result["cases"]] == ["sequential", "random-1", "random-32"]
    rival = "qemu-kvm" if has_hardware_virtualization() else "qemu-tcg"
    for case in result["cases"]:
        assert list(case["measured"]) == ["vmm", rival]
        assert all(measured["summary"]["median"] > 0 for measured in case["measured"].values())
    assert [target["to"] for target in result["targets"]] == [rival] * 3
    assert "What reading a disk takes" in html.read_text(encoding="utf-8")


def test_without_kvm_those_take_part_that_do_without(tmp_path: Path) -> None:
    program = (
        "import sys; from vmm.kvm import system; system.Kvm.__init__.__defaults__ = ('/dev/no-kvm',); "
        "from vmm.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "bench", *words, "--rounds", "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    report = tmp_path / "report.json"
    assert run("pio", "--test", "in8-fwcfg", "--json", str(report)).returncode == 0
    result = found(report)
    assert [list(case["measured"]) for case in result["cases"]] == [["vmm-softcpu"]]
    assert result["host"]["kvm"] == "none"
    assert run("boot", "--cpus", "1,2,3").stderr.startswith("vmm: cannot open /dev/no-kvm")
    refused = run("pio", "--contender", "bare-loop")
    assert refused.returncode == 4
    assert "--contender bare-loop: cannot open /dev/no-kvm" in refused.stderr
    assert refused.stderr.endswith("; without KVM there are vmm-softcpu\n")


@pytest.mark.usefixtures("kvm_device")
def test_vmm_without_kvm_takes_part_where_it_is_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for kind, words in (("boot", ("--case", "exit")), ("pio", ("--test", "in8-fwcfg"))):
        named = ("--contender", "vmm", "--contender", "vmm-softcpu")
        bench(kind, "--rounds", "1", *words, *named, "--json", str(report))
        result = found(report)
        assert all(list(case["measured"]) == ["vmm-softcpu", "vmm"] for case in result["cases"])
        assert all((pair["of"], pair["to"]) == ("vmm-softcpu", "vmm") for c in result["cases"] for pair in c["ratios"])
        assert any(target["of"] == "vmm-softcpu" for target in result["targets"])
    bench("boot", "--rounds", "1", "--case", "exit", "--contender", "vmm", "--json", str(report))
    result = found(report)
    assert list(result["cases"][0]["measured"]) == ["vmm"]
    assert not any(target["of"] == "vmm-softcpu" for target in result["targets"])


@needs_qemu
def test_linux_is_booted_beside_qemu(tmp_path: Path) -> None:
    report = tmp_path / "boot.json"
    named = ("--contender", "vmm-softcpu", "--contender", "qemu-tcg")
    bench("boot", "--rounds", "1", "--case", "linux", *named, "--json", str(report))
    result = found(report)
    assert result["failed"] == {}
    (case,) = result["cases"]
    assert list(case["measured"]) == ["vmm-softcpu", "qemu-tcg"]
    assert [target["to"] for target in result["targets"] if target["case"] == "linux"] == ["qemu-tcg"]


@pytest.mark.usefixtures("kvm_device")
def test_a_contender_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = tmp_path / "boot.json"
    words = ["--rounds", "1", "--case", "exit", "--contender", "qemu-kvm", "--json", str(report)]
    printed = bench("boot", *words, status=4).stdout
    assert "qemu-system-x86_64 is not installed: apt-get install qemu-system-x86" in printed
    assert "qemu-system-x86_64 is not installed" in found(report)["failed"]["exit qemu-kvm"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what should be measured? known are pio, dma, exits, boot, disk"),
        (["network"], "vmm bench network: what should be measured?"),
        (["pio", "--test", "in8"], "--test in8: not known; known are "),
        (["pio", "--mode", "long32"], "--mode long32: not known; known are real16, "),
        (["pio", "--contender", "xen"], "--contender xen: not known; known are vmm, "),
        (["pio", "--cpus", "1,2,4"], "--cpus does not belong to vmm bench pio"),
        (["boot", "--test", "in8-pic"], "--test does not belong to vmm bench boot"),
        (["boot", "--cpus", "1,2"], "--cpus 1,2: a curve needs three different values"),
        (["boot", "--memory", "1M,2M,fun"], "--memory fun"),
        (["boot", "--cpus", "1,2,256"], "--cpus 256: from 1 to 255"),
        (["dma", "--seconds", "-1"], "--seconds -1: a number above 0"),
        (["dma", "--rounds", "many"], "--rounds many: a number above 0"),
        (["dma", "--seed", "x"], "--seed x: a whole number"),
    ],
)
def test_bad_usage_is_one_line(words: list[str], message: str) -> None:
    ended = bench(*words, status=2)
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured() -> None:
    run = bench("dma", "--json", "/nonexistent/x", status=2)
    assert run.stderr == "vmm: --json /nonexistent/x: cannot write: no such file or directory\n"


@needs_qemu
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_by_a_signal_leaves_no_rival_behind(number: signal.Signals) -> None:
    # The tests may have been started with SIGHUP ignored, by nohup.
    command = ["env", f"--default-signal={number.name.removeprefix('SIG')}", sys.executable, "-m", "vmm"]
    command += ["bench", "boot", "--case", "ovmf", "--contender", "qemu-tcg"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until = time.monotonic() + 120
        # Not the QEMU that is asked for its version, which ends by itself.
        while "-nodefaults" not in _command_lines(children) and time.monotonic() < until:
            time.sleep(0.001)
        rivals = [int(child) for child in children.read_text().split()]
        assert "-nodefaults" in _command_lines(children)
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{rival}").exists() for rival in rivals)


def _command_lines(children: Path) -> str:
    with suppress(OSError):  # one has ended meanwhile
        return " ".join(Path(f"/proc/{child}/cmdline").read_text() for child in children.read_text().split())
    return ""
