"""The Linux that reports: Debian's cloud kernel and an initial RAM disk made here, around a static busybox."""

from __future__ import annotations

import stat
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vmm import directories
from vmm.config.fields import DEFAULT_MEMORY
from vmm.errors import HostError
from vmm.inputs import is_file
from vmm.verify import initramfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

COMMAND_LINE = "console=ttyS0 quiet panic=-1 no_timer_check"
"""Warnings on COM1, where the report goes too; a panic resets the machine, which ends the run. Linux panics unless the
PIT ticks four times in its first 60 ms or so, which a busy host may not manage; where it knows that it runs on KVM, it
leaves that check out by itself (kvm_guest_init in arch/x86/kernel/kvm.c)."""

FILES = ("vmlinuz", "qemu_fw_cfg.ko", "busybox")

DISK_MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"),
    *("fuse", "virtiofs", "failover", "net_failover", "virtio_net"),
)
"""Drivers of a virtio disk, of a folder that the host shares, and of a network card, in the order in which they can be
loaded; not of this report, but of the same package."""

EVENT_MODULES = ("button", "evdev", "pvpanic", "pvpanic-mmio")
"""Drivers of the power button, of what reads its events, and of the port at which a panic is told; likewise."""

BUILT_IN = "modules.builtin"
"""Names the drivers that this kernel has inside: Debian 13's has those of virtio but for the disk's."""


def disk_modules() -> list[Path]:
    """Return the files of `DISK_MODULES` in the cache, without what the kernel has inside."""
    return _modules(DISK_MODULES)


def event_modules() -> list[Path]:
    """Return those of `EVENT_MODULES`."""
    return _modules(EVENT_MODULES)


def _modules(names: Iterable[str]) -> list[Path]:
    inside = built_in(cache())
    return [cache() / f"{name}.ko" for name in names if name not in inside]


def built_in(place: Path) -> set[str]:
    """Return the names of the drivers that the kernel in a directory has inside.

    Raises:
        OSError: the directory has no `BUILT_IN`.
    """
    return {Path(line).stem for line in (place / BUILT_IN).read_text("ascii").split()}


def cache() -> Path:
    """Return the directory, outside of any clone, where they are kept."""
    return directories.cache() / "linux"


@dataclass(frozen=True)
class LinuxFiles:
    """What `vmm.verify.fetch_linux` left in the cache."""

    kernel: Path
    module: Path
    """The driver behind /sys/firmware/qemu_fw_cfg, which Debian does not build in."""
    busybox: Path

    @classmethod
    def find(cls) -> LinuxFiles:
        """Look into the cache.

        Raises:
            HostError: they were never fetched.
        """
        base = cache()
        paths = [base / name for name in FILES]
        if not all(map(is_file, paths)):
            raise HostError(
                f"no Linux to boot in {base}: vmm fetch-linux gets Debian's there; elsewhere, put {', '.join(FILES)} "
                "(a static one) there yourself"
            )
        return cls(*paths)


def memory_for(cpus: int) -> int:
    """Return how much RAM it needs, in bytes, with room for so many CPUs.

    Of Debian's 6.1, 256 CPUs do not start in 256 MiB, and do in 384.
    """
    return max(DEFAULT_MEMORY, (128 + cpus) << 20)


@contextmanager
def options(append: str | None = None) -> Iterator[dict[str, Any]]:
    """Give the fields of a `MachineConfig` that boot it, as long as the context lasts.

    Args:
        append: more words for the kernel's command line.

    Raises:
        HostError: see `LinuxFiles.find`.
    """
    files = LinuxFiles.find()
    with TemporaryDirectory(prefix="vmm-linux-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(build_initramfs(files))
        words = COMMAND_LINE if append is None else f"{COMMAND_LINE} {append}"
        yield {"kernel": files.kernel, "initrd": initrd, "append": words}


def build_initramfs(files: LinuxFiles) -> bytes:
    """Build the initial RAM disk: /init, busybox, the module, /dev/console."""
    init = resources.files("vmm.verify").joinpath("linux_init.sh").read_bytes()
    return b"".join(
        (
            _entry("bin", stat.S_IFDIR | 0o755),
            _entry("dev", stat.S_IFDIR | 0o755),
            _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            _entry("bin/busybox", stat.S_IFREG | 0o755, files.busybox.read_bytes()),
            _entry("qemu_fw_cfg.ko", stat.S_IFREG | 0o644, files.module.read_bytes()),
            _entry("init", stat.S_IFREG | 0o755, init),
            initramfs.header(initramfs.TRAILER, 0),
        )
    )


def build_script_initramfs(
    files: LinuxFiles,
    script: str,
    programs: Mapping[str, bytes] = MappingProxyType({}),
    modules: Sequence[Path] | None = None,
) -> bytes:
    """Build an initial RAM disk that runs a shell script, with drivers loaded, and powers off.

    Args:
        files: kernel and busybox.
        script: for busybox's shell.
        programs: others that are in PATH, by name.
        modules: the drivers' files, in the order in which they can be loaded; those of disks.
    """
    busybox = "/bin/busybox"
    modules = disk_modules() if modules is None else modules
    init = (
        f"#!{busybox} sh\n{busybox} mkdir /proc /sys\n{busybox} --install -s /bin\nexport PATH=/bin\n"
        "mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n"
        + "".join(f"insmod /{module.name}\n" for module in modules)
        + f"{script}\nstty -F /dev/console -echo # waits until everything is out (TCSADRAIN)\npoweroff -f\n"
    )
    return b"".join(
        (
            *(_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev")),
            _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            _entry("bin/busybox", stat.S_IFREG | 0o755, files.busybox.read_bytes()),
            *(_entry(f"bin/{name}", stat.S_IFREG | 0o755, data) for name, data in programs.items()),
            *(_entry(module.name, stat.S_IFREG | 0o644, module.read_bytes()) for module in modules),
            _entry("init", stat.S_IFREG | 0o755, init.encode()),
            initramfs.header(initramfs.TRAILER, 0),
        )
    )


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    return initramfs.header(name, mode, len(data), device=device) + data + initramfs.padding(len(data))
