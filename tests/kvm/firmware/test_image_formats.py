"""Images that QEMU's storage daemon reads and writes: other formats, encrypted ones, and ones that are elsewhere."""

import functools
import http.server
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from linux_machine import DEADLINE, fields, printed

from vmm.disks.drives import Drive
from vmm.errors import ConfigError, HostError
from vmm.firmware import guests
from vmm.machine import Machine

pytestmark = pytest.mark.needs_kvm

SIZE = 2 << 20
WORDS = "correct horse"
AS_OBJECT = ["--object", f"secret,id=s,data={WORDS}"]


def image_of(path: Path, contents: bytes, kind: str, *more: str) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes(contents)
    end = time.monotonic() + DEADLINE
    command = ["qemu-img", "convert", *more, "-f", "raw", "-O", kind, str(raw), str(path)]
    # Of a passphrase, it measures how often it may hash it, which it gives up where the host is busy.
    while "CPU usage" in (done := subprocess.run(command, capture_output=True, text=True, check=False)).stderr:
        assert time.monotonic() < end
    assert done.returncode == 0, done.stderr
    raw.unlink()
    return path


def contents(path: Path, *how: str) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", *how, "-O", "raw", raw], check=True)
    return raw.read_bytes()


def copied_by_linux(tmp_path: Path, *drives: Drive | str) -> None:
    """Let Linux copy the second half of each disk over the first, and say how large it is."""
    half = SIZE // 65536 // 2
    script = f"""
    for disk in {" ".join("abcdef"[: len(drives)])}; do
        cat /sys/block/vd$disk/size
        dd if=/dev/vd$disk of=/dev/vd$disk bs=64k skip={half} count={half} conv=fsync,notrunc
    done
    """
    with Machine("none", drives=drives, **fields(script, tmp_path / "initrd")) as machine:
        text = printed(machine)
    assert len(re.findall(rf"^{SIZE // 512}\r?$", text, re.MULTILINE)) == len(drives), text
    assert text.count(f"{half}+0 records out") == len(drives), text


def test_formats(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    images = {kind: image_of(tmp_path / f"disk.{kind}", data, kind) for kind in ("vmdk", "vdi", "vhdx", "qed")}
    copied_by_linux(tmp_path, *(Drive(image, format=kind) for kind, image in images.items()))
    for kind, image in images.items():
        assert contents(image, "-f", kind, str(image)) == data[SIZE // 2 :] * 2


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LUKS image, which takes seconds to make: how slow its passphrase shall be is measured."""
    path, options = tmp_path_factory.mktemp("images") / "disk.luks", "key-secret=s,iter-time=10"
    return image_of(path, bytes(SIZE // 2) + b"secret".ljust(SIZE // 2, b"."), "luks", *AS_OBJECT, "-o", options)


def test_encrypted_images(tmp_path: Path, encrypted: Path) -> None:
    """LUKS, and an encrypted qcow2 below an overlay, which is gone afterwards."""
    data = os.urandom(SIZE)
    secret = tmp_path / "pass phrase"
    secret.write_text(WORDS)
    luks = tmp_path / "disk.luks"
    luks.write_bytes(encrypted.read_bytes())
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qcow2 = image_of(tmp_path / "disk.qcow2", data, "qcow2", *AS_OBJECT, "-o", options)
    before = qcow2.read_bytes()
    copied_by_linux(
        tmp_path,
        f"file={luks},format=luks,secret-file={secret}",
        Drive(qcow2, format="qcow2", snapshot=True, secret=secret),
    )
    how = [*AS_OBJECT, "--image-opts", f"driver=luks,key-secret=s,file.filename={luks}"]
    assert contents(luks, *how) == b"secret".ljust(SIZE // 2, b".") * 2
    assert b"secret" not in luks.read_bytes()
    assert qcow2.read_bytes() == before


@contextmanager
def exported(image: Path, socket: Path) -> Iterator[None]:
    """The image by NBD."""
    server = ["--blockdev", f"driver=file,node-name=n,filename={image}"]
    server += ["--nbd-server", f"addr.type=unix,addr.path={socket}", "--export", "nbd,id=e,node-name=n,writable=on"]
    with subprocess.Popen(["qemu-storage-daemon", *server]) as process:
        try:
            end = time.monotonic() + DEADLINE
            while not socket.exists():
                assert time.monotonic() < end
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, which Python's server by itself does not."""

    def send_head(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), len(data) - 1)) if wanted else (0, len(data) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_elsewhere(tmp_path: Path) -> None:
    """A raw image of an NBD server, and a qcow2 image of a web server below a private overlay."""
    data = os.urandom(SIZE)
    image, socket = tmp_path / "disk.img", tmp_path / "a socket"
    image.write_bytes(data)
    other = image_of(tmp_path / "disk.qcow2", data, "qcow2")
    before = other.read_bytes()
    with exported(image, socket), served(tmp_path) as url:
        nbd, web = f"nbd+unix:///n?socket={socket}", f"{url}/disk.qcow2"
        copied_by_linux(tmp_path, f"file={nbd},format=raw", f"file={web},format=qcow2,snapshot=on")
        with pytest.raises(ConfigError, match=r"export not available \(says qemu-storage-daemon\)$"):
            Machine(str(guests.path("probe")), drives=f"file={nbd.replace('n?', 'other?')},format=raw")
        with pytest.raises(ConfigError, match=r"cannot be written; readonly=on or snapshot=on"):
            Machine(str(guests.path("probe")), drives=f"file={web},format=qcow2")
    assert image.read_bytes() == data[SIZE // 2 :] * 2
    assert other.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("vmdk", "format=vdi", "format=vdi: is a vmdk image$"),
        ("vdi", "", "is a vdi image: format=vdi uses it as one"),
        ("luks", "format=luks", "needs the passphrase: secret-file=PATH, or key-secret=ID of an -object secret$"),
        ("luks", "format=luks,secret-file=wrong", r"Invalid password, cannot unlock any keyslot \(says qemu"),
        ("luks", "format=luks,secret-file=empty", "the passphrase in empty: 1 to 65536 bytes$"),
        ("luks", "format=luks,secret-file=none", "cannot read the passphrase in none: no such file or directory$"),
        ("raw", "format=raw,secret-file=wrong", "has no passphrase; format=luks and qcow2 have one: secret-file"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: Path, kind: str, said: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong").write_text("battery staple")
    Path("empty").write_bytes(b"")
    image = encrypted if kind == "luks" else image_of(tmp_path / "disk", bytes(1 << 20), kind)
    with pytest.raises(ConfigError, match=message) as caught:
        Machine(str(guests.path("probe")), drives=f"file={image},{said}".rstrip(","))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file=ssh://host/disk.img,format=raw", "ssh:// is not known; known are nbd, nbd"),
        ("file=nbd://host/disk", "say which format it has: format=raw, or qcow2"),
        ("file=nbd+unix:///disk,format=raw", r"nbd\+unix:///EXPORT\?socket=PATH names the server's socket"),
        ("file=nbd:///disk,format=raw", r"nbd://HOST\[:PORT\]\[/EXPORT\] names the server"),
        ("file=nbd://host:port/disk,format=raw", "port"),
        ("file=disk.img,format=vhd", "format=vhd is not known; known are raw"),
    ],
)
def test_places_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises((ConfigError, HostError), match=message) as caught:
        Machine(str(guests.path("probe")), drives=text)
    assert "\n" not in str(caught.value)
