"""When the software CPU is used, that its module is loaded only then, and what else in the process notices of it."""

import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import unicorn
from softcpu_rig import NOT_HERE, SoftcpuRig
from unicorn import x86_const
from vmm._native import ffi, lib

from vmm import Machine, info
from vmm.config.parts import Accelerator
from vmm.errors import HostError
from vmm.firmware import guests
from vmm.kvm import Kvm
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.report import text
from vmm.report.collect import collect
from vmm.softcpu import decision, engine

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(decision.has_hardware_virtualization(), reason=NOT_HERE),
]


def cpuinfo(path: Path, flags: str) -> Path:
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse2\n", encoding="ascii")
    return path


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_auto_is_kvm_where_the_cpu_has_virtualization(
    kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(decision, "CPUINFO", cpuinfo(tmp_path / "cpuinfo", flag))
    decided = decision.decide(Accelerator.AUTO, kvm)
    assert decided.name is Accelerator.KVM
    assert "hardware virtualization" in decided.why


def test_the_software_cpu_is_refused_where_the_cpu_has_virtualization(
    kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "CPUINFO", cpuinfo(tmp_path / "cpuinfo", "svm"))
    with pytest.raises(HostError, match=r"-accel kvm\+softcpu.*use auto"):
        decision.decide(Accelerator.KVM_SOFTCPU, kvm)


def test_auto_measures_where_the_flags_are_silent(kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "CPUINFO", cpuinfo(tmp_path / "cpuinfo", "vmxnet"))
    assert not decision.has_hardware_virtualization()
    measured = decision.ring0_speed(kvm)
    assert measured > 1000
    monkeypatch.setattr(decision, "INTERPRETED_BELOW", 2 * 10**12)
    decided = decision.decide(Accelerator.AUTO, kvm)
    assert decided.name is Accelerator.KVM_SOFTCPU
    assert "million instructions/s" in decided.why
    monkeypatch.setattr(decision, "INTERPRETED_BELOW", 0)
    assert decision.decide(Accelerator.AUTO, kvm).name is Accelerator.KVM


@pytest.mark.usefixtures("kvm_device")
@pytest.mark.parametrize(("cpus", "beside_kvm"), [(decision.MOST_BESIDE_KVM, True), (256, False)])
def test_auto_does_without_kvm_where_a_machine_has_many_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, beside_kvm: bool
) -> None:
    monkeypatch.setattr(decision, "CPUINFO", cpuinfo(tmp_path / "cpuinfo", "vmxnet"))
    monkeypatch.setattr(decision, "INTERPRETED_BELOW", 2 * 10**12)
    with decision.open_host(Accelerator.AUTO, cpus=cpus) as host:
        decided = decision.decide(Accelerator.AUTO, host)
    assert decided.name is (Accelerator.KVM_SOFTCPU if beside_kvm else Accelerator.SOFTCPU)
    assert ("256 CPUs" in decided.why) is not beside_kvm
    with decision.open_host(Accelerator.KVM_SOFTCPU, cpus=cpus) as host:
        assert decision.decide(Accelerator.KVM_SOFTCPU, host).name is Accelerator.KVM_SOFTCPU
    monkeypatch.setattr(decision, "INTERPRETED_BELOW", 0)
    with decision.open_host(Accelerator.AUTO, cpus=cpus) as host:
        assert decision.decide(Accelerator.AUTO, host).name is Accelerator.KVM


@pytest.mark.parametrize("wanted", [Accelerator.KVM, Accelerator.KVM_SOFTCPU])
def test_what_is_asked_for_is_decided(kvm: Kvm, wanted: Accelerator) -> None:
    assert decision.decide(wanted, kvm).name is wanted


