"""The threads that execute a machine's vCPUs, and what they do."""

from __future__ import annotations

import threading
import time
from functools import partial

from vmm import host_threads, late
from vmm._native import lib
from vmm.errors import KvmError
from vmm.run.outcome import Reason, ResetKind
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence
    from typing import Any

    from vmm.cpu.processors import Processors
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.run.failure import Look
    from vmm.run.lifetime import Lifetime
    from vmm.sandbox import Sandbox
    from vmm.softcpu.engine import SoftwareCpu

JOIN_SECONDS = 10.0
"""How long the vCPU threads may take to stop before the run is declared stuck."""


class VcpuThreads:
    """One thread a vCPU, for each run anew; or one for all of them, which is the first one's.

    Args:
        core: the C core's ``struct vmm_vm``.
        sandbox: what they are restricted by.
        present: which vCPUs there are, by index: the others have no thread.
        helpers: start threads of devices, as `Sandbox.enter` takes them.

    Attributes:
        foreign: asked whether the caller's code runs on these threads.
        start_timers: starts the thread of the devices' timers, where no sandbox has done it.
    """

    def __init__(
        self,
        core: Any,
        sandbox: Sandbox,
        present: Sequence[bool],
        helpers: Sequence[Callable[[Callable[[], None]], None]] = (),
    ) -> None:
        self._core = core
        self._sandbox = sandbox
        self._present = present
        self.helpers = helpers
        self.foreign: Callable[[], bool] = lambda: False
        self.start_timers: Callable[[], None] = lambda: None
        self._vcpus: list[Any] = []
        self._tasks: list[Callable[[], None] | None] = []
        self._threads: dict[int, threading.Thread] = {}
        self._on_failure: Callable[[BaseException], None] | None = None
        self._lock = threading.Lock()
        # Of the two above; nothing else is taken under it.
        self._roster = threading.Lock()
        self._closed = False

    def add(self, vcpu: Any, task: Callable[[], None] | None) -> None:
        """A vCPU: its ``struct vmm_vcpu``, and what runs it until it stops or ends by itself; None: another's does.

        While a thread executes the task, what the task refers to is not collected as garbage.
        """
        self._vcpus.append(vcpu)
        self._tasks.append(task)

    def is_one_calling(self) -> bool:
        """Whether the calling thread is a vCPU's."""
        return threading.current_thread() in list(self._threads.values())

    def start(self, on_failure: Callable[[BaseException], None], only: Container[int] | None = None) -> None:
        """Let the vCPUs run; ``on_failure`` is told what a task raises.

        Args:
            on_failure: told on the vCPU's thread.
            only: the indices of those that are to run; None: all that there are.

        Raises:
            KvmError: a thread of the run before is still there.
            HostError: the host gives no further thread.
        """
        self.stop()
        with self._lock:
            if self._closed:
                return
            self._sandbox.enter(self.helpers, foreign=self.foreign())
            self.start_timers()
            lib.vmm_vm_resume(self._core)
            with self._roster:
                self._threads = {}
                self._on_failure = on_failure
            for index in range(len(self._tasks)):
                if self._present[index] and (only is None or index in only):
                    self.launch(index)

    def has(self, index: int) -> bool:
        """Whether the thread of a vCPU runs, or is about to, or still stops."""
        with self._roster:
            thread = self._threads.get(index)
            return thread is not None and (self._on_failure is not None or thread.is_alive())

    def launch(self, index: int) -> None:
        """Let one more vCPU run, if the others do; any thread may but a vCPU's.

        Raises:
            HostError: the host gives no further thread.
        """
        with self._roster:
            task = self._tasks[index]
            if task is None or self._on_failure is None or index in self._threads:
                return
            first = partial(self._begin, self._vcpus[index])
            thread = threading.Thread(
                target=_guarded, args=(first, task, self._on_failure), name=f"vcpu{index}", daemon=True
            )
            # First, for its first instruction may lead to a device that looks.
            self._threads[index] = thread
            try:
                host_threads.start(thread, f"vCPU {index}", ", or ask for fewer CPUs")
            finally:
                if thread.ident is None:  # the host gives none, or Ctrl-C came first
                    del self._threads[index]

    def _begin(self, vcpu: Any) -> None:
        """On a vCPU's thread, before all else."""
        if vcpu.profile:
            from vmm.run import profile

            profile.arm(vcpu)
        self._sandbox.enter_thread(vcpu)

    def kick(self) -> None:
        """Make every vCPU leave the guest, now and until `start`; returns at once."""
        lib.vmm_vm_stop(self._core, self._vcpus, len(self._vcpus))

    def stop(self) -> None:
        """Wait until no vCPU runs any more.

        Raises:
            KvmError: one does not come back.
        """
        with self._roster:
            self._on_failure = None
            threads = list(self._threads.values())
        self.kick()
        until = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        stuck = [thread.name for thread in threads if thread.is_alive()]
        if stuck:
            raise KvmError(
                f"{', '.join(stuck)} did not stop within {JOIN_SECONDS:g} s: still in KVM_RUN, or in a device's code; "
                "the machine is kept as long as that lasts",
                0,
            )
        for vcpu in self._vcpus:
            lib.profile_disarm(vcpu)

    def close(self) -> None:
        """Stop, and never start again.

        Raises:
            KvmError: a vCPU does not come back: its memory must stay. May be called again later.
        """
        with self._lock:
            self._closed = True
        self.stop()


