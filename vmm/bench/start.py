"""What a process of vmm is made of: stages, each a process that does a little more than the one before.

A profiler slows modules down by different factors; stages in turns, like all contenders, do not. A guest that ends
sooner than KVM takes to make and destroy a VM waits for that: `KVM_ALONE` has it by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vmm.bench.contenders import VMM_C, Contender, InThisProcess, environment

if TYPE_CHECKING:
    from pathlib import Path

_OWN = ("vmm.cli.boot", "vmm.cli.interrupts", "vmm.machine", "vmm.platform.q35")
"""What the boot that is measured loads, with all that these load."""

_END = "import os; os._exit(0)"
"""As vmm ends: the interpreter is not taken apart."""


@dataclass(frozen=True)
class Stage(Contender):
    """Python as far as ``load`` says.

    Attributes:
        load: ``interpreter``; ``site``: with what the environment adds to it; ``library``: with the modules of others
            that vmm loads; ``modules``: with its own.
    """

    load: str

    def guest_command(self, guest: Path) -> list[str]:
        """Return the command; ``guest`` is not run."""
        if self.load == "interpreter":
            return [sys.executable, "-S", "-c", _END]
        modules = {"site": (), "library": _modules_of_others(), "modules": _OWN}[self.load]
        return [sys.executable, "-c", "".join(f"import {name}; " for name in modules) + _END]


@cache
def _modules_of_others() -> tuple[str, ...]:
    loaded = f"import sys; import {', '.join(_OWN)}; print(*sys.modules)"
    known = subprocess.run(
        [sys.executable, "-c", loaded], stdout=subprocess.PIPE, env=environment(), check=True, text=True
    ).stdout.split()
    # os.path and the like are not imported by that name; __main__ is the command itself.
    return tuple(name for name in known if name.partition(".")[0] not in {"vmm", "__main__", "os"})


def _kvm_alone(_limit_s: float) -> float:
    from vmm.kvm import Kvm, pc_routes  # loads the native module

    began = time.monotonic()
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_pit2()
        vm.set_gsi_routing(pc_routes())
    return time.monotonic() - began


KVM_ALONE = InThisProcess("kvm", "KVM alone: a VM made and closed", _kvm_alone)

STAGES = (
    Stage("interpreter", "Python", "interpreter"),
    Stage("site", "... with its environment", "site"),
    Stage("library", "... and the modules of others", "library"),
    Stage("modules", "... and vmm's modules", "modules"),
    VMM_C,
    KVM_ALONE,
)
