"""Who collects Python's garbage while a machine runs."""

import gc
import threading
from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import image

from vmm import Reason
from vmm.bus import Device
from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = pytest.mark.needs_kvm

READ_FOR_EVER = "e4 80 eb fc"  # in al, 80; jmp


class Cycle:
    """Only the collector ends it."""

    def __init__(self, ended: list[threading.Thread]) -> None:
        self.itself = self
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(threading.current_thread())


def test_finalizers_never_run_on_the_threads_that_serve_the_guest(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    ended: list[threading.Thread] = []

    class Littering(Device):
        def read(self, offset: int, size: int) -> int:
            Cycle(ended)
            return 0

    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(READ_FOR_EVER))
    machine = vmm_machine(str(rom), machine="pc", accel=PLAIN)
    machine.ports.add(0x80, 0x80, Littering(), "littering")
    outcome = machine.run(deadline=60, on_poll=lambda machine: machine.stop() if ended else None)
    assert outcome.reason is Reason.STOPPED, "nothing was collected while the machine ran"
    assert set(ended) == {threading.current_thread()}
    assert gc.isenabled()


def test_who_has_switched_the_collector_off_keeps_it_off(vmm_machine: MachineFactory) -> None:
    gc.disable()
    try:
        assert vmm_machine("probe").run(deadline=60).reached
        assert not gc.isenabled()
    finally:
        gc.enable()