def _guarded(first: Callable[[], None], task: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
    try:
        first()
        task()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the run must end and its caller must see it
        on_failure(error)


def add_vcpus(
    threads: VcpuThreads,
    processors: Processors,
    memory: GuestMemory,
    softcpu: SoftwareCpu | None,
    lifetime: Lifetime,
    flush: Callable[[], None],
    note_debug: Callable[[int], None],
    look: Callable[[], Look],
) -> None:
    """Give each vCPU of a machine its thread, or the first one's to all of them if they run in turn.

    Args:
        threads: of the machine.
        processors: its vCPUs.
        memory: of the machine.
        softcpu: what executes them; None: KVM does.
        lifetime: told why they end.
        flush: passes on what devices hold back for a moment; called at the end of each thread's run.
        note_debug: told that a vCPU has come to what a debugger waits for.
        look: knows more of the place where one ended.
    """
    ends = [
        partial(_note_end, vcpu, core_vcpu, memory, softcpu, lifetime, note_debug, look)
        for vcpu, core_vcpu in zip(processors.vcpus, processors.cores, strict=True)
    ]
    if softcpu is not None and softcpu.in_turn:
        task = partial(_execute, softcpu.run_in_turn, ends, flush)
        for core_vcpu in processors.cores:
            threads.add(core_vcpu, None if core_vcpu.index else task)
        return
    run = lib.vmm_vcpu_run if softcpu is None else softcpu.run
    for core_vcpu, end in zip(processors.cores, ends, strict=True):
        threads.add(core_vcpu, partial(_execute, partial(run, core_vcpu), [end], flush))


def _execute(run: Callable[[], object], ends: Iterable[Callable[[], None]], flush: Callable[[], None]) -> None:
    """Run one vCPU, or all, on the calling thread."""
    run()
    for end in ends:
        end()
    flush()


def _note_end(
    vcpu: Vcpu,
    core_vcpu: Any,
    memory: GuestMemory,
    softcpu: SoftwareCpu | None,
    lifetime: Lifetime,
    note_debug: Callable[[int], None],
    look: Callable[[], Look],
) -> None:
    """A vCPU's run is over: if it ended by itself, say so; on its thread."""
    outcome = core_vcpu.end.outcome
    if outcome == lib.VCPU_DEBUG:
        note_debug(vcpu.index)
    elif outcome != lib.VCPU_STOPPED:

        def describe() -> tuple[Reason, str, str]:
            from vmm.run import failure

            return failure.describe(vcpu, core_vcpu, memory, look, software_cpu=softcpu is not None)

        # It reads what belongs to images, such as their symbols.
        reason, message, details = late.call(describe)
        if reason is Reason.TRIPLE_FAULT:
            lifetime.reset(ResetKind.TRIPLE_FAULT, message, details)
        else:
            lifetime.finish(reason, message, details)
