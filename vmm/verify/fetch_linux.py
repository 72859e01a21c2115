"""Debian's cloud kernel and a static busybox, downloaded by apt and unpacked into a cache; nothing is installed."""

from __future__ import annotations

import fcntl
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError
from vmm.inputs import is_file
from vmm.verify.linux_guest import BUILT_IN, DISK_MODULES, EVENT_MODULES, FILES, built_in, cache

if TYPE_CHECKING:
    from collections.abc import Callable

METAPACKAGE: Final = "linux-image-cloud-amd64"
"""Depends on the current kernel of that kind."""

BUSYBOX: Final = "busybox-static"

_MEMBERS: Final = {
    "vmlinuz": re.compile(r"boot/vmlinuz-[^/]+"),
    "qemu_fw_cfg.ko": re.compile(r".*/qemu_fw_cfg\.ko(\.xz)?"),
    "busybox": re.compile(r"(usr/)?bin/busybox"),
    BUILT_IN: re.compile(r".*/modules\.builtin"),
    **{f"{name}.ko": re.compile(rf".*/{name}\.ko(\.xz)?") for name in (*DISK_MODULES, *EVENT_MODULES)},
}


def fetch(*, again: bool, say: Callable[[str], object]) -> None:
    """Put the files into the cache.

    Args:
        again: even if they are there.
        say: is told what takes time.

    Raises:
        HostError: this is no Debian, its archive cannot be reached, or a package is not what it was.
    """
    place = cache()
    if _complete(place) and not again:
        return
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise HostError(
                f"no {tool} here: Debian or a relative has it; elsewhere, put {', '.join(FILES)} into {place}"
            )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may have done it all meanwhile
            if again or not _complete(place):
                with TemporaryDirectory(prefix="linux.", dir=place.parent) as work:
                    _fetch(Path(work), place, say)
    except OSError as error:
        raise HostError(
            f"cannot write to {place.parent}: {error.strerror}; XDG_CACHE_HOME names another place for caches"
        ) from error


def _complete(place: Path) -> bool:
    return is_file(place / "packages") and not _missing(place)


def _missing(place: Path) -> list[str]:
    """Which files are not there; a driver that the kernel has inside needs none."""
    lacking = [name for name in _MEMBERS if not is_file(place / name)]
    if BUILT_IN in lacking:
        return lacking
    inside = {f"{name}.ko" for name in built_in(place)}
    return [name for name in lacking if name not in inside]


def _fetch(work: Path, place: Path, say: Callable[[str], object]) -> None:
    # An empty answer means that apt has no lists yet.
    image = _image_package() or (_update_lists() and _image_package())
    if not image:
        raise HostError(f"apt knows no {METAPACKAGE}: run apt-get update, or see that Debian is among its sources")
    say(f"fetching {image} and {BUSYBOX}")
    problem = _download(work, image)
    # Lists that are too old name packages that are gone.
    if problem and _update_lists():
        problem = _download(work, _image_package() or image)
    if problem:
        raise HostError(
            f"apt cannot download {image} and {BUSYBOX}: {problem}; is the network there, and are apt's lists fresh?"
        )
    new = work / "new"
    new.mkdir()
    names = []
    for package in sorted(work.glob("*.deb")):
        names.append(_output("dpkg-deb", "--show", str(package)).strip())
        _unpack(package, new)
    if missing := _missing(new):
        raise HostError(f"{' and '.join(names)} have no {', '.join(missing)}")
    (new / "packages").write_text("\n".join(names) + "\n", encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)


def _output(*command: str) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _image_package() -> str | None:
    found = re.search(r"^\s*Depends: (linux-image-\S+)", _output("apt-cache", "depends", METAPACKAGE), re.MULTILINE)
    return found and found[1]


def _update_lists() -> bool:
    """Renew apt's lists, which only root may."""
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=600", "update"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _download(work: Path, image: str) -> str | None:
    """Download both packages; return apt's last words if it fails."""
    # As root, apt would read as user _apt, who cannot enter a private cache.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", image, BUSYBOX]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["it does not say why"])[-1]


def _unpack(package: Path, directory: Path) -> None:
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=False).stdout
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            for member in archive:
                path = str(PurePosixPath(member.name))
                for name, pattern in _MEMBERS.items():
                    if (
                        member.isfile()
                        and pattern.fullmatch(path)
                        and (file := archive.extractfile(member)) is not None
                    ):
                        data = file.read()
                        (directory / name).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    except (tarfile.TarError, lzma.LZMAError) as error:
        raise HostError(f"{package.name} cannot be unpacked: {error}") from error
