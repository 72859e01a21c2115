"""A backend that is there: connected, and known for what it serves."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

from vmm.errors import ConfigError
from vmm.vhost.protocol import Connection, VhostError

_TRANSPORT: Final = 1 << 32 | 1 << 29 | 1 << 28
"""Virtio 1.2, chapter 6: VERSION_1, EVENT_IDX and INDIRECT_DESC, which need nothing of a frontend."""

_VERSION_1: Final = 1 << 32

BLOCK_CONFIG: Final = 60
"""Bytes of struct virtio_blk_config (virtio 1.2, 5.2.4) up to what write-zeroes need."""

NETWORK, BLOCK, FILE_SYSTEM = 1, 2, 26
"""Virtio 1.2, chapter 5."""

_CONFIG_WCE, _MQ = 1 << 11, 1 << 12
_MAC = 1 << 5
_OFFLOADS = 0xFFC3
"""Of a network card (5.1.3): checksums, segmentation, merged buffers; what else there is needs a control queue, or more
of the configuration."""
_OF_DEVICES: Final = (1 << 24) - 1
"""The bits that mean something else in each kind of device."""

_CLASSES: Final = {NETWORK: 0x020000, BLOCK: 0x010000, FILE_SYSTEM: 0x018000}
"""PCI Code and ID Assignment: Ethernet, a SCSI storage controller, and another one of storage, as QEMU's say."""
_OTHER_CLASS: Final = 0xFF0000


class VhostDevice(NamedTuple):
    """A device that another process serves, and what the guest sees of it.

    Attributes:
        option: what messages call it.
        socket: where the process is reached.
        kind: virtio device type (virtio 1.2, chapter 5).
        queues: how many.
        config_size: bytes of its configuration that the process tells.
        config: or the configuration, which is ours.
        bootindex: its place among what firmware boots, the lowest first; None: it has none.
        slot: PCI device number; None: the first that is free.
    """

    option: str
    socket: Path
    kind: int
    queues: int = 1
    config_size: int = 0
    config: bytes = b""
    bootindex: int | None = None
    slot: int | None = None

    @property
    def class_code(self) -> int:
        """PCI's."""
        return _CLASSES.get(self.kind, _OTHER_CLASS)

    @property
    def features(self) -> int:
        """Feature bits that may be offered: not those by which a driver writes the configuration, or counts queues."""
        own = {NETWORK: _OFFLOADS, BLOCK: _OF_DEVICES & ~(_CONFIG_WCE | _MQ)}
        return _TRANSPORT | own.get(self.kind, _OF_DEVICES)

    @property
    def served_here(self) -> int:
        """Feature bits that are about the configuration alone, which is ours: the process is not told of them."""
        return _MAC if self.kind == NETWORK else 0

    @property
    def node(self) -> str:
        """The OpenFirmware path below the host bridge, with ``{slot}``, as QEMU writes it into ``bootorder``."""
        return "ethernet@{slot:x}/ethernet-phy@0" if self.kind == NETWORK else "scsi@{slot:x}/disk@0,0"


class Backend:
    """A device's backend, connected; a context manager that hangs up.

    Args:
        device: what it is to serve.
        channel: the socket.
        end: what else is to be done in the end.
        explain: has more to say of why it failed, where there is more: a process of ours, which said something.

    Attributes:
        device: the same.
        connection: to it.
        features: what may be offered to the guest.
        config: the device's configuration.

    Raises:
        ConfigError: it serves another kind of device.
        VhostError: it does not answer as it has to.
    """

    def __init__(
        self,
        device: VhostDevice,
        channel: socket.socket,
        end: Callable[[], None] = lambda: None,
        explain: Callable[[VhostError], Exception] = lambda error: error,
    ) -> None:
        self.device = device
        self.connection = Connection(channel, device.option)
        self.explain = explain
        self._end = end
        try:
            self.connection.introduce(device.queues)
            self.features = self.connection.features & device.features | device.served_here
            self.config = device.config or (
                self.connection.configuration(device.config_size) if device.config_size else b""
            )
        except VhostError as error:
            self.connection.close()
            raise self.explain(error) from None
        if not self.features & _VERSION_1:
            self.close()
            raise ConfigError(f"{device.option}: its backend knows no virtio 1.0, and no other device is here")

    @property
    def slot(self) -> int | None:
        """PCI device number that was asked for."""
        return self.device.slot

    @property
    def option(self) -> str:
        """What messages call it."""
        return self.device.option

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; may be called twice."""
        self.connection.close()
        self._end()


def connect(device: VhostDevice) -> Backend:
    """Return the backend that listens at a socket.

    Raises:
        ConfigError: nobody does, or for another kind of device.
        VhostError: it does not answer as it has to.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.connect(os.fspath(device.socket))
    except (OSError, ValueError) as error:
        channel.close()
        why = ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
        raise ConfigError(
            f"{device.option}: cannot connect to {device.socket}: {why}; start the backend first"
        ) from None
    return Backend(device, channel)
