"""When a firmware's phases had begun, by what the report of a run has anyway: what it read first, and what it printed.

A phase may have begun somewhat before its first sign. What gives no sign, as the phases of a firmware that nobody here
knows, is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.report.schema import EventReport, Report


class Phase(NamedTuple):
    """A part of a boot; ``sign`` says what shows that it had begun by ``t_s``."""

    name: str
    t_s: float
    sign: str
    instructions: int | None = None
    """How many the guest had executed by then, where they are counted."""


_SIGNS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "ovmf": {
        "SEC": (("vcpu-started", r"vCPU 0 "),),
        # PlatformPei, SmbiosPlatformDxe and AcpiPlatformDxe, the last of which waits for BDS to enumerate PCI.
        "PEI": (("fw-cfg-item", r"fw_cfg item signature "),),
        "DXE": (("fw-cfg-item", r"fw_cfg item etc/smbios/"),),
        "BDS": (("fw-cfg-item", r"fw_cfg item (etc/table-loader|boot_menu) "), ("console-line", r"BdsDxe: ")),
        "shell": (("console-line", r"UEFI Interactive Shell"),),
        "OS": (("console-line", r"(\[ *0\.\d+\] )?Linux version |EFI stub: "),),
    },
    "seabios": {
        "POST": (("vcpu-started", r"vCPU 0 "),),
        "boot": (("console-line", r"enter handle_19|Booting from "),),
    },
}
"""By firmware and phase: kinds of events, and what they say; in the order in which phases follow each other."""


def phases(report: Report) -> list[Phase]:
    """Return the phases that a run reached, in order."""
    found: list[Phase] = []
    for name, signs in _SIGNS.get(report["firmware"]["kind"], {}).items():
        event = next((event for event in report["timeline"] if _shows(event, signs)), None)
        if event is not None:
            found.append(Phase(name, event["t_s"], event["event"], event.get("instructions")))
    return sorted(found, key=lambda phase: phase.t_s)


def _shows(event: EventReport, signs: tuple[tuple[str, str], ...]) -> bool:
    return any(event["kind"] == kind and re.match(pattern, event["event"]) for kind, pattern in signs)
