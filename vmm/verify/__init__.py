"""``vmm verify``: whether what was offered in fw_cfg is what the guest found."""

from typing import TYPE_CHECKING

from vmm import lazy_names

if TYPE_CHECKING:
    from vmm.verify.guest_report import GuestReport
    from vmm.verify.result import Verification
    from vmm.verify.run import verify
    from vmm.verify.values import Compared, Cpus, Side, Structure, Table, Verdict

__all__ = ["Compared", "Cpus", "GuestReport", "Side", "Structure", "Table", "Verdict", "Verification", "verify"]

_HOMES = {
    "Compared": "vmm.verify.values",
    "Cpus": "vmm.verify.values",
    "GuestReport": "vmm.verify.guest_report",
    "Side": "vmm.verify.values",
    "Structure": "vmm.verify.values",
    "Table": "vmm.verify.values",
    "Verdict": "vmm.verify.values",
    "Verification": "vmm.verify.result",
    "verify": "vmm.verify.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
