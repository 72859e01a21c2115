"""What the emulated host boots: Debian's kernel, and a root file system with this clone's environment in it.

The root file system is two archives. The large one has what hardly changes: Python, its libraries, the packages of the
virtual environment. The small one, made for each run, has vmm, its tests, and firmware. All keep the paths that they
have here, so that the environment, the tracebacks and the compiled bytecode are good on both sides.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from svm_host.archive import Archive

from vmm import directories
from vmm.verify.fetch_linux import BUSYBOX, METAPACKAGE

MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "irqbypass",
    "kvm",
    "kvm-amd",
)
"""In the order of their dependencies; a newer kernel has some built in."""

NOT_IN_THE_LIBRARY = re.compile(
    r"__pycache__|config-.*|dist-packages|ensurepip|idlelib|lib2to3|site-packages|test|tests|tkinter|turtledemo"
)
"""Parts of Python's standard library that no program needs; site-packages are added by themselves."""

NOT_IN_THE_PACKAGES = re.compile(
    r"__pycache__|_distutils_hack|distutils-precedence\.pth|.*__mypyc\..*|ast_serialize|contourpy|fontTools|kiwisolver"
    r"|librt|matplotlib|mpl_toolkits|mypyc?|numpy|numpy\.libs|PIL|pillow\.libs|pip|pkg_resources|ruff|setuptools"
    r"|scikit_build_core|unicorn|.*vmm.*"
)
"""Packages that build, lint or plot: large, and not used by the tests inside. vmm goes into the small archive."""

LIBRARIES_OPENED_BY_NAME = ("libgcc_s.so.1",)
"""glibc's, for pthread_exit."""

ASSEMBLER = ("as", "ld")
"""binutils', for tests whose guests are in assembly."""

BYTECODE_INSIDE = "/bytecode"
"""What init gives as PYTHONPYCACHEPREFIX."""


class HostError(Exception):
    """This machine lacks something; carries the one line for the user."""


def cache() -> Path:
    """Where everything that is downloaded or built stays."""
    return directories.cache() / "svm-host"


# ---------------------------------------------------------------------------------------------------------------------
# Debian packages


def unpacked(package: str, *, depends: str | None = None) -> Path:
    """Return the directory with a Debian package's files, downloaded and unpacked if it is not there yet.

    Args:
        package: its name.
        depends: for a package that only depends on the one that is meant: how the latter's name begins.

    Raises:
        HostError: apt cannot download it.
    """
    directory = cache() / package
    if directory.is_dir():
        return directory
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise HostError(f"{tool} is missing, which gets Debian's {package} for the emulated host: is this Debian?")
    print(f"test-svm-host: downloading Debian's {package}", file=sys.stderr)
    partial = directory.with_name(f"{package}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if not _download(_meant(package, depends), partial):
        # The lists may name a version that the mirror no longer has; only root may renew them.
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "-q", "update"], stdout=subprocess.DEVNULL, check=False)
        if not _download(_meant(package, depends), partial):
            raise HostError(f"apt-get cannot download {package}: is this Debian, are its lists fresh (apt-get update)?")
    for file in partial.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", file, partial], check=True)
        file.unlink()
    partial.rename(directory)
    return directory


def _meant(package: str, depends: str | None) -> str:
    if depends is None:
        return package
    english = {**os.environ, "LC_ALL": "C"}
    command = ["apt-cache", "depends", package]
    shown = subprocess.run(command, env=english, capture_output=True, text=True, check=False).stdout
    names = re.findall(rf"^\s*Depends: ({re.escape(depends)}\S*)", shown, re.MULTILINE)
    return names[0] if names else package


def _download(package: str, directory: Path) -> bool:
    done = subprocess.run(["apt-get", "-q", "download", package], cwd=directory, capture_output=True, check=False)
    return done.returncode == 0


def kernel() -> Path:
    """Return the kernel image of Debian's small kernel for virtual machines."""
    return next((unpacked(METAPACKAGE, depends="linux-image-") / "boot").glob("vmlinuz-*"))


def preload() -> Path:
    """Return the library that mends QEMU, compiled if its source changed; see ``mend_qemu.c``."""
    source = Path(__file__).with_name("mend_qemu.c")
    library = cache() / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-std=c11", "-shared", "-fPIC", "-o", partial, source], check=True)
        partial.rename(library)
    return library


