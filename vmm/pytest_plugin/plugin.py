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
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.machine import Machine
    from vmm.pytest_plugin.artifacts import RecordedMachine
    from vmm.pytest_plugin.booted import Snapshots
    from vmm.pytest_plugin.coverage import SessionCoverage

MachineFactory = Callable[..., "Machine"]

_COVERED = pytest.StashKey["SessionCoverage"]()
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
        choices=("auto", "off", "process"),
        default="auto",
        help="auto: threads that serve the guest of a machine can make no other system calls, unless devices or "
        "functions of a test run on them; off: they can; process: each machine has a restricted process of its own, "
        "whose end is an exception in its test alone (without artifacts, and without a test's own devices). For "
        "machines without a sandbox= or MachineConfig of their own",
    )
    group.addoption(
        "--vmm-artifacts",
        metavar="DIR",
        type=Path,
        help="keep what the machines of failed tests did in DIR, one folder each: serial.txt, debugcon.txt, "
        "trace.jsonl (every access to fw_cfg, or request to fwctl), report.json, report.txt",
    )
    group.addoption(
        "--vmm-coverage",
        metavar="PATH",
        type=Path,
        help="write which lines of source the guests of all machines reached, as a tracefile of lcov's: of images "
        "whose files with line numbers --vmm-symbols has. Machines have the software CPU then, but for those of "
        "accel='kvm'; each worker of pytest-xdist has a file of its own, for lcov -a",
    )
    group.addoption(
        "--vmm-symbols",
        metavar="DIR",
        type=Path,
        help="the folder with symbols (edk2's build, or a vmlinux's) of machines that a test creates without one",
    )
    group.addoption(
        "--vmm-snapshots",
        metavar="DIR",
        type=Path,
        help="keep the machines that vmm_booted boots in DIR, for later sessions and for pytest-xdist's other workers; "
        "what does not fit any more is booted anew",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "needs_kvm: runs a guest; skipped, with the reason, where there is neither KVM nor a software CPU",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse, before a test runs, places in which nothing can be kept.

    Raises:
        pytest.UsageError: one is none, or cannot be made or written into.
    """
    isolated = session.config.getoption("--vmm-sandbox") == "process"
    _check_coverage(session.config, isolated=isolated)
    directory: Path | None = session.config.getoption("--vmm-artifacts")
    if directory is None:
        return
    if isolated:
        raise pytest.UsageError("--vmm-artifacts: machines in other processes (--vmm-sandbox process) leave none")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix=".vmm-"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise pytest.UsageError(f"--vmm-artifacts {directory}: cannot write: {reason}") from None


def _check_coverage(config: pytest.Config, *, isolated: bool) -> None:
    symbols: Path | None = config.getoption("--vmm-symbols")
    if symbols is not None and not symbols.is_dir():
        raise pytest.UsageError(f"--vmm-symbols {symbols}: not a folder")
    covered: Path | None = config.getoption("--vmm-coverage")
    if covered is not None and isolated:
        raise pytest.UsageError("--vmm-coverage: machines in other processes (--vmm-sandbox process) tell none")
    if covered is not None and (not covered.parent.is_dir() or covered.is_dir()):
        raise pytest.UsageError(f"--vmm-coverage {covered}: not a file in a folder that there is")


def _coverage(config: pytest.Config) -> "SessionCoverage | None":
    """What the session's machines reached so far; None: nobody wants to know."""
    path: Path | None = config.getoption("--vmm-coverage")
    if path is None:
        return None
    if _COVERED not in config.stash:
        from vmm.pytest_plugin.coverage import SessionCoverage

        config.stash[_COVERED] = SessionCoverage(path)
    return config.stash[_COVERED]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what the machines reached.

    Raises:
        pytest.UsageError: that is not possible.
    """
    covered = session.config.stash.get(_COVERED, None)
    if covered is not None:
        try:
            covered.write()
        except HostError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say where that is, and what it lacks."""
    covered = config.stash.get(_COVERED, None)
    if covered is not None:
        terminalreporter.write_sep("-", "coverage of guests")
        terminalreporter.write_line(f"{covered.path}: machines: {covered.machines}")
        for note in covered.notes:
            terminalreporter.write_line(note)


def _missing(config: pytest.Config) -> str | None:
    """Why no guest can run here; None if one can."""
    if _NO_KVM not in config.stash:
        from vmm.config.parts import Accelerator
        from vmm.softcpu.decision import open_host

        try:
            open_host(Accelerator.AUTO).close()
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


class _Recorder:
    """The machines of one test, or module, or session: closed in the end, and looked into if it failed.

    Args:
        request: whose they are.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._artifacts: Path | None = request.config.getoption("--vmm-artifacts")
        self._recorded: list[RecordedMachine] = []
        self._closers = ExitStack()

    def create(self, config: Any, **options: Any) -> "Machine":
        """A machine, as `vmm.Machine` takes it."""
        from vmm.config.machine import MachineConfig
        from vmm.machine import Machine

        if not isinstance(config, MachineConfig):
            options.setdefault("symbols", self._request.config.getoption("--vmm-symbols"))
        sandbox = config.sandbox if isinstance(config, MachineConfig) else options.get("sandbox")
        covered = _coverage(self._request.config)
        if (self._artifacts is None and covered is None) or sandbox == "process":
            return self._closers.enter_context(Machine(config, **options))
        if self._artifacts is None:
            from vmm.pytest_plugin.coverage import CoveredMachine

            return self._closers.enter_context(CoveredMachine(covered, config, **options))
        from vmm.pytest_plugin.artifacts import RecordedMachine

        folder = Path(self._closers.enter_context(TemporaryDirectory(prefix="vmm-")))
        recorded = RecordedMachine(covered, folder / "trace", config, **options)
        self._recorded.append(self._closers.enter_context(recorded))
        return self._recorded[-1]

    def close(self) -> None:
        """Keep what is asked for, and close all of them."""
        with self._closers:
            node = self._request.node
            if self._artifacts is not None and (node.stash.get(_FAILED, False) or _has_failures(node)):
                name = _folder(node.nodeid or "session")
                try:
                    for number, machine in enumerate(self._recorded):
                        machine.keep(self._artifacts / (name if number == 0 else f"{name}-{number}"))
                except HostError as error:
                    pytest.fail(str(error), pytrace=False)


def _has_failures(node: Any) -> bool:
    """Whether a test of a module or session failed."""
    return not isinstance(node, pytest.Item) and node.session.testsfailed > 0


@contextmanager
def _recorder(request: pytest.FixtureRequest) -> Iterator[_Recorder]:
    recorder = _Recorder(request)
    try:
        yield recorder
    finally:
        recorder.close()


def _sandbox(request: pytest.FixtureRequest, options: dict[str, Any]) -> str:
    """That of a machine whose test does not say; another process is not given the test's functions."""
    wanted: str = request.config.getoption("--vmm-sandbox")
    return "auto" if wanted == "process" and options.keys() & {"customize", "alter"} else wanted


@pytest.fixture
def vmm_machine(request: pytest.FixtureRequest) -> Iterator[MachineFactory]:
    """Make machines: call it with what `vmm.Machine` takes; all are closed after the test.

    Without a firmware argument the one of ``--vmm-firmware`` is used.
    """
    with _recorder(request) as recorder:

        def create(firmware: Any = None, /, **options: Any) -> "Machine":
            firmware = firmware or request.config.getoption("--vmm-firmware")
            if isinstance(firmware, str):
                options.setdefault("sandbox", _sandbox(request, options))
            return recorder.create(firmware, **options)

        yield create


@pytest.fixture(scope="session")
def _vmm_snapshots(request: pytest.FixtureRequest) -> Iterator["Snapshots"]:
    from vmm.pytest_plugin.booted import Snapshots

    snapshots = Snapshots(request.config.getoption("--vmm-snapshots"))
    yield snapshots
    snapshots.close()


def _booted(request: pytest.FixtureRequest, _vmm_snapshots: "Snapshots") -> Iterator[MachineFactory]:
    """Give machines that have booted already: call it with what `vmm.Machine` takes, and where tests begin.

    ``until`` is a pattern that a console shows then (with ``send`` and ``deadline``, as for `vmm.Machine.run`), or a
    function that brings the machine there. The first call of a session boots it and takes a snapshot; each call gives a
    machine of its own that goes on from there (``items`` and ``generation``: see `vmm.Machine.restore`). Under
    pytest-xdist each worker boots once, or one for all with ``--vmm-snapshots``.
    """
    from vmm.pytest_plugin.booted import BOOT_SECONDS, as_config
    from vmm.run.resumption import prepare

    with _recorder(request) as recorder:

        def restore(
            firmware: Any = None,
            /,
            *,
            until: Any,
            send: Any = (),
            deadline: float = BOOT_SECONDS,
            items: Any = (),
            generation: Any = None,
            **options: Any,
        ) -> "Machine":
            firmware = firmware or request.config.getoption("--vmm-firmware")
            if isinstance(firmware, str):
                options.setdefault("sandbox", _sandbox(request, options))
            if isinstance(firmware, str):
                options.setdefault("symbols", request.config.getoption("--vmm-symbols"))
            config = as_config(firmware, options)
            if _coverage(request.config) is not None:
                from vmm.pytest_plugin.coverage import with_coverage

                # Those that go on from there are told of, not their boot.
                config = with_coverage(config)._replace(coverage=False)
            resumption = prepare(_vmm_snapshots.get(config, until, send, deadline), items, generation, "stopped")
            return recorder.create(resumption.config, resumption=resumption)

        yield restore


vmm_booted = pytest.fixture(name="vmm_booted")(_booted)
vmm_booted_module = pytest.fixture(scope="module", name="vmm_booted_module")(_booted)
vmm_booted_session = pytest.fixture(scope="session", name="vmm_booted_session")(_booted)
