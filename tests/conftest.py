"""Firmware that is built rather than installed; tests that are run more than once; a locale that there is."""

import locale
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A test fails by what was changed, not by what is drawn or by how busy the host is; --hypothesis-profile=default draws.
settings.register_profile("ours", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

# What GNU readline says of the terminal as soon as it is loaded is not for the commands that tests start.
os.unsetenv("COLUMNS")
os.environ.pop("COLUMNS", None)

BUILD_BHYVE_FIRMWARE = Path(__file__).parents[1] / "scripts" / "build-bhyve-firmware"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--repeat", type=int, metavar="N", help="run each selected test N times")
    parser.addoption("--moments", type=int, metavar="N", help="take N snapshots at random moments instead of a few")
    parser.addoption("--spoiled", type=int, default=20, metavar="N", help="return from SMM to N random states")
    parser.addoption("--snapshots", type=int, default=100, metavar="N", help="change a snapshot's file in N ways")
    parser.addoption("--ends", type=int, default=10, metavar="N", help="have N guests print a byte and then do no more")
    parser.addoption("--restores", type=int, default=40, metavar="N", help="restore N machines and look for leaks")


def pytest_configure() -> None:
    # A shell's background job has it ignored, and so have all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A login session has 1,024 files at first and may have more, which 1,024 CPUs need. Not all that it may have: there
    # are programs that close each of them.
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, min(4096, most_files)), most_files))
    # Of a locale that the host lacks bash warns on each script's stderr, where tests look for the script's own words.
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        os.environ["LC_ALL"] = "C.UTF-8"
    else:
        locale.setlocale(locale.LC_ALL, before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if times := metafunc.config.getoption("--repeat"):
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(times))


@pytest.fixture(scope="session")
def bhyve_firmware() -> dict[str, Path]:
    """Each variant's directory; scripts/test has built them, so that this costs nothing."""
    done = subprocess.run([sys.executable, BUILD_BHYVE_FIRMWARE], check=True, stdout=subprocess.PIPE, text=True)
    return {Path(line).parent.name: Path(line).parent for line in done.stdout.splitlines()}
