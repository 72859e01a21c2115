"""pytest's side of vmm: machines as a fixture, artifacts of failures, skips that state their reason.

```python
@pytest.mark.needs_kvm
def test_greeting(vmm_machine):
    machine = vmm_machine("ovmf", fw_cfg={"opt/org.example/greeting": b"hello"})
    assert machine.run(until="Shell>", deadline=120).reached
```
"""

import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.machine import Machine
    from vmm.pytest_plugin.artifacts import RecordedMachine

MachineFactory = Callable[..., "Machine"]

_FAILED = pytest.StashKey[bool]()
_NO_KVM = pytest.StashKey[str | None]()
_LONGEST_NAME = 150


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add vmm's options, all under one prefix."""
    group = parser.getgroup("vmm", "virtual machines on /dev/kvm")
    group.addoption(
        "--vmm-firmware",
        metavar="NAME|PATH",
        default="ovmf",
        help="firmware of machines that a test creates without naming one: ovmf, seabios, bhyve, probe or a path",
    )
    group.addoption(
        "--vmm-sandbox",
        choices=("auto", "off"),
        default="auto",
        help="auto: threads that serve the guest of a machine can make no other system calls, unless devices or "
        "functions of a test run on them; off: they can",
    )
    group.addoption(
        "--vmm-artifacts",
        metavar="DIR",
        type=Path,
        help="keep what the machines of failed tests did in DIR, one folder each: serial.txt, debugcon.txt, "
        "trace.jsonl (every access to fw_cfg, or request to fwctl), report.json, report.txt",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers", "needs_kvm: runs a guest on /dev/kvm; skipped, with the reason, where the host lacks it"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse, before a test runs, a directory for artifacts in which nothing can be kept.

    Raises:
        pytest.UsageError: it is none, or cannot be made or written into.
    """
    directory: Path | None = session.config.getoption("--vmm-artifacts")
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix=".vmm-"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise pytest.UsageError(f"--vmm-artifacts {directory}: cannot write: {reason}") from None


def _missing(config: pytest.Config) -> str | None:
    """Why no guest can run here; None if one can."""
    if _NO_KVM not in config.stash:
        from vmm.kvm import Kvm

        try:
            with Kvm() as kvm:
                kvm.require()
            config.stash[_NO_KVM] = None
        except HostError as error:
            config.stash[_NO_KVM] = str(error)
    return config.stash[_NO_KVM]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs KVM where there is none."""
    if item.get_closest_marker("needs_kvm") is not None and (reason := _missing(item.config)) is not None:
        pytest.skip(reason)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say shortly how what a guest found differs from what it was offered."""
    if op != "==" or "vmm.verify.values" not in sys.modules:
        return None
    from vmm.verify.explain import explain

    return explain(left, right)


# hookwrapper, because wrapper needs pluggy 1.2, which came after pytest 7.0.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Remember failures until fixtures are torn down."""
    outcome = yield
    if outcome.get_result().failed:
        item.stash[_FAILED] = True


def _folder(nodeid: str) -> str:
    """Return the name of the folder for a test's artifacts; tests whose parameters differ only in / and _ have two."""
    name = re.sub(r"[^\w.-]+", "_", nodeid, flags=re.ASCII)
    if "[" not in nodeid and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{sha256(nodeid.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


@pytest.fixture
def vmm_machine(request: pytest.FixtureRequest) -> Iterator[MachineFactory]:
    """Make machines: call it with what `vmm.Machine` takes; all are closed after the test.

    Without a firmware argument the one of ``--vmm-firmware`` is used.
    """
    from vmm.machine import Machine

    artifacts: Path | None = request.config.getoption("--vmm-artifacts")
    recorded: list[RecordedMachine] = []
    with ExitStack() as closers:

        def create(firmware: Any = None, /, **options: Any) -> Machine:
            firmware = firmware or request.config.getoption("--vmm-firmware")
            if isinstance(firmware, str):
                options.setdefault("sandbox", request.config.getoption("--vmm-sandbox"))
            if artifacts is None:
                return closers.enter_context(Machine(firmware, **options))
            from vmm.pytest_plugin.artifacts import RecordedMachine

            folder = Path(closers.enter_context(TemporaryDirectory(prefix="vmm-")))
            recorded.append(closers.enter_context(RecordedMachine(folder / "trace", firmware, **options)))
            return recorded[-1]

        yield create
        if artifacts is not None and request.node.stash.get(_FAILED, False):
            name = _folder(request.node.nodeid)
            for number, machine in enumerate(recorded):
                machine.keep(artifacts / (name if number == 0 else f"{name}-{number}"))
