"""vhost-user's frontend against backends that break the protocol, and its words on the command line."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.config.outputs import Outputs
from vmm.errors import ConfigError, HostError
from vmm.firmware import guests
from vmm.vhost import protocol
from vmm.vhost.backend import BLOCK, FILE_SYSTEM, NETWORK, Backend, VhostDevice
from vmm.vhost.devices import parse_vhost_devices
from vmm.vhost.protocol import Connection, Region, Ring, VhostError

VERSION, REPLY = 1, 4
ALL = protocol.PROTOCOL_F_MQ | protocol.PROTOCOL_F_REPLY_ACK | protocol.PROTOCOL_F_CONFIG
FEATURES = 1 << 32 | protocol.F_PROTOCOL_FEATURES

Answers = dict[int, Callable[[bytes], bytes]]


def value(number: int) -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", number)


GOOD: Answers = {
    protocol.GET_FEATURES: value(FEATURES),
    protocol.GET_PROTOCOL_FEATURES: value(ALL),
    protocol.GET_QUEUE_NUM: value(4),
    protocol.GET_CONFIG: lambda asked: asked[:12] + b"\x11" * (len(asked) - 12),
    protocol.GET_VRING_BASE: lambda asked: asked[:4] + struct.pack("<I", 7),
}


class Peer:
    """Answers as told, by request; what has no answer is acknowledged where that is asked for."""

    def __init__(self, channel: socket.socket, answers: Answers, ack: int = 0) -> None:
        self.heard: list[tuple[int, bytes, int]] = []
        self._channel = channel
        self._answers = answers
        self._ack = ack
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._channel, 12, 8)
            except OSError:
                return
            if len(data) < 12:
                return
            for fd in files:
                os.close(fd)
            request, flags, size = struct.unpack("<III", data)
            payload = self._channel.recv(size, socket.MSG_WAITALL) if size else b""
            self.heard.append((request, payload, len(files)))
            if request in self._answers:
                answer = self._answers[request](payload)
            elif flags & 8:
                answer = struct.pack("<Q", self._ack)
            else:
                continue
            self._channel.sendall(struct.pack("<III", request, VERSION | REPLY, len(answer)) + answer)


@contextmanager
def connected(answers: Answers, ack: int = 0) -> Iterator[tuple[Connection, Peer]]:
    here, there = socket.socketpair()
    peer = Peer(there, GOOD | answers, ack)
    connection = Connection(here, "disk")
    try:
        yield connection, peer
    finally:
        connection.close()
        peer.thread.join()
        there.close()


@pytest.mark.parametrize("acknowledges", [True, False])
def test_what_a_backend_is_told(acknowledges: bool) -> None:
    offered = ALL if acknowledges else protocol.PROTOCOL_F_CONFIG
    with connected({protocol.GET_PROTOCOL_FEATURES: value(offered)}) as (connection, peer):
        connection.introduce(1)
        assert connection.configuration(8) == b"\x11" * 8
        memory, kick, call = os.memfd_create("ram"), os.eventfd(0), os.eventfd(0)
        connection.share(memory, [Region(0, 0x1000, 0x2000), Region(1 << 32, 0x3000, 0x5000)])
        connection.choose(1 << 32)
        connection.start(0, Ring(8, 0x1000, 0x2000, 0x3000), 5, kick, call)
        assert connection.stop(0) == 7
        for fd in (memory, kick, call):
            os.close(fd)
    told = {request: (payload, files) for request, payload, files in peer.heard}
    base = 1 << 46
    table = struct.pack("<II8Q", 2, 0, 0, 0x1000, base, 0x2000, 1 << 32, 0x3000, base + (1 << 32), 0x5000)
    assert told[protocol.SET_MEM_TABLE] == (table, 2)
    assert told[protocol.SET_FEATURES] == (struct.pack("<Q", FEATURES), 0)
    assert told[protocol.SET_VRING_NUM] == (struct.pack("<II", 0, 8), 0)
    assert told[protocol.SET_VRING_BASE] == (struct.pack("<II", 0, 5), 0)
    addresses = struct.pack("<IIQQQQ", 0, 0, base + 0x1000, base + 0x3000, base + 0x2000, 0)
    assert told[protocol.SET_VRING_ADDR] == (addresses, 0)
    assert told[protocol.SET_VRING_KICK] == told[protocol.SET_VRING_CALL] == (struct.pack("<Q", 0), 1)
    assert told[protocol.SET_VRING_ENABLE] == (struct.pack("<II", 0, 1), 0)


def everything(connection: Connection) -> None:
    """All that a connection is used for."""
    connection.introduce(2)
    connection.configuration(8)
    connection.share(0, [Region(0, 0x1000, 0)])
    connection.stop(0)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({protocol.GET_FEATURES: lambda _: b"\0" * 9}, "it does not speak vhost-user"),
        ({protocol.GET_FEATURES: lambda _: b""}, "it does not speak vhost-user"),
        ({protocol.GET_CONFIG: lambda _: b""}, "it does not speak vhost-user"),
        ({protocol.GET_CONFIG: lambda asked: b"\x01" + asked[1:]}, "another part of the configuration"),
        ({protocol.GET_PROTOCOL_FEATURES: value(ALL & ~protocol.PROTOCOL_F_CONFIG)}, "another kind of device"),
        ({protocol.GET_QUEUE_NUM: value(1)}, "it serves 1 queues, and the device has 2"),
        ({protocol.GET_VRING_BASE: lambda asked: asked[:4] + b"\0\0\1\0"}, "it stopped queue 0 at 65536"),
        ({protocol.GET_VRING_BASE: lambda asked: b"\1\0\0\0" + asked[4:]}, "it stopped queue 1 at 0"),
    ],
)
def test_answers_that_make_no_sense(answers: Answers, message: str) -> None:
    with connected(answers) as (connection, _), pytest.raises(VhostError, match=f"^disk: .*{message}") as caught:
        everything(connection)
    assert "\n" not in str(caught.value)


def test_a_refusal() -> None:
    with (
        connected({}, ack=22) as (connection, _),
        pytest.raises(VhostError, match="refused request 3, with error 0x16"),
    ):
        everything(connection)


@pytest.mark.parametrize(
    ("rubbish", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak vhost-user"),
        (struct.pack("<III", 1, VERSION, 8) + bytes(8), "it does not speak vhost-user"),  # no reply
        (struct.pack("<III", 1, 2 | REPLY, 8) + bytes(8), "it does not speak vhost-user"),  # version 2
        (struct.pack("<III", 1, VERSION | REPLY, 0xFFFF_FFFF), "it does not speak vhost-user"),
        (struct.pack("<III", 1, VERSION | REPLY, 8) + bytes(7), "it hung up"),
        (b"", "it hung up"),
    ],
)
def test_rubbish_and_its_end(rubbish: bytes, message: str) -> None:
    here, there = socket.socketpair()
    connection = Connection(here, "disk")
    there.sendall(rubbish)
    there.shutdown(socket.SHUT_WR)
    with there, pytest.raises(VhostError, match=f"^disk: {message}"):
        connection.introduce(1)
    connection.close()


@pytest.mark.parametrize("start", [b"", struct.pack("<III", 1, VERSION | REPLY, 8) + bytes(3)])
def test_one_that_does_not_answer(start: bytes) -> None:
    here, there = socket.socketpair()
    connection = Connection(here, "disk", answer_s=0.1)
    there.sendall(start)
    with there, pytest.raises(VhostError, match=r"^disk: it has not answered for 0\.1 s"):
        connection.introduce(1)
    connection.close()


def full(channel: socket.socket) -> None:
    while True:
        channel.send(bytes(1 << 16))


def test_one_that_takes_nothing() -> None:
    here, there = socket.socketpair()
    connection = Connection(here, "disk", answer_s=0.1)
    here.setblocking(False)
    with pytest.raises(BlockingIOError):
        full(here)
    with there, pytest.raises(VhostError, match=r"^disk: it has not answered for 0\.1 s"):
        connection.introduce(1)
    connection.close()


def test_a_message_out_of_turn() -> None:
    here, there = socket.socketpair()
    connection = Connection(here, "disk")
    there.sendall(bytes(64))
    with there, pytest.raises(VhostError, match="not in turn"):
        connection.look()
    connection.close()


def test_a_backend_of_old_devices() -> None:
    here, there = socket.socketpair()
    peer = Peer(there, GOOD | {protocol.GET_FEATURES: value(protocol.F_PROTOCOL_FEATURES)})
    with pytest.raises(ConfigError, match=r"knows no virtio 1\.0"):
        Backend(VhostDevice("disk", Path("s"), BLOCK), here)
    peer.thread.join()
    there.close()


def test_features_that_need_more_of_a_frontend_are_not_offered() -> None:
    here, there = socket.socketpair()
    peer = Peer(there, GOOD | {protocol.GET_FEATURES: value((1 << 64) - 1)})
    with Backend(VhostDevice("disk", Path("s"), BLOCK), here) as backend:
        # CONFIG_WCE and MQ of a disk; packed rings, an IOMMU, a reset of single queues, logging.
        assert not backend.features & (1 << 11 | 1 << 12 | 1 << 34 | 1 << 33 | 1 << 40 | 1 << 26)
        assert backend.features >> 32 & 1
    peer.thread.join()
    there.close()


def test_devices() -> None:
    chardevs = [f"socket,id=c{n},path=/run/{n}" for n in range(3)]
    disk, files, other = parse_vhost_devices(
        chardevs,
        [
            "vhost-user-blk-pci,chardev=c1,bootindex=3,addr=1f",
            "vhost-user-fs-pci,chardev=c0,tag=home",
            "driver=vhost-user-device-pci,chardev=c2,virtio-id=19,num_vqs=3,config_size=8",
        ],
    )
    assert (disk.socket, disk.kind, disk.bootindex, disk.slot) == (Path("/run/1"), BLOCK, 3, 31)
    assert (files.kind, files.queues, files.config) == (FILE_SYSTEM, 2, b"home".ljust(36, b"\0") + b"\1\0\0\0")
    assert (other.kind, other.queues, other.config_size) == (19, 3, 8)


def test_network_cards() -> None:
    chardevs = [f"socket,id=c{n},path=/run/{n}" for n in range(3)]
    first, disk, second = parse_vhost_devices(
        chardevs,
        [
            "virtio-net-pci,netdev=n1,bootindex=2,addr=5",
            "vhost-user-blk-pci,chardev=c1",
            "driver=virtio-net-pci-non-transitional,netdev=n0",
        ],
        ["vhost-user,id=n0,chardev=c0", "type=vhost-user,id=n1,chardev=c2,vhostforce=on"],
    )
    assert (first.socket, first.kind, first.queues, first.bootindex, first.slot) == (Path("/run/2"), NETWORK, 2, 2, 5)
    assert first.config.hex(":") == "52:54:00:12:34:56"
    assert second.config.hex(":") == "52:54:00:12:34:57"
    assert (disk.socket, second.socket) == (Path("/run/1"), Path("/run/0"))
    (card,) = parse_vhost_devices(
        chardevs[:1], ["virtio-net-pci,netdev=n0,mac=52-54-00-AB-cd-ef"], ["vhost-user,id=n0,chardev=c0"]
    )
    assert card.config.hex() == "525400abcdef"


@pytest.mark.parametrize(
    ("netdevs", "devices", "message"),
    [
        (["user,id=n"], [], "-netdev user,id=n: there is no network here but that of a backend"),
        (["vhost-user,id=n"], [], "needs id=ID and chardev=ID"),
        (["vhost-user,id=n,chardev=c1"], [], "chardev=c1: there is none; give it -chardev socket,id=c1"),
        (["vhost-user,id=n,chardev=c0,queues=2"], [], "queues=2"),
        (["vhost-user,id=n,chardev=c0", "vhost-user,id=n,chardev=c0"], [], "the id is given twice"),
        (["vhost-user,id=n,chardev=c0"], [], "-netdev id=n: no device uses it"),
        ([], ["virtio-net-pci"], "give it -netdev vhost-user,id=ID,chardev=ID"),
        (["vhost-user,id=n,chardev=c0"], ["virtio-net-pci,netdev=n"] * 2, "it is another card's"),
        *(
            (["vhost-user,id=n,chardev=c0"], [f"virtio-net-pci,netdev=n,mac={mac}"], "six bytes")
            for mac in ("", "52:54:00:12:34", "52:54:00:12:34:56:78", "525400123456", "53:54:00:12:34:56", "x")
        ),
        (["vhost-user,id=n,chardev=c0"], ["virtio-net-pci,netdev=n,mq=on"], "mq"),
    ],
)
def test_networks_that_make_no_sense(netdevs: list[str], devices: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_vhost_devices(["socket,id=c0,path=s"], devices, netdevs)


def test_a_card_s_address_is_not_the_backend_s_business() -> None:
    here, there = socket.socketpair()
    peer = Peer(there, GOOD | {protocol.GET_FEATURES: value(FEATURES | 1 << 15 | 1 << 17 | 1 << 22)})
    with Backend(VhostDevice("card", Path(), NETWORK, 2, config=b"\x52" * 6), here) as backend:
        assert backend.features == 1 << 32 | 1 << 15 | 1 << 5
    peer.thread.join()
    there.close()


@pytest.mark.parametrize(
    ("chardevs", "devices", "message"),
    [
        (["pty,id=c0"], [], "only for vhost-user: socket,id=ID,path=SOCKET"),
        (["socket,id=c0"], [], r"needs id=ID and path=SOCKET"),
        (["socket,id=c0,path=s,server=on"], [], "the backend is started first"),
        (["socket,id=c0,path=s,reconnect=1"], [], "reconnect=1"),
        (["socket,id=c0,path=s"], [], "no device uses it"),
        (["socket,id=c0,path=s"] * 2, [], "the id is given twice"),
        ([], ["vhost-user-blk-pci,chardev=c0"], "chardev=c0: there is none; give it -chardev socket,id=c0"),
        ([], ["vhost-user-blk-pci"], "give it -chardev socket,id=ID"),
        (["socket,id=c0,path=s"], ["vhost-user-blk-pci,chardev=c0"] * 2, "is another device's already"),
        (["socket,id=c0,path=s"], ["vhost-user-gpu-pci,chardev=c0"], "no such device here; known are vhost-user-blk"),
        (["socket,id=c0,path=s"], ["vhost-user-fs-pci,chardev=c0"], "tag=NAME is what the guest mounts"),
        (["socket,id=c0,path=s"], [f"vhost-user-fs-pci,chardev=c0,tag={'x' * 37}"], "1 to 36 bytes"),
        (["socket,id=c0,path=s"], ["vhost-user-device-pci,chardev=c0"], "virtio-id"),
        (["socket,id=c0,path=s"], ["vhost-user-device-pci,chardev=c0,virtio-id=4,num_vqs=9"], "num_vqs"),
        (["socket,id=c0,path=s"], ["vhost-user-blk-pci,chardev=c0,num-queues=2"], "there is one"),
        (["socket,id=c0,path=s"], ["vhost-user-blk-pci,chardev=c0,addr=40"], "addr=40"),
    ],
)
def test_what_makes_no_sense(chardevs: list[str], devices: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_vhost_devices(chardevs, devices)


def test_the_kind_may_stand_anywhere_as_in_qemu() -> None:
    config = MachineConfig.create(
        guests.path("probe"),
        drives=["if=none,id=d0,file=disk.img"],
        chardevs=["path=s,id=c0,backend=socket", "id=c1,path=t,backend=socket"],
        netdevs=["id=n0,chardev=c0,type=vhost-user"],
        devices=[
            "netdev=n0,driver=virtio-net-pci",
            "id=b,chardev=c1,driver=vhost-user-blk-pci",
            "drive=d0,driver=virtio-blk-pci,serial=x",
        ],
    )
    assert [(device.socket, device.kind) for device in config.vhost] == [(Path("s"), NETWORK), (Path("t"), BLOCK)]
    assert [drive.serial for drive in config.drives] == ["x"]


def test_nobody_listens(tmp_path: Path) -> None:
    config = MachineConfig.create(
        guests.path("probe"),
        chardevs=[f"socket,id=c0,path={tmp_path / 'socket'}"],
        devices=["vhost-user-blk-pci,chardev=c0"],
    )
    with pytest.raises(ConfigError, match="no such file or directory; start the backend first"):
        Outputs(config)


def test_places_are_taken_once(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(512))
    with pytest.raises(ConfigError, match="bootindex=1 is taken by -drive file="):
        MachineConfig.create(
            guests.path("probe"),
            drives=[f"if=none,id=d0,file={tmp_path / 'disk.img'}"],
            chardevs=["socket,id=c0,path=s"],
            devices=["virtio-blk-pci,drive=d0,bootindex=1", "vhost-user-blk-pci,chardev=c0,bootindex=1"],
        )


def test_memory_of_system_management_mode_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    drive = f"file={tmp_path / 'disk.qcow2'},format=qcow2"
    with pytest.raises(ConfigError, match="-machine smm=on: not beside a qcow2 image"):
        MachineConfig.create("ovmf", smm="on", drives=[drive])
    assert MachineConfig.create("ovmf", drives=[drive]).shares_memory


def test_no_daemon_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(508))
    monkeypatch.setenv("PATH", str(tmp_path))
    config = MachineConfig.create(guests.path("probe"), drives=[f"file={image},format=qcow2"])
    with pytest.raises(HostError, match="needs qemu-storage-daemon: apt-get install qemu-system-common"):
        Outputs(config)
