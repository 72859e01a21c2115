"""Messages (MSI) that KVM sends by itself, for eventfds: GSIs beyond a PC's, each of which stands for one message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.errors import KvmError
from vmm.kvm.structs import MsiRoute, pc_routes

if TYPE_CHECKING:
    from vmm.kvm.vm import Vm


class MessageRoutes:
    """The part of a machine's GSI routing that devices' messages need, beside `pc_routes`.

    Args:
        vm: the machine.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._next = int(lib.KVM_IOAPIC_NUM_PINS)
        self._routes: dict[int, MsiRoute] = {}

    def take(self) -> int:
        """Return a GSI that is nobody else's."""
        self._next += 1
        return self._next - 1

    def connect(self, fd: int, gsi: int, address: int, data: int) -> bool:
        """Let an event on an eventfd send a message; one that has come already is sent, too.

        Args:
            fd: the eventfd, which is connected to nothing.
            gsi: of `take`.
            address: of the message.
            data: likewise.

        Returns:
            Whether KVM does so: it refuses messages that no LAPIC can get, and has room for so many routes.
        """
        route = MsiRoute(gsi, address, data)
        before = self._routes.get(gsi)
        try:
            if before != route:
                self._routes[gsi] = route
                self._vm.set_gsi_routing([*pc_routes(), *self._routes.values()])
            self._vm.irqfd(fd, gsi)
        except KvmError:
            self._routes.pop(gsi, None)  # the next one is set anew, and others without it
            return False
        return True
