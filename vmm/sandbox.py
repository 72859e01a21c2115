"""What the process and its threads give up before a guest executes its first instruction (docs/threat-model.md).

The kernel keeps to it whatever happens to the process: a guest that found a fault of ours, or of the software CPU's
translator, gets no further than the files and descriptors that the run has open.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import suppress
from itertools import count, islice

from vmm import late
from vmm._native import ffi, lib
from vmm.config.parts import Sandboxing
from vmm.errors import HostError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any

_WITHOUT = "--sandbox off runs without it"

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_FACTS = ("/proc/cpuinfo", "/sys/devices/system/cpu", "/etc/ssl/openssl.cnf")
"""What the report, Python's ``os`` and ``hashlib`` ask of the host."""

_SPARE_FILES = 32
"""Descriptors for modules that are loaded late."""

_SPARE_MEMORY = 1 << 30
"""Bytes of address space for consoles, logs, the report and the software CPU's tables, all of which have bounds."""

_MEMORY_PER_THREAD = 144 << 20
"""A stack, and an arena of glibc's malloc with what it maps to have it aligned (HEAP_MAX_SIZE of malloc/arena.c)."""


def offers_seccomp() -> bool:
    """Whether this kernel lets this process filter system calls."""
    return bool(lib.sandbox_seccomp_offered())


def landlock_version() -> int:
    """The version of Landlock that this kernel offers to this process; 0: there is none."""
    return int(lib.sandbox_landlock_abi())


class Sandbox:
    """The restrictions that one machine runs under.

    Args:
        wanted: how far they go; less is done where the kernel does not offer it, and told in ``missing``.
        core: the C core's ``struct vmm_vm``.
        files: descriptors that devices use while the guest runs.
        cpus: of the machine.
        user: whom the process belongs to from then on: a name or a number.
        folders: of the user's, whose files can be read in any case.

    Attributes:
        kind: how far they go here; AUTO until the first run.
        landlock: the version of Landlock that keeps this process from files; 0: none does.
        files: descriptors that threads which serve the guest read and write.
        channels: sockets by which other threads give descriptors to the backends of vhost-user devices.
        missing: what the kernel does not offer; empty: it has all.
    """

    def __init__(
        self,
        wanted: Sandboxing,
        core: Any,
        files: Iterable[int],
        *,
        cpus: int = 1,
        user: str | None = None,
        folders: Iterable[Path] = (),
    ) -> None:
        seccomp = wanted is Sandboxing.OFF or offers_seccomp()
        self.kind = wanted if seccomp else Sandboxing.OFF
        self._auto = self.kind is Sandboxing.AUTO
        whole = wanted is Sandboxing.WHOLE
        self.landlock = landlock_version() if whole else 0
        self.missing = [
            name
            for name, lacks in (
                ("seccomp", not seccomp),
                ("Landlock", whole and not self.landlock),
            )
            if lacks
        ]
        self._core = core
        self.files = list(files)
        self.channels: list[int] = []
        self._folders = list(folders)
        self._threads = cpus + 8
        self._user = None if user is None else _account(user)
        self._limited = self._entered = False
        self._statm = -1

    def close_files(self) -> None:
        """Become the user that was asked for, and let this thread open nothing but modules and libraries.

        Threads that it starts inherit it; those that exist do not, so the software CPU's are started later.

        Raises:
            HostError: the kernel does not do it, or the user cannot read vmm.
        """
        if self.kind is Sandboxing.WHOLE:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        if self._user is not None:
            _become(*self._user)
        if self.landlock:
            paths = [ffi.new("char[]", os.fsencode(path)) for path in (*_readable(), *map(str, self._folders))]
            _check(lib.sandbox_restrict_files(paths, len(paths)), "Landlock")

    def enter(self, helpers: Sequence[Callable[[Callable[[], None]], None]], *, foreign: bool = False) -> None:
        """Restrict the process, if that was asked for. For the thread that runs the machine, before each run.

        Args:
            helpers: start threads that serve devices; given what such a thread calls first.
            foreign: whether the caller's code runs on the threads that serve the guest.

        Raises:
            HostError: the kernel does not do it, or the host gives no further thread.
        """
        if self._auto:
            self.kind = Sandboxing.OFF if foreign else Sandboxing.THREADS
        if self._entered or self.kind is Sandboxing.OFF:
            return
        # Apart, for a host that then gives no thread can do so later.
        if self.kind is Sandboxing.WHOLE and not self._limited:
            self._limited = True
            # No file is made any more: what is compiled from now on is compiled again another time.
            sys.dont_write_bytecode = True
            # pyelftools loads pdb, and that, since Python 3.13, readline, which looks up the terminal as another user.
            sys.modules.setdefault("readline", None)  # type: ignore[arg-type]
            # Python's sysconfig, which capstone loads, otherwise asks the accounts for the home: more than is allowed.
            os.environ.setdefault("HOME", os.sep)
            self._limit()
            _check(lib.sandbox_filter_process(self.channels, len(self.channels)), "seccomp")
        late.start()
        for start in helpers:
            start(self.enter_thread)
        self._entered = True

    def enter_thread(self, core_vcpu: Any = ffi.NULL) -> None:
        """Restrict the calling thread, which serves the guest.

        Args:
            core_vcpu: the ``struct vmm_vcpu`` that it runs; NULL: it serves devices only.

        Raises:
            HostError: the kernel does not do it.
        """
        if self.kind is not Sandboxing.OFF:
            late.restrict()
            _check(lib.sandbox_filter_thread(self._core, core_vcpu, self.files, len(self.files)), "seccomp")

    def _limit(self) -> None:
        mapped = int(os.read(self._statm, 64).split()[0]) * mmap.PAGESIZE
        os.close(self._statm)
        # The limit is one of numbers: most of those that are free may lie behind all that are taken.
        free = (number for number in count() if not _is_open(number))
        files = next(islice(free, _SPARE_FILES, None))
        memory = mapped + _SPARE_MEMORY + self._threads * _MEMORY_PER_THREAD
        _check(lib.sandbox_lower_limits(files, memory), "limits")


