"""Whose interrupt controllers the software CPU has in a test."""

import pytest
from softcpu_rig import SoftcpuRig


@pytest.fixture(params=[False, True], ids=["beside-kvm", "alone"])
def both_kinds_of_chips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test beside KVM, and without it."""
    monkeypatch.setattr(SoftcpuRig, "alone", request.param)


@pytest.fixture
def without_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's machines do without KVM, with chips of our own."""
    monkeypatch.setattr(SoftcpuRig, "alone", True)
