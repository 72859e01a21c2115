"""A virtio device that another process serves: vhost-user's frontend (`vmm.vhost`), behind registers of ours.

The guest's notifications go to that process at once, by eventfds that KVM signals where it executes the guest, and what
it signals comes to the guest as messages that KVM sends (irqfd). A thread of ours tells the process when the driver
starts the device or resets it, and makes interrupts of what it signals while KVM cannot: a pin's, and what is masked.
"""

import os
import select
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from vmm import host_threads
from vmm._native import ffi, lib
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.transport import Backplane, VirtioFunction
from vmm.errors import HostError
from vmm.tables.boot_order import HOST_BRIDGE_PATH
from vmm.vhost.backend import Backend
from vmm.vhost.protocol import Region, Ring, VhostError


class _Plan(NamedTuple):
    """What the driver wants of the backend: which queues, of which reset.

    Attributes:
        resets: how often there was one.
        features: that it took.
        rings: enabled queues, by index; none of them is to be served where the driver has not started the device.
    """

    resets: int
    features: int
    rings: dict[int, Ring]


class SharedMemory(NamedTuple):
    """Guest memory that a backend maps: a memfd, and where what is in it."""

    fd: int
    regions: Sequence[Region]

    def has(self, gpa: int, size: int) -> bool:
        """Whether all of a range is in it."""
        return any(each.gpa <= gpa and gpa + size <= each.gpa + each.size for each in self.regions)


