"""OVMF's DEBUG builds, which scripts/build-edk2 makes: no assertion in their log, symbols and source for debuggers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from debug_rig import Debugged

from vmm import Reason, directories
from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = pytest.mark.needs_kvm

DEADLINE = 300.0


def built(variant: str) -> str:
    """Return the path of a variant's CODE image, or skip the test: building takes several minutes for each."""
    image = directories.cache() / "edk2" / f"{variant}-debug" / "OVMF_CODE.fd"
    if not image.is_file():
        pytest.skip(f"no such build here; scripts/build-edk2 {variant} makes it")
    return str(image)


MACHINES = [(variant, memory) for variant in ("x64", "ia32", "ia32x64") for memory in ("256M", "2560M", "6G")]
MACHINES.remove(("x64", "2560M"))  # its PEI faults where its stack is above 2 GiB, in QEMU too: docs/firmware.md


@pytest.mark.parametrize(("variant", "memory"), MACHINES)
def test_no_assertion_up_to_the_shell(vmm_machine: MachineFactory, variant: str, memory: str) -> None:
    machine = vmm_machine(built(variant), memory=memory, cpus=2)
    machine.expect("any other key to continue", deadline=DEADLINE)
    log = machine.debugcon.text()
    assert log.startswith("SecCoreStartupWithStack(")
    assert "ASSERT" not in log


def test_a_debugger_finds_functions_and_source(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(built("ia32x64"))
    machine.expect("any other key to continue", deadline=DEADLINE)
    (core,) = (image for image in machine.images() if image.name == "DxeCore")
    words = ["gdb", "-q", "-batch", "-ex", "info line CoreDispatcher", "-ex", "list CoreDispatcher", core.path]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "MdeModulePkg/Core/Dxe/Dispatcher/Dispatcher.c" in said
    assert "if (gDispatcherRunning) {" in said


def symbols_of(variant: str) -> Path:
    """Return the folder of a variant's files with symbols, or skip the test."""
    output = {"ia32x64": "Ovmf3264", "x64": "OvmfX64"}[variant]
    folder = directories.cache() / "edk2" / "work" / "edk2" / "Build" / output / "DEBUG_GCC5"
    if not folder.is_dir():
        pytest.skip(f"built without symbols; scripts/build-edk2 {variant} --symbols yes keeps them")
    return folder


def test_gdb_debugs_at_source_level_from_the_first_instruction_on(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    image, commands = built("ia32x64"), tmp_path / "edk2.gdb"
    words = [sys.executable, "-m", "vmm", "images", image, "--until", "any other key", "--symbols"]
    words += [str(symbols_of("ia32x64")), "--gdb-commands", str(commands), "--json", str(tmp_path / "images.json")]
    subprocess.run(words, check=True, capture_output=True)
    images = json.loads((tmp_path / "images.json").read_text())["images"]
    assert len([image for image in images if image["symbols"]]) > 100
    assert "#" not in commands.read_text()
    machine = vmm_machine(image, gdb="tcp::0", hold=True)
    with Debugged(machine, until="any other key") as debugged:
        printed = debugged.gdb(
            *(f"source {commands}", "break DxeMain", "continue", "bt", "list"),
            *("tbreak CoreStartImage", "continue", "bt", "finish"),
        )
        assert debugged.join().reason is Reason.UNTIL
    assert re.search(r"Breakpoint 1, .* in DxeMain \(HobStart=.*DxeMain\.c:\d+", printed)
    assert "GetNextGuidHob (&gEfiVectorHandoffInfoPpiGuid, HobStart);" in printed
    assert re.search(r"#0 +CoreStartImage \(ImageHandle=0x", printed)
    assert re.search(r"#\d +0x[0-9a-f]+ in DxeMain ", printed)
    assert re.search(r"Value returned is \$1 = 0", printed)


def test_edk2s_own_script_for_gdb(vmm_machine: MachineFactory) -> None:
    symbols = symbols_of("ia32x64")
    script = symbols.parents[2] / "BaseTools" / "Scripts" / "efi_gdb.py"
    machine = vmm_machine(built("ia32x64"), gdb="tcp::0", symbols=symbols)
    machine.expect("any other key to continue", deadline=DEADLINE)
    with Debugged(machine) as debugged:
        printed = debugged.gdb(
            *("python import sys; sys.dont_write_bytecode = True", f"source {script}"),
            *("efi symbols --extended", "efi table", "efi hob", "bt"),
            'python gdb.execute(gdb.execute("monitor images gdb", to_string=True))',
            *("info symbol ProcessDispatchNotifyList", 'eval "monitor images %#lx", $pc'),
        )
    assert re.search(r"X64`.*/DxeCore\.dll load = 0x[0-9a-f]+", printed)
    assert re.search(r"gEfiAcpi20TableGuid: VendorTable = 0x[0-9a-f]+", printed)
    assert "Type: EFI_HOB_HANDOFF_INFO_TABLE (0x1)" in printed
    assert re.search(r"^#0 +(0x[0-9a-f]+ in )?\w+ \(", printed, re.MULTILINE), printed
    assert "ProcessDispatchNotifyList in section .text" in printed
    assert re.search(r"^\w+\+0x[0-9a-f]+, \w+\+0x[0-9a-f]+$", printed, re.MULTILINE)


def test_functions_of_modules_are_named_in_reports_and_profiles(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [sys.executable, "-m", "vmm", "boot", built("ia32x64"), "-q", "-serial", "none", "-debugcon", "none"]
    words += ["--symbols", str(symbols_of("ia32x64")), "--timeout", "8", "--json", str(report)]
    done = subprocess.run([*words, "--profile", str(tmp_path / "profile.json")], capture_output=True, check=False)
    assert done.returncode == 3, done.stderr
    told = json.loads(report.read_text())
    (vcpu,) = told["why"]["vcpus"]
    assert vcpu["place"]["function"]
    assert all(place["function"] for place in vcpu["stack"])
    functions = {(stack["module"], stack["function"]) for stack in told["profile"]["stacks"]}
    assert any(module == "DxeCore" and function for module, function in functions)
    assert any(module == "PeiCore" and function for module, function in functions)