@pytest.mark.usefixtures("kvm_device")
def test_the_module_is_loaded_only_by_machines_that_use_it() -> None:
    script = f"""
import sys
from vmm import Machine
for mode, loaded in (("kvm", False), ("kvm+softcpu", True)):
    with Machine({str(guests.path("exit"))!r}, accel=mode) as machine:
        assert machine.run(deadline=60).reached
    assert ("vmm._softcpu" in sys.modules) is loaded, mode
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch, kvm_device: None) -> None:  # noqa: ARG001
    """Nor is it missed where there is KVM."""
    monkeypatch.setitem(sys.modules, "vmm._softcpu", None)
    monkeypatch.delattr("vmm._softcpu", raising=False)


@pytest.mark.usefixtures("not_built")
@pytest.mark.parametrize(("firmware", "until"), [("probe", None), ("seabios", "No bootable device")])
def test_auto_does_without_where_the_firmware_can(
    vmm_machine: MachineFactory, firmware: str, until: str | None
) -> None:
    machine = vmm_machine(firmware, memory="128M")
    outcome = machine.run(until=until, deadline=120)
    assert outcome.reached, outcome.message
    assert "plain KVM" in text.text(collect(machine, outcome))
    assert "the software CPU is not built (vmm info" in machine.accelerator.why


@pytest.mark.usefixtures("not_built")
def test_info_says_how_to_get_it() -> None:
    row = next(line for line in info.text(info.collect()).splitlines() if line.startswith("software CPU"))
    assert "not built: run scripts/setup" in row
    assert "-accel auto: kvm (" in row


@pytest.mark.usefixtures("not_built")
def test_auto_says_what_to_do_where_the_firmware_cannot() -> None:
    with pytest.raises(HostError, match=r"this firmware uses; the software CPU is not built: run scripts/setup"):
        Machine("ovmf")


@pytest.mark.usefixtures("not_built")
def test_a_missing_module_is_named_with_the_remedy() -> None:
    with pytest.raises(HostError, match=r"vmm\._softcpu.*scripts/setup.*-accel kvm"):
        Machine(str(guests.path("exit")), accel="kvm+softcpu")


def test_another_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = engine.load()

    class Lib:
        def __getattr__(self, name: str) -> object:
            return getattr(module.lib, name)

        def softcpu_self_test(self) -> object:
            return text

    text = module.ffi.new("char[]", b"the software CPU needs Unicorn 2.1.4, another version is linked in")
    fake = ModuleType("vmm._softcpu")
    fake.lib, fake.ffi = Lib(), module.ffi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vmm._softcpu", fake)
    monkeypatch.setattr("vmm._softcpu", fake, raising=False)
    with pytest.raises(HostError, match=r"Unicorn 2\.1\.4"):
        engine.load()


@pytest.mark.parametrize("field", ["version", "core_size", "vm_size", "vcpu_size"])
def test_modules_of_different_builds_are_refused(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    core = ffi.new("struct vmm_core *", lib.vmm_core)
    setattr(core, field, getattr(core, field) + 8)
    monkeypatch.setattr(engine, "lib", SimpleNamespace(vmm_core=core[0]))
    with pytest.raises(HostError, match=r"vmm\._softcpu and vmm\._native are of different builds.*scripts/setup"):
        engine.load()


def test_the_engine_is_the_pinned_one() -> None:
    assert engine.load().lib.softcpu_engine_version() >> 8 == 0x020104


def test_the_module_shows_nothing_but_pythons_entry() -> None:
    path = engine.load().__file__
    assert path is not None
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    assert [line.split()[2] for line in symbols.splitlines()] == ["PyInit__softcpu"]


def count_with_unicorn() -> int:
    """100,000 instructions in the unicorn package's own engine: 50,000 rounds of inc; loop."""
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0x1000, 0x1000)
    engine.mem_write(0x1000, bytes.fromhex("48ffc3 e2fb"))  # 1: inc rbx; loop 1b
    engine.reg_write(x86_const.UC_X86_REG_RCX, 50_000)
    engine.emu_start(0x1000, 0x1005)
    return int(engine.reg_read(x86_const.UC_X86_REG_RBX))


def test_the_unicorn_package_and_the_software_cpu_do_not_meet() -> None:
    assert count_with_unicorn() == 50_000
    with SoftcpuRig("main:\n1: inc %rbx\ncmpl $0, 0x9000\nje 1b\nreport $77\ndone") as rig:
        runner = threading.Thread(target=rig.run)
        runner.start()
        for _ in range(20):
            assert count_with_unicorn() == 50_000
        rig.memory.write(0x9000, b"\1")
        runner.join(60)
        assert rig.values == [77]
    assert count_with_unicorn() == 50_000


def test_two_machines_run_side_by_side() -> None:
    source = "main:\nmov $3000000, %ecx\n1: lock incl 0x9000\nloop 1b\nreport 0x9000\ndone"
    with SoftcpuRig(source) as one, SoftcpuRig(source) as other:
        threads = [threading.Thread(target=rig.run) for rig in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert one.values == other.values == [3_000_000]


@pytest.mark.parametrize("cpus", [1, 4])
def test_our_probe_finds_the_same_machine(vmm_machine: MachineFactory, cpus: int) -> None:
    printed = []
    for mode in ("kvm", "kvm+softcpu"):
        machine = vmm_machine("probe", cpus=cpus, accel=mode)
        assert machine.run(deadline=120).reached
        printed.append(machine.debugcon.text())
    assert printed[0] == printed[1]
    assert f"cpus started: {cpus}\n" in printed[1]


def test_the_report_says_who_ran_the_guest(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("exit"), accel="kvm+softcpu")
    assert machine.run(deadline=60).reached
    report = machine.accelerator_report()
    assert (report["name"], report["why"]) == ("kvm+softcpu", "asked for")
    assert report["instructions"] > 0


def test_seabios_boots(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("seabios", accel="kvm+softcpu", memory="128M")
    assert machine.run(until="No bootable device", deadline=120).reached


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_ovmf_reaches_its_shell(vmm_machine: MachineFactory, cpus: int) -> None:
    machine = vmm_machine("ovmf", accel="kvm+softcpu", cpus=cpus, memory="256M")
    outcome = machine.run(until="Shell>", deadline=240, send=[("any other key to continue", "x")])
    assert outcome.reached, outcome.message
    assert all(seconds is not None for seconds in machine.started_s())
