"""Runs one of Python's fuzz targets, for scripts/fuzz: inputs follow from seeds, one after the other.

usage: run.py TARGET SECONDS DIRECTORY [SEED]   inputs made from SEED, SEED + 1, …; what is found goes to DIRECTORY
       run.py TARGET --seed SEED                this input alone, in this process

An input finds something where it raises what it should not, ends the process, or takes longer than a minute: a
supervisor sees that from outside. The exit status is 1 if anything was found.
"""

import faulthandler
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fuzz_devices
import fuzz_files
import fuzz_memory
import fuzz_records

from vmm.errors import VmmError

Target = Callable[[random.Random], None]

TARGETS: dict[str, Target] = {
    **{f"board_{name}": partial(fuzz_devices.board, name) for name in ("q35", "pc", "bhyve")},
    "flash": fuzz_devices.flash,
    "fwctl": fuzz_devices.fwctl,
    "gdb": fuzz_devices.gdb,
    "firmware": fuzz_files.firmware,
    "kernels": fuzz_files.kernels,
    "verify": fuzz_files.verify,
    "options": fuzz_files.options,
    "snapshots": fuzz_files.snapshots,
    "leftovers": fuzz_memory.leftovers,
    "records": fuzz_records.records,
}

HANG_SECONDS = 60.0
WHERE = struct.Struct("<QQ")
"""The seed that is being tried, and how many were."""


def work(target: Target, where: mmap.mmap, log: Path) -> None:
    """Try one input after the other; comes back only by an error."""
    seed, done = WHERE.unpack_from(where)
    while True:
        try:
            target(random.Random(seed))
        except BaseException:  # noqa: BLE001  # whatever it is, it is found
            log.write_text(traceback.format_exc(), encoding="utf-8")
            return
        seed, done = seed + 1, done + 1
        WHERE.pack_into(where, 0, seed, done)


def start(target: Target, where: mmap.mmap, log: Path) -> int:
    """A worker; its process id."""
    worker = os.fork()
    if worker:
        return worker
    with log.open("w", encoding="utf-8") as errors:
        faulthandler.enable(errors)
        work(target, where, log)
    os._exit(1)


def watch(worker: int, where: mmap.mmap, end: float) -> str:
    """Wait for a worker's end, or for that of the time; "" where nothing was found."""
    last, moved = bytes(where[: WHERE.size]), time.monotonic()
    while time.monotonic() < end:
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return "raised" if os.WIFEXITED(status) else f"died-{signal.Signals(os.WTERMSIG(status)).name}"
        now = bytes(where[: WHERE.size])
        if now != last:
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > HANG_SECONDS:
            break
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    return "hangs" if time.monotonic() - moved > HANG_SECONDS else ""


def supervise(name: str, seconds: float, directory: Path, seed: int) -> int:
    """Try inputs for so long; how many found something."""
    where = mmap.mmap(-1, mmap.PAGESIZE)
    WHERE.pack_into(where, 0, seed, 0)
    end = time.monotonic() + seconds
    found = 0
    log = directory / f"{name}-log"
    while time.monotonic() < end:
        what = watch(start(TARGETS[name], where, log), where, end)
        now, done = WHERE.unpack_from(where)
        if what:
            found += 1
            kept = log.replace(directory / f"{name}-{what}-{now}")
            print(f"fuzz: {name}: seed {now}: {what}\n{kept.read_text(encoding='utf-8')[-3000:]}", file=sys.stderr)
            print(f"  again: {sys.executable} {sys.argv[0]} {name} --seed {now}", file=sys.stderr, flush=True)
        WHERE.pack_into(where, 0, now + 1, done)
    log.unlink(missing_ok=True)
    now, done = WHERE.unpack_from(where)
    print(f"fuzz: {name}: seeds {seed} to {now - 1}: {done} inputs, {found} found")
    return found


def main() -> int:
    """Return the exit status."""
    match sys.argv[1:]:
        case [name, "--seed", seed] if name in TARGETS:
            TARGETS[name](random.Random(int(seed)))
            return 0
        case [name, seconds, directory, *seed] if name in TARGETS and len(seed) <= 1:
            first = int(seed[0]) if seed else int(time.time()) << 20
            return int(supervise(name, float(seconds), Path(directory), first) > 0)
    print(__doc__, file=sys.stderr)
    print(f"targets: {', '.join(TARGETS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VmmError as error:
        print(f"fuzz: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
