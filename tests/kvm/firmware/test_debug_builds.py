"""OVMF's DEBUG builds, which scripts/build-edk2 makes: no assertion in their log, symbols and source for debuggers."""

import subprocess

import pytest

from vmm import directories
from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = pytest.mark.needs_kvm

DEADLINE = 300.0


def built(variant: str) -> str:
    """Return the path of a variant's CODE image, or skip the test: building takes several minutes for each."""
    image = directories.cache() / "edk2" / f"{variant}-debug" / "OVMF_CODE.fd"
    if not image.is_file():
        pytest.skip(f"no such build here; scripts/build-edk2 {variant} makes it")
    return str(image)


@pytest.mark.parametrize("memory", ["256M", "2560M", "6G"])
@pytest.mark.parametrize("variant", ["x64", "ia32", "ia32x64"])
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
