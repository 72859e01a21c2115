"""What all tests share: whether /dev/kvm can be had."""

from functools import cache

import pytest

from vmm.errors import HostError


@cache
def why_no_kvm() -> str:
    """Empty, or why this host runs no guests."""
    from vmm.kvm import Kvm  # noqa: PLC0415  # most runs need it, and those that don't should not fail for it

    try:
        Kvm().close()
    except HostError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_kvm") and (reason := why_no_kvm()):
        pytest.skip(reason)
