"""A virtual machine that is made while what will use it is still being loaded."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress

from vmm import host_threads
from vmm._native import ffi
from vmm.errors import KvmError, VmmError
from vmm.kvm.system import Kvm
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class VmAhead:
    """A VM with a PC's interrupt chips and timer, and no CPU yet; a context manager that closes it.

    Before the kernel closes such a VM it waits: for what making the chips has put off (call_srcu), and, where the PIT
    keeps ticks until the guest takes them, twice until nobody looks whether it does. That is most of what a guest takes
    that ends at once. Here the former passes while modules are loaded, and so does the latter, because the PIT is made
    to keep no ticks until the guest has programmed it.

    Attributes:
        vm: may be closed by whoever uses it.
    """

    def __init__(self) -> None:
        with ExitStack() as parts:
            kvm = parts.enter_context(Kvm())
            self.vm = parts.enter_context(kvm.create_vm())
            self.vm.create_irqchip()
            self.vm.create_pit2()
            self._programmed = False
            self._as_made = self._channel()
            self._thread = threading.Thread(target=self._keep_no_ticks, name="vm-ahead", daemon=True)
            host_threads.start(self._thread, "a virtual machine that is made ahead")
            self._parts = parts.pop_all()

    @classmethod
    def begun(cls) -> Self | None:
        """Make one; None where the host lacks something, of which whoever needs it will say what."""
        with suppress(VmmError):
            return cls()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._parts.close()

    def settle(self) -> None:
        """Wait until nothing happens to the VM any more, by itself; to be called before a guest runs."""
        self._thread.join()
        self._look()  # one that goes on may have programmed it already

    def watch(self, poll: Callable[[], None] | None) -> Callable[[], None]:
        """Return what is to be called every few milliseconds of a run, and calls ``poll`` too.

        Once it finds that the guest has programmed the PIT, ticks that the guest is late to take are kept, as ever.
        """

        def look() -> None:
            self._look()
            if poll is not None:
                poll()

        return look

    def _look(self) -> None:
        if not self._programmed and self._channel() != self._as_made:
            self.vm.keep_pit_ticks(keep=True)
            self._programmed = True

    def _channel(self) -> bytes:
        """Of the three counters, the one that interrupts."""
        return bytes(ffi.buffer(ffi.addressof(self.vm.get_pit2().cdata, "channels", 0)))

    def _keep_no_ticks(self) -> None:
        with suppress(KvmError):  # then it keeps them
            self.vm.keep_pit_ticks(keep=False)
