"""Images that QEMU's storage daemon serves: it is started for one, and ends with the machine, however that ends."""

import json
import os
import select
import socket
import subprocess
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from vmm import host_threads
from vmm.disks import overlay
from vmm.disks.drives import Drive
from vmm.disks.image import SECTOR, check_kind, lock_image, open_image
from vmm.errors import ConfigError, HostError, VmmError
from vmm.users import account
from vmm.vhost.backend import BLOCK, BLOCK_CONFIG, Backend, VhostDevice
from vmm.vhost.protocol import VhostError

PROGRAM: Final = "qemu-storage-daemon"
_GOES_WITH_ITS_PARENT: Final = ("setpriv", "--pdeathsig", "TERM")
"""util-linux's: the kernel sends the signal when the thread ends that started the process."""

_OBJECT_ID: Final = "passphrase"
_LONGEST_SECRET: Final = 64 << 10

_NBD_PORT: Final = 10809
"""IANA's."""

_KEPT: Final = 4096
"""Bytes of what the daemon said last."""

_LAST_WORDS_S: Final = 5.0
"""How long a daemon that hung up may take to be gone."""

_ENDING_S: Final = 30.0
"""How long it may take to bring to the disk what it has, before the machine's end goes on without it."""


def serve(drive: Drive, user: str | None = None) -> Backend:
    """Start a daemon for a disk, and connect to it.

    Args:
        drive: whose format is one of `vmm.disks.drives.SERVED`.
        user: whom the daemon belongs to, a name or number; None: whom this process does.

    Raises:
        ConfigError: the image cannot be used so.
        HostError: the daemon is missing, or failed.
    """
    from shutil import which  # few machines have such a disk

    if which(PROGRAM) is None:
        raise HostError(
            f"{drive.option}: format={drive.format} needs {PROGRAM}: apt-get install qemu-system-common (Debian 12), "
            "or the package that has qemu-img"
        )
    if not drive.url:
        with ExitStack() as closers:
            image = open_image(drive, os.O_RDONLY)
            closers.callback(os.close, image)
            check_kind(image, drive)
            # The daemon locks it again, but does not know by name who has it.
            lock_image(image, drive)
    size = 0
    if drive.snapshot and not drive.read_only:
        # Only the daemon knows how large a disk is in each of its formats.
        with _backend(drive._replace(read_only=True), user, 0) as asked:
            size = SECTOR * int.from_bytes(asked.config[:8], "little")
    return _backend(drive, user, size)


def _backend(drive: Drive, user: str | None, size: int) -> Backend:
    daemon = _Daemon(drive, user, size)
    device = VhostDevice(drive.option, Path(), BLOCK, 1, BLOCK_CONFIG, b"", drive.bootindex, drive.slot)
    return Backend(device, daemon.channel, daemon.close, daemon.explain)


class _Daemon:
    """The process, and the thread of ours that it lives as long as."""

    def __init__(self, drive: Drive, user: str | None, size: int) -> None:
        self._drive = drive
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._ended = False
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        with ExitStack() as closers:
            place, files = _place(drive), []
            secret = written = -1
            if drive.secret is not None:
                secret = _secret(drive, drive.secret)
                closers.callback(os.close, secret)
                files.append(secret)
            if drive.snapshot and not drive.read_only:
                written = overlay.create(size, drive.option)
                closers.callback(os.close, written)
                files.append(written)
            listener, self.channel = _pair(drive)
            closers.callback(listener.close)
            files.append(listener.fileno())
            words = _arguments(drive, place, listener.fileno(), written, secret)
            command = [*_GOES_WITH_ITS_PARENT, *_as(user), PROGRAM, *words]
            stop, self._stop = os.pipe()
            self._thread = threading.Thread(
                target=self._watch, args=(command, files, stop), name="vmm-storage", daemon=True
            )
            try:
                host_threads.start(self._thread, f"the disk of {drive.option}")
            except HostError:
                self.channel.close()
                os.close(stop)
                os.close(self._stop)
                raise
            self._started.wait()
        if self._failure is not None:
            self.channel.close()
            self.close()
            raise HostError(
                f"{drive.option}: cannot start {self._failure.filename}: {(self._failure.strerror or '').lower()}"
            )

    def close(self) -> None:
        """Let it end, and wait for that; may be called twice."""
        if self._thread is None:
            return
        os.close(self._stop)
        self._thread.join()
        self._thread = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_S)

    def explain(self, error: VhostError) -> VmmError:
        """Return what is wrong in the daemon's own words, if it is that which ended; end it otherwise."""
        process, option = self._process, self._drive.option
        if self._thread is not None:
            self._thread.join(_LAST_WORDS_S)
        ended_itself = self._ended
        self.close()
        if process is None or not ended_itself:
            return error
        status = process.returncode
        if status <= 0:
            how = f"by signal {-status}" if status else "by itself"
            return HostError(f"{option}: its {PROGRAM} ended {how}, and the disk is gone")
        lines = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        said = lines[0] if lines else "it said nothing"
        if "}: " in said:  # behind the option, which repeats what is in the image's
            said = said.rpartition("}: ")[2]
        return ConfigError(f"{option}: {said.removeprefix(f'{PROGRAM}: ')} (says {PROGRAM})")

    def _watch(self, command: list[str], files: list[int], stop: int) -> None:
        """Start it, and keep what it says, until it ends or is to end: the end of this thread is what ends it."""
        said, stderr = os.pipe()
        try:
            process = subprocess.Popen(
                command,
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is the machine's to act upon
            )
        except OSError as error:
            self._failure = error
            self._started.set()
            os.close(said)
            os.close(stop)
            return
        finally:
            os.close(stderr)
        self._process = process
        self._started.set()
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(said, select.POLLIN)
        while not any(fd == stop for fd, _ in poll.poll()):
            data = os.read(said, _KEPT)
            if not data:
                process.wait()
                self._ended = True
                break
            self._said = (self._said + data)[-_KEPT:]
        os.close(said)
        os.close(stop)


