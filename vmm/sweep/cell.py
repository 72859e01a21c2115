"""One cell of a sweep: `vmm verify` as a process of its own, so that its end, whatever that is, is one result.

Nothing here needs more than the cell, so that an executor may run it on another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import ExitStatus
from vmm.legible import legible, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA: Final = "vmm-sweep/1"
"""Names a line of the results; changes when a key goes or means something else."""

_GRACE_S: Final = 30.0
"""How much longer than its deadline a process may take before it is killed."""

_MOST_WRONG: Final = 20
_MOST_TEXT: Final = 300


class Outcome(StrEnum):
    """What became of a cell."""

    ARRIVED = "arrived"
    """All that was offered."""
    ALTERED = "altered"
    """Something did not arrive, or is not true."""
    SILENT = "no report"
    """The report guest never told anything: firmware hung, failed, or did not start it."""
    REFUSED = "refused"
    """vmm does not make such a machine, and says why."""
    LACKING = "host lacks"
    """The host cannot run it."""
    DIED = "died"
    """The process ended in another way."""


_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_stopped = threading.Event()


class StoppedError(Exception):
    """The sweep was interrupted: there is no result."""


def run_cell(axes: dict[str, str], words: Sequence[str], deadline: float) -> dict[str, Any]:
    """Verify one machine; return its result, a line of the results' file.

    Args:
        axes: the axes' values by name.
        words: of the command line.
        deadline: seconds that the guest may take.

    Raises:
        StoppedError: somebody interrupted it.
    """
    command = [sys.executable, "-P", "-m", "vmm", "verify", *words, "--timeout", f"{deadline:g}", "--json", "-"]
    began = time.monotonic()
    with _lock:
        if _stopped.is_set():
            raise StoppedError
        # A signal from the terminal is the sweep's to see, which then ends what it has started.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        _running.add(process)
    killed = False
    try:
        try:
            out, said = process.communicate(timeout=deadline + _GRACE_S)
        except subprocess.TimeoutExpired:
            killed = True
            process.kill()
            out, said = process.communicate()
    finally:
        with _lock:
            _running.discard(process)
        if process.poll() is None:
            process.kill()
            process.wait()
    if _stopped.is_set():
        raise StoppedError
    lines = [
        legible(line).removeprefix("vmm: ") for line in said.decode("utf-8", "replace").splitlines() if line.strip()
    ]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "axes": axes,
        "words": [*words],
        "seconds": round(time.monotonic() - began, 3),
        "node": platform.node(),
        "exit_status": process.returncode,
    }
    return result | _judged(process.returncode, out, lines, killed=killed)


def stop_all() -> None:
    """End the processes of this one that run now, and start no more."""
    with _lock:
        _stopped.set()
        for process in _running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def resume() -> None:
    """Let cells run again, after `stop_all`."""
    _stopped.clear()


def _judged(status: int, out: bytes, lines: list[str], *, killed: bool) -> dict[str, Any]:
    said = shortened(lines[-1], _MOST_TEXT) if lines else ""
    if status in {ExitStatus.OK, ExitStatus.GUEST_FAILED}:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            return _verified(json.loads(out))
    if status == ExitStatus.USAGE:
        # Each line is a reason of its own.
        return {"outcome": Outcome.REFUSED.value, "why": shortened("; ".join(lines), _MOST_TEXT)}
    if status == ExitStatus.HOST_LACKS:
        return {"outcome": Outcome.LACKING.value, "why": said}
    if killed:
        why = "it did not keep to its deadline, and was killed"
    elif status < 0:
        why = f"by signal {-status}, {signal.strsignal(-status) or 'unknown'}"
    else:
        why = f"with status {status}: {said or 'it said nothing'}"
    return {"outcome": Outcome.DIED.value, "why": why}


def _verified(told: dict[str, Any]) -> dict[str, Any]:
    """What of a verification a sweep keeps: how much of each subject is right, and what is not."""
    subjects: dict[str, list[int]] = {}
    wrong: list[dict[str, str]] = []
    for subject in told["subjects"]:
        bad = [row for row in subject["rows"] if row["verdict"] in _WRONG]
        subjects[subject["name"]] = [len(subject["rows"]) - len(bad), len(subject["rows"])]
        wrong += [_told(subject["name"], row) for row in bad[:_MOST_WRONG]]
    silent = "report guest" in subjects
    outcome = Outcome.SILENT if silent else Outcome.ARRIVED if told["ok"] else Outcome.ALTERED
    return {
        "outcome": outcome.value,
        "why": "; ".join(text for text in (wrong[0]["difference"], wrong[0]["reason"]) if text) if wrong else "",
        "machine": told["machine"],
        "image": told["firmware"],
        "boot_s": told["elapsed_s"],
        "subjects": subjects,
        "wrong": wrong,
    }


_WRONG: Final = frozenset({"altered", "missing", "untrue"})
"""`vmm.verify.values.Verdict`, those that are not ok."""


def _told(subject: str, row: dict[str, str]) -> dict[str, str]:
    names = ("name", "verdict", "offered", "found", "true", "difference", "reason")
    return {"subject": subject} | {name: shortened(row[name], _MOST_TEXT) for name in names}
