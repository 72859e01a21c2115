"""What building firmware from Debian's edk2 source package takes: the source, its tools, and how builds are started."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOOLS = {
    "apt-get": "apt",
    "g++": "g++",
    "gcc": "gcc",
    "iasl": "acpica-tools",
    "make": "make",
    "nasm": "nasm",
    "patch": "patch",
    "xz": "xz-utils",
}
"""Command → the Debian package that has it."""


class BuildError(Exception):
    """Carries the one line that the user sees, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    """Progress, on stderr, by the name of the script that runs."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def check_host() -> None:
    """Refuse, naming every package at once, if the build would fail for want of a tool."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if not Path("/usr/include/uuid/uuid.h").exists():
        missing.add("uuid-dev")
    if missing:
        raise BuildError(f"the build needs more packages: apt-get install {' '.join(sorted(missing))}", 4)


def run(command: list[str], log: Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a step with its output in a log file; on failure, say which and show the end of the log."""
    with log.open("ab") as output:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        print("\n".join(tail), file=sys.stderr)
        raise BuildError(f"'{' '.join(command[:3])} …' ended with status {done.returncode}; the whole log is {log}")


def source_entries(codename: str) -> str:
    """Return deb-src entries, in sources.list's one-line form, for what this machine already fetches binaries from.

    Only the suites of the release itself (`bookworm`, `bookworm-updates`, …) are taken: other vendors' repositories
    have no edk2, and may have no sources at all.
    """
    wanted = re.compile(rf"{re.escape(codename)}([-/].*)?$|stable([-/].*)?$")
    lines: list[str] = []

    def add(options: str, uri: str, suite: str, components: str) -> None:
        if wanted.match(suite):
            lines.append(f"deb-src {options + ' ' if options else ''}{uri} {suite} {components}")

    etc = Path("/etc/apt")
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            match = re.match(r"\s*deb(?:-src)?\s+(\[[^]]*\])?\s*(\S+)\s+(\S+)\s+([^#]+)", line)
            if match:
                options = re.sub(r"\barch=\S+\s*", "", match[1] or "")
                add("" if options.strip("[] ") == "" else options, match[2], match[3], match[4].strip())
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            text = re.sub(r"^#.*\n?", "", stanza, flags=re.MULTILINE)
            fields = {
                key.lower(): value.strip()
                for key, value in re.findall(r"^([\w-]+):((?:.|\n[ \t])*)", text, re.MULTILINE)
            }
            if fields.get("enabled", "yes") == "no":
                continue
            keyring = fields.get("signed-by", "")
            options = f"[signed-by={keyring}]" if keyring and "\n" not in keyring else ""
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    add(options, uri, suite, fields.get("components", "main"))
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def private_apt(work: Path) -> dict[str, str]:
    """Make an apt configuration of our own, so that neither /etc/apt nor root's rights are touched or needed."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    entries = source_entries(release.get("VERSION_CODENAME", ""))
    if not entries:
        raise BuildError(
            "found no Debian repository among this machine's apt sources; the source package edk2 is needed", 4
        )
    apt = work / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(entries)
    (apt / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{apt}/sources.list";\n'
        'Dir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State "{apt}";\n'
        'Dir::State::status "/var/lib/dpkg/status";\n'
        f'Dir::Cache "{apt}";\n'
        'APT::Sandbox::User "root";\n'  # root's downloads as root: the _apt user cannot enter a home directory
    )
    return {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C.UTF-8"}


def fetch_source(work: Path, log: Path, *, without: Sequence[str] = ()) -> Path:
    """Return Debian's edk2 tree, patched as Debian patches it; fetched if it is not there yet.

    Args:
        work: where it is to be.
        log: gets the output of all that is run.
        without: names of patches that are taken back again.
    """
    tree = work / "edk2"
    if tree.is_dir():
        return tree
    say("fetching Debian's edk2 source package")
    env = private_apt(work)
    fetched = work / "source"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    run(["apt-get", "-q", "update"], log, fetched, env)
    # Unpacked here instead of by dpkg-source: some mirrors lack the .dsc, which is not needed for it. apt has checked
    # each file that it left behind against the signed index.
    with log.open("ab") as output:
        subprocess.run(
            ["apt-get", "-q", "source", "--download-only", "edk2"],
            cwd=fetched, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
        )  # fmt: skip
    unpacked = fetched / "edk2"
    unpacked.mkdir()
    for part in ("*.orig.tar.*", "*.debian.tar.*"):
        archive = next((path for path in sorted(fetched.glob(part)) if path.suffix != ".asc"), None)
        if archive is None:
            raise BuildError(f"apt-get fetched no {part} of edk2; is the network there? The whole log is {log}")
        # The first has one directory for all, the second is debian/ itself.
        strip = ["--strip-components=1"] if "orig" in part else []
        run(["tar", "-xf", str(archive), *strip, "-C", str(unpacked)], log, fetched)
    for line in (unpacked / "debian" / "patches" / "series").read_text().splitlines():
        if name := line.partition("#")[0].strip():
            run(["patch", "--quiet", "-p1", "-i", f"debian/patches/{name}"], log, unpacked)
    for name in without:
        patch = unpacked / "debian" / "patches" / name
        if patch.exists():
            run(["patch", "--reverse", "-p1", "-i", str(patch)], log, unpacked)
    unpacked.rename(tree)
    shutil.rmtree(fetched)
    return tree


def version_of(tree: Path) -> str:
    """Debian's version of the source, from its changelog."""
    first = (tree / "debian" / "changelog").read_text().splitlines()[0]
    match = re.match(r"edk2 \(([^)]+)\)", first)
    return match[1] if match else first


def edk2_environment(tree: Path) -> dict[str, str]:
    """The variables that edksetup.sh would export, without its shell; CONF files are copied as it does."""
    tools = tree / "BaseTools"
    for name in ("build_rule", "target", "tools_def"):
        target = tree / "Conf" / f"{name}.txt"
        if not target.exists():
            shutil.copy(tools / "Conf" / f"{name}.template", target)
    path = f"{tools}/BinWrappers/PosixLike:{os.environ.get('PATH', '/usr/bin:/bin')}"
    # Debian's own interpreter first: one from elsewhere may lack modules that edk2's tools of 2022 still import.
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    return {
        **{key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "PYTHONPATH", "VIRTUAL_ENV"}},
        "CONF_PATH": str(tree / "Conf"),
        "EDK_TOOLS_PATH": str(tools),
        "LC_ALL": "C.UTF-8",
        "PATH": path,
        "PYTHONHASHSEED": "1",
        "PYTHON_COMMAND": python,
        "WORKSPACE": str(tree),
    }


def is_built(directory: Path, images: Sequence[str], recipe: int) -> bool:
    """Whether the directory holds what this recipe makes; it is moved into place as its last step, so it is whole."""
    try:
        stamp = json.loads((directory / "build.json").read_text())
    except (OSError, ValueError):
        return False
    return stamp.get("recipe") == recipe and all((directory / name).is_file() for name in images)


def publish(volumes: Path, images: Sequence[str], destination: Path, stamp: dict[str, object]) -> None:
    """Copy what was built, with a stamp that is_built knows, and move it into place as the last step."""
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in images:
        shutil.copy(volumes / name, partial / name)
    sums = {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in images}
    (partial / "build.json").write_text(json.dumps({**stamp, "sha256": sums}, indent=2) + "\n")
    shutil.rmtree(destination, ignore_errors=True)
    partial.rename(destination)


def build(
    cache: Path,
    missing: Callable[[], list[str]],
    build_one: Callable[[Path, str, Path], None],
    *,
    jobs: int,
    without: Sequence[str] = (),
) -> Path | None:
    """Build what is missing, by one process at a time; an interrupted build goes on where it stopped.

    Args:
        cache: the source and the log go into its directory "work".
        missing: tells the names of what is to be built.
        build_one: is given the source's tree, one of these names, and the log.
        jobs: compilers at once.
        without: patches of Debian's that are taken back.

    Returns:
        The directory "work" if anything was built, which is the caller's to keep or to remove.
    """
    if not missing():
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        todo = missing()
        if not todo:
            return None
        check_host()
        work = cache / "work"
        work.mkdir(exist_ok=True)
        log = work / "build.log"
        tree = fetch_source(work, log, without=without)
        say(f"edk2 {version_of(tree)}, {jobs} jobs; log in {log}")
        steps = len(todo) + 1
        started = time.monotonic()
        say(f"[1/{steps}] edk2's build tools")
        run(["make", "-C", str(tree / "BaseTools"), f"-j{jobs}", "ARCH=X64"], log, tree, edk2_environment(tree))
        for number, name in enumerate(todo, 2):
            say(f"[{number}/{steps}] firmware {name} ({time.monotonic() - started:.0f} s so far)")
            build_one(tree, name, log)
        say(f"done in {time.monotonic() - started:.0f} s")
        return work


def status_of(work: Callable[[], object]) -> int:
    """Run what a script is for; say what fails in one line, and return the exit status."""
    try:
        work()
    except BuildError as error:
        say(str(error))
        return error.status
    except OSError as error:
        say(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to continue")
        return 130
    return 0
