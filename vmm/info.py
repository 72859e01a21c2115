"""What this host offers a machine: KVM and its capabilities, the processor, the software CPU, firmware."""

from __future__ import annotations

import os
import platform
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError, HostError, KvmError, VmmError
from vmm.firmware import load, search
from vmm.installation import version

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = "vmm-info/1"
"""Names what ``vmm info --json`` prints; changes when a key goes or means something else."""

_DEADLINE_S = 20.0
"""What the guest that ends at once takes a thousandth of."""

Info = dict[str, Any]
"""The object that ``vmm info --json`` prints."""


def collect() -> Info:
    """Ask the host; what is missing is described, not raised."""
    return {
        "schema": SCHEMA,
        "vmm": version(),
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "cpu": cpu_facts(),
        "kvm": kvm_facts(),
        "accelerator": accelerator_facts(),
        "machine": machine_facts(),
        "sandbox": sandbox_facts(),
        "firmware": dict(firmware_facts()),
    }


def cpu_facts() -> Info:
    """Return the processor's name, how many there are, and its virtualization extension: "vmx", "svm" or None."""
    name, flags = "unknown", set[str]()
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
            break
    extension = next((flag for flag in ("vmx", "svm") if flag in flags), None)
    return {"name": name, "online": os.cpu_count(), "virtualization": extension}


def kvm_facts() -> Info:
    """Return what ``/dev/kvm`` says of itself, or under "error" why it can't be asked."""
    from vmm.kvm import Kvm  # loads the native module, which the rest does without
    from vmm.kvm.system import MACHINE

    try:
        with Kvm() as kvm:
            capabilities = {item.name: item.value for item in kvm.capabilities()}
            return {
                "device": "/dev/kvm",
                "api_version": kvm.api_version(),
                "recommended_vcpus": kvm.recommended_vcpus,
                "max_vcpus": kvm.max_vcpus,
                "max_memory_slots": kvm.max_memory_slots,
                "missing": [name for name in MACHINE if not capabilities.get(name)],
                "capabilities": capabilities,
                "cpuid": [
                    {
                        field: value if isinstance(value, bool) else f"{value:#010x}"
                        for field, value in entry._asdict().items()
                    }
                    for entry in kvm.supported_cpuid()
                ],
            }
    except (HostError, KvmError) as error:
        return {"device": "/dev/kvm", "error": str(error)}


def accelerator_facts() -> Info:
    """Return whether the software CPU was built, and what ``-accel auto`` decides here and why."""
    from vmm.config.parts import Accelerator
    from vmm.softcpu import decision, engine

    built = engine.is_built()
    facts = {"built": built} if built else {"built": built, "remedy": engine.build_remedy()}
    try:
        with decision.open_host(Accelerator.AUTO) as host:
            decided = decision.decide(Accelerator.AUTO, host)
    except (HostError, KvmError) as error:
        return facts | {"auto": None, "why": str(error)}
    return facts | {"auto": str(decided.name), "why": decided.why}


def machine_facts() -> Info:
    """Return whether a machine runs here, found out with one that ends at once; if it does not, under "error" why."""
    from vmm.firmware import guests
    from vmm.machine import Machine  # as above

    try:
        with Machine(str(guests.path("exit"))) as machine:
            outcome = machine.run(deadline=_DEADLINE_S).raise_interrupt()
    except VmmError as error:
        return {"runs": False, "error": str(error)}
    except OSError as error:
        return {"runs": False, "error": (error.strerror or str(error)).lower()}
    return {"runs": True} if outcome.reached else {"runs": False, "error": outcome.message}


def sandbox_facts() -> Info:
    """Return what this kernel offers to restrict a machine: filters of system calls, and the version of Landlock."""
    from vmm.sandbox import landlock_version, offers_seccomp  # as above

    return {"seccomp": offers_seccomp(), "landlock": landlock_version()}


def firmware_facts() -> Iterator[tuple[str, Info]]:
    """Yield for each name that stands for firmware what it is here."""
    for name in load.NAMES:
        try:
            located = search.locate(name)
        except ConfigError as error:
            yield name, {"path": None, "error": str(error)}
        else:
            yield name, {"path": str(located.code), "variables": located.variables and str(located.variables)}


def text(info: Info, width: int | None = None) -> str:
    """Return the information for a person, a line each; longer ones are wrapped where there is a width."""
    rows = [("vmm", f"{info['vmm']}, Python {info['python']}"), ("kernel", info["kernel"])]
    cpu = info["cpu"]
    extension = cpu["virtualization"].upper() if cpu["virtualization"] else "no VMX or SVM"
    rows.append(("processor", f"{cpu['online']} x {cpu['name']}, {extension}"))
    rows += _kvm_rows(info["kvm"])
    accelerator = info["accelerator"]
    built = "built" if accelerator["built"] else f"not built: {accelerator['remedy']}"
    said = info["kvm"].get("error")  # once will do
    why = "" if said and said in accelerator["why"] else f" ({accelerator['why']})"
    rows.append(("software CPU", f"{built}; -accel auto: {accelerator['auto'] or 'unknown'}{why}"))
    machine = info["machine"]
    error = machine.get("error", "")
    failed = "does not run" if said and said in error else f"does not run: {error}"
    rows.append(("machine", "runs" if machine["runs"] else failed))
    sandbox = info["sandbox"]
    landlock = f"Landlock {sandbox['landlock']}" if sandbox["landlock"] else "no Landlock, so that files stay readable"
    seccomp = "seccomp" if sandbox["seccomp"] else "no seccomp, so that machines run without"
    rows.append(("sandbox", f"{seccomp}; {landlock}"))
    for name, found in info["firmware"].items():
        if found["path"] is None:
            rows.append((name, found["error"]))
        else:
            rows.append((name, found["path"] + (f" + {found['variables']}" if found["variables"] else "")))
    lines = [f"{label:<13} {value}" for label, value in rows]
    if width is not None:
        fill = partial(textwrap.fill, width=width, subsequent_indent=" " * 14, break_long_words=False)
        lines = [fill(line, break_on_hyphens=False) for line in lines]
    return "\n".join(lines)


def _kvm_rows(kvm: Info) -> Iterator[tuple[str, str]]:
    if "error" in kvm:
        yield "KVM", kvm["error"]
        return
    vcpus = f"up to {kvm['max_vcpus']} vCPUs ({kvm['recommended_vcpus']} recommended)"
    yield "KVM", f"{kvm['device']}, API {kvm['api_version']}, {vcpus}, {kvm['max_memory_slots']} memory slots"
    present = sum(1 for value in kvm["capabilities"].values() if value)
    lacks = f"lacks {', '.join(kvm['missing'])}" if kvm["missing"] else "all that vmm needs are there"
    yield "capabilities", f"{present} of {len(kvm['capabilities'])} known ones; {lacks}"
