"""KVM itself, and the two machines that our guests run on: ours, and Debian's QEMU."""

import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN, device_lacks

from vmm.errors import HostError
from vmm.firmware import guests
from vmm.kvm import Kvm, Vm
from vmm.run.outcome import Reason

QemuRun = Callable[..., str]
OurRun = Callable[..., str]


def _skip_if_kvm_was_asked_for(outcome: Any) -> None:
    if outcome.excinfo is not None and isinstance(outcome.excinfo[1], HostError):
        asked = str(outcome.excinfo[1]).startswith("-accel kvm")
        if asked and (lacks := device_lacks()) is not None:
            outcome.force_exception(pytest.skip.Exception(lacks))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, None]:
    """Skip what is about KVM itself where there is none; machines run there all the same."""
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    of_kvm = (
        str(parameters.get("accel", "")).startswith("kvm")
        or parameters.get("both_kinds_of_chips") is False
        or parameters.get("all_kinds_of_turns") == "beside-kvm"
    )
    if of_kvm and (lacks := device_lacks()) is not None:
        pytest.skip(lacks)
    _skip_if_kvm_was_asked_for((yield))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Generator[None, Any, None]:
    """A test that asks for -accel kvm by itself, likewise."""
    _skip_if_kvm_was_asked_for((yield))


@pytest.fixture
def ours(vmm_machine: Callable[..., Any]) -> OurRun:
    """Run one of our guests on our machine until it ends it; return what it printed on the debug port.

    Plain KVM, if it is there, unless the caller says otherwise: the guests are made for any. One that fails resets the
    machine.
    """

    def run(name: str, /, *, reason: Reason = Reason.POWER_OFF, **options: Any) -> str:
        machine = vmm_machine(str(guests.path(name)), **({"accel": PLAIN} | options))
        outcome = machine.run(deadline=120)
        printed: str = machine.debugcon.text()
        assert outcome.reason is reason, f"{outcome.message}\n{printed}"
        return printed

    return run


@pytest.fixture
def qemu(tmp_path: Path) -> QemuRun:
    """Run a ROM image on QEMU until it ends the machine; return what it printed on the debug port.

    The machine has nothing that the command line does not name. A guest that fails writes its status to
    isa-debug-exit and so gives QEMU an exit status other than zero.
    """
    program = shutil.which("qemu-system-x86_64")
    assert program, "these tests need Debian's package qemu-system-x86 (scripts/setup test installs it)"

    def run(image: Path, *options: str, machine: str = "q35", accelerator: str = "tcg", status: int = 0) -> str:
        if accelerator == "kvm" and (lacks := device_lacks()) is not None:
            pytest.skip(lacks)
        output = tmp_path / "debugcon"
        command = [program, "-nodefaults", "-display", "none", "-no-reboot", "-bios", str(image)]
        command += ["-machine", machine, "-accel", accelerator, "-cpu", "qemu64"]
        command += [
            "-chardev",
            f"file,id=debugcon,path={output}",
            "-device",
            "isa-debugcon,iobase=0x402,chardev=debugcon",
        ]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        # isa-debug-exit: status << 1 | 1.
        assert ended.returncode == (status << 1 | 1 if status else 0), ended.stderr
        return output.read_text(encoding="ascii")

    return run


@pytest.fixture(scope="session")
def kvm_device() -> None:
    """For what is about KVM itself: skip it where there is none."""
    if (lacks := device_lacks()) is not None:
        pytest.skip(lacks)


@pytest.fixture
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """KVM of this host."""
    request.getfixturevalue("kvm_device")
    with Kvm() as opened:
        yield opened


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    """A virtual machine with nothing in it."""
    with kvm.create_vm() as created:
        yield created
