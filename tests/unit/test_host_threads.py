"""A host that gives no threads, and Ctrl-C while one begins."""

import subprocess
import sys
import threading

import pytest

from vmm import host_threads

PROGRAM = """
import resource
import threading
from vmm import host_threads
from vmm.errors import HostError

stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
if stack == resource.RLIM_INFINITY:
    stack = 2 << 20  # glibc's ARCH_STACK_DEFAULT_SIZE
counts = {"started": 0, "refused": 0}
for spare in range(0, 4 << 20, 16 << 10):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + stack + spare, resource.RLIM_INFINITY))
    thread = threading.Thread(target=int)
    try:
        host_threads.start(thread, "a test")
    except HostError:
        counts["refused"] += 1
    else:
        thread.join()
        counts["started"] += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*counts.values())
"""


def test_a_thread_starts_or_is_refused_however_little_address_space_there_is() -> None:
    """Python's own wait for a new thread never ends where that has its stack, and no memory beyond."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    started, refused = map(int, run.stdout.split())
    assert started, run.stderr
    assert refused, run.stderr


class Late(threading.Thread):
    """Ctrl-C comes while its start is waited for, and it begins once somebody wants to join it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._wanted = threading.Event()

    def start(self) -> None:
        def begin() -> None:
            if self._wanted.wait(60):
                threading.Thread.start(self)

        threading.Thread(target=begin, daemon=True).start()
        raise KeyboardInterrupt

    def join(self, timeout: float | None = None) -> None:
        self._wanted.set()
        super().join(timeout)


def test_a_thread_whose_start_ctrl_c_ended_can_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_threads, "_BEGINS_SECONDS", 60)
    thread = Late()
    with pytest.raises(KeyboardInterrupt):
        host_threads.start(thread, "a test")
    assert thread.ident is not None
    thread.join(60)
    assert not thread.is_alive()