def _pair(drive: Drive) -> tuple[socket.socket, socket.socket]:
    """Return a socket that listens, and another that is connected to it; it has no name any more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with tempfile.TemporaryDirectory(prefix="vmm-") as folder:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                # However long the folder's path is, a socket's has 107 characters at the most.
                name = f"/proc/self/fd/{fd}/socket"
                listener.bind(name)
                listener.listen(1)
                channel.connect(name)
            finally:
                os.close(fd)
    except OSError as error:
        listener.close()
        channel.close()
        raise HostError(f"{drive.option}: no socket for its daemon: {(error.strerror or str(error)).lower()}") from None
    return listener, channel


def _as(user: str | None) -> list[str]:
    if user is None:
        return []
    uid, gid = account(user)
    return [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


def _secret(drive: Drive, path: Path) -> int:
    """Return a file without a name that has what is in the passphrase's: whoever the daemon is, it may read that."""
    try:
        with path.open("rb") as file:
            passphrase = file.read(_LONGEST_SECRET + 1)
    except (OSError, ValueError) as error:
        why = ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
        raise ConfigError(f"{drive.option}: cannot read the passphrase in {path}: {why}") from None
    if not 0 < len(passphrase) <= _LONGEST_SECRET:
        raise ConfigError(f"{drive.option}: the passphrase in {path}: 1 to {_LONGEST_SECRET} bytes")
    fd = os.memfd_create("secret")
    os.write(fd, passphrase)
    return fd


def _place(drive: Drive) -> dict[str, Any]:
    """Return which driver the daemon reaches the image by, and where it is."""
    if not drive.url:
        path = str(drive.path.absolute())
        if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
            raise ConfigError(f"{drive.option}: {PROGRAM} takes only names in UTF-8; rename it")
        return {"driver": "file", "filename": path}
    from urllib.parse import parse_qs, unquote, urlsplit  # few images are elsewhere

    try:
        parts = urlsplit(drive.url)
        host, port = parts.hostname, parts.port or _NBD_PORT
    except ValueError as error:
        raise ConfigError(f"{drive.option}: {str(error).lower()}") from None
    if parts.scheme.startswith("http"):
        return {"driver": parts.scheme, "url": drive.url}
    name = unquote(parts.path.removeprefix("/"))
    socket_path = parse_qs(parts.query).get("socket")
    if parts.scheme == "nbd+unix":
        if not socket_path:
            raise ConfigError(f"{drive.option}: nbd+unix:///EXPORT?socket=PATH names the server's socket")
        server = {"type": "unix", "path": str(Path(socket_path[0]).absolute())}
        return {"driver": "nbd", "export": name, "server": server}
    if not host:
        raise ConfigError(f"{drive.option}: nbd://HOST[:PORT][/EXPORT] names the server")
    return {"driver": "nbd", "export": name, "server": {"type": "inet", "host": host, "port": str(port)}}


def _arguments(drive: Drive, place: dict[str, Any], listener: int, written: int, secret: int) -> list[str]:
    """Return the daemon's options: the image, its passphrase, what is over it, and where it is asked for."""
    cache = {"direct": drive.cache.direct, "no-flush": drive.cache == "unsafe"}
    discard = "unmap" if drive.unmap else "ignore"
    writable = not drive.read_only

    def node(driver: str, name: str, *, read_only: bool, **more: Any) -> dict[str, Any]:
        own = {"driver": driver, "node-name": name, "cache": cache, "discard": discard, "read-only": read_only}
        return own | more

    only_read = drive.only_read
    keys: dict[str, Any] = {}
    if secret >= 0:
        keys = {"key-secret": _OBJECT_ID}
        if drive.format == "qcow2":
            keys = {"encrypt": {"format": "luks"} | keys}
    nodes = [
        node(place.pop("driver"), "file", read_only=only_read, **place),
        node(str(drive.format), "image", read_only=only_read, file="file", **keys),
    ]
    if written >= 0:
        private = node("file", "private", read_only=False, filename=f"/dev/fd/{written}", locking="off")
        nodes += [private, node("qcow2", "overlay", read_only=False, file="private", backing="image")]
    export = {
        "type": "vhost-user-blk",
        "id": "disk",
        "node-name": nodes[-1]["node-name"],
        "writable": writable,
        "writethrough": not drive.cache.write_back,
        "addr": {"type": "fd", "str": str(listener)},
    }
    objects = ["--object", f"secret,id={_OBJECT_ID},file=/dev/fd/{secret}"] if secret >= 0 else []
    blocks = [word for each in nodes for word in ("--blockdev", json.dumps(each))]
    return [*objects, *blocks, "--export", json.dumps(export)]
