"""A network card that passt serves, by vhost-user: a guest has the host's network without a privilege of anybody's."""

import functools
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from linux_machine import DEADLINE, fields, printed

from vmm import directories
from vmm.machine import Machine

pytestmark = pytest.mark.needs_kvm

SCRIPT = """
cat >/bin/leased <<'END'
#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/$mask dev $interface && ip route add default via $router
END
chmod +x /bin/leased
ip link set eth0 up
cat /sys/class/net/eth0/address
udhcpc -q -n -i eth0 -s /bin/leased
router=$(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')
wget -q -O - http://$router:PORT/page
wget -q -O - http://$router:PORT/large | md5sum
"""


@pytest.fixture(scope="module")
def passt() -> str:
    """A passt that speaks vhost-user."""
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("passt shuts itself into a user namespace, and this host lets nobody make one")
    fetched = directories.cache() / "passt-trixie" / "bin" / "passt"
    for program in (shutil.which("passt"), str(fetched) if fetched.exists() else None):
        if program is not None:
            text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
            if "--vhost-user" in text.stdout + text.stderr:
                return program
    pytest.skip("no passt here that speaks vhost-user: scripts/fetch-passt gets Debian 13's")


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The folder on a port of the loopback interface, by HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def listens(path: Path) -> bool:
    """Whether somebody does at this socket: its flags are SO_ACCEPTCON in Linux's include/linux/net.h."""
    sockets = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == "00010000" for line in sockets)


@contextmanager
def listening(passt: str, path: Path) -> Iterator[None]:
    command = [passt, "--foreground", "--vhost-user", "--socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            end = time.monotonic() + DEADLINE
            while not listens(path):
                if process.poll() is not None:
                    pytest.skip(f"passt does not run here: {process.stderr.read().strip()[-200:]}")
                assert time.monotonic() < end
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.stderr.read()


def test_linux_gets_an_address_and_fetches_a_file(passt: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "a folder", tmp_path / "socket"
    folder.mkdir()
    (folder / "page").write_text("from the host\n")
    (folder / "large").write_bytes(bytes(4 << 20))
    with served(folder) as port, listening(passt, path):
        its = fields(SCRIPT.replace("PORT", str(port)), tmp_path / "initrd")
        with Machine(
            "none",
            chardevs=f"socket,id=c,path={path}",
            netdevs="vhost-user,id=n,chardev=c",
            devices="virtio-net-pci,netdev=n,mac=52:54:00:ab:cd:ef",
            **its,
        ) as machine:
            text = printed(machine)
    assert "52:54:00:ab:cd:ef" in text
    assert "from the host" in text
    assert "b5cfa9d6c8febd618f91ac2843d50a1c  -" in text, "4 MiB of zeros"
