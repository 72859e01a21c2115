"""``vmm verify``: whether what was offered in fw_cfg is what the guest found."""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    # As in vmm itself: `vmm verify --help` must not load the whole machine.
    if name not in _HOMES:
        raise AttributeError(f"module 'vmm.verify' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