# ---------------------------------------------------------------------------------------------------------------------
# Root file system


def build(clone: Path, output: Path, job: str) -> None:
    """Write both archives, one after the other, to ``output``.

    Args:
        clone: the clone whose environment, package and tests go in.
        output: the file, replaced.
        job: a shell script that init reads; see ``init``.

    Raises:
        HostError: as `unpacked`.
    """
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.copyfile(_base(clone), output)
        with output.open("ab") as file:
            _write_work(Archive(file), clone, job)


def tests_inside(clone: Path, marked: str) -> list[str]:
    """Return the test files with tests to run inside, relative to the clone: collecting others would take minutes.

    Args:
        clone: where to look.
        marked: pytest's expression for the marks, of names and `or`.
    """
    mark = re.compile(rf"\bmark\.({'|'.join(marked.split(' or '))})\b")
    files = sorted((clone / "tests").rglob("test_*.py"))
    return [str(file.relative_to(clone)) for file in files if mark.search(file.read_text("utf-8"))]


def _run_python(clone: Path, *arguments: str | Path) -> str:
    """Run the environment's Python, which leaves its bytecode in the cache; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache() / "bytecode")
    command = [clone / ".venv/bin/python", *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False).stdout


def _add_bytecode(archive: Archive, source: Path) -> None:
    directory = Path(f"{cache()}/bytecode{source}")
    if directory.is_dir():
        archive.add_tree(directory, f"{BYTECODE_INSIDE}{source}", lambda entry: entry.name != ".venv")


def _base(clone: Path) -> Path:
    """Return the large archive, made anew if Python, a package of the environment, or the kernel has changed."""
    packages = _site_packages(clone)
    library = _run_python(clone, "-c", "import os; print(os.path.dirname(os.__file__), end='')")
    installed = sorted(entry.name for entry in packages.glob("*.dist-info"))
    recipe = Path(__file__).read_text("utf-8")
    key = hashlib.sha256(json.dumps([recipe, library, installed, kernel().name]).encode()).hexdigest()
    place = cache() / f"base-{hashlib.sha256(bytes(clone)).hexdigest()[:12]}.cpio"
    stamp = place.with_suffix(".key")
    if not (place.is_file() and stamp.is_file() and stamp.read_text() == key):
        print("test-svm-host: building the root file system", file=sys.stderr)
        partial = place.with_suffix(".partial")
        with partial.open("wb") as file:
            _write_base(Archive(file), clone, Path(library))
        partial.rename(place)
        stamp.write_text(key)
    return place


def _site_packages(clone: Path) -> Path:
    return next((clone / ".venv/lib").glob("python3*/site-packages"))


def _write_base(archive: Archive, clone: Path, library: Path) -> None:
    for name, target in {"bin": "bin", "lib": "lib", "lib64": "lib64", "sbin": "bin"}.items():
        archive.link(name, f"usr/{target}")
    for name in ("dev", "proc", "root", "sys"):
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    for name in ("group", "passwd"):
        archive.add(Path("/etc", name), f"etc/{name}")
    archive.add(next(unpacked(BUSYBOX).rglob("bin/busybox")), "usr/bin/busybox")
    archive.link("usr/bin/sh", "busybox")
    _add_modules(archive)

    packages = _site_packages(clone)
    wanted = [entry for entry in packages.iterdir() if not NOT_IN_THE_PACKAGES.fullmatch(entry.name)]
    archive.add_tree(library, str(library), lambda entry: not NOT_IN_THE_LIBRARY.fullmatch(entry.name))
    archive.add_tree(packages, str(packages), lambda entry: entry in wanted or entry.parent != packages)
    python = _add_with_links(archive, clone / ".venv/bin/python")
    archive.add(clone / ".venv/pyvenv.cfg", f"{clone}/.venv/pyvenv.cfg")
    tools = [_add_with_links(archive, Path("/usr/bin", name)) for name in ASSEMBLER]
    binaries = [python, *tools, *library.glob("lib-dynload/*.so")]
    binaries += [file for entry in wanted for file in (entry.rglob("*.so") if entry.is_dir() else [entry])]
    for needed in _libraries([binary for binary in binaries if _is_elf(binary)]):
        archive.add(needed.resolve(), str(needed.parent.resolve() / needed.name))

    _run_python(clone, "-m", "compileall", "-qq", "-x", r"/(test|tests|lib2to3|site-packages)/", library)
    _run_python(clone, "-m", "compileall", "-qq", *wanted)
    _add_bytecode(archive, library)
    _add_bytecode(archive, packages)
    archive.end()


def _add_modules(archive: Archive) -> None:
    tree = unpacked(METAPACKAGE, depends="linux-image-")
    built_in = next(tree.rglob("modules.builtin")).read_text("utf-8")
    for number, module in enumerate(module for module in MODULES if f"/{module}.ko" not in built_in):
        file = next(tree.rglob(f"{module}.ko*"))
        name = f"modules/{number}-{module}.ko"
        if file.suffix == ".xz":
            plain = tree / f"{module}.ko"
            plain.write_bytes(lzma.decompress(file.read_bytes()))
            file = plain
        archive.add(file, name)


def _add_with_links(archive: Archive, path: Path) -> Path:
    """Add a program and the symbolic links that lead to it; return where they lead."""
    while path.is_symlink():
        archive.add(path, str(path))
        path = path.parent / path.readlink()
    archive.add(path, str(path))
    return path


def _is_elf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def _libraries(binaries: list[Path]) -> list[Path]:
    """Return the shared libraries, and the dynamic loader, that any of these needs."""
    shown = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    found = set(re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", shown, re.MULTILINE))
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    for name in LIBRARIES_OPENED_BY_NAME:
        found.update(re.findall(rf"^\s+{re.escape(name)} \(.*x86-64.*\) => (\S+)", known, re.MULTILINE)[:1])
    return sorted(map(Path, found))


def _write_work(archive: Archive, clone: Path, job: str) -> None:
    """Add what is made anew for each run: vmm with its native modules, its tests, firmware, the job."""
    archive.add(Path(__file__).with_name("init"), "init")
    archive.text("job", job)
    for name in ("pyproject.toml", "README.md"):
        archive.add(clone / name, f"{clone}/{name}")
    for name in ("docs/schemas", "scripts", "tests", "vmm"):
        archive.add_tree(clone / name, f"{clone}/{name}", lambda entry: entry.name != "__pycache__")
    packages = _site_packages(clone)
    for entry in packages.glob("*vmm*"):
        if entry.is_dir():
            archive.add_tree(entry, str(entry))
        else:
            archive.add(entry, str(entry))
    for needed in _libraries(list((packages / "vmm").glob("*.so"))):
        archive.add(needed.resolve(), str(needed.parent.resolve() / needed.name))
    for file in _firmware(clone):
        archive.add(file.resolve(), str(file))
    for name in ("bhyve-firmware", "firmware-identity", "linux"):
        built = cache().parent / name
        if built.is_dir():
            archive.add_tree(built, f"root/.cache/vmm/{name}", lambda entry: entry.name != "work")

    _run_python(clone, "-m", "compileall", "-qq", "vmm", *packages.glob("*vmm*.py"))
    _run_python(
        clone, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *tests_inside(clone, "hw or hw_long")
    )
    _add_bytecode(archive, clone)
    # That of the hook which finds vmm where it was built: without it, each process compiles the hook.
    for file in Path(f"{cache()}/bytecode{packages}").glob("*vmm*.pyc"):
        archive.add(file, f"{BYTECODE_INSIDE}{packages}/{file.name}")
    archive.end()


WITH_SMM = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
"""Debian's ovmf: it has no name, for it is not what a name should stand for."""


def _firmware(clone: Path) -> list[Path]:
    """Return the files of firmware that vmm finds on this host, and the descriptions by which it finds them."""
    found = json.loads(_run_python(clone, "-m", "vmm", "info", "--json"))["firmware"]
    files = [Path(entry[part]) for entry in found.values() for part in ("path", "variables") if entry.get(part)]
    # The clone's own guests, and what is below the cache, go in as they are.
    descriptions = list(Path("/usr/share/qemu/firmware").glob("*.json"))
    files.append(WITH_SMM)
    return [file for file in files + descriptions if file.is_relative_to("/usr") and file.is_file()]