def refused() -> str | None:
    """The first system call that a sandbox of this process refused, for people; None: there was none."""
    number = lib.sandbox_refused()
    return None if number < 0 else call_name(number)


def call_name(number: int) -> str:
    """What a system call is called."""
    name = lib.sandbox_call_name(number)
    return f"system call {number}" if name == ffi.NULL else ffi.string(name).decode("ascii")


def _is_open(descriptor: int) -> bool:
    try:
        os.get_inheritable(descriptor)
    except OSError:
        return False
    return True


def _readable() -> list[str]:
    """Where Python and vmm load from: not the directory in which ``python -m`` was started."""
    here = ""
    with suppress(FileNotFoundError):  # the directory was removed
        here = os.getcwd()
    modules = [path for path in sys.path if path not in {"", here}]
    return [*modules, *sys.modules["vmm"].__path__, f"{sys.base_prefix}/lib", *_LIBRARIES, *_FACTS]


def _account(user: str) -> tuple[int, int]:
    from vmm.users import account  # few machines become somebody else's

    return account(user)


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except (OSError, OverflowError) as error:
        raise HostError(f"--user: cannot become user {uid}: {error}; only root can") from None
    for module in (os, sys.modules["vmm"]):
        path = module.__file__ or ""
        if not os.access(path, os.R_OK):
            raise HostError(f"--user: user {uid} cannot read {os.path.dirname(path)}, from which modules are loaded")


def _check(error: int, what: str) -> None:
    if -error in {errno.EMFILE, errno.ENFILE}:
        raise OSError(-error, os.strerror(-error))
    if error:
        raise HostError(f"the sandbox cannot be entered: {what}: {os.strerror(-error)}; {_WITHOUT}")