class VhostUser(VirtioDevice):
    """A device with a backend.

    Args:
        backend: who serves it; stays connected as long as the device.
        backplane: what it is plugged into.
        slot: PCI device number.
        memory: what the backend works in.
        on_failure: gets the exception, should the backend fail.

    Attributes:
        backend: the same.
        name: of its ranges on the bus.
        event_fds: what those who serve the guest write to.

    Raises:
        HostError: no memory or descriptors for it, or the backend failed.
    """

    def __init__(
        self,
        backend: Backend,
        backplane: Backplane,
        slot: int,
        memory: SharedMemory,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.backend = backend
        self._memory = memory
        self._on_failure = on_failure
        device = backend.device
        table = ffi.addressof(backplane.core, "memory")
        core = lib.vhost_user_new(table, backplane.pirqs.core, backplane.core.fd, device.queues)
        if not core:
            raise HostError(f"{device.option}: no memory, or no descriptors for it (ulimit -n)")
        self._vhost = core = ffi.gc(core, lib.vhost_user_free)
        self._kicks = list(core.kick_fds)[: device.queues]
        self._calls = list(core.call_fds)[: device.queues]
        self._messages = backplane.messages
        if self._messages is not None:
            for wire in core.wires[0 : device.queues]:
                wire.gsi = self._messages.take()
        self.event_fds = [core.wake_fd, *self._kicks]
        registers = ffi.addressof(core, "pci")
        registers.offered = backend.features
        registers.config_size = len(backend.config)
        ffi.memmove(registers.config, backend.config, len(backend.config))
        lib.virtio_pci_reset(registers)
        self.name = f"vhost-user {slot}"
        function = VirtioFunction(device.kind, device.class_code, registers, backplane, slot, self.name, self._kicks)
        super().__init__(function, registers, backplane.lock)
        try:
            backend.connection.share(memory.fd, memory.regions)
        except VhostError as error:
            raise backend.explain(error) from None
        # What follows is held while the backend is spoken to; whoever holds it does not ask for io_lock.
        self._speaking = threading.Lock()
        self._bases: dict[int, int] = {}
        self._serving: set[int] = set()
        self._served_resets = self._ended_resets = 0
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=f"vmm-{self.name}", daemon=True)
        host_threads.start(self._thread, f"device {self.name}")

    @property
    def path(self) -> str:
        """The OpenFirmware path of a disk or a network card, as QEMU writes it into ``bootorder``."""
        return f"{HOST_BRIDGE_PATH}/{self.backend.device.node.format(slot=self.slot)}"

    @property
    def connected(self) -> list[int]:
        """The queues whose interrupts KVM sends by itself, now."""
        return [queue for queue in range(len(self._calls)) if self._vhost.wires[queue].connected]

    @property
    def channel(self) -> int:
        """The descriptor by which the backend is spoken to."""
        return self.backend.connection.fileno()

    def reset(self) -> None:
        """As at power-on; the backend is through with the guest's memory then. No vCPU runs; io_lock is held."""
        super().reset()
        with self._speaking:
            try:
                self._stop()
            except VhostError as error:
                self._on_failure(self.backend.explain(error))
            self._bases.clear()
            self._ended_resets = int(self._vhost.resets)
        lib.vhost_user_stopped(self._vhost, self._vhost.resets)

    def close(self) -> None:
        """End the thread; no vCPU runs, and io_lock is not held. May be called twice."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._vhost.wake_fd, 1)
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._follow()
        except VhostError as error:
            if not self._closing:
                self._on_failure(self.backend.explain(error))
        except BaseException as error:  # noqa: BLE001  # whoever is in the run raises it
            self._on_failure(error)

    def _follow(self) -> None:
        """Do what the driver and the backend want, until one of them is gone."""
        wake, connection = int(self._vhost.wake_fd), self.backend.connection
        poll = select.poll()
        for fd in (wake, connection.fileno(), *self._calls):
            poll.register(fd, select.POLLIN)
        while not self._closing:
            ready = {fd for fd, _ in poll.poll()}
            for queue, call in enumerate(self._calls):
                if call in ready:
                    with self._lock:
                        self._interrupt(queue)
            if wake in ready:
                os.eventfd_read(wake)
                self._carry_out()
                with self._lock:
                    self._connect()
            elif connection.fileno() in ready:
                with self._speaking:
                    connection.look()

    def _interrupt(self, queue: int) -> None:
        """The backend has signalled, and KVM did not take it; io_lock is held."""
        with suppress(BlockingIOError):  # it has, meanwhile
            os.eventfd_read(self._calls[queue])
            if lib.vhost_user_wanted(self._vhost) and self._core.queues[queue].enabled:
                lib.virtio_pci_interrupt(self._core, queue)

    def _connect(self) -> None:
        """Give KVM the signals of queues whose message it can send; io_lock is held."""
        if self._messages is None or self._closing:
            return
        address, data = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        for queue, (call, wire) in enumerate(zip(self._calls, self._vhost.wires, strict=False)):
            if not wire.connected and lib.vhost_user_message(self._vhost, queue, address, data):
                wire.address, wire.data = address[0], data[0]
                wire.connected = self._messages.connect(call, wire.gsi, address[0], data[0])

    def _carry_out(self) -> None:
        with self._lock:
            plan = self._plan()
        with self._speaking:
            if plan.resets != self._served_resets or not plan.rings:
                self._stop()
            if plan.resets != self._served_resets:
                self._bases.clear()
                self._served_resets = plan.resets
            # A reset of the machine was here meanwhile: there is another plan to come.
            if plan.resets >= self._ended_resets and plan.rings and not self._serving:
                self._start(plan)
        with self._lock:
            lib.vhost_user_stopped(self._vhost, plan.resets)

    def _plan(self) -> _Plan:
        """Return what the driver wants now; io_lock is held."""
        core = self._core
        rings: dict[int, Ring] = {}
        if lib.vhost_user_wanted(self._vhost):
            for index in range(core.queue_count):
                queue = core.queues[index]
                ring = Ring(queue.size, queue.descriptors, queue.available, queue.used)
                if queue.enabled and not self._is_in_memory(ring):
                    lib.virtio_pci_break(core)
                    rings.clear()
                    break
                if queue.enabled:
                    rings[index] = ring
        self._vhost.served = bool(rings)
        return _Plan(int(self._vhost.resets), int(core.negotiated), rings)

    def _is_in_memory(self, ring: Ring) -> bool:
        """Whether a ring is in RAM: flash is memory, too, but not the backend's."""
        parts = (
            (ring.descriptors, 16 * ring.size),
            (ring.available, 6 + 2 * ring.size),
            (ring.used, 6 + 8 * ring.size),
        )
        return all(self._memory.has(*part) for part in parts)

    def _start(self, plan: _Plan) -> None:
        connection = self.backend.connection
        connection.choose(plan.features & ~self.backend.device.served_here)
        for index, ring in plan.rings.items():
            self._serving.add(index)
            connection.start(index, ring, self._bases.get(index, 0), self._kicks[index], self._calls[index])
            # It serves a queue once that is notified, which the driver may have done before.
            os.eventfd_write(self._kicks[index], 1)

    def _stop(self) -> None:
        while self._serving:
            index = self._serving.pop()
            self._bases[index] = self.backend.connection.stop(index)
