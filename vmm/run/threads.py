"""One run of a machine: the threads that execute its vCPUs, and the first thing that ended it."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vmm._native import lib
from vmm.errors import DeviceError, HostError, KvmError
from vmm.run.outcome import Outcome, Reason

JOIN_SECONDS = 10.0
"""How long the vCPU threads may take to stop before the run is declared stuck."""


class Run:
    """Starts one thread a vCPU; anything may `finish` it, from any thread, and the first reason stands.

    Args:
        core: the C core's ``struct vmm_vm``.
        vcpus: its ``struct vmm_vcpu``, by index.
        execute: runs the vCPU of an index on the calling thread until it stops or ends by itself.
    """

    def __init__(self, core: Any, vcpus: Sequence[Any], execute: Callable[[int], None]) -> None:
        self._core = core
        self._vcpus = list(vcpus)
        self._execute = execute
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._threads: list[threading.Thread] = []
        self.end: Outcome | None = None
        """What ended the run; None while it goes on."""
        self.began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def start(self) -> None:
        """Let the vCPUs run."""
        lib.vmm_vm_resume(self._core)
        self._threads = [
            threading.Thread(target=self._run_vcpu, args=(index,), name=f"vcpu{index}", daemon=True)
            for index in range(len(self._vcpus))
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the end of the run; True if that has come."""
        return self._ended.wait(seconds)

    def finish(self, reason: Reason, message: str, details: str = "") -> None:
        """End the run, unless something else did before."""
        with self._lock:
            if self.end is None:
                self.end = Outcome(reason, self.elapsed_s, message, details)
        self._kick()
        self._ended.set()

    def fail(self, error: Exception) -> None:
        """A device or a thread of ours raised: end the run, and let `stop` raise it."""
        with self._lock:
            if self._failure is None:
                self._failure = error
        self.finish(Reason.DEVICE_FAILURE, f"a device of vmm failed: {error!r}")

    def stop(self) -> None:
        """Wait until no vCPU runs any more.

        Raises:
            KvmError: a vCPU does not come back from KVM.
            DeviceError: what `fail` was told; a HostError as it is.
        """
        self._kick()
        began = time.monotonic()
        for thread in self._threads:
            thread.join(max(0.0, began + JOIN_SECONDS - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            raise KvmError(f"{', '.join(stuck)} did not leave KVM_RUN within {JOIN_SECONDS:.0f} s of a stop", 0)
        if isinstance(self._failure, HostError):
            raise self._failure
        if self._failure is not None:
            raise DeviceError(f"a device of vmm failed: {self._failure!r}") from self._failure

    def _run_vcpu(self, index: int) -> None:
        try:
            self._execute(index)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must end and its caller must see it
            self.fail(error)

    def _kick(self) -> None:
        lib.vmm_vm_stop(self._core, self._vcpus, len(self._vcpus))
