"""Devices of other processes as people write them: QEMU's ``-chardev socket``, ``-netdev`` and ``-device``."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from vmm import options
from vmm._native import lib
from vmm.disks.drives import ROOT_BUSES, parse_bootindex, parse_slot
from vmm.errors import ConfigError
from vmm.vhost.backend import BLOCK, BLOCK_CONFIG, FILE_SYSTEM, NETWORK, VhostDevice

PREFIX: Final = "vhost-user-"

_COMMON = ("driver", "chardev", "id", "addr", "bus", "disable-legacy", "disable-modern")
_KEYS: Final = {
    "vhost-user-blk-pci": (*_COMMON, "bootindex", "num-queues"),
    "vhost-user-fs-pci": (*_COMMON, "tag", "queue-size"),
    "vhost-user-device-pci": (*_COMMON, "virtio-id", "num_vqs", "config_size"),
}
_CARDS: Final = ("virtio-net-pci", "virtio-net-pci-non-transitional", "virtio-net")
"""QEMU's names for a network card; here it is always a modern one."""
_CARD_KEYS: Final = (*(key for key in _COMMON if key != "chardev"), "netdev", "mac", "bootindex")

_FIRST_MAC: Final = 0x525400123456
"""QEMU's, of the first card; the next one has the next (net/net.c)."""

_TAG = 36
"""Bytes of a file system's name (virtio 1.2, 5.11.4), in UTF-8, NUL at the end where there is room."""


def is_vhost_user(device: str) -> bool:
    """Whether a ``-device`` text names a device of another process."""
    driver = _driver(device)
    return driver.startswith(PREFIX) or driver in _CARDS


def parse_vhost_devices(
    chardevs: Iterable[str], devices: Iterable[str], netdevs: Iterable[str] = ()
) -> tuple[VhostDevice, ...]:
    """Return the devices of other processes, in the order in which they were given.

    Args:
        chardevs: ``-chardev`` texts: where the processes are reached.
        devices: ``-device vhost-user-…-pci`` and ``-device virtio-net-pci`` texts.
        netdevs: ``-netdev vhost-user`` texts: which of the chardevs is for which card.

    Raises:
        ConfigError: one of them makes no sense, or does not go with the others.
    """
    sockets: dict[str, Path] = {}
    for text in chardevs:
        name, path = _socket(text)
        if name in sockets:
            raise ConfigError(f"-chardev id={name}: the id is given twice")
        sockets[name] = path
    free = dict(sockets)

    def take(name: str, what: str) -> Path:
        if name not in free:
            why = "is another device's already" if name in sockets else "there is none"
            raise ConfigError(f"{what}: chardev={name}: {why}; give it -chardev socket,id={name or 'ID'},path=SOCKET")
        return free.pop(name)

    cables: dict[str, Path] = {}
    for text in netdevs:
        name, chardev = _netdev(text)
        if name in cables:
            raise ConfigError(f"-netdev id={name}: the id is given twice")
        cables[name] = take(chardev, f"-netdev {text}")
    result = []
    cards = 0
    for text in devices:
        keys = options.parse_keys(text, "-device", implied="driver")
        if _driver(text) in _CARDS:
            name = keys.get("netdev", "")
            if name not in cables:
                raise ConfigError(
                    f"-device {text}: netdev={name}: there is none, or it is another card's; give it "
                    f"-netdev vhost-user,id={name or 'ID'},chardev=ID"
                )
            result.append(_card(text, cables.pop(name), _FIRST_MAC + cards))
            cards += 1
        else:
            result.append(_device(text, take(keys.get("chardev", ""), f"-device {text}")))
    for name in cables:
        raise ConfigError(f"-netdev id={name}: no device uses it; it is for -device virtio-net-pci,netdev={name}")
    for name in free:
        raise ConfigError(f"-chardev id={name}: no device uses it; it is for -device vhost-user-…-pci,chardev={name}")
    return tuple(result)


def _driver(device: str) -> str:
    return options.implied_value(device, "driver")


def _netdev(text: str) -> tuple[str, str]:
    """Return the id of a network, and of the chardev behind it."""
    what = f"-netdev {text}"
    if options.implied_value(text, "type") != "vhost-user":
        raise ConfigError(
            f"{what}: there is no network here but that of a backend: -netdev vhost-user,id=ID,chardev=ID, for example "
            "of passt --vhost-user"
        )
    keys = options.parse_keys(text, "-netdev", known=("type", "id", "chardev", "vhostforce", "queues"), implied="type")
    if not keys.get("id") or not keys.get("chardev"):
        raise ConfigError(f"{what}: needs id=ID and chardev=ID")
    if keys.get("queues", "1") != "1":
        raise ConfigError(f"{what}: queues={keys['queues']}: a card has one for each direction")
    return keys["id"], keys["chardev"]


