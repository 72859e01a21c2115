"""What a number was measured on, and whether the machine was quiet enough for it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.errors import HostError
from vmm.info import cpu_facts
from vmm.installation import version
from vmm.kvm import Kvm

QUIET_LOAD = 0.5
"""Processes of others that wanted to run before the run, per processor: more is a warning."""

QUIET_STEAL = 0.02
"""Part of the time that the hypervisor below gave to others: more is a warning."""

QUIET_SPREAD = 0.05
"""How far the reference contender's rounds may lie apart (quartiles, as a part of the median): more is a warning."""


def facts() -> dict[str, Any]:
    """Describe this host; what can't be found out is None."""
    cpu = cpu_facts()
    return {
        "cpu": cpu["name"],
        "cpus": cpu["online"],
        "virtualization": cpu["virtualization"],
        "kvm": _kvm(hardware=bool(cpu["virtualization"])),
        "kvm_module": kvm_module(),
        "kernel": os.uname().release,
        "hypervisor_below": "hypervisor" in _cpu_flags(),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "clocksource": _text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "vmm": version(),
        "qemu": qemu_version(),
    }


def kvm_lacks() -> str | None:
    """Say why KVM can't be used here; None if it can."""
    try:
        with Kvm() as kvm:
            kvm.require()
    except HostError as error:
        return str(error)
    return None


def _kvm(*, hardware: bool) -> str:
    if kvm_lacks() is not None:
        return "none"
    return "hardware" if hardware else "interpreted: no VMX or SVM"


def kvm_module() -> str | None:
    """Return the kernel's vendor module of KVM, if modules are listed."""
    names = {path.name for path in Path("/sys/module").glob("kvm_*")}
    return next(iter(sorted(names)), None)


def qemu_version() -> str | None:
    """Return the first line of QEMU's --version."""
    try:
        said = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.splitlines()[0] if said else None


@dataclass(frozen=True)
class Clock:
    """Processor time of the whole host so far, in ticks of USER_HZ."""

    total: int
    steal: int

    @classmethod
    def read(cls) -> Clock:
        """Read /proc/stat (proc(5): user nice system idle iowait irq softirq steal …)."""
        fields = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return cls(sum(fields), fields[7])

    def steal_since(self, earlier: Clock) -> float:
        """Return the part of the time since then that the hypervisor below did not give us."""
        return (self.steal - earlier.steal) / max(1, self.total - earlier.total)


@dataclass(frozen=True)
class Noise:
    """How quiet the machine was.

    Attributes:
        load: others that wanted a processor just before the run, from the load average, a processor.
        steal: part of the time that the hypervisor below gave to others.
        spread: of the reference contender's rounds: quartiles' distance, as a part of the median.
    """

    load: float
    steal: float
    spread: float

    def warnings(self) -> list[str]:
        """Say why the numbers should not be trusted; empty if nothing speaks against them."""
        found = []
        if self.load > QUIET_LOAD:
            found.append(f"others wanted {self.load:.1f} of each processor before the run (limit {QUIET_LOAD})")
        if self.steal > QUIET_STEAL:
            found.append(f"the hypervisor below took {self.steal:.1%} of the time (limit {QUIET_STEAL:.0%})")
        if self.spread > QUIET_SPREAD:
            found.append(
                f"the reference itself varied by {self.spread:.1%} from round to round (limit {QUIET_SPREAD:.0%})"
            )
        return found


def load_per_cpu() -> float:
    """Return the load average of the last minute, per processor."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()
