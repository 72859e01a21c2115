import ctypes
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is up to what else the machine does.
settings.register_profile("at any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at any load")

CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
DAC_OVERRIDE_AND_READ_SEARCH = 1 << 1 | 1 << 2


@pytest.fixture
def ordinary_permissions() -> Iterator[None]:
    """Make file permissions apply to this process, to root as well."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    saved = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, saved) == 0
    reduced = (ctypes.c_uint32 * 6)(*saved)
    reduced[0] &= ~DAC_OVERRIDE_AND_READ_SEARCH
    assert libc.capset(header, reduced) == 0
    yield
    assert libc.capset(header, saved) == 0