def _card(text: str, socket: Path, mac: int) -> VhostDevice:
    keys = options.parse_keys(text, "-device", known=_CARD_KEYS, implied="driver")
    address = mac.to_bytes(6, "big")
    if "mac" in keys:
        try:
            address = bytes.fromhex(keys["mac"].replace("-", ":").replace(":", " "))
        except ValueError:
            address = b""
        if len(address) != len(keys["mac"]) // 3 + 1 or len(address) != 6 or address[0] & 1:
            raise ConfigError(f"-device {text}: mac={keys['mac']}: six bytes, such as 52:54:00:12:34:56, of one card")
    card = _placed(text, keys, VhostDevice(f"-device {text}", socket, NETWORK, queues=2, config=address))
    return card._replace(bootindex=parse_bootindex(keys.get("bootindex")))


def _socket(text: str) -> tuple[str, Path]:
    what = f"-chardev {text}"
    if options.implied_value(text, "backend") != "socket":
        raise ConfigError(
            f"{what}: only for vhost-user: socket,id=ID,path=SOCKET; consoles are -serial's and -debugcon's"
        )
    keys = options.parse_keys(
        text, "-chardev", known=("backend", "id", "path", "server", "wait", "reconnect"), implied="backend"
    )
    if not keys.get("id") or not keys.get("path"):
        raise ConfigError(f"{what}: needs id=ID and path=SOCKET")
    if options.parse_bool(keys.get("server", "off"), "-chardev server"):
        raise ConfigError(f"{what}: server=on: the backend is started first, and listens")
    if keys.get("reconnect", "0") != "0":
        raise ConfigError(f"{what}: reconnect={keys['reconnect']}: a device whose backend is gone is gone, too")
    return keys["id"], Path(keys["path"])


def _device(text: str, socket: Path) -> VhostDevice:
    what = f"-device {text}"
    driver = _driver(text)
    if driver not in _KEYS:
        raise ConfigError(
            f"{what}: no such device here; known are {', '.join(_KEYS)}, which is any kind: virtio-id=N,num_vqs=N"
        )
    keys = options.parse_keys(text, "-device", known=_KEYS[driver], implied="driver")
    device = _placed(text, keys, VhostDevice(what, socket, BLOCK))
    if driver == "vhost-user-blk-pci":
        if keys.get("num-queues", "1") != "1":
            raise ConfigError(f"{what}: num-queues={keys['num-queues']}: there is one")
        return device._replace(config_size=BLOCK_CONFIG, bootindex=parse_bootindex(keys.get("bootindex")))
    if driver == "vhost-user-fs-pci":
        tag = keys.get("tag", "").encode("utf-8", "replace")
        if not 0 < len(tag) <= _TAG:
            raise ConfigError(f"{what}: tag=NAME is what the guest mounts: 1 to {_TAG} bytes")
        # One queue of requests, beside the one of those that overtake.
        return device._replace(kind=FILE_SYSTEM, queues=2, config=tag.ljust(_TAG, b"\0") + (1).to_bytes(4, "little"))

    def number(key: str, minimum: int, maximum: int, default: str) -> int:
        return options.parse_int(keys.get(key, default), f"-device {key}=", minimum=minimum, maximum=maximum)

    return device._replace(
        kind=number("virtio-id", 1, 63, "0"),
        queues=number("num_vqs", 1, lib.VIRTIO_MAX_QUEUES, "1"),
        config_size=number("config_size", 0, lib.VIRTIO_CONFIG_SIZE, "0"),
    )


def _placed(text: str, keys: Mapping[str, str], device: VhostDevice) -> VhostDevice:
    """What the keys of every device say."""
    what = f"-device {text}"
    if keys.get("bus", "pci.0") not in ROOT_BUSES:
        raise ConfigError(f"{what}: bus={keys['bus']}: there is one bus, pcie.0 or pci.0")
    if options.parse_bool(keys.get("disable-modern", "off"), "-device disable-modern"):
        raise ConfigError(f"{what}: disable-modern=on: the device has no legacy interface to fall back on")
    return device if "addr" not in keys else device._replace(slot=parse_slot(keys["addr"], what))
